//! One assigned partition as a state machine: (now, [`Event`]) in, [`Action`]s out.
//!
//! It is owned by one task (ARCH-5) and lives as long as one assignment of the partition. `now` is any clock that never
//! goes back, as the time since a moment of the caller's choice.
//!
//! At most once, the order is turned round: an offset is committed, and only then its record is called. There OFF-1 reads: no
//! record at or above the confirmed offset is called; none is called again once it was processed; and no more than
//! `ahead_max` records are below the offset that was asked for and not done, which is what a crash loses at most.
//!
//! PARK-1: while a key is set aside none of its records is called; each is parked, in order, behind those before it.
//!
//! STOP-1: a partition that stopped at a record runs neither it nor anything behind it until it is resumed.
//! DRAIN-1: what is settled when a revoked partition is drained is committed, unless a failure lies before it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::lanes::{Entry, LaneId, Lanes, Order, WaitsFor};
use crate::offset_tracker::{OffsetTracker, Standing};
use crate::record::{Chunk, Offset, Record};

/// The bounds of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Records of a call.
    pub call_records_max: usize,
    /// Bytes of a call; one larger record still goes alone.
    pub call_bytes_max: usize,
    /// Calls that have not returned, those included whose outputs wait to be acknowledged; under [`Order::Partition`] it is
    /// one in any case.
    pub calls_max: usize,
    /// Records that are received and not settled.
    pub records_max: usize,
    /// Their bytes. One delivery may pass it.
    pub bytes_max: usize,
    /// Delivered records from the first unsettled one on: what a crash repeats at most.
    pub span_max: usize,
}

/// Something that happened to the partition.
#[derive(Debug)]
pub enum Event {
    /// The reader delivered records.
    Received(Arc<Chunk>),
    /// A call may start. Answered with at most one [`Action::Invoke`].
    Slot {
        /// How many calls the handler could start now, this one included.
        spare: usize,
    },
    /// A call ended, with one verdict for each of its records, in order.
    Returned {
        /// The call.
        call: CallId,
        /// What became of its records.
        verdicts: Vec<Verdict>,
    },
    /// The broker confirmed a commit. Only what is called at most once waits for it.
    Committed(Offset),
    /// An operator pauses the handler, or lets it go on.
    Paused(bool),
    /// Time passed.
    Timer,
    /// So many more records may be parked, those included that are being parked.
    RoomToPark(usize),
    /// Something changed that may mend the record at which the partition stopped: it goes on, with all attempts anew.
    Resumed,
    /// The broker takes the partition, or the handler stops: take nothing new on, and finish what lies below records that
    /// are settled or run, so that whoever comes next repeats none of those.
    Revoked,
}

/// What the caller has to do.
#[derive(Debug)]
pub enum Action {
    /// Call the guest with these records and answer with [`Event::Returned`].
    Invoke(Call),
    /// Park these records instead of calling the guest with them, and answer with [`Event::Returned`]. One at a time.
    Park(Call),
    /// This offset may be committed now; it replaces any earlier one. At most once: as soon as may be, and answer with
    /// [`Event::Committed`].
    Commit(Offset),
    /// After [`Event::Revoked`]: nothing runs any more, and nothing will but what waits to be tried again.
    Drained,
}

/// Names a call within its partition.
pub type CallId = u64;

/// Records for one call of the guest.
#[derive(Debug)]
pub struct Call {
    /// Its name in [`Event::Returned`].
    pub id: CallId,
    /// The records, in offset order.
    pub records: Vec<CallRecord>,
}

/// A record in a call.
#[derive(Debug, Clone)]
pub struct CallRecord {
    /// The record.
    pub record: Record,
    /// Its lane, to tell what comes after what.
    pub lane: LaneId,
    /// Calls that failed on it alone, before this one.
    pub tries: u32,
    /// Those of `tries` that cost an attempt.
    pub charged: u32,
    /// How long it has been failing, counted from the first failure behind which every one cost an attempt.
    pub age: Duration,
}

