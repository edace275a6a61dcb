//! A range of the log once more through a handler: what is planned, how far it is, and what came of it.
//!
//! The rooms are those of a live handler. What differs is the broker: [`Ranged`] is in no group, so that nothing of what is
//! replayed moves the handler's own offsets.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::record::{Offset, TopicPartition};
use tidemill_core::retry::Class;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::{Admin, Broker, NotFound, PartitionInfo, Point, Ranged, Selection};
use crate::consumer::{Membership, PartitionView};
use crate::metrics::{HandlerMetrics, OutcomeKind};
use crate::settle::Stop;

/// How often it is looked how far a replay is.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A part of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The partition.
    pub of: TopicPartition,
    /// What is read of it.
    pub range: Range<Offset>,
    /// So many offsets before it were meant, or may have been, and are not kept any more.
    pub gone: i64,
}

/// Finds what lies between two points, as the log is now.
pub async fn plan(
    admin: &dyn Admin,
    topics: &[String],
    which: &Selection,
    from: Point,
    to: Point,
) -> Result<Vec<Part>, NotFound> {
    let mut parts = Vec::new();
    for topic in which.find(admin, topics).await? {
        let begins = from.find(admin, &topic.name, &topic.partitions).await?;
        let ends = to.find(admin, &topic.name, &topic.partitions).await?;
        for ((info, begin), end) in topic.partitions.iter().zip(begins).zip(ends) {
            let (range, gone) = part(info, from, begin, end);
            parts.push(Part { of: TopicPartition::new(topic.name.as_str(), info.partition), range, gone });
        }
    }
    Ok(parts)
}

/// What is read of a partition, and how much of what was meant is gone.
fn part(info: &PartitionInfo, from: Point, begin: Offset, end: Offset) -> (Range<Offset>, i64) {
    let last = end.clamp(info.start, info.end);
    let first = begin.clamp(info.start, last);
    // Of a time that comes to the oldest kept record nobody knows how much of what is gone came after it.
    let meant = if let Point::Offset(offset) = from { offset } else { 0 };
    let gone = if first == info.start { (info.start.min(end) - meant).max(0) } else { 0 };
    (first..last, gone)
}

/// How many offsets parts hold together.
pub fn offsets(parts: &[Part]) -> u64 {
    parts.iter().map(|part| (part.range.end - part.range.start).max(0).unsigned_abs()).sum()
}

/// What came of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The digest of the revision that was replayed with.
    pub revision: Arc<str>,
    /// Records that were read.
    pub records: u64,
    /// How the guest said that they ended, by the name of the outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Records that were tried again.
    pub retries: u64,
    /// Outputs that were sent, or discarded.
    pub outputs: u64,
    /// Dead letters that were sent, or discarded.
    pub dead_letters: u64,
    /// Records that were dropped, as the handler's policy says.
    pub dropped: u64,
    /// Offsets that were deleted while it ran, before they were read.
    pub deleted: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether it was told to end before it was done.
    pub interrupted: bool,
    /// How far each partition came.
    pub parts: Vec<Done>,
}

/// How far a replay came in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What was to be read.
    pub part: Part,
    /// All of it below this offset is settled.
    pub reached: Offset,
    /// The record at which it stands still.
    pub stopped: Option<Stop>,
}

impl Done {
    /// Whether nothing of it is left.
    pub fn is_whole(&self) -> bool {
        self.reached >= self.part.range.end
    }
}

impl Report {
    /// Whether every record of every range is settled.
    pub fn is_whole(&self) -> bool {
        self.parts.iter().all(Done::is_whole)
    }

    /// Whether it is whole, and no record was given up or missed.
    pub fn is_clean(&self) -> bool {
        self.is_whole() && self.dead_letters == 0 && self.dropped == 0 && self.deleted == 0
    }

    /// Records in a second.
    pub fn rate(&self) -> f64 {
        self.records as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// A replay that runs.
pub struct Replay {
    /// What is to be read.
    pub parts: Vec<Part>,
    /// The handler's place in it.
    pub membership: Arc<Membership>,
    /// What is counted.
    pub metrics: Arc<HandlerMetrics>,
    /// The digest of its revision.
    pub revision: Arc<str>,
    /// Tells it to drain and end.
    pub stop: CancellationToken,
    /// Its consuming.
    pub task: JoinHandle<()>,
}

impl Replay {
    /// Waits until all is done, or stands still, or `interrupted`; then ends it and says what came of it. Meanwhile tells how
    /// many offsets are done.
    pub async fn run<B: Broker>(
        mut self,
        ranged: &Ranged<B>,
        interrupted: impl Future<Output = ()>,
        mut tell: impl FnMut(u64),
    ) -> Report {
        let started = Instant::now();
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        let mut interrupted = std::pin::pin!(interrupted);
        let mut was_interrupted = false;
        let mut views;
        loop {
            tokio::select! {
                () = &mut interrupted => was_interrupted = true,
                _ = look.tick() => {}
            }
            views = self.membership.partitions();
            tell(self.done(&views));
            let at_rest = |view: &PartitionView| view.through || view.stopped.is_some();
            let ended = views.len() == self.parts.len() && views.iter().all(at_rest);
            if ended || was_interrupted || self.task.is_finished() {
                break;
            }
        }
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the replay ended badly");
        }
        self.report(ranged, views, started.elapsed(), was_interrupted)
    }

    /// How many offsets are done.
    fn done(&self, views: &[PartitionView]) -> u64 {
        let done = |view: &PartitionView| {
            let part = self.parts.iter().find(|part| part.of == view.from)?;
            let reached = view.committable?.clamp(part.range.start, part.range.end);
            Some((reached - part.range.start).unsigned_abs())
        };
        views.iter().filter_map(done).sum()
    }

    fn report<B: Broker>(
        self,
        ranged: &Ranged<B>,
        views: Vec<PartitionView>,
        took: Duration,
        interrupted: bool,
    ) -> Report {
        let revision = self.metrics.revision(&self.revision);
        let outcomes = OutcomeKind::ALL.map(|kind| (kind.name(), revision.outcomes(kind).get()));
        let of_all = |count: &dyn Fn(Class) -> u64| Class::ALL.into_iter().map(count).sum();
        let done = |part: Part| {
            let view = views.iter().find(|view| view.from == part.of);
            let through = view.is_some_and(|view| view.through).then_some(part.range.end);
            let reached = through.or_else(|| ranged.reached(&part.of)).unwrap_or(part.range.start);
            let reached = reached.clamp(part.range.start, part.range.end);
            Done { reached, stopped: view.and_then(|view| view.stopped.clone()), part }
        };
        Report {
            records: self.metrics.received_records.get(),
            outcomes: outcomes.into(),
            retries: of_all(&|class| self.metrics.retries(class).get()),
            outputs: self.metrics.outputs.get(),
            dead_letters: of_all(&|class| self.metrics.dead_letters(class).get()),
            dropped: of_all(&|class| self.metrics.dropped(class).get()),
            deleted: self.metrics.skipped_offsets.get(),
            took,
            interrupted,
            parts: self.parts.into_iter().map(done).collect(),
            revision: self.revision,
        }
    }
}

#[cfg(test)]
mod tests;
