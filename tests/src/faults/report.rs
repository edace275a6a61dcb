//! What a run of faults comes to: rows for people and rows for programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::Fault;
use super::mode::{Mode, Promise};
use super::stage::Ended;

/// One fault in one mode.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// The fault.
    pub fault: &'static str,
    /// The mode of delivery.
    pub mode: &'static str,
    /// How often it was to be done.
    pub runs: u32,
    /// How often it was done while records were in flight.
    pub injected: usize,
    /// Records that producers were told are safe.
    pub acknowledged: usize,
    /// Records of which producers were told nothing sure.
    pub unknown: usize,
    /// Different records in the sink.
    pub sink: usize,
    /// Different records among the dead letters.
    pub dead_letters: usize,
    /// Safe records that are nowhere.
    pub lost: usize,
    /// Records that nobody sent.
    pub invented: usize,
    /// Records stored again.
    pub duplicates: usize,
    /// How many the faults explain: delivered and not committed when they came.
    pub duplicates_bound: usize,
    /// Records that overtook one of their key, or came again from below a commit.
    pub order_violations: usize,
    /// Half of the recoveries took no longer.
    pub recovery_seconds_p50: f64,
    /// None took longer.
    pub recovery_seconds_max: f64,
    /// The aim for it.
    #[serde(skip)]
    pub aim: Option<Duration>,
    /// The least that was in flight at a fault.
    #[serde(skip)]
    pub in_flight_min: usize,
    /// What else there is to say.
    #[serde(skip)]
    pub notes: Vec<String>,
    /// What is wrong.
    #[serde(skip)]
    pub wrong: Vec<String>,
    /// How long all of it took.
    #[serde(skip)]
    pub took: Duration,
}

/// One way in which the host was broken on purpose.
#[derive(Debug, Clone, Serialize)]
pub struct Breakage {
    /// Its name.
    pub breakage: &'static str,
    /// Whether each check that has to see it did.
    pub caught: bool,
    /// Which.
    pub by: Vec<&'static str>,
}

impl Row {
    /// Of a stage that came to its end.
    pub fn new(fault: &Fault, mode: &Mode, runs: u32, ended: Ended, took: Duration) -> Row {
        let summary = ended.verdict.summary;
        let mut recoveries = ended.recoveries;
        recoveries.sort();
        let seconds = |duration: Option<&Duration>| {
            duration.map_or(0.0, |duration| (duration.as_secs_f64() * 1000.0).round() / 1000.0)
        };
        Row {
            fault: fault.name,
            mode: mode.name,
            runs,
            injected: ended.injected,
            acknowledged: summary.acked,
            unknown: summary.unknown,
            sink: summary.stored,
            dead_letters: summary.dead,
            lost: summary.lost,
            invented: summary.invented,
            duplicates: summary.repeated,
            duplicates_bound: if mode.promise == Promise::NothingLost { ended.in_hand } else { 0 },
            order_violations: summary.out_of_order,
            recovery_seconds_p50: seconds(recoveries.get(recoveries.len().saturating_sub(1) / 2)),
            recovery_seconds_max: seconds(recoveries.last()),
            aim: fault.aim,
            in_flight_min: ended.moments.iter().map(|moment| moment.in_flight).min().unwrap_or(0),
            notes: ended.notes,
            wrong: if ended.verdict.faults.0.is_empty() { Vec::new() } else { vec![ended.verdict.faults.to_string()] },
            took,
        }
    }

    /// Of one that did not.
    pub fn failed(fault: &Fault, mode: &Mode, runs: u32, error: &anyhow::Error, took: Duration) -> Row {
        let (fault, aim) = (fault.name, fault.aim);
        Row { fault, mode: mode.name, runs, aim, wrong: vec![format!("{error:#}")], took, ..Row::default() }
    }

    /// Whether nothing is wrong. A figure that misses its aim is no broken promise.
    pub fn is_well(&self) -> bool {
        self.wrong.is_empty()
    }

    fn misses_aim(&self) -> bool {
        self.aim.is_some_and(|aim| self.recovery_seconds_max > aim.as_secs_f64())
    }

