//! A story: how a handler is set up, and what happens to it, all of it from one number.

use std::fmt;
use std::time::Duration;

use tidemill_core::lanes::Order;
use tidemill_core::partition::Bounds;
use tidemill_core::retry::{Exhausted, RetryPolicy};
use tidemill_core::transaction::Limits;

use super::guest::DEADLINE;
use crate::attempt::Guarantee;
use crate::consumer::Config;

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    AtLeastOnce,
    AtMostOnce,
    /// Exactly once, from Kafka to Kafka.
    Kafka,
    /// Exactly once, in a database.
    Database,
    /// At least once, where keys are parked.
    Parking,
}

impl Mode {
    /// Whether that is all.
    pub(super) fn is_at_least_once(self) -> bool {
        matches!(self, Self::AtLeastOnce | Self::Parking)
    }

    pub(super) const ALL: [Self; 5] = [Self::AtLeastOnce, Self::AtMostOnce, Self::Kafka, Self::Database, Self::Parking];
}

/// Who makes the parked topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Makes {
    /// It is there.
    Before,
    /// A host does, since the broker makes topics.
    Host,
    /// The operator does, some time later.
    Later,
}

/// How often things go wrong, in a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rates {
    /// A commit, or its answer.
    pub(super) commit: u32,
    /// A fetch.
    pub(super) read: u32,
    /// Each record that is sent.
    pub(super) send: u32,
    /// Each step of a transaction.
    pub(super) transaction: u32,
    /// Each record of a call, and each call.
    pub(super) guest: u32,
    /// Each statement.
    pub(super) bank: u32,
}

/// Something that somebody does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// So many records come in.
    Write(i32, usize),
    Start(usize),
    /// The good end of a host.
    Stop(usize),
    /// It is gone at once; the group notices later.
    Crash(usize),
    /// It does not reach the broker for so many milliseconds.
    Cut(usize, u64),
    /// It does nothing at all for so long.
    Freeze(usize, u64),
    /// Its client can't go on.
    Fail(usize),
    /// The group shares its partitions out anew.
    Shuffle,
    /// Another revision; a worse one or not.
    Swap(bool),
    /// A host goes back to its revision before.
    RollBack(usize),
    /// A partition is added, in which so many records come in after so many milliseconds.
    Add(usize, u64),
    /// Some of a partition's records are deleted.
    Trim(i32),
    /// All parked keys of a host are tried again.
    Unpark(usize),
    /// The parked topic is made.
    MakeParked,
    Pause(usize, u64),
    /// Something is away for so long.
    Away(&'static str, u64),
}

/// The whole story but its dice.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) mode: Mode,
    pub(super) order: Order,
    pub(super) partitions: i32,
    /// Partitions that are added.
    pub(super) added: i32,
    pub(super) keys: u8,
    pub(super) hosts: usize,
    pub(super) attempts_max: u32,
    pub(super) exhausted: Exhausted,
    pub(super) bounds: Bounds,
    pub(super) concurrency: usize,
    pub(super) ahead_max: usize,
    pub(super) held_bytes_max: usize,
    pub(super) commit_interval: Duration,
    pub(super) drain_deadline: Duration,
    pub(super) parked_max: usize,
    pub(super) parked_made_by: Makes,
    pub(super) transaction: Limits,
    pub(super) rates: Rates,
    /// By time.
    pub(super) acts: Vec<(Duration, Act)>,
}

/// From here on all goes well.
pub(super) const HORIZON: Duration = Duration::from_secs(15);

impl Plan {
    pub(super) fn new(seed: u64, mode: Mode) -> Self {
        let dice = &mut fastrand::Rng::with_seed(seed.wrapping_add(mode as u64));
        let (order, exhausted) = order_and_end(dice, mode);
        let partitions = dice.i32(1..=6);
        let added = if dice.u8(..4) == 0 { dice.i32(1..=2) } else { 0 };
        let parked_made_by = [Makes::Before, Makes::Before, Makes::Host, Makes::Later][dice.usize(..4)];
        let hosts = dice.usize(1..=3);
        let bounds = Bounds {
            call_records_max: dice.usize(1..=5),
            call_bytes_max: dice.usize(4..40),
            calls_max: dice.usize(1..=4),
            records_max: dice.usize(4..30),
            bytes_max: dice.usize(10..200),
            span_max: dice.usize(8..60),
        };
        let often = if dice.bool() { 1 } else { 4 };
        let mut rate = |most: u32| if dice.u8(..3) == 0 { 0 } else { dice.u32(..most) * often };
        let rates = Rates {
            commit: rate(60),
            read: rate(10),
            send: rate(30),
            transaction: rate(60),
            guest: rate(20),
            bank: rate(15),
        };
        Self {
            seed,
            mode,
            order,
            partitions,
            added,
            keys: dice.u8(1..6),
            hosts,
            attempts_max: dice.u32(1..4),
            exhausted,
            bounds,
            concurrency: dice.usize(1..6),
            ahead_max: dice.usize(1..6),
            held_bytes_max: if dice.bool() { usize::MAX } else { dice.usize(20..200) },
            commit_interval: Duration::from_millis(dice.u64(20..300)),
            drain_deadline: Duration::from_millis(dice.u64(100..4000)),
            parked_max: if dice.bool() { 1000 } else { dice.usize(1..20) },
            parked_made_by,
            transaction: Limits {
                interval: Duration::from_millis(dice.u64(1..300)),
                records_max: dice.usize(1..30),
                // A dead letter names the time of day, and so is not always of one size: it fits in none, or in all.
                bytes_max: if dice.bool() { dice.usize(20..200) } else { usize::MAX / 2 },
            },
            rates,
            acts: acts(dice, mode, (partitions, added), hosts),
        }
    }

