//! Everything outside of the hosts, in one place: the log, the group, transactions, the database, the dice and the trace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemill_core::record::Offset;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::bank::Rows;
use super::coordinator::Coordinator;
use super::parked::ParkedTopic;
use super::story::{Plan, Rates};
use super::trace::{Entry, Host, What};
use super::transactions::Producers;

/// A host that says nothing for so long is not waited for by its group.
pub(super) const SESSION: Duration = Duration::from_secs(6);

pub(super) struct World {
    pub(super) plan: Plan,
    origin: Instant,
    state: Mutex<State>,
    /// Tells the readers of a partition that it has grown.
    grown: Vec<Notify>,
}

pub(super) struct State {
    pub(super) dice: fastrand::Rng,
    pub(super) trace: Vec<Entry>,
    pub(super) rates: Rates,
    /// The input, by partition: the key of each record by its offset.
    pub(super) input: Vec<BTreeMap<Offset, u8>>,
    /// How many of its partitions there are by now.
    pub(super) partitions: i32,
    /// The oldest offset of each that is kept.
    pub(super) starts: Vec<Offset>,
    pub(super) parked: ParkedTopic,
    pub(super) group: Coordinator,
    pub(super) producers: Producers,
    pub(super) rows: Rows,
    /// What hosts need and is away.
    pub(super) away: BTreeSet<&'static str>,
    /// The newest revision of the guest. Each host swaps it in when it comes to it.
    pub(super) revision: Revision,
    /// From here on nothing goes wrong, and no record is poison.
    pub(super) well: bool,
    pub(super) calls: u64,
}

impl World {
    pub(super) fn new(plan: Plan) -> Arc<Self> {
        let (known, partitions) = (plan.partitions as usize, plan.partitions_max() as usize);
        let state = State {
            dice: fastrand::Rng::with_seed(plan.seed),
            trace: Vec::new(),
            rates: plan.rates,
            input: vec![BTreeMap::new(); partitions],
            partitions: plan.partitions,
            starts: vec![0; partitions],
            parked: ParkedTopic::new(&plan),
            group: Coordinator::new(known, partitions),
            producers: Producers::default(),
            rows: Rows::default(),
            away: BTreeSet::new(),
            revision: Revision { number: 1, worse: false },
            well: false,
            calls: 0,
        };
        let grown = (0..partitions).map(|_| Notify::new()).collect();
        Arc::new(Self { plan, origin: Instant::now(), state: Mutex::new(state), grown })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, what: What) {
        self.note_in(&mut self.lock(), what);
    }

    pub(super) fn note_in(&self, state: &mut State, what: What) {
        state.trace.push(Entry { at: self.origin.elapsed(), what });
    }

    pub(super) fn grown(&self, partition: i32) -> &Notify {
        &self.grown[partition as usize]
    }

    /// Writes records to the end of a partition, sometimes with a gap as compaction leaves it.
    pub(super) fn write(&self, partition: i32, records: usize) {
        let mut state = self.lock();
        for _ in 0..records {
            let gap = if state.dice.u8(..8) == 0 { state.dice.i64(1..4) } else { 0 };
            let key = state.dice.u8(..self.plan.keys);
            let offset = state.end(partition) + gap;
            state.input[partition as usize].insert(offset, key);
            self.note_in(&mut state, What::Written((partition, offset), key));
        }
        drop(state);
        self.grown(partition).notify_waiters();
    }

    /// Retention deletes a part of a partition's records, read or not, but for the newest.
    pub(super) fn trim(&self, partition: i32) {
        let mut state = self.lock();
        let start = state.starts[partition as usize];
        let kept: Vec<Offset> = state.input[partition as usize].range(start..).map(|(offset, _)| *offset).collect();
        if kept.is_empty() {
            return;
        }
        let start = kept[state.dice.usize(..kept.len())];
        state.starts[partition as usize] = start;
        self.note_in(&mut state, What::Deleted(partition, start));
    }

