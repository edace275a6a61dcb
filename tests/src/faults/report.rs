//! What a run of faults comes to: rows for people and rows for programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::Fault;
use super::mode::{Mode, Promise};
use super::stage::Ended;

/// One fault in one mode.
#[derive(Debug, Clone, Serialize)]
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
    /// Whether a check saw it.
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
        let seconds = |duration: Option<&Duration>| duration.map_or(0.0, |duration| (duration.as_secs_f64() * 1000.0).round() / 1000.0);
        Row {
            fault: fault.name,
            mode: mode.name,
            runs,
            injected: ended.moments.len(),
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
        Row {
            fault: fault.name,
            mode: mode.name,
            runs,
            injected: 0,
            acknowledged: 0,
            unknown: 0,
            sink: 0,
            dead_letters: 0,
            lost: 0,
            invented: 0,
            duplicates: 0,
            duplicates_bound: 0,
            order_violations: 0,
            recovery_seconds_p50: 0.0,
            recovery_seconds_max: 0.0,
            aim: fault.aim,
            in_flight_min: 0,
            notes: Vec::new(),
            wrong: vec![format!("{error:#}")],
            took,
        }
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
