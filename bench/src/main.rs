//! `cargo xtask bench`: Tidemill beside the native limit and beside its peers, on one real broker, in one run.
//!
//! Each run of a contender is a process of its own, so that its CPU time is its own. Contenders take turns, and the native
//! loop takes two turns in each round: the difference between the two is what the machine itself does to a figure.

#![allow(clippy::print_stdout, reason = "figures go to standard output")]

mod backlog;
mod dispatch;
mod native;
mod native_transactions;
mod neighbours;
mod order;
mod peer;
mod pipeline;
mod report;
mod run;
mod topics;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kafka → identity → Kafka, beside native loops and Kafka Streams
    Dispatch(Size),
    /// The same, only what is exactly once
    ExactlyOnce(Size),
    /// Records that take their time, one after another where they must: beside Confluent Parallel Consumer
    Order {
        #[command(flatten)]
        size: Size,
        /// One row of the table, such as "20 keys"
        #[arg(long)]
        only: Option<String>,
    },
    /// What a slow key costs the other keys, and a rebalance the partitions that stay
    Neighbours(Size),
    /// A backlog of days, drained while new records come: beside a native loop
    Backlog {
        #[command(flatten)]
        size: Size,
        /// How many records the backlog has
        #[arg(long)]
        records: Option<u64>,
    },
    /// One run of one contender; the benchmark calls itself with it
    #[command(hide = true)]
    Run(run::Run),
    /// One run of a row of `order`
    #[command(hide = true)]
    Work(order::Work),
    /// A member of the group of `neighbours`, until its standard input ends
    #[command(hide = true)]
    Member(neighbours::member::Member),
}

#[derive(clap::Args)]
struct Size {
    /// Fewer records and rounds
    #[arg(long)]
    quick: bool,
    /// Writes the figures as a list of JSON objects
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Dispatch(size) => dispatch::dispatch(false, size.quick, size.json.as_deref()),
        Command::ExactlyOnce(size) => dispatch::dispatch(true, size.quick, size.json.as_deref()),
        Command::Order { size, only } => order::order(size.quick, only.as_deref(), size.json.as_deref()),
        Command::Neighbours(size) => neighbours::neighbours(size.quick, size.json.as_deref()),
        Command::Backlog { size, records } => backlog::backlog(size.quick, records, size.json.as_deref()),
        Command::Run(run) => run.run(),
        Command::Work(work) => work.run(),
        Command::Member(member) => member.run(),
    }
}
