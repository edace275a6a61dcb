//! `cargo xtask faults`: every delivery promise under every fault, or the host broken on purpose.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::guests;
use crate::test::{binaries, needs};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Flags of the faults, such as `--quick --only host --json rows.json`, `--breakages` or `--list`; `-- --help` tells all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<String>,
}

/// Builds the host and the program that has the faults, which does not know the host, and runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    needs::meet_for_promises()?;
    let faults = binaries::build_faults()?;
    let status = Command::new(faults)
        .args(&args.flags)
        .env("TIDEMILL_BIN", binaries::host())
        .env("TIDEMILL_GUESTS", guests_in_use())
        .status()
        .context("can't run the faults")?;
    ensure!(status.success(), "its message is above");
    Ok(())
}

/// Those built from source, where that was done, or those that are checked in.
fn guests_in_use() -> PathBuf {
    let built = xtask::tree::target().join("guests");
    if built.exists() { built } else { guests::prebuilt() }
}