/// What became of a record in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its life ends here: handled, skipped or dead-lettered, and everything it did is safe.
    Settled,
    /// It failed: its lane waits.
    Retry {
        /// For how long.
        after: Duration,
        /// Whether it cost an attempt. At most once: whether the guest had it, and then it is not called again.
        charge: bool,
    },
    /// The call failed as a whole and had several records: nobody is charged, and it comes again in a smaller call.
    Halve,
    /// It was not processed: it comes again at once, at no cost.
    Untouched,
    /// It is not given up, and not tried again: the partition stops at it until [`Event::Resumed`].
    Stop,
    /// It is not given up, and not tried again: its key is set aside, and it is the first of it to be parked.
    Park,
}

impl Verdict {
    /// The same where nothing is called twice: only what was not called comes again.
    fn once(self) -> Self {
        match self {
            Self::Untouched | Self::Retry { charge: false, .. } => self,
            Self::Settled | Self::Halve | Self::Stop | Self::Park | Self::Retry { charge: true, .. } => Self::Settled,
        }
    }
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It was not received yet.
    Ahead,
    /// It waits for the records before it, for a call, or for its commit where that comes first.
    Waiting,
    /// It is in a call that has not returned.
    Running {
        /// Calls that failed on it alone, before this one.
        tries: u32,
    },
    /// It failed and waits to be tried again.
    Retrying {
        /// When that is due.
        until: Duration,
        /// Calls that failed on it alone.
        tries: u32,
    },
    /// The partition stands still, at it or before it.
    Stopped,
    /// It is settled.
    Settled,
    /// There is no record at this offset.
    Absent,
}

/// One assigned partition.
#[derive(Debug)]
pub struct Partition {
    bounds: Bounds,
    lanes: Lanes,
    /// `None` until the first delivery tells where reading began.
    tracker: Option<OffsetTracker>,
    calls: BTreeMap<CallId, Vec<Entry>>,
    next_call: CallId,
    /// The one of `calls` that parks its records.
    parking: Option<CallId>,
    /// How many more records may be parked.
    room_to_park: usize,
    /// Bytes received and not settled.
    bytes: usize,
    /// The offset of the last [`Action::Commit`].
    announced: Option<Offset>,
    /// One past the highest settled offset.
    settled_to: Offset,
    /// For what is called at most once.
    ahead: Option<Ahead>,
    paused: bool,
    revoked: bool,
}

/// Records that wait for their commit.
#[derive(Debug)]
struct Ahead {
    /// Records that were asked to be committed and are not done.
    records_max: usize,
    /// Received and not confirmed, in offset order.
    held: VecDeque<Record>,
    /// How many of the first of them were asked to be committed. Invariant: at most `held.len()`.
    asked: usize,
    /// Asked to be committed and not done. Invariant: at most `records_max`.
    at_stake: usize,
}

impl Partition {
    /// Starts with nothing received, and promises each record at most once: no more than `ahead_max` of them are committed
    /// and not done.
    pub fn at_most_once(order: Order, bounds: Bounds, ahead_max: usize) -> Self {
        let ahead = Ahead { records_max: ahead_max.max(1), held: VecDeque::new(), asked: 0, at_stake: 0 };
        Self { ahead: Some(ahead), ..Self::new(order, bounds) }
    }

    /// Starts with nothing received, and promises each record at least once.
    pub fn new(order: Order, bounds: Bounds) -> Self {
        let calls_max = if order == Order::Partition { 1 } else { bounds.calls_max.max(1) };
        Self {
            bounds: Bounds { calls_max, ..bounds },
            lanes: Lanes::new(order),
            tracker: None,
            calls: BTreeMap::new(),
            next_call: 0,
            parking: None,
            room_to_park: usize::MAX,
            bytes: 0,
            announced: None,
            settled_to: 0,
            ahead: None,
            paused: false,
            revoked: false,
        }
    }

