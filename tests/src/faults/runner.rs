//! Runs faults one after another, says how each went, and counts what is wrong.

use std::time::Instant;

use anyhow::Result;

use super::lab::{Disk, Lab, Which};
use super::mode::Mode;
use super::report::Row;
use super::stage::{Ended, NotInjected, Play, Stage};
use super::{Fault, Form};

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

/// What is to be run.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// The fault with this name, or all whose names have it in them; `None`: all.
    pub only: Option<String>,
    /// Only modes whose name contains this.
    pub mode: Option<String>,
}

impl Choice {
    /// The rows, in the order of the table. Who names a fault or a mode gets all of them in the quick form, too.
    fn rows(&self, form: Form) -> Vec<(&'static Fault, &'static Mode)> {
        let is_brief = form.is_quick && self.only.is_none() && self.mode.is_none();
        let more = |fault: &'static Fault| if is_brief { &[] } else { fault.full };
        let modes = |fault: &'static Fault| fault.quick.iter().chain(more(fault)).map(move |mode| (fault, *mode));
        let is_chosen = |mode: &Mode| self.mode.as_ref().is_none_or(|chosen| mode.name.contains(chosen));
        let rows = Fault::chosen(self.only.as_deref()).into_iter().flat_map(modes);
        rows.filter(|(_, mode)| is_chosen(mode)).collect()
    }
}

/// Runs what is chosen, in this form.
pub fn run(form: Form, choice: &Choice, seed: u64) -> Outcome {
    let mut lab = Lab::default();
    let mut outcome = Outcome::default();
    let rows = choice.rows(form);
    for (number, (fault, mode)) in rows.iter().enumerate() {
        if let Some(reason) = impossible(fault) {
            eprintln!("NOT RUN {}: {reason}", fault.name);
            outcome.not_run.push((fault.name, reason));
            continue;
        }
        eprintln!("-- {} of {}: {}, {}: {}", number + 1, rows.len(), fault.name, mode.name, fault.story);
        let play = Play { scene: fault.scene, mode, form, seed, broken: None };
        let row = one(&mut lab, fault, &play);
        eprintln!("{}", row.line());
        row.wrong.iter().for_each(|wrong| eprintln!("{wrong}"));
        outcome.rows.push(row);
        for which in [Which::Three, Which::Small] {
            if rows[number + 1..].iter().all(|(later, _)| later.scene.cluster() != which) {
                lab.end(which);
            }
        }
    }
    outcome
}

fn impossible(fault: &Fault) -> Option<String> {
    if !fault.scene.small_disk {
        return None;
    }
    Disk::is_possible().err().map(|error| format!("a small file system can't be mounted here: {error:#}"))
}

/// One row.
fn one(lab: &mut Lab, fault: &Fault, play: &Play) -> Row {
    let started = Instant::now();
    let runs = fault.times(play.form);
    match played(lab, fault, play, runs) {
        Ok(ended) => Row::new(fault, play.mode, runs, ended, started.elapsed()),
        Err(error) => Row::failed(fault, play.mode, runs, &error, started.elapsed()),
    }
}

/// Does a fault so many times to one stage, and asks the judge.
pub(crate) fn played(lab: &mut Lab, fault: &Fault, play: &Play, runs: u32) -> Result<Ended> {
    let mut stage = Stage::start(lab, play)?;
    for turn in 1..=runs {
        let mut tries = 1;
        loop {
            match stage.strike(fault.inject) {
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
    if !ended.verdict.faults.0.is_empty() && play.broken.is_none() {
        eprintln!("{tails}");
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::faults::table::FAULTS;

    /// The rows that are chosen so, by fault and mode.
    fn rows(form: Form, only: Option<&str>, mode: Option<&str>) -> BTreeSet<(&'static str, &'static str)> {
        let choice = Choice { only: only.map(str::to_owned), mode: mode.map(str::to_owned) };
        choice.rows(form).into_iter().map(|(fault, mode)| (fault.name, mode.name)).collect()
    }

    #[test]
    fn every_fault_has_a_name_and_a_mode_of_its_own() {
        let faults: BTreeSet<&str> = rows(Form::FULL, None, None).iter().map(|(fault, _)| *fault).collect();
        assert_eq!(faults.len(), FAULTS.len());
    }

    #[test]
    fn the_quick_form_takes_its_own_rows_and_whoever_names_something_gets_all_of_it() {
        let (quick, full) = (rows(Form::QUICK, None, None), rows(Form::FULL, None, None));
        assert!(quick.is_subset(&full) && quick.len() < full.len());
        assert_eq!(rows(Form::QUICK, Some("storm"), None), rows(Form::FULL, Some("storm"), None));
        assert!(
            !quick.iter().any(|(fault, _)| *fault == "broker-and-host-killed"),
            "Kafka may leave its readers standing there (KAFKA-20734)"
        );
    }

    #[test]
    fn a_whole_name_is_one_fault_and_a_part_of_it_may_be_more() {
        let faults = |only| rows(Form::FULL, Some(only), Some("at-least")).len();
        assert_eq!((faults("host-killed"), faults("host-kill"), faults("nobody-killed")), (1, 5, 0));
    }
}
