//! Which record may run next: in order per lane, bounded in all.
//!
//! LANE-1: of one lane at most one call runs, and its records run in offset order. Unordered, each record is a lane of its
//! own: it runs in at most one call, and waits for no other.
//! LANE-2: no lane starves: lanes that are ready run in the order in which they became so.

use std::borrow::Borrow;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::Duration;

use crate::murmur2::murmur2;
use crate::record::{Offset, Record};

/// Which records must run one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// All of a partition: one call at a time.
    Partition,
    /// Those with the same key; all null keys are one lane.
    Key,
    /// None: each record is a lane of its own.
    Unordered,
}

/// A lane's number while it holds records. Numbers are used again.
pub type LaneId = u32;

/// A record that waits or runs, with its history in this assignment.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// The lane that it belongs to.
    pub lane: LaneId,
    /// Calls that failed on it alone.
    pub tries: u32,
    /// Those of `tries` that cost an attempt.
    pub charged: u32,
    /// When the first of the failures came behind which every one cost an attempt.
    pub failing_since: Option<Duration>,
    /// The largest call that it may be part of. A failed call of many is halved until the culprit is alone.
    pub call_records_max: u32,
}

/// What a record waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// The records before it, or a call.
    Turn,
    /// Its next attempt.
    Time {
        /// When that is due.
        until: Duration,
        /// Calls that failed on it alone.
        tries: u32,
    },
    /// That the partition goes on: it stands still at this record or before it.
    Release,
}

/// The lanes of one partition.
#[derive(Debug)]
pub struct Lanes {
    order: Order,
    lanes: Vec<Lane>,
    /// Emptied lanes, whose memory is used again.
    free: Vec<LaneId>,
    by_key: ByKey,
    /// The lane of null keys, and of everything under [`Order::Partition`].
    keyless: Option<LaneId>,
    /// Idle lanes that hold a record, longest ready first. Invariant: their state is `Ready`.
    ready: VecDeque<LaneId>,
    /// Lanes that wait to try again. Invariant: their state is `Waiting` with that time.
    waiting: BTreeSet<(Duration, LaneId)>,
    /// Records from this offset on do not run. `None`: all may.
    held_from: Option<Offset>,
    /// Idle lanes whose first record is at `held_from` or behind it. Invariant: their state is `Held`.
    held: Vec<LaneId>,
    /// Keys whose records are set aside instead of being run.
    aside: Aside,
    /// Idle lanes with such a record, longest ready first. Invariant: their state is `Ready`, and they are set aside.
    aside_ready: VecDeque<LaneId>,
}

/// Keys that are set aside. They outlive their lanes.
#[derive(Debug, Default)]
struct Aside {
    keys: BTreeSet<Box<[u8]>>,
    /// The lane of null keys.
    keyless: bool,
}

impl Aside {
    fn insert(&mut self, key: Option<&[u8]>) {
        match key {
            Some(key) => drop(self.keys.insert(key.into())),
            None => self.keyless = true,
        }
    }

    fn remove(&mut self, key: Option<&[u8]>) {
        match key {
            Some(key) => drop(self.keys.remove(key)),
            None => self.keyless = false,
        }
    }

    fn contains(&self, key: Option<&[u8]>) -> bool {
        match key {
            Some(key) => !self.keys.is_empty() && self.keys.contains(key),
            None => self.keyless,
        }
    }
}

#[derive(Debug, Default)]
struct Lane {
    key: Option<Key>,
    queue: VecDeque<Entry>,
    state: State,
    /// Its records are set aside instead of being run.
    aside: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Holds nothing and is in `free`.
    #[default]
    Free,
    Ready,
    /// Its first records are in a call.
    Running,
    Waiting,
    Held,
}

/// Lanes by key. It is asked and never gone through, so that its order decides nothing.
#[allow(clippy::disallowed_types, reason = "its hash is fixed, and nobody sees its order (ARCH-2)")]
type ByKey = std::collections::HashMap<Key, LaneId, BuildHasherDefault<KeyHasher>>;

/// Keys' own hash, spread over 64 bits. Who makes keys that collide makes their lookups slow, and slower only up to the
/// keys that a partition holds at once: `Bounds::records_max`.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        /// 2^64 divided by the golden ratio, odd: neighbours end far apart.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0 ^ u64::from(murmur2(bytes))).wrapping_mul(SPREAD);
    }

    /// A key's length, which murmur2 takes in by itself.
    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A key, by reference to the first record that brought it: a new lane allocates nothing.
#[derive(Debug, Clone)]
struct Key(Record);

