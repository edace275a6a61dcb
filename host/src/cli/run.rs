//! `tidemill run`: the host, until SIGTERM.

use std::path::PathBuf;

use super::{ConfigPath, Failure};
use crate::app;

/// Flags of `tidemill run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigPath,
    /// Runs one role, so that taking records in lives and scales apart from processing them.
    #[arg(long)]
    only: Option<app::Role>,
    /// Once ready, writes the bound addresses to this file as JSON.
    #[arg(long)]
    ready_file: Option<PathBuf>,
}

/// Runs the host and returns when it has drained.
pub fn run(args: &Args) -> Result<(), Failure> {
    let config = super::check::configuration(&args.config.config)?;
    super::block_on(app::run(config, args.only, args.ready_file.clone()))
}