    /// Takes an event and adds what is to be done to `actions`.
    pub fn on(&mut self, now: Duration, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Received(chunk) => self.received(&chunk, actions),
            Event::Slot { spare } => self.slot(now, spare, actions),
            Event::Returned { call, verdicts } => self.returned(now, call, &verdicts, actions),
            Event::Committed(offset) => self.committed(offset, actions),
            Event::Paused(paused) => self.pause(paused, actions),
            Event::Timer => self.lanes.wake(now),
            Event::RoomToPark(records) => {
                let parking = self.parking.and_then(|call| self.calls.get(&call)).map_or(0, Vec::len);
                self.room_to_park = records.saturating_sub(parking);
            }
            Event::Resumed if self.revoked => {}
            Event::Resumed => self.lanes.release(),
            Event::Revoked => self.revoked(actions),
        }
        self.park(now, actions);
    }

    /// Sets a key aside, because records of it are parked.
    pub fn set_aside(&mut self, key: Option<&[u8]>) {
        self.lanes.set_aside(key);
    }

    /// Lets a key's records be called again, because none of it is parked any more. False while one is being parked: then
    /// it is not so.
    pub fn release(&mut self, key: Option<&[u8]>) -> bool {
        self.lanes.release_key(key)
    }

    /// Whether records wait to be parked and there is no room for them.
    pub fn is_short_of_room_to_park(&self) -> bool {
        self.lanes.has_aside() && self.room_to_park == 0
    }

    /// How many records may be received now. At 0 the reader is left alone: that is the back-pressure.
    pub fn room(&self) -> usize {
        if self.revoked || self.paused || self.stopped_at().is_some() || self.bytes >= self.bounds.bytes_max {
            return 0;
        }
        let (pending, span) = self.tracker.as_ref().map_or((0, 0), |t| (t.pending(), t.span()));
        let records = self.bounds.records_max.saturating_sub(pending);
        records.min(self.bounds.span_max.saturating_sub(span))
    }

    /// Bytes that may be received now.
    pub fn room_bytes(&self) -> usize {
        self.bounds.bytes_max.saturating_sub(self.bytes)
    }

    /// Whether an [`Event::Slot`] would start a call.
    pub fn wants_slot(&self) -> bool {
        self.running() < self.bounds.calls_max && self.may_call()
    }

    /// How many calls of the guest run.
    fn running(&self) -> usize {
        self.calls.len() - usize::from(self.parking.is_some())
    }

    fn may_park(&self) -> bool {
        self.lanes.has_aside() && self.room_to_park > 0
    }

    /// Whether a record may run now. What is committed has to run, paused or not: it would be lost.
    fn may_call(&self) -> bool {
        self.lanes.ready() > 0 && (!self.paused || self.ahead.is_some())
    }

    /// Bytes received and not settled.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many records are committed, or may be, and not done: what the end of the process would lose. None but for what
    /// is called at most once.
    pub fn at_stake(&self) -> usize {
        self.ahead.as_ref().map_or(0, |ahead| ahead.at_stake)
    }

    /// When to send [`Event::Timer`] next.
    pub fn next_timer(&self) -> Option<Duration> {
        self.lanes.next_wake()
    }

    /// How many records are received and not settled.
    pub fn pending(&self) -> usize {
        self.tracker.as_ref().map_or(0, OffsetTracker::pending)
    }

    /// How many lanes wait to try again.
    pub fn lanes_waiting(&self) -> usize {
        self.lanes.waiting()
    }

    /// The record at which the partition stands still. What lies before it is still worked off.
    pub fn stopped_at(&self) -> Option<Offset> {
        self.lanes.held_from_offset()
    }

    /// The next offset to be received; `None` before the first delivery.
    pub fn position(&self) -> Option<Offset> {
        self.tracker.as_ref().map(OffsetTracker::position)
    }

    /// The offset to commit; `None` before the first delivery.
    pub fn committable(&self) -> Option<Offset> {
        self.tracker.as_ref().map(OffsetTracker::committable)
    }

    /// Where the record at an offset stands. It looks through all that is held, for the rare question.
    pub fn stage_of(&self, offset: Offset) -> Stage {
        let standing = self.tracker.as_ref().map_or(Standing::Ahead, |tracker| tracker.standing(offset));
        match standing {
            Standing::Ahead => Stage::Ahead,
            Standing::Below | Standing::Settled => Stage::Settled,
            Standing::Absent => Stage::Absent,
            Standing::Pending => {
                let running = self.calls.values().flatten().find(|entry| entry.record.offset() == offset);
                match (running, self.lanes.waits_for(offset)) {
                    (Some(entry), _) => Stage::Running { tries: entry.tries },
                    (None, Some(WaitsFor::Time { until, tries })) => Stage::Retrying { until, tries },
                    (None, Some(WaitsFor::Release)) => Stage::Stopped,
                    (None, Some(WaitsFor::Turn) | None) => Stage::Waiting,
                }
            }
        }
    }

    fn received(&mut self, chunk: &Arc<Chunk>, actions: &mut Vec<Action>) {
        if self.revoked {
            return;
        }
        for record in chunk.records() {
            let tracker = self.tracker.get_or_insert_with(|| OffsetTracker::new(record.offset()));
            tracker.received(record.offset());
            self.announced.get_or_insert(record.offset());
            self.bytes += record.bytes();
            match &mut self.ahead {
                Some(ahead) => ahead.held.push_back(record),
                None => self.lanes.push(record),
            }
        }
        self.ask(actions);
    }

    /// Asks to commit what may be called next.
    fn ask(&mut self, actions: &mut Vec<Action>) {
        let Some(ahead) = self.ahead.as_mut().filter(|_| !self.paused && !self.revoked) else { return };
        let more = (ahead.records_max - ahead.at_stake).min(ahead.held.len() - ahead.asked);
        if more > 0 {
            ahead.asked += more;
            ahead.at_stake += more;
            let asked = ahead.held[ahead.asked - 1].offset() + 1;
            self.announced = Some(asked);
            actions.push(Action::Commit(asked));
        }
    }

    /// Lets records run whose commit is confirmed.
    fn committed(&mut self, offset: Offset, actions: &mut Vec<Action>) {
        if let Some(ahead) = &mut self.ahead {
            while let Some(record) = ahead.held.pop_front_if(|record| record.offset() < offset) {
                assert!(ahead.asked > 0, "OFF-1: only what was asked for is committed");
                ahead.asked -= 1;
                self.lanes.push(record);
            }
        }
        self.ask(actions);
    }

    fn pause(&mut self, paused: bool, actions: &mut Vec<Action>) {
        self.paused = paused;
        self.ask(actions);
        if self.revoked {
            self.drained(actions);
        }
    }

    /// SPREAD-1: what could run at once does not wait in one call for another: a call takes no more than its share of the lanes
    /// that are ready, among the calls that may start now.
    fn slot(&mut self, now: Duration, spare: usize, actions: &mut Vec<Action>) {
        if !self.wants_slot() {
            return;
        }
        let running = self.running();
        let shares = spare.clamp(1, self.bounds.calls_max - running);
        let lanes_max = self.lanes.ready().div_ceil(shares);
        let entries = self.lanes.take(lanes_max, self.bounds.call_records_max, self.bounds.call_bytes_max);
        actions.push(Action::Invoke(self.start(now, entries)));
    }

    /// Parks what is set aside, one call after another, so that each key's records stand in order.
    fn park(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.parking.is_some() || !self.may_park() {
            return;
        }
        let records_max = self.bounds.call_records_max.min(self.room_to_park);
        let entries = self.lanes.take_aside(records_max, self.bounds.call_bytes_max);
        self.room_to_park -= entries.len();
        let call = self.start(now, entries);
        self.parking = Some(call.id);
        actions.push(Action::Park(call));
    }

    fn start(&mut self, now: Duration, entries: Vec<Entry>) -> Call {
        let records = entries
            .iter()
            .map(|entry| CallRecord {
                record: entry.record.clone(),
                lane: entry.lane,
                tries: entry.tries,
                charged: entry.charged,
                age: entry.failing_since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            })
            .collect();
        let id = self.next_call;
        self.next_call += 1;
        self.calls.insert(id, entries);
        Call { id, records }
    }

    fn returned(&mut self, now: Duration, call: CallId, verdicts: &[Verdict], actions: &mut Vec<Action>) {
        let Some(entries) = self.calls.remove(&call) else { return };
        self.parking = self.parking.filter(|parking| *parking != call);
        assert_eq!(entries.len(), verdicts.len(), "a call returns one verdict for each of its records");
        let call_records = entries.len() as u32;
        // The records of a lane side by side, each lane's in offset order: the sort is stable.
        let mut returned: Vec<(Entry, Verdict)> = entries.into_iter().zip(verdicts.iter().copied()).collect();
        if self.ahead.is_some() {
            returned.iter_mut().for_each(|(_, verdict)| *verdict = verdict.once());
        }
        for (entry, verdict) in &returned {
            if *verdict == Verdict::Settled {
                self.settle(&entry.record);
            }
        }
        returned.sort_by_key(|(entry, _)| entry.lane);
        for lane in returned.chunk_by_mut(|(a, _), (b, _)| a.lane == b.lane) {
            self.lane_returned(now, call_records, lane);
        }
        self.commit(actions);
        if self.revoked {
            self.drained(actions);
        }
    }

    fn lane_returned(&mut self, now: Duration, call_records: u32, lane: &mut [(Entry, Verdict)]) {
        let id = lane[0].0.lane;
        let mut wait_until = None;
        let mut stop_at = None;
        let mut aside = None;
        for (entry, verdict) in lane.iter_mut() {
            match *verdict {
                Verdict::Settled | Verdict::Untouched => {}
                Verdict::Retry { after, charge } => {
                    entry.tries += 1;
                    entry.charged += u32::from(charge);
                    entry.failing_since = charge.then(|| entry.failing_since.unwrap_or(now));
                    wait_until.get_or_insert(now + after);
                }
                Verdict::Stop => {
                    // Whatever lets it go on is a reason to begin anew.
                    (entry.tries, entry.charged, entry.failing_since) = (0, 0, None);
                    stop_at.get_or_insert(entry.record.offset());
                }
                Verdict::Park => aside = Some(entry.record.clone()),
                Verdict::Halve => entry.call_records_max = (call_records / 2).max(1),
            }
        }
        if let Some(offset) = stop_at {
            self.lanes.hold_from(offset);
        }
        if let Some(record) = aside {
            self.lanes.set_aside(record.key());
        }
        let left = lane.iter().filter(|(_, verdict)| *verdict != Verdict::Settled).map(|(entry, _)| entry.clone());
        self.lanes.returned(id, left, wait_until);
    }

    fn settle(&mut self, record: &Record) {
        self.bytes -= record.bytes();
        let tracker = self.tracker.as_mut().expect("OFF-1: a settled record was received");
        tracker.settled(record.offset());
        self.settled_to = self.settled_to.max(record.offset() + 1);
        if let Some(ahead) = &mut self.ahead {
            ahead.at_stake -= 1;
        }
    }

    fn commit(&mut self, actions: &mut Vec<Action>) {
        if self.ahead.is_some() {
            return self.ask(actions);
        }
        let committable = self.committable();
        if committable > self.announced {
            self.announced = committable;
            actions.extend(committable.map(Action::Commit));
        }
    }

    fn revoked(&mut self, actions: &mut Vec<Action>) {
        if !self.revoked {
            self.revoked = true;
            if let Some(ahead) = &mut self.ahead {
                // What was asked for may be committed already: it runs once that is known.
                ahead.held.truncate(ahead.asked);
                return self.drained(actions);
            }
            let running =
                self.calls.values().filter_map(|entries| entries.last()).map(|entry| entry.record.offset() + 1);
            self.lanes.forget_from(running.fold(self.settled_to, Offset::max));
            self.drained(actions);
        }
    }

    fn drained(&self, actions: &mut Vec<Action>) {
        let waits = self.ahead.as_ref().is_some_and(|ahead| !ahead.held.is_empty() || self.lanes.waiting() > 0);
        if self.calls.is_empty() && !self.may_call() && !self.may_park() && !waits {
            actions.push(Action::Drained);
        }
    }
}

#[cfg(test)]
mod tests;
