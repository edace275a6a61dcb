//! The task of one assigned partition: drives [`Partition`], room 2, and runs its calls.
//!
//! Four arms around one closed `enum Event`: ended calls first, then revocation, then timers, then new records.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tidemill_core::partition::{Action, Call, CallId, Event, Partition, Verdict};
use tidemill_core::record::{Chunk, Offset};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::commit::REFRESH_INTERVAL;
use super::{Config, Parts, Progress};
use crate::attempt::{self, Attempt};
use crate::broker::Reader;
use crate::fault::Fault;
use crate::metrics::{HandlerMetrics, PartitionMetrics};
use crate::settle::{Settled, Stop};

/// Waits before a partition whose reader failed is read again.
const READ_AGAIN_DELAY: Duration = Duration::from_secs(1);
/// A record whose attempt panicked in the host itself waits this long.
const PANIC_DELAY: Duration = Duration::from_secs(1);
/// How often it is told that a partition stands still at a record.
const STOPPED_INTERVAL: Duration = Duration::from_secs(60);

/// Consumes one assignment of a partition until it is revoked and drained.
pub(super) fn spawn<R: Reader>(
    parts: Arc<Parts>,
    config: Config,
    reader: R,
    progress: Arc<Progress>,
    revoked: CancellationToken,
) -> JoinHandle<()> {
    let metrics = parts.metrics.partition(&progress.from.topic, progress.from.partition);
    let machine = Partition::new(config.order, config.bounds.clone());
    let task = Task {
        parts,
        config,
        reader,
        progress,
        machine,
        metrics,
        origin: Instant::now(),
        calls: JoinSet::new(),
        actions: Vec::new(),
        made: VecDeque::new(),
        stops: BTreeMap::new(),
        told_of_stop: None,
        revoked,
        drained: false,
    };
    tokio::spawn(task.run())
}

struct Task<R> {
    parts: Arc<Parts>,
    config: Config,
    reader: R,
    progress: Arc<Progress>,
    machine: Partition,
    metrics: PartitionMetrics,
    /// The machine's clock counts from here.
    origin: Instant,
    calls: JoinSet<(CallId, Settled)>,
    actions: Vec<Action>,
    /// The last offset and the time of each delivery that is not settled whole, for the lag in seconds.
    made: VecDeque<(Offset, Option<i64>)>,
    /// The records at which the partition stands still; the first is the one that counts.
    stops: BTreeMap<Offset, Stop>,
    told_of_stop: Option<Instant>,
    revoked: CancellationToken,
    drained: bool,
}

impl<R: Reader> Task<R> {
    async fn run(mut self) {
        let revoked = self.revoked.clone();
        let mut revoking = false;
        let mut read_again = None;
        let mut refresh = tokio::time::interval(REFRESH_INTERVAL);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.drained {
            self.start_calls();
            let timer = self.machine.next_timer().map(|at| self.origin + at);
            let (records, bytes) = self.room();
            let slots = &self.parts.slots;
            tokio::select! {
                biased;
                Some(ended) = self.calls.join_next(), if !self.calls.is_empty() => match ended {
                    Ok((call, settled)) => self.returned(call, settled),
                    Err(error) => tracing::error!(partition = %self.progress.from, %error, "a call's task was lost"),
                },
                () = revoked.cancelled(), if !revoking => {
                    revoking = true;
                    self.on(Event::Revoked);
                }
                () = until(timer), if timer.is_some() => self.on(Event::Timer),
                () = until(read_again), if read_again.is_some() => read_again = None,
                slot = Arc::clone(slots).acquire_owned(), if self.machine.wants_slot() => match slot {
                    Ok(slot) => self.start_call(slot),
                    Err(_closed) => return,
                },
                chunk = self.reader.next(records, bytes), if records > 0 && read_again.is_none() => match chunk {
                    Ok(chunk) => self.received(chunk),
                    Err(error) => {
                        self.parts.metrics.receive_errors.inc();
                        tracing::warn!(partition = %self.progress.from, %error, "the partition can't be read and is read again");
                        read_again = Some(Instant::now() + READ_AGAIN_DELAY);
                    }
                },
                _ = refresh.tick() => {
                    self.look_at_stops();
                    self.refresh();
                }
            }
        }
        self.refresh();
    }

    fn returned(&mut self, call: CallId, Settled { verdicts, stops }: Settled) {
        self.on(Event::Returned { call, verdicts });
        if !stops.is_empty() {
            self.stops.extend(stops.into_iter().map(|stop| (stop.offset, stop)));
            self.look_at_stops();
        }
    }

    /// Tells that the partition stands still, at once and then every while, and lets it go on once another revision is live.
    fn look_at_stops(&mut self) {
        let first = self.stops.first_key_value().map(|(_, stop)| stop);
        self.metrics.stopped.set(i64::from(first.is_some()));
        self.progress.set_stopped(first.cloned());
        let Some(Stop { offset, class, reason, revision }) = first else { return };
        let live = self.parts.handler.revision();
        if live != *revision && !self.revoked.is_cancelled() {
            tracing::info!(
                partition = %self.progress.from, offset, revision = attempt::short(&live),
                "the partition goes on at the record at which it stopped: another revision is live"
            );
            self.stops.clear();
            self.told_of_stop = None;
            self.on(Event::Resumed);
            return self.look_at_stops();
        }
        let now = Instant::now();
        if self.told_of_stop.is_none_or(|told| now >= told + STOPPED_INTERVAL) {
            self.told_of_stop = Some(now);
            tracing::error!(
                handler = self.metrics.handler(), partition = %self.progress.from, offset, class = class.name(),
                code = reason.code, revision = attempt::short(revision),
                "the partition stands still at this record, as `retry.exhausted` says; it goes on with another revision, \
                 a changed handler.toml or a restart, and `tidemill guests list` has the reason"
            );
        }
    }