    /// In one line.
    pub fn line(&self) -> String {
        let aim = self.aim.map_or(String::new(), |aim| {
            format!(" (aim {} s{})", aim.as_secs_f64(), if self.misses_aim() { ", MISSED" } else { "" })
        });
        format!(
            "{} {} {}: {}/{} injected amid at least {} in flight, {} acknowledged, {} stored, {} dead, {} lost, {} of {} \
             duplicates, recovery {:.1} to {:.1} s{aim}; {:.0} s",
            if self.is_well() { "ok  " } else { "FAIL" },
            self.fault,
            self.mode,
            self.injected,
            self.runs,
            self.in_flight_min,
            self.acknowledged,
            self.sink,
            self.dead_letters,
            self.lost,
            self.duplicates,
            self.duplicates_bound,
            self.recovery_seconds_p50,
            self.recovery_seconds_max,
            self.took.as_secs_f64()
        )
    }
}

/// The table for people, in Markdown, with what is wrong below it.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| fault | mode | runs | in flight, at least | acknowledged | unknown | stored | dead letters | lost | invented | \
         duplicates (bound) | order | recovery p50 / max (aim) | took |\n| --- | --- |",
    );
    text.push_str(&" ---: |".repeat(12));
    text.push('\n');
    for row in rows {
        let aim = row.aim.map_or(String::new(), |aim| format!(" ({} s)", aim.as_secs_f64()));
        let missed = if row.misses_aim() { " MISSED" } else { "" };
        let written = writeln!(
            text,
            "| {} | {} | {} of {} | {} | {} | {} | {} | {} | {} | {} | {} ({}) | {} | {:.2} / {:.2} s{aim}{missed} | {:.0} s |",
            row.fault,
            row.mode,
            row.injected,
            row.runs,
            row.in_flight_min,
            row.acknowledged,
            row.unknown,
            row.sink,
            row.dead_letters,
            row.lost,
            row.invented,
            row.duplicates,
            row.duplicates_bound,
            row.order_violations,
            row.recovery_seconds_p50,
            row.recovery_seconds_max,
            row.took.as_secs_f64()
        );
        written.expect("a string takes everything");
    }
    for row in rows {
        for note in &row.notes {
            writeln!(text, "\n{}: {note}", row.fault).expect("a string takes everything");
        }
        for wrong in &row.wrong {
            writeln!(text, "\nFAILED {} {}: {wrong}", row.fault, row.mode).expect("a string takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Faults, Summary, Verdict};
    use crate::faults::mode::AT_LEAST_ONCE;
    use crate::faults::table::FAULTS;

    fn row(faults: Vec<crate::checker::Fault>, recoveries: &[u64]) -> Row {
        let summary = Summary { acked: 5, stored: 5, repeated: 2, ..Summary::default() };
        let recoveries = recoveries.iter().copied().map(Duration::from_secs).collect();
        let verdict = Verdict { summary, faults: Faults(faults) };
        let ended = Ended { verdict, in_hand: 3, moments: Vec::new(), recoveries, injected: 1, notes: Vec::new() };
        Row::new(&FAULTS[0], &AT_LEAST_ONCE, 1, ended, Duration::ZERO)
    }

    #[test]
    fn a_row_for_programs_has_these_fields() {
        let value = serde_json::to_value(row(Vec::new(), &[1])).unwrap();
        let fields: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "fault",
            "mode",
            "runs",
            "injected",
            "acknowledged",
            "unknown",
            "sink",
            "dead_letters",
            "lost",
            "invented",
            "duplicates",
            "duplicates_bound",
            "order_violations",
            "recovery_seconds_p50",
            "recovery_seconds_max",
        ];
        expected.sort_unstable();
        assert_eq!(
            fields.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn recovery_is_told_by_its_median_and_its_maximum() {
        let row = row(Vec::new(), &[9, 1, 2, 3]);
        assert_eq!((row.recovery_seconds_p50, row.recovery_seconds_max), (2.0, 9.0));
        assert!(row.is_well() && table(&[row]).contains("MISSED"), "an aim that is missed is no broken promise");
    }

    #[test]
    fn what_is_wrong_stands_below_the_table() {
        let row = row(vec![crate::checker::Fault::ReadersDiffer(1)], &[1]);
        assert!(!row.is_well());
        assert!(table(&[row]).contains("FAILED host-killed at-least-once: 1 broken promises"));
    }
}
