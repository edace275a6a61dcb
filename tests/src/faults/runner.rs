//! Runs faults one after another, says how each went, and counts what is wrong.

use std::time::Instant;

use anyhow::Result;

use super::lab::{Disk, Lab, Which};
use super::mode::Mode;
use super::report::Row;
use super::stage::{Ended, NotInjected, Stage};
use super::{FAULTS, Fault, Form};

/// How often a turn is begun again in which nothing was in flight when the fault came.
const INJECTIONS_MAX: u32 = 3;
/// A host says so much more than it is asked for that only the end of it is shown.
const LOG_LINES: usize = 30;

/// What came of all faults.
#[derive(Default)]
pub struct Outcome {
    /// A row for each fault and mode that was run.
    pub rows: Vec<Row>,
    /// Faults that this machine can't have, and why.
    pub not_run: Vec<(&'static str, String)>,
}

/// Runs the faults whose name contains `only`, in the modes whose name contains `mode`, in this form.
pub fn run(form: Form, only: Option<&str>, mode: Option<&str>, seed: u64) -> Outcome {
    let mut lab = Lab::default();
    let mut outcome = Outcome::default();
    let chosen: Vec<&Fault> = FAULTS.iter().filter(|fault| only.is_none_or(|only| fault.name.contains(only))).collect();
    for (number, fault) in chosen.iter().enumerate() {
        if let Some(reason) = impossible(fault) {
            eprintln!("NOT RUN {}: {reason}", fault.name);
            outcome.not_run.push((fault.name, reason));
            continue;
        }
        let all = form == Form::Full || mode.is_some();
        let modes = if all { fault.modes } else { &fault.modes[..fault.quick_modes] };
        for mode in modes.iter().filter(|chosen| mode.is_none_or(|mode| chosen.name.contains(mode))) {
            eprintln!("-- {} of {}: {}, {}: {}", number + 1, chosen.len(), fault.name, mode.name, fault.story);
            let row = one(&mut lab, fault, mode, form, seed);
            eprintln!("{}", row.line());
            row.wrong.iter().for_each(|wrong| eprintln!("{wrong}"));
            outcome.rows.push(row);
        }
        for which in [Which::Three, Which::Small] {
            if chosen[number + 1..].iter().all(|later| later.plan.cluster() != which) {
                lab.end(which);
            }
        }
    }
    outcome
}

fn impossible(fault: &Fault) -> Option<String> {
    if !fault.plan.small_disk {
        return None;
    }
    Disk::is_possible().err().map(|error| format!("a small file system can't be mounted here: {error:#}"))
}

/// One row.
fn one(lab: &mut Lab, fault: &Fault, mode: &'static Mode, form: Form, seed: u64) -> Row {
    let started = Instant::now();
    let runs = if form == Form::Quick { 1 } else { fault.times };
    match played(lab, fault, mode, form, seed) {
        Ok(ended) => Row::new(fault, mode, runs, ended, started.elapsed()),
        Err(error) => Row::failed(fault, mode, runs, &error, started.elapsed()),
    }
}

fn played(lab: &mut Lab, fault: &Fault, mode: &'static Mode, form: Form, seed: u64) -> Result<Ended> {
    let runs = if form == Form::Quick { 1 } else { fault.times };
    let mut stage = Stage::start(lab, fault.plan, mode, seed)?;
    for turn in 1..=runs {
        let mut tries = 1;
        loop {
            match stage.strike(|stage| (fault.inject)(stage, form)) {
                Ok(()) => break,
                Err(error) if error.is::<NotInjected>() && tries < INJECTIONS_MAX => tries += 1,
                Err(error) => {
                    eprintln!("{}", stage.log_tails(LOG_LINES));
                    return Err(error.context(format!("turn {turn} of {runs}")));
                }
            }
        }
        let recovery = stage.recoveries().last().copied().unwrap_or_default();
        eprintln!("   {turn}/{runs}: amid {} in flight, recovered in {recovery:.1?}", stage.last_in_flight());
    }
    let tails = stage.log_tails(LOG_LINES);
    let ended = stage.finish().inspect_err(|_| eprintln!("{tails}"))?;
    if !ended.verdict.faults.0.is_empty() {
        eprintln!("{tails}");
    }
    Ok(ended)
}