impl Key {
    fn bytes(&self) -> &[u8] {
        self.0.key().unwrap_or_default()
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.bytes()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

impl Lanes {
    /// No lanes yet.
    pub fn new(order: Order) -> Self {
        Self {
            order,
            lanes: Vec::new(),
            free: Vec::new(),
            by_key: ByKey::default(),
            keyless: None,
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            held_from: None,
            held: Vec::new(),
            aside: Aside::default(),
            aside_ready: VecDeque::new(),
        }
    }

    /// Puts a delivered record at the end of its lane.
    pub fn push(&mut self, record: Record) {
        let id = self.lane_of(&record);
        let lane = &mut self.lanes[id as usize];
        let entry = Entry { record, lane: id, tries: 0, charged: 0, failing_since: None, call_records_max: u32::MAX };
        lane.queue.push_back(entry);
        if lane.state == State::Free {
            self.make_ready(id);
        }
    }

    /// Lets an idle lane with a record run, unless that record is held.
    fn make_ready(&mut self, id: LaneId) {
        let lane = &mut self.lanes[id as usize];
        let first = lane.queue.front().map(|entry| entry.record.offset());
        if self.held_from.is_some_and(|from| first >= Some(from)) {
            lane.state = State::Held;
            self.held.push(id);
        } else {
            lane.state = State::Ready;
            let ready = if lane.aside { &mut self.aside_ready } else { &mut self.ready };
            ready.push_back(id);
        }
    }

    /// Sets the records of a key aside: those that wait, and those that come.
    pub fn set_aside(&mut self, key: Option<&[u8]>) {
        self.aside.insert(key);
        if let Some(id) = self.known(key) {
            self.move_lane(id, true);
        }
    }

    /// Sets a lane aside or takes it back. A ready one is in the queue that `aside` names, and in no other.
    fn move_lane(&mut self, id: LaneId, aside: bool) {
        let lane = &mut self.lanes[id as usize];
        if lane.aside == aside {
            return;
        }
        lane.aside = aside;
        if lane.state == State::Ready {
            let left = if aside { &mut self.ready } else { &mut self.aside_ready };
            left.retain(|ready| *ready != id);
            self.make_ready(id);
        }
    }

    /// Lets the records of a key run again. Not while one of them is being set aside: then it answers false.
    pub fn release_key(&mut self, key: Option<&[u8]>) -> bool {
        if let Some(id) = self.known(key) {
            let lane = &self.lanes[id as usize];
            if lane.aside && lane.state == State::Running {
                return false;
            }
            self.move_lane(id, false);
        }
        self.aside.remove(key);
        true
    }

    /// The lane of a key, if it holds records.
    fn known(&self, key: Option<&[u8]>) -> Option<LaneId> {
        match key {
            Some(key) => self.by_key.get(key).copied(),
            None => self.keyless,
        }
    }

    fn lane_of(&mut self, record: &Record) -> LaneId {
        if self.order == Order::Unordered {
            return self.empty_lane();
        }
        let key = if self.order == Order::Key { record.key() } else { None };
        if let Some(id) = self.known(key) {
            return id;
        }
        let id = self.empty_lane();
        self.lanes[id as usize].aside = self.aside.contains(key);
        match key {
            Some(_) => {
                let key = Key(record.clone());
                self.lanes[id as usize].key = Some(key.clone());
                self.by_key.insert(key, id);
            }
            None => self.keyless = Some(id),
        }
        id
    }

    fn empty_lane(&mut self) -> LaneId {
        self.free.pop().unwrap_or_else(|| {
            self.lanes.push(Lane::default());
            (self.lanes.len() - 1) as LaneId
        })
    }

    /// Takes the records of the next call: so many ready lanes in turn, from each its first records, in offset order overall.
    pub fn take(&mut self, lanes_max: usize, records_max: usize, bytes_max: usize) -> Vec<Entry> {
        let mut ready = std::mem::take(&mut self.ready);
        let taken = self.take_from(&mut ready, lanes_max, records_max, bytes_max);
        self.ready = ready;
        taken
    }

    /// The same of all lanes that are set aside.
    pub fn take_aside(&mut self, records_max: usize, bytes_max: usize) -> Vec<Entry> {
        let mut ready = std::mem::take(&mut self.aside_ready);
        let taken = self.take_from(&mut ready, usize::MAX, records_max, bytes_max);
        self.aside_ready = ready;
        taken
    }

    fn take_from(
        &mut self,
        ready: &mut VecDeque<LaneId>,
        lanes_max: usize,
        records_max: usize,
        bytes_max: usize,
    ) -> Vec<Entry> {
        let mut taken = Vec::with_capacity(records_max.min(ready.len().max(8)));
        let mut room = Room { records: records_max.max(1), bytes: bytes_max };
        for _lane in 0..lanes_max.max(1) {
            let Some(&id) = ready.front() else { break };
            let before = taken.len();
            let lane = &mut self.lanes[id as usize];
            while let Some(entry) = lane.queue.front()
                && room.admits(entry, taken.len())
                && self.held_from.is_none_or(|from| entry.record.offset() < from)
            {
                room.take(entry);
                taken.extend(lane.queue.pop_front());
            }
            if taken.len() == before {
                break;
            }
            lane.state = State::Running;
            ready.pop_front();
        }
        taken.sort_unstable_by_key(|entry| entry.record.offset());
        taken
    }

    /// Ends a lane's call: `left` are its records that are not settled, in offset order; they run before what came later.
    pub fn returned(&mut self, id: LaneId, left: impl DoubleEndedIterator<Item = Entry>, wait_until: Option<Duration>) {
        let lane = &mut self.lanes[id as usize];
        debug_assert_eq!(lane.state, State::Running, "LANE-1: only a running lane returns");
        for entry in left.rev() {
            lane.queue.push_front(entry);
        }
        if lane.queue.is_empty() {
            self.retire(id);
        } else if let Some(until) = wait_until {
            lane.state = State::Waiting;
            self.waiting.insert((until, id));
        } else {
            self.make_ready(id);
        }
    }

    /// Lets no record at this offset or behind it run, until [`Lanes::release`]. Calls that run go on.
    pub fn hold_from(&mut self, offset: Offset) {
        self.held_from = Some(self.held_from.map_or(offset, |from| from.min(offset)));
        let ready = std::mem::take(&mut self.ready).into_iter().chain(std::mem::take(&mut self.aside_ready));
        for id in ready {
            self.make_ready(id);
        }
    }

    /// Lets everything run again, the oldest first.
    pub fn release(&mut self) {
        self.held_from = None;
        let mut held = std::mem::take(&mut self.held);
        held.sort_by_key(|id| self.lanes[*id as usize].queue.front().map(|entry| entry.record.offset()));
        for id in held {
            self.make_ready(id);
        }
    }

    /// What a record that waits here waits for; `None` when it does not wait here.
    pub fn waits_for(&self, offset: Offset) -> Option<WaitsFor> {
        let lane_of = |lane: &&Lane| lane.queue.binary_search_by_key(&offset, |entry| entry.record.offset()).is_ok();
        let lane = self.lanes.iter().find(lane_of)?;
        let first = lane.queue.front()?;
        if self.held_from.is_some_and(|from| offset >= from) {
            return Some(WaitsFor::Release);
        }
        let until = self.waiting.iter().find(|(_, id)| *id == first.lane).map(|(until, _)| *until);
        match until {
            Some(until) if first.record.offset() == offset => Some(WaitsFor::Time { until, tries: first.tries }),
            Some(_) | None => Some(WaitsFor::Turn),
        }
    }

    /// The first offset that is held.
    pub fn held_from_offset(&self) -> Option<Offset> {
        self.held_from
    }

    /// Forgets records that wait at this offset and behind it.
    pub fn forget_from(&mut self, offset: Offset) {
        for lane in &mut self.lanes {
            while lane.queue.back().is_some_and(|entry| entry.record.offset() >= offset) {
                lane.queue.pop_back();
            }
        }
        let lanes = &self.lanes;
        let is_empty = |id: LaneId| lanes[id as usize].queue.is_empty();
        let mut emptied: Vec<LaneId> = self.ready.iter().copied().filter(|id| is_empty(*id)).collect();
        emptied.extend(self.waiting.iter().map(|(_, id)| *id).filter(|id| is_empty(*id)));
        emptied.extend(self.held.iter().chain(&self.aside_ready).copied().filter(|id| is_empty(*id)));
        self.aside_ready.retain(|id| !is_empty(*id));
        self.ready.retain(|id| !is_empty(*id));
        self.waiting.retain(|(_, id)| !is_empty(*id));
        self.held.retain(|id| !is_empty(*id));
        emptied.into_iter().for_each(|id| self.retire(id));
    }

    fn retire(&mut self, id: LaneId) {
        let lane = &mut self.lanes[id as usize];
        lane.state = State::Free;
        lane.aside = false;
        match lane.key.take() {
            Some(key) => {
                self.by_key.remove(key.bytes());
            }
            None => self.keyless = None,
        }
        self.free.push(id);
    }

    /// Makes lanes ready whose wait is over.
    pub fn wake(&mut self, now: Duration) {
        while let Some(&(until, id)) = self.waiting.first()
            && until <= now
        {
            self.waiting.pop_first();
            self.make_ready(id);
        }
    }

    /// When the next waiting lane becomes ready.
    pub fn next_wake(&self) -> Option<Duration> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// How many lanes are ready to run.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Whether a record is ready to be set aside.
    pub fn has_aside(&self) -> bool {
        !self.aside_ready.is_empty()
    }

    /// How many lanes wait to try again.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// What still fits into a call.
struct Room {
    records: usize,
    bytes: usize,
}

impl Room {
    /// The first record of a call always fits, whatever its size.
    fn admits(&self, entry: &Entry, taken: usize) -> bool {
        let records = self.records.min((entry.call_records_max as usize).saturating_sub(taken));
        taken == 0 || (records > 0 && entry.record.bytes() <= self.bytes)
    }

    fn take(&mut self, entry: &Entry) {
        self.records = (self.records - 1).min(entry.call_records_max as usize - 1);
        self.bytes = self.bytes.saturating_sub(entry.record.bytes());
    }
}

#[cfg(test)]
mod tests;
