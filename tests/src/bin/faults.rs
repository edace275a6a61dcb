//! `cargo xtask faults` starts this: the faults, or the host broken on purpose.

#![allow(clippy::print_stdout, reason = "the table is what was asked for")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use tests::breakages::BREAKAGES;
use tests::faults::lab::Lab;
use tests::faults::mode::Mode;
use tests::faults::report::{self, Breakage};
use tests::faults::runner::{self, Choice};
use tests::faults::table::FAULTS;
use tests::faults::{Fault, Form};

/// Every delivery promise under every fault, on real servers, through the real binary.
#[derive(Parser)]
#[command(bin_name = "cargo xtask faults")]
struct Args {
    /// Each fault once and briefly, within 12 minutes for all; otherwise as often and as long as it takes to be sure
    #[arg(long)]
    quick: bool,
    /// Only the fault, or breakage, with this name, or all whose names have it in them
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Only modes of delivery whose name contains this
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// Also write the figures here, as a list of objects
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Break the host on purpose instead, in the ways that have a story here, and show that each is caught
    #[arg(long, conflicts_with = "quick")]
    breakages: bool,
    /// Where the random moments come from; printed by each run
    #[arg(long)]
    seed: Option<u64>,
    /// How long the soak takes, instead of an hour or, in the quick form, 20 s
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: Option<u64>,
    /// Name the faults, and run none
    #[arg(long)]
    list: bool,
}

/// What the quick form may take.
const QUICK_MAX: Duration = Duration::from_secs(12 * 60);

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.list {
        list();
        Ok(())
    } else if args.breakages {
        breakages(&args)
    } else {
        faults(&args)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    println!(
        "| fault | what is done | modes of the quick form | and of the full one | times there | recovery is counted from → to | aim |\n\
         | --- | --- | --- | --- | ---: | --- | --- |"
    );
    let names = |modes: &[&Mode]| modes.iter().map(|mode| mode.name).collect::<Vec<_>>().join(", ");
    for Fault { name, story, quick, full, times, clock, aim, .. } in FAULTS {
        let aim = aim.map_or(String::new(), |aim| format!("{} s", aim.as_secs_f64()));
        println!("| {name} | {story} | {} | {} | {times} | {clock} | {aim} |", names(quick), names(full));
    }
}

fn faults(args: &Args) -> Result<()> {
    let started = Instant::now();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let form = if args.quick { Form::QUICK } else { Form::FULL };
    let form = args.minutes.map_or(form, |minutes| Form { soak: Duration::from_secs(60 * minutes), ..form });
    eprintln!("seed {seed}");
    let outcome = runner::run(form, &Choice { only: args.only.clone(), mode: args.mode.clone() }, seed);
    let took = started.elapsed();
    println!("\n{}", report::table(&outcome.rows));
    for (fault, reason) in &outcome.not_run {
        println!("NOT RUN {fault}: {reason}");
    }
    println!("seed {seed}; all of it took {:.0} s", took.as_secs_f64());
    write(args, &outcome.rows)?;
    ensure!(!outcome.rows.is_empty() || !outcome.not_run.is_empty(), "no fault has such a name; --list names them");
    let failed: Vec<&str> = outcome.rows.iter().filter(|row| !row.is_well()).map(|row| row.fault).collect();
    ensure!(failed.is_empty(), "promises were broken under: {}", failed.join(", "));
    if args.quick && took > QUICK_MAX {
        bail!("the quick form took {took:.0?}; it may take {QUICK_MAX:?}");
    }
    Ok(())
}

fn breakages(args: &Args) -> Result<()> {
    let mut lab = Lab::default();
    let chosen = BREAKAGES.iter().filter(|breakage| args.only.as_ref().is_none_or(|only| breakage.name.contains(only)));
    let mut rows = Vec::new();
    for breakage in chosen {
        eprintln!("-- {}", breakage.name);
        // A story that could not be told proves nothing: the breakage was not caught.
        let checks = match breakage.run(&mut lab) {
            Ok(faults) => faults.checks(),
            Err(error) => {
                eprintln!("{error:#}");
                Vec::new()
            }
        };
        eprintln!("   seen by: {}", checks.join("; "));
        rows.push(Breakage { breakage: breakage.name, caught: breakage.is_caught(&checks), by: checks });
    }
    println!("\n| breakage | caught | by |\n| --- | --- | --- |");
    for row in &rows {
        println!("| {} | {} | {} |", row.breakage, if row.caught { "yes" } else { "NO" }, row.by.join("; "));
    }
    write(args, &rows)?;
    ensure!(!rows.is_empty(), "no breakage has such a name");
    let missed: Vec<&str> = rows.iter().filter(|row| !row.caught).map(|row| row.breakage).collect();
    ensure!(missed.is_empty(), "not caught: {}", missed.join(", "));
    Ok(())
}

fn write<T: Serialize>(args: &Args, rows: &[T]) -> Result<()> {
    let Some(file) = &args.json else { return Ok(()) };
    let text = serde_json::to_string_pretty(rows)?;
    std::fs::write(file, text + "\n").with_context(|| format!("write `{}`", file.display()))
}
