//! The task of one assigned partition: drives [`Partition`], room 2, and runs its calls.
//!
//! Four arms around one closed `enum Event`: ended calls first, then revocation, then timers, then new records.

mod parked;

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tidemill_core::lanes::LaneId;
use tidemill_core::partition::{Action, Call, CallId, Event, Partition, Stage, Verdict};
use tidemill_core::record::{Chunk, Offset};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::parked::Keys;
use super::asked::{Question, Standing};
use super::budget::Share;
use super::commit::REFRESH_INTERVAL;
use super::commit::outbox::Outbox;
use super::{Config, Parking, Parts, Progress};
use crate::attempt::{self, Attempt, Committed, Guarantee, Ownership};
use crate::broker::Reader;
use crate::fault::Fault;
use crate::metrics::{HandlerMetrics, PartitionMetrics};
use crate::settle::parked::ToPark;
use crate::settle::{Settlement, Stop};

/// Waits before a partition whose reader failed is read again.
const READ_AGAIN_DELAY: Duration = Duration::from_secs(1);
/// A full partition is read again once this part of its records is settled, so that small calls do not make small reads.
const READ_SHARE: usize = 16;
/// A record whose attempt panicked in the host itself waits this long.
const PANIC_DELAY: Duration = Duration::from_secs(1);
/// How often it is told that a partition stands still at a record.
const STOPPED_INTERVAL: Duration = Duration::from_secs(60);

/// What ties an assignment to the world beside its group.
pub(super) struct Ties {
    /// The hold on the database's row, where offsets are kept in one.
    pub(super) owner: Option<Arc<Ownership>>,
    /// What is to be committed in transactions; `None` when offsets are committed alone.
    pub(super) outbox: Option<Arc<Outbox>>,
    /// What others want to know of it.
    pub(super) asked: mpsc::Receiver<Question>,
    /// Where keys are parked, if they are.
    pub(super) parking: Option<Parking>,
    /// Why its records come, in the word that guests read.
    pub(super) delivery: &'static str,
}