    /// How much to read now. A nearly full partition is left alone, so that records are not taken one by one.
    fn room(&self) -> (usize, usize) {
        let bounds = &self.config.bounds;
        let records = self.machine.room();
        let worthwhile = bounds.call_records_max.min(bounds.records_max / 2).max(1);
        if Fault::DropOnFull.is_on() {
            return (worthwhile, bounds.bytes_max);
        }
        if records >= worthwhile { (records, self.machine.room_bytes()) } else { (0, 0) }
    }

    fn received(&mut self, chunk: Arc<Chunk>) {
        self.parts.metrics.received_records.inc_by(chunk.len() as u64);
        self.parts.metrics.received_bytes.inc_by(chunk.bytes() as u64);
        if let Some(last) = chunk.records().last() {
            self.made.push_back((last.offset(), last.timestamp().millis()));
        }
        if Fault::DropOnFull.is_on() && self.machine.room() < chunk.len() {
            return;
        }
        let last = chunk.records().last().map(|record| record.offset());
        self.on(Event::Received(chunk));
        if let (true, Some(last)) = (Fault::CommitBeforeSuccess.is_on(), last) {
            self.progress.set_committable(last + 1);
        }
    }

    /// Starts calls while there are records and slots to spare.
    fn start_calls(&mut self) {
        while self.machine.wants_slot()
            && let Ok(slot) = Arc::clone(&self.parts.slots).try_acquire_owned()
        {
            self.start_call(slot);
        }
    }

    fn start_call(&mut self, slot: OwnedSemaphorePermit) {
        self.on(Event::Slot);
        let mut slot = Some(slot);
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Invoke(call) => {
                    if let Some(slot) = slot.take() {
                        self.invoke(call, slot);
                    }
                }
                Action::Commit(_) | Action::Drained => {}
            }
        }
    }

    fn on(&mut self, event: Event) {
        let answers_slot = matches!(event, Event::Slot);
        self.machine.on(self.origin.elapsed(), event, &mut self.actions);
        if answers_slot {
            return;
        }
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Commit(offset) => self.progress.set_committable(offset),
                Action::Drained => self.drained = true,
                Action::Invoke(_) => debug_assert!(false, "only a slot starts a call"),
            }
        }
    }

    fn invoke(&mut self, call: Call, slot: OwnedSemaphorePermit) {
        let parts = Arc::clone(&self.parts);
        parts.metrics.attempts.inc();
        let id = call.id;
        let records = call.records.len();
        let in_flight = InFlight::new(&parts.metrics, records);
        let from = self.progress.from.clone();
        let Config { guarantee, call_deadline, .. } = self.config;
        let mut attempt = Attempt::new(from.clone(), self.progress.epoch, call.records, guarantee, call_deadline);
        attempt.revoked = self.revoked.clone();
        self.calls.spawn(async move {
            let run = attempt::run(&*parts.handler, &parts.settler, attempt, slot);
            let settled = AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_panic| {
                tracing::error!(partition = %from, records, "the host panicked in an attempt; its records are tried again");
                let verdicts = vec![Verdict::Retry { after: PANIC_DELAY, charge: true }; records];
                Settled { verdicts, stops: Vec::new() }
            });
            drop(in_flight);
            (id, settled)
        });
    }

    /// Tells others how far the partition is.
    fn refresh(&mut self) {
        let stands = self.machine.committable().or_else(|| self.reader.position());
        let committable = stands.unwrap_or(0);
        while self.made.front().is_some_and(|(last, _)| *last < committable) {
            self.made.pop_front();
        }
        let oldest_ms = self.made.front().and_then(|(_, millis)| *millis);
        self.progress.set_load(stands, self.reader.end_offset(), self.machine.pending(), oldest_ms);
        self.publish(committable, oldest_ms);
    }

    fn publish(&self, committable: Offset, oldest_ms: Option<i64>) {
        let pending = self.machine.pending();
        let lag = self.progress.view().lag.unwrap_or(0);
        let age_ms = oldest_ms.map_or(0, |oldest| (jiff::Timestamp::now().as_millisecond() - oldest).max(0));
        self.metrics.committed.set(committable);
        self.metrics.lag_records.set(lag);
        self.metrics.lag_seconds.set(age_ms as f64 / 1000.0);
        self.metrics.lanes_waiting.set(self.machine.lanes_waiting() as i64);
        self.metrics.pending.set(pending as i64);
        self.metrics.position.set(self.machine.position().unwrap_or(0));
    }
}

/// Records in a call, counted until it is dropped: a call that is stopped at the drain deadline never returns.
struct InFlight {
    metrics: Arc<HandlerMetrics>,
    records: i64,
}

impl InFlight {
    fn new(metrics: &Arc<HandlerMetrics>, records: usize) -> Self {
        let records = records as i64;
        metrics.in_flight.inc_by(records);
        Self { metrics: Arc::clone(metrics), records }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.in_flight.dec_by(self.records);
    }
}

/// Sleeps until a moment; `None` never comes.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
