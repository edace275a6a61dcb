//! `tidemill replay`: flags in, a report out. What it does is in [`crate::replay`], and [`crate::app`] builds it.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde_json::json;
use tidemill_core::rate::Rate;
use tokio::time::Instant;

use super::progress::{self, ProgressBar};
use super::{ConfigPath, Failure};
use crate::attempt::{Guarantee, short};
use crate::broker::{Point, Selection};
use crate::config::Replacement;
use crate::config::manifest::HandlerSpec;
use crate::replay::{Done, Report};

/// How often it is told how far a replay is where nobody watches a terminal.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// Flags of `tidemill replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(crate) config: ConfigPath,
    /// The handler.
    pub(crate) handler: String,
    /// Where to begin in each partition: `earliest`, an offset, or a time such as `2026-11-21T09:00:00Z`.
    #[arg(long, value_name = "WHERE")]
    pub(crate) from: Point,
    /// Where to end, before this offset or the first record at this time; `end` is behind what is there now.
    #[arg(long, value_name = "WHERE", default_value = "end")]
    pub(crate) to: Point,
    /// Only this one of the handler's topics.
    #[arg(long, short)]
    topic: Option<String>,
    /// Only this partition.
    #[arg(long, short)]
    partition: Option<i32>,
    /// Writes to another database or store for this run, such as `sql.main=postgres://…` or `sql.main=rebuilt.db`; may be
    /// given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<Replacement>,
    /// Reads no more than so many records a second.
    #[arg(long, value_name = "N/s")]
    pub(crate) rate: Option<PerSecond>,
    /// What becomes of outputs and dead letters, which the first time has written already.
    #[arg(long, value_name = "WHAT")]
    outputs: Option<Outputs>,
    /// Prints the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What becomes of outputs and dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Outputs {
    /// They are counted and not written.
    Discard,
    /// They are written once more.
    Send,
}

/// A number of records in a second, written as `500/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PerSecond(NonZeroU32);

impl PerSecond {
    pub(crate) fn rate(self) -> Rate {
        Rate::new(self.0)
    }
}

impl FromStr for PerSecond {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_suffix("/s").and_then(|number| number.trim_end().parse().ok());
        number.map(Self).ok_or("write a number of records a second, such as 500/s")
    }
}

/// Replays, and prints what came of it.
pub fn run(args: &Args) -> Result<(), Failure> {
    let report = super::block_on(crate::app::replay(args))?;
    super::say(&if args.json { as_json(args, &report) } else { text(args, &report) })?;
    match left(&report) {
        None => Ok(()),
        Some(left) => Err(Failure::Failed(anyhow::anyhow!("{left}"))),
    }
}

impl Args {
    pub(crate) fn which(&self) -> Selection {
        Selection { topic: self.topic.clone(), partition: self.partition }
    }

    /// What becomes of outputs; not said, they are discarded.
    pub(crate) fn outputs(&self) -> Outputs {
        self.outputs.unwrap_or(Outputs::Discard)
    }

    /// Refuses a replay whose consequences nobody has chosen.
    pub(crate) fn check(&self, spec: &HandlerSpec) -> Result<(), Failure> {
        let mut problems = Vec::new();
        let name = &spec.name;
        if self.outputs.is_none() && !spec.grants.produce.is_empty() {
            let topics = spec.grants.produce.iter().cloned().collect::<Vec<_>>().join("`, `");
            problems.push(format!(
                "handler `{name}` may emit to `{topics}`, where the outputs of these records are already; say --outputs discard \
                 to write neither outputs nor dead letters, or --outputs send to write them once more"
            ));
        }
        for set in &self.sets {
            if !spec.grants.of(set.kind).contains(&set.name) {
                problems.push(format!(
                    "--set {}: handler `{name}` is not granted that; correct the name, or see `[grants]` in its manifest",
                    set.key()
                ));
            }
        }
        if spec.consumer.guarantee == Guarantee::SqlTransaction
            && let Some(database) = &spec.database
            && !self.sets.iter().any(|set| set.key() == format!("sql.{database}"))
        {
            problems.push(format!(
                "handler `{name}` counts each record once in `sql.{database}`, and would count these twice there; rebuild it in \
                 an empty database: --set sql.{database}=URL"
            ));
        }
        if problems.is_empty() { Ok(()) } else { Err(Failure::Refused(problems)) }
    }
}

/// Tells how far a replay is.
pub(crate) struct Told {
    bar: Option<ProgressBar>,
    total: u64,
    at: Instant,
}