/// Consumes one assignment of a partition until it is revoked and drained, or its range is done.
pub(super) fn spawn<R: Reader>(
    parts: Arc<Parts>,
    config: Config,
    reader: R,
    progress: Arc<Progress>,
    ties: Ties,
    revoked: CancellationToken,
) -> JoinHandle<()> {
    let metrics = parts.metrics.partition(&progress.from.topic, progress.from.partition);
    let machine = match config.guarantee {
        Guarantee::AtMostOnce => Partition::at_most_once(config.order, config.bounds.clone(), config.ahead_max),
        Guarantee::AtLeastOnce | Guarantee::KafkaTransaction | Guarantee::SqlTransaction => {
            Partition::new(config.order, config.bounds.clone())
        }
    };
    let task = Task {
        parked: ties.parking.map(|parking| Keys::new(parking, &config, &progress.from)),
        parked_turn: false,
        began_at: reader.position(),
        reader,
        progress,
        share: parts.budget.share(config.bounds.call_bytes_max),
        owner: ties.owner,
        outbox: ties.outbox,
        machine,
        metrics,
        asked: ties.asked,
        delivery: ties.delivery,
        parts,
        config,
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
    owner: Option<Arc<Ownership>>,
    /// What is to be committed in transactions; `None` when offsets are committed alone.
    outbox: Option<Arc<Outbox>>,
    machine: Partition,
    /// Its part of what the host holds.
    share: Share,
    metrics: PartitionMetrics,
    asked: mpsc::Receiver<Question>,
    /// What is parked, under a policy that parks.
    parked: Option<Keys>,
    /// Whether the last slot was used for what is parked.
    parked_turn: bool,
    /// Where the group stood when the partition was assigned, as far as was known.
    began_at: Option<Offset>,
    delivery: &'static str,
    /// The machine's clock counts from here.
    origin: Instant,
    calls: JoinSet<Ended>,
    actions: Vec<Action>,
    /// The last offset and the time of each delivery that is not settled whole, for the lag in seconds.
    made: VecDeque<(Offset, Option<i64>)>,
    /// The records at which the partition stands still; the first is the one that counts.
    stops: BTreeMap<Offset, Stop>,
    told_of_stop: Option<Instant>,
    revoked: CancellationToken,
    drained: bool,
}

/// How a call ended.
enum Ended {
    /// One with records of the source.
    Called(CallId, Settlement),
    /// One that parked records of the source: which of each lane were parked before, where the others lie now, and what was read
    /// of the parked topic up to there.
    Parked {
        id: CallId,
        held: Vec<(LaneId, bool)>,
        records: Vec<ToPark>,
        places: Vec<Option<Offset>>,
        read: Vec<Arc<Chunk>>,
    },
    /// One with parked records: the second machine's offset of each, and the parked topic's.
    TriedAgain { id: CallId, settlement: Settlement, places: Vec<(Offset, Offset)> },
}

impl<R: Reader> Task<R> {
    async fn run(mut self) {
        if !self.load_parked().await {
            return;
        }
        let revoked = self.revoked.clone();
        let mut revoking = false;
        let mut read_again = None;
        let mut refresh = tokio::time::interval(REFRESH_INTERVAL);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.pause();
        while !self.has_ended() && !self.is_through() {
            let crowded = self.outbox_is_full();
            // While nothing that was settled may be committed, only a call helps: the one of the record that is in the way.
            let waits = crowded && !self.outbox.as_ref().is_some_and(|outbox| outbox.is_done());
            if !waits {
                self.start_calls(revoking);
            }
            if let Some(keys) = self.parked.as_mut().filter(|_| !revoking) {
                keys.read_on(self.config.bounds.bytes_max);
            }
            let timers = self.machine.next_timer().into_iter().chain(self.parked.as_ref().and_then(Keys::next_timer));
            let timer = timers.min().map(|at| self.origin + at);
            let pages_again = self.parked.as_ref().filter(|_| !revoking).and_then(Keys::read_again);
            let (records, bytes) = if crowded { (0, 0) } else { self.room() };
            let full = records > 0 && bytes == 0;
            let outbox = self.outbox.as_deref();
            let slots = &self.parts.slots;
            let wants_slot = self.wants_slot(revoking);
            tokio::select! {
                biased;
                Some(ended) = self.calls.join_next(), if !self.calls.is_empty() => match ended {
                    Ok(Ended::Called(call, settlement)) => self.returned(call, settlement),
                    Ok(Ended::Parked { id, held, records, places, read }) => self.on_parked(id, held, records, places, &read),
                    Ok(Ended::TriedAgain { id, settlement, places }) => self.tried_again(id, settlement, places),
                    Err(error) => tracing::error!(partition = %self.progress.from, %error, "a call's task was lost"),
                },
                () = revoked.cancelled(), if !revoking => {
                    revoking = true;
                    self.on(Event::Revoked);
                }
                offset = self.progress.confirmation(), if self.config.guarantee == Guarantee::AtMostOnce => {
                    self.on(Event::Committed(offset));
                }
                () = self.progress.pausing() => self.pause(),
                Some(question) = self.asked.recv() => self.answer(question),
                () = until(timer), if timer.is_some() => self.on_timer(),
                () = until(pages_again), if pages_again.is_some() => {}
                page = next_page(&mut self.parked) => self.on_page(page),
                () = until(read_again), if read_again.is_some() => read_again = None,
                slot = Arc::clone(slots).acquire_owned(), if wants_slot && !waits => match slot {
                    Ok(slot) => self.use_slot(slot, revoking),
                    Err(_closed) => return,
                },
                () = self.share.freed(), if full => {}
                chunk = self.reader.next(records, bytes), if records > 0 && !full && read_again.is_none() => match chunk {
                    Ok(chunk) => self.received(chunk),
                    Err(error) => {
                        self.parts.metrics.receive_errors.inc();
                        tracing::warn!(partition = %self.progress.from, %error, "the partition can't be read and is read again");
                        read_again = Some(Instant::now() + READ_AGAIN_DELAY);
                    }
                },
                () = emptied(outbox), if waits => {}
                _ = refresh.tick() => {
                    self.look_at_stops();
                    self.look_at_parked();
                    self.refresh();
                }
            }
        }
        if self.is_through() {
            self.finish().await;
        }
        self.refresh();
    }

    /// Whether nothing is left to do. Behind a drained source calls with parked records may still run.
    fn has_ended(&self) -> bool {
        self.is_fenced() || (self.drained && self.calls.is_empty())
    }

    /// Whether nothing more is to be read, and all that was is settled.
    fn is_through(&self) -> bool {
        self.reader.ended() && self.machine.pending() == 0
    }

    /// Keeps where a range ends, behind offsets that hold no record: whoever goes on there begins behind it.
    async fn finish(&mut self) {
        let Some(end) = self.reader.position() else { return };
        while let Some(owner) = self.owner.as_ref().filter(|owner| owner.next() != Some(end)) {
            match owner.commit(None, end).await {
                Ok(Committed::Stored) => {}
                Ok(Committed::Fenced) => return,
                Err(error) => {
                    tracing::warn!(partition = %self.progress.from, %error, "the end of the range is not stored yet");
                    tokio::select! {
                        biased;
                        () = self.revoked.cancelled() => return,
                        () = tokio::time::sleep(READ_AGAIN_DELAY) => {}
                    }
                }
            }
        }
        self.progress.set_through(end);
    }

    /// Whether somebody else owns the partition: nothing that is done here will ever count.
    fn is_fenced(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.is_fenced())
    }

    /// Tells that the partition stands still, at once and then every while, and lets it go on once another revision is live.
    fn look_at_stops(&mut self) {
        let first = self.stops.first_key_value().map(|(_, stop)| stop);
        self.metrics.stopped.set(i64::from(first.is_some()));
        self.progress.set_stopped(first.cloned());
        let Some(Stop { offset, class, reason, revision, .. }) = first else { return };
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
        let some = bounds.call_records_max.max(bounds.records_max / READ_SHARE);
        let worthwhile = some.min(bounds.records_max / 2).min(bounds.span_max / 2).max(1);
        if Fault::DropOnFull.is_on() {
            return (worthwhile, bounds.bytes_max);
        }
        if records >= worthwhile { (records, self.machine.room_bytes().min(self.share.room())) } else { (0, 0) }
    }

    fn pause(&mut self) {
        let paused = self.progress.is_paused();
        self.on(Event::Paused(paused));
        self.on_second(Event::Paused(paused));
    }

    fn on_timer(&mut self) {
        self.on(Event::Timer);
        self.on_second(Event::Timer);
    }

    fn answer(&mut self, question: Question) {
        // Whoever asked may have gone.
        match question {
            Question::Where(offset, reply) => drop(reply.send(self.standing(offset))),
            Question::Parked(reply) => drop(reply.send(self.shown_parked())),
            Question::Unpark(choice, reply) => drop(reply.send(self.unpark(&choice))),
        }
    }

    fn standing(&self, offset: Offset) -> Standing {
        let stage = self.machine.stage_of(offset);
        // What was settled before it was received again is below where this assignment began.
        let is_before = stage == Stage::Ahead && self.reader.position().is_some_and(|position| offset < position);
        let committed = match (&self.outbox, self.config.guarantee) {
            (Some(outbox), _) => outbox.committed(),
            (None, Guarantee::SqlTransaction) => self.machine.committable(),
            (None, _) => self.progress.confirmed(),
        };
        let again_in = match stage {
            Stage::Retrying { until, .. } => Some(until.saturating_sub(self.origin.elapsed())),
            Stage::Ahead | Stage::Waiting | Stage::Running { .. } | Stage::Stopped | Stage::Settled | Stage::Absent => {
                None
            }
        };
        Standing {
            stage: if is_before { Stage::Settled } else { stage },
            parked_at: self.parked.as_ref().and_then(|keys| keys.index().place_of(offset)),
            again_in,
            committed: committed.or(self.began_at),
        }
    }

    /// Whether more outputs wait for their transactions, or more records, than a crash may repeat.
    fn outbox_is_full(&self) -> bool {
        self.outbox.as_ref().is_some_and(|outbox| outbox.is_full(&self.config.bounds))
    }

    fn received(&mut self, chunk: Arc<Chunk>) {
        if let Some(gone) = self.reader.skipped() {
            let offsets = gone.end - gone.start;
            self.parts.metrics.skipped_offsets.inc_by(offsets.unsigned_abs());
            tracing::error!(
                partition = %self.progress.from, offsets, from = gone.start, to = gone.end,
                "records were deleted before this handler has read them; it goes on with those that are left: keep them longer, or make the handler faster"
            );
        }
        if chunk.is_empty() {
            return;
        }
        self.parts.metrics.received_records.inc_by(chunk.len() as u64);
        self.parts.metrics.received_bytes.inc_by(chunk.bytes() as u64);
        let (first, last) = (chunk.records().next(), chunk.records().next_back());
        if let Some(last) = &last {
            self.made.push_back((last.offset(), last.timestamp().millis()));
        }
        if Fault::DropOnFull.is_on() && self.machine.room() < chunk.len() {
            return;
        }
        if let (Some(outbox), Some(first)) = (&self.outbox, first) {
            outbox.begin(first.offset());
        }
        self.on(Event::Received(chunk));
        if let (true, Some(last)) = (Fault::CommitBeforeSuccess.is_on(), last) {
            self.progress.set_committable(last.offset() + 1);
        }
    }

    /// Starts calls while there are records and slots to spare.
    fn start_calls(&mut self, revoking: bool) {
        while self.wants_slot(revoking)
            && let Ok(slot) = Arc::clone(&self.parts.slots).try_acquire_owned()
        {
            self.use_slot(slot, revoking);
        }
    }

    fn wants_slot(&self, revoking: bool) -> bool {
        self.machine.wants_slot() || self.may_try_again(revoking)
    }

    /// Whether a call with parked records may start. They lie safely: a partition that is given back leaves them to others.
    fn may_try_again(&self, revoking: bool) -> bool {
        !revoking && self.parked.as_ref().is_some_and(Keys::wants_slot)
    }

    /// The source and what is parked take turns where both have records to call.
    fn use_slot(&mut self, slot: OwnedSemaphorePermit, revoking: bool) {
        self.parked_turn = self.may_try_again(revoking) && (!self.parked_turn || !self.machine.wants_slot());
        if self.parked_turn { self.try_again(slot) } else { self.start_call(slot) }
    }

    fn start_call(&mut self, slot: OwnedSemaphorePermit) {
        self.on(Event::Slot { spare: self.parts.slots.available_permits() + 1 });
        let mut slot = Some(slot);
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Invoke(call) => {
                    if let Some(slot) = slot.take() {
                        self.invoke(call, slot);
                    }
                }
                Action::Park(call) => self.park(call),
                Action::Commit(_) | Action::Drained => {}
            }
        }
    }

    fn on(&mut self, event: Event) {
        let answers_slot = matches!(event, Event::Slot { .. });
        self.machine.on(self.origin.elapsed(), event, &mut self.actions);
        if answers_slot {
            return;
        }
        self.hold();
        self.progress.set_at_stake(self.machine.at_stake());
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Commit(offset) => self.committable(offset),
                Action::Drained => self.drained = true,
                Action::Park(call) => self.park(call),
                Action::Invoke(_) => debug_assert!(false, "only a slot starts a call"),
            }
        }
    }

    /// Notes what is held of the host's budget.
    fn hold(&mut self) {
        let parked = self.parked.as_ref().map_or(0, Keys::bytes);
        self.share.set(self.machine.bytes() + parked);
    }

    /// What settled records leave to be produced is kept before the frontier can pass them.
    fn returned(&mut self, call: CallId, settlement: Settlement) {
        let Settlement { verdicts, produced, stops } = settlement;
        if let Some(outbox) = &self.outbox {
            outbox.keep(produced);
        }
        let settled = verdicts.contains(&Verdict::Settled);
        let stops = match &mut self.parked {
            Some(keys) => {
                keys.failed(stops);
                Vec::new()
            }
            None => stops,
        };
        self.on(Event::Returned { call, verdicts });
        if let (true, Some(position)) = (Fault::CommitPastGap.is_on() && settled, self.machine.position()) {
            self.committable(position);
        }
        if !stops.is_empty() {
            self.stops.extend(stops.into_iter().map(|stop| (stop.offset, stop)));
            self.look_at_stops();
        }
    }

    fn committable(&self, offset: Offset) {
        match &self.outbox {
            Some(outbox) => outbox.advance(offset),
            None => self.progress.set_committable(offset),
        }
        // At most once, records wait for it: the group's task is told at once, and else finds it at its next interval.
        if self.config.guarantee == Guarantee::AtMostOnce {
            self.parts.commit_wanted.notify_one();
        }
    }

    fn invoke(&mut self, call: Call, slot: OwnedSemaphorePermit) {
        let id = call.id;
        let run = self.attempt(call, slot);
        self.calls.spawn(async move { Ended::Called(id, run.await) });
    }

    /// One try of a call, to be run in a task of its own.
    fn attempt(&self, call: Call, slot: OwnedSemaphorePermit) -> impl Future<Output = Settlement> + Send + use<R> {
        let parts = Arc::clone(&self.parts);
        parts.metrics.attempts.inc();
        let records = call.records.len();
        let in_flight = InFlight::new(&parts.metrics, records);
        let from = self.progress.from.clone();
        let Config { guarantee, call_deadline, .. } = self.config;
        let (epoch, revoked) = (self.progress.epoch, self.revoked.clone());
        let mut attempt = Attempt::new(from.clone(), epoch, call.records, guarantee, call_deadline, revoked);
        attempt.owner = self.owner.clone();
        attempt.delivery = self.delivery;
        async move {
            let run = attempt::run(&*parts.handler, &parts.settler, attempt, slot);
            let settlement = AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_panic| {
                tracing::error!(partition = %from, records, "the host panicked in an attempt; its records are tried again, unless they are called at most once");
                if guarantee == Guarantee::AtMostOnce {
                    parts.metrics.lost_records.inc_by(records as u64);
                }
                Settlement::of(vec![Verdict::Retry { after: PANIC_DELAY, charge: true }; records])
            });
            drop(in_flight);
            settlement
        }
    }

    /// Tells others how far the partition is.
    fn refresh(&mut self) {
        let settled = match &self.outbox {
            Some(outbox) => outbox.committed(),
            None => self.machine.committable(),
        };
        let stands = settled.or_else(|| self.reader.position());
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
pub(super) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Waits for the next page of what is parked; for ever without one.
async fn next_page(keys: &mut Option<Keys>) -> parked::Page {
    match keys {
        Some(keys) => keys.page().await,
        None => std::future::pending().await,
    }
}

/// Waits until an outbox has more room; for ever without one.
async fn emptied(outbox: Option<&Outbox>) {
    match outbox {
        Some(outbox) => outbox.emptied().await,
        None => std::future::pending().await,
    }
}
