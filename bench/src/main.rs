//! `cargo xtask bench`: Tidemill beside the native limit, on one real broker, in one run.
//!
//! Each run of a contender is a process of its own, so that its CPU time is its own. Contenders take turns, and the native
//! loop takes two turns in each round: the difference between the two is what the machine itself does to a figure.

#![allow(clippy::print_stdout, reason = "figures go to standard output")]

mod dispatch;
mod native;
mod native_transactions;
mod pipeline;
mod report;
mod run;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kafka → identity → Kafka
    Dispatch {
        /// Fewer records and rounds
        #[arg(long)]
        quick: bool,
        /// Writes the figures as a list of JSON objects
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// One run of one contender; the benchmark calls itself with it
    #[command(hide = true)]
    Run(run::Run),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Dispatch { quick, json } => dispatch::dispatch(quick, json.as_deref()),
        Command::Run(run) => run.run(),
    }
}
