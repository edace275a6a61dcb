//! The binary: parses flags, calls the library and maps errors to exit codes.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tidemill::cli::{Cli, Failure};

fn main() -> ExitCode {
    let failure = match Cli::parse().execute() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    let mut stderr = std::io::stderr().lock();
    // Nobody is left to be told when standard error is gone.
    match failure {
        Failure::Failed(error) => {
            writeln!(stderr, "tidemill: {error:#}").ok();
            ExitCode::from(1)
        }
        Failure::Refused(problems) => {
            for problem in problems {
                writeln!(stderr, "{problem}").ok();
            }
            ExitCode::from(2)
        }
    }
}
