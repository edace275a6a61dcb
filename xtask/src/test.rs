//! `cargo xtask test`: everything, from the core's decisions to the promises on real servers.

pub(crate) mod binaries;
pub(crate) mod needs;
mod tally;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use xtask::tree;

use self::binaries::Binary;
use self::tally::Tally;
use crate::guests;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only what needs no servers
    #[arg(long)]
    fast: bool,
    /// Name the commands that would install what is missing, and fail, instead of running them
    #[arg(long)]
    no_install: bool,
    /// Make the guests' toolchain from Debian's packages if there is none, and fail if guests cannot be built
    #[arg(long)]
    bootstrap: bool,
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "FILTER")]
    only: Option<String>,
}

/// Runs every step, even after one has failed, and ends with the sum of all tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    needs::meet(args)?;
    let mut run = Run { filter: args.only.clone(), tally: Tally::default(), promises: None, broken: Vec::new() };
    let mut built = Vec::new();
    run.step("build", |_| {
        built = binaries::build()?;
        Ok(())
    });
    let binaries = |package: &'static [&'static str]| built.iter().filter(move |binary| binary.is_unit_of(package));
    run.step("core", |run| run.binaries(binaries(&["tidemill-core"])));
    run.step("host, with the contracts of its seams", |run| run.binaries(binaries(&["tidemill"])));
    run.step("SDK", |run| run.binaries(binaries(&["tidemill-guest", "tidemill-guest-macros"])));
    run.step("SDK's documentation", |run| run.cargo(&["test", "--locked", "--doc", "--package", "tidemill-guest"]));
    run.step("chores and means", |run| run.binaries(binaries(&["xtask", "tests", "bench"])));
    run.step("guests as native code", |run| {
        run.cargo(&["test", "--locked", "--workspace", "--manifest-path", "guests/Cargo.toml"])
    });
    if args.fast {
        eprintln!("\nNOT RUN with --fast: guests from source, end-to-end promises");
        return run.close();
    }
    let mut guests = None;
    run.step("guests from source", |_| {
        guests = Some(guests_from_source(args.bootstrap)?);
        Ok(())
    });
    run.step("promises, end to end on real Kafka and PostgreSQL", |run| {
        let before = run.tally.passed + run.tally.failed;
        let guests = guests.clone().unwrap_or_else(guests::prebuilt);
        eprintln!("with the guests in {}", guests.display());
        for promises in built.iter().filter(|binary| binary.is_promises()) {
            run.binary(promises, &[("TIDEMILL_GUESTS", &guests), ("TIDEMILL_BIN", &binaries::host())])?;
        }
        run.promises = Some(run.tally.passed + run.tally.failed - before);
        Ok(())
    });
    run.close()
}

/// One run of everything, adding up.
struct Run {
    filter: Option<String>,
    tally: Tally,
    /// How many promises were run, once they were.
    promises: Option<u64>,
    /// Steps that ended with an error of their own, such as a failed build.
    broken: Vec<&'static str>,
}

impl Run {
    fn step(&mut self, name: &'static str, body: impl FnOnce(&mut Run) -> Result<()>) {
        eprintln!("\n== {name}");
        let started = Instant::now();
        let ended = body(self);
        let seconds = started.elapsed().as_secs_f64();
        match ended {
            Ok(()) => eprintln!("== {name}: {seconds:.1} s"),
            Err(error) => {
                eprintln!("== {name}: FAILED after {seconds:.1} s: {error:#}");
                self.broken.push(name);
            }
        }
    }

    fn binaries<'a>(&mut self, binaries: impl Iterator<Item = &'a Binary>) -> Result<()> {
        let mut count = 0;
        for binary in binaries {
            self.binary(binary, &[])?;
            count += 1;
        }
        if count == 0 {
            bail!("no test binary was built for it");
        }
        Ok(())
    }

    fn binary(&mut self, binary: &Binary, variables: &[(&str, &Path)]) -> Result<()> {
        eprintln!("-- {binary}");
        let mut command = binary.command();
        command.args(&self.filter);
        for (name, value) in variables {
            command.env(name, value);
        }
        self.tally.count(&mut command)
    }

    fn cargo(&mut self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(tree::root()).args(arguments).arg("--").args(&self.filter);
        self.tally.count(&mut command)
    }

    /// The last lines, and whether all is well.
    fn close(self) -> Result<()> {
        eprintln!();
        if let Some(filter) = &self.filter {
            eprintln!("only tests whose name contains `{filter}` were run");
        }
        if self.tally.ignored > 0 {
            eprintln!("{} tests are marked to be ignored, which counts as failed", self.tally.ignored);
        }
        if !self.broken.is_empty() {
            eprintln!("steps that failed: {}", self.broken.join(", "));
        }
        if let Some(promises) = self.promises {
            eprintln!("{promises} promises run");
        }
        // A step that broke without a failed test counts as one, so that the closing line never looks well when all is not.
        let failed = (self.tally.failed + self.tally.ignored).max(self.broken.len() as u64);
        tally::print(&format!("{} passed, {failed} failed", self.tally.passed));
        if failed > 0 {
            bail!("not everything passed");
        }
        Ok(())
    }
}

/// Builds the guests; where there is no toolchain for them and none is to be made, answers the prebuilt ones and says so.
fn guests_from_source(bootstrap: bool) -> Result<PathBuf> {
    if !bootstrap && !guests::has_toolchain() {
        eprintln!("NOT BUILT FROM SOURCE: there is no toolchain; `cargo xtask guests` says how to get one");
        return Ok(guests::prebuilt());
    }
    guests::from_source(bootstrap)
}