    /// Somebody makes the parked topic, unless it is there, with all the partitions that it should have.
    pub(super) fn make_parked(&self) {
        let mut state = self.lock();
        let partitions = state.partitions;
        state.parked.make(partitions);
    }

    /// A partition is added. The group finds that out later, and whoever makes parked topics adds one there.
    pub(super) fn add_partition(self: &Arc<Self>) {
        let (partitions, found_out) = {
            let mut state = self.lock();
            state.partitions += 1;
            let partitions = state.partitions;
            self.note_in(&mut state, What::Added(partitions));
            (partitions, [(); 2].map(|()| state.dice.u64(..3000)))
        };
        let [group, parked] = found_out.map(Duration::from_millis);
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(group).await;
            world.lock().group.grow(partitions as usize);
        });
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(parked).await;
            world.lock().parked.grow(partitions);
        });
    }

    /// Whether something goes wrong now that goes wrong so often.
    pub(super) fn mishap(&self, rate: impl Fn(&Rates) -> u32) -> bool {
        self.lock().mishap(rate)
    }

    /// Waits for up to so many milliseconds.
    pub(super) async fn latency(&self, millis_max: u64) {
        let millis = self.lock().dice.u64(..=millis_max);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

impl State {
    pub(super) fn mishap(&mut self, rate: impl Fn(&Rates) -> u32) -> bool {
        self.dice.u32(..1000) < rate(&self.rates)
    }

    pub(super) fn end(&self, partition: i32) -> Offset {
        self.input[partition as usize].last_key_value().map_or(0, |(last, _)| last + 1)
    }
}

/// A revision of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Revision {
    pub(super) number: u32,
    /// Whether each call of it may fail, on top of what its records do.
    pub(super) worse: bool,
}

/// A host's tie to the world.
pub(super) struct Life {
    pub(super) host: Host,
    state: Mutex<LifeState>,
    changed: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LifeState {
    link: Link,
    /// Counts how often the link was cut.
    cuts: u64,
    stopping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// The host runs, and does not reach the broker.
    Cut,
    /// The host does nothing for a while, and then goes on as if nothing had happened.
    Frozen,
    /// The host is gone: whatever is left of it does nothing.
    Dead,
}

impl Life {
    pub(super) fn new(host: Host) -> Arc<Self> {
        let state = LifeState { link: Link::Up, cuts: 0, stopping: false };
        Arc::new(Self { host, state: Mutex::new(state), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, LifeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn link(&self) -> Link {
        self.lock().link
    }

    pub(super) fn is_up(&self) -> bool {
        self.link() == Link::Up
    }

    pub(super) fn cuts(&self) -> u64 {
        self.lock().cuts
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    pub(super) fn stop(&self) {
        self.lock().stopping = true;
    }

    pub(super) fn set(&self, link: Link) {
        {
            let mut state = self.lock();
            state.link = link;
            state.cuts += u64::from(matches!(link, Link::Cut | Link::Frozen));
        }
        self.changed.notify_waiters();
    }

    /// Goes on unless the host is gone. What a frozen one does at once it may as well have done just before.
    pub(super) async fn not_dead(&self) {
        if self.link() == Link::Dead {
            std::future::pending().await
        }
    }

    /// Goes on only while the host lives. Answers whether it was frozen meanwhile.
    pub(super) async fn alive(&self) -> bool {
        let mut was_frozen = false;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.link() {
                Link::Up | Link::Cut => return was_frozen,
                Link::Frozen => was_frozen = true,
                Link::Dead => std::future::pending().await,
            }
            changed.await;
        }
    }

    /// Waits until the host reaches the broker, for ever once it is dead.
    pub(super) async fn up(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_up() {
                return;
            }
            changed.await;
        }
    }

    /// The same, but not for ever. False: it did not come up in time.
    pub(super) async fn up_within(&self, patience: Duration) -> bool {
        let up = timeout(patience, self.up()).await.is_ok();
        self.alive().await;
        up
    }
}