    pub(super) fn partitions_max(&self) -> i32 {
        self.partitions + self.added
    }

    /// The handler's settings.
    pub(super) fn config(&self) -> Config {
        Config {
            guarantee: match self.mode {
                Mode::AtLeastOnce | Mode::Parking => Guarantee::AtLeastOnce,
                Mode::AtMostOnce => Guarantee::AtMostOnce,
                Mode::Kafka => Guarantee::KafkaTransaction,
                Mode::Database => Guarantee::SqlTransaction,
            },
            order: self.order,
            ahead_max: self.ahead_max,
            bounds: self.bounds.clone(),
            concurrency: self.concurrency,
            call_deadline: DEADLINE,
            commit_interval: self.commit_interval,
            drain_deadline: self.drain_deadline,
            transaction: self.transaction.clone(),
            ..super::super::config()
        }
    }

    pub(super) fn policy(&self) -> RetryPolicy {
        let policy = RetryPolicy::new(self.attempts_max, Duration::from_millis(10), Duration::from_millis(800));
        policy.expect("valid").exhausted(self.exhausted)
    }

    /// In a transaction, with the policy `stop`, a partition stands still at an output that no broker takes.
    pub(super) fn has_large(&self) -> bool {
        self.mode != Mode::Kafka || self.exhausted != Exhausted::Stop
    }
}

/// What the handler's manifest allows together.
fn order_and_end(dice: &mut fastrand::Rng, mode: Mode) -> (Order, Exhausted) {
    let order = match dice.u8(..10) {
        _ if mode == Mode::Database => Order::Partition,
        _ if mode == Mode::Parking => Order::Key,
        0..6 => Order::Key,
        6..8 => Order::Partition,
        _ => Order::Unordered,
    };
    let exhausted = match dice.u8(..10) {
        _ if mode == Mode::Parking => Exhausted::Park,
        0 | 1 if mode != Mode::AtMostOnce => Exhausted::Stop,
        2 => Exhausted::Drop,
        _ => Exhausted::DeadLetter,
    };
    (order, exhausted)
}

fn acts(dice: &mut fastrand::Rng, mode: Mode, (partitions, added): (i32, i32), hosts: usize) -> Vec<(Duration, Act)> {
    let mut acts = Vec::new();
    let mut at = |dice: &mut fastrand::Rng, act| acts.push((dice.u64(..HORIZON.as_millis() as u64), act));
    for partition in 0..partitions {
        for _ in 0..dice.usize(1..4) {
            let records = dice.usize(1..12);
            at(dice, Act::Write(partition, records));
        }
    }
    for _ in 0..added {
        let (records, later) = (dice.usize(1..12), dice.u64(..4000));
        at(dice, Act::Add(records, later));
    }
    for _ in 0..dice.usize(2..9) {
        let act = act(dice, mode, partitions, hosts);
        at(dice, act);
    }
    // The first hosts come soon, and what is there already is most of it.
    let mut acts: Vec<(Duration, Act)> = acts.into_iter().map(|(at, act)| (Duration::from_millis(at), act)).collect();
    for (index, (at, _)) in acts.iter_mut().enumerate() {
        if index % 3 == 0 {
            *at /= 10;
        }
    }
    for host in 0..hosts {
        acts.push((Duration::from_millis(dice.u64(..2000) * host as u64), Act::Start(host)));
    }
    if mode == Mode::Parking {
        acts.push((Duration::from_millis(dice.u64(..15_000)), Act::MakeParked));
    }
    acts.sort_by_key(|(at, _)| *at);
    acts
}

/// Something that goes wrong, or that somebody does.
fn act(dice: &mut fastrand::Rng, mode: Mode, partitions: i32, hosts: usize) -> Act {
    let host = dice.usize(..hosts);
    match dice.u8(..26) {
        0..4 => Act::Crash(host),
        4..7 => Act::Stop(host),
        7..9 => Act::Start(host),
        9..12 => Act::Cut(host, dice.u64(50..12_000)),
        12 | 13 => Act::Freeze(host, dice.u64(50..12_000)),
        14 | 15 => Act::Shuffle,
        16 | 17 => Act::Swap(dice.bool()),
        18 => Act::RollBack(host),
        19 => Act::Pause(host, dice.u64(100..5000)),
        20 => Act::Fail(host),
        21 | 22 => Act::Trim(dice.i32(0..partitions)),
        23 if mode == Mode::Parking => Act::Unpark(host),
        _ => {
            let thing = match mode {
                Mode::Database => ["outputs", "letters", "bank"][dice.usize(..3)],
                Mode::Parking => ["outputs", "parked"][dice.usize(..2)],
                Mode::AtLeastOnce | Mode::AtMostOnce | Mode::Kafka => ["outputs", "letters"][dice.usize(..2)],
            };
            Act::Away(thing, dice.u64(100..6000))
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acts, .. } = self;
        writeln!(f, "{:?}", Self { acts: Vec::new(), ..self.clone() })?;
        acts.iter().try_for_each(|(at, act)| writeln!(f, "{:>8.3} {act:?}", at.as_secs_f64()))
    }
}
