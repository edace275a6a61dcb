//! The project's chores: `cargo xtask CHORE`.

#![allow(clippy::print_stdout, reason = "what a chore answers goes to standard output")]

use std::process::ExitCode;

use clap::Parser;

mod bench;
mod demo;
mod faults;
mod guests;
mod lint;
mod serve;
mod test;

/// Tidemill's chores.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Chore {
    /// Runs a benchmark side by side with the native limit
    Bench(bench::Args),
    /// Shows the main job: post, drop in a handler, swap another, count that nothing is lost
    Demo(demo::Args),
    /// Holds every delivery promise under every fault, on real servers
    Faults(faults::Args),
    /// Builds the guests' components from source
    Guests(guests::Args),
    /// Starts real Kafka and PostgreSQL on free ports until Ctrl-C
    Lab(serve::Args),
    /// Checks formatting, lints and, with cargo-deny, dependencies
    Lint(lint::Args),
    /// Runs every test, up to the end-to-end promises on real Kafka and PostgreSQL
    Test(test::Args),
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Bench(args) => bench::run(&args),
        Chore::Demo(args) => demo::run(&args),
        Chore::Faults(args) => faults::run(&args),
        Chore::Guests(args) => guests::run(&args),
        Chore::Lab(args) => serve::run(&args),
        Chore::Lint(args) => lint::run(&args),
        Chore::Test(args) => test::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