impl Told {
    pub(crate) fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| progress::bar(total, "offsets"));
        Self { bar, total, at: Instant::now() }
    }

    pub(crate) fn tell(&mut self, done: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.at.elapsed() >= TELL_INTERVAL => {
                self.at = Instant::now();
                tracing::info!(done, offsets = self.total, "replaying");
            }
            None => {}
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What is wrong with what came of it, in one sentence.
fn left(report: &Report) -> Option<String> {
    if report.is_clean() {
        return None;
    }
    let stopped = report.parts.iter().any(|done| done.stopped.is_some());
    Some(match (report.is_whole(), stopped, report.interrupted) {
        (false, true, _) => {
            "the replay stands still at a record; mend what is said of it, and replay from there".to_owned()
        }
        (false, false, true) => {
            "the replay was told to end before it was done; replay what is left with --from".to_owned()
        }
        (false, false, false) => "the replay ended before it was done; its log says why".to_owned(),
        (true, ..) => "the replay is done, and not every record was handled: see the report".to_owned(),
    })
}

fn text(args: &Args, report: &Report) -> String {
    let mut text = format!("{} on {}: ", args.handler, short(&report.revision));
    text.push_str(if report.is_whole() { "the range is done" } else { "the range is not done" });
    let mut line = |name: &str, value: String| {
        // Writing to a `String` never fails.
        write!(text, "\n  {name:<13}{value}").ok();
    };
    let Report { records, took, .. } = report;
    line("records", format!("{records} in {:.1} s, {:.0} a second", took.as_secs_f64(), report.rate()));
    let outcomes = report.outcomes.iter().filter(|(_, count)| **count > 0);
    let outcomes: Vec<String> = outcomes.map(|(name, count)| format!("{count} {name}")).collect();
    line("outcomes", if outcomes.is_empty() { "none".to_owned() } else { outcomes.join(", ") });
    let fate = if args.outputs() == Outputs::Send { "sent" } else { "not written" };
    for (name, count, fate) in [
        ("outputs", report.outputs, fate),
        ("dead letters", report.dead_letters, fate),
        ("dropped", report.dropped, "as `retry.exhausted` says"),
        ("retries", report.retries, ""),
        ("deleted", report.deleted, "offsets, by retention while it ran"),
    ] {
        if count > 0 {
            line(name, format!("{count} {fate}").trim_end().to_owned());
        }
    }
    report.parts.iter().for_each(|done| line(&done.part.of.to_string(), place(done)));
    text
}

/// How far one partition is.
fn place(done: &Done) -> String {
    let Done { part, reached, stopped } = done;
    let (from, to) = (part.range.start, part.range.end);
    let mut text = if done.is_whole() { format!("{from} to {to}") } else { format!("{from} to {reached} of {to}") };
    if let Some(stop) = stopped {
        let (class, reason) = (stop.class.name(), &stop.reason);
        write!(text, "; stands still at {} ({class}): {}: {}", stop.offset, reason.code, reason.detail).ok();
    }
    if part.gone > 0 {
        write!(text, "; {} offsets before it are kept no longer", part.gone).ok();
    }
    text
}

fn as_json(args: &Args, report: &Report) -> String {
    let part = |done: &Done| {
        let Done { part, reached, stopped } = done;
        json!({
            "topic": &*part.of.topic,
            "partition": part.of.partition,
            "from": part.range.start,
            "to": part.range.end,
            "reached": reached,
            "no_longer_kept": part.gone,
            "stopped": stopped.as_ref().map(|stop| json!({
                "offset": stop.offset, "class": stop.class.name(), "code": stop.reason.code, "detail": stop.reason.detail,
            })),
        })
    };
    json!({
        "handler": args.handler,
        "revision": &*report.revision,
        "done": report.is_whole(),
        "interrupted": report.interrupted,
        "from": args.from.to_string(),
        "to": args.to.to_string(),
        "records": report.records,
        "outcomes": report.outcomes,
        "retries": report.retries,
        "outputs_sent": args.outputs() == Outputs::Send,
        "outputs": report.outputs,
        "dead_letters": report.dead_letters,
        "dropped": report.dropped,
        "deleted_offsets": report.deleted,
        "took_seconds": report.took.as_secs_f64(),
        "records_per_second": report.rate(),
        "partitions": report.parts.iter().map(part).collect::<Vec<_>>(),
    })
    .to_string()
}

#[cfg(test)]
mod tests;
