use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::lanes::Order;
use crate::partition::{Action, Bounds, Call, Event, Partition, Verdict};
use crate::record::{ChunkBuilder, Timestamp};

fn key(name: &str) -> Key {
    Some(name.as_bytes().into())
}

fn source(offset: Offset) -> Source {
    Source { offset, millis: 7 }
}

fn parked(index: &mut Parked<u8>, at: Offset, name: &str, offset: Offset, owner: &str) -> bool {
    index.parked(key(name), written(at, offset, owner))
}

fn written(at: Offset, offset: Offset, owner: &str) -> Written<u8> {
    Written { at, source: source(offset), behind: None, owner: owner.into(), why: Some(1) }
}

fn in_turn(index: &mut Parked<u8>) -> Vec<(Offset, Offset)> {
    index.try_again(|_, _| true);
    let handed = std::iter::from_fn(|| {
        let at = index.next_wanted()?;
        Some((at, index.hand_out(at)?.offset))
    });
    handed.collect()
}

#[test]
fn keys_wait_until_they_are_tried_and_are_handed_out_once_and_in_order() {
    let mut index = Parked::new(10);
    for (at, name, offset) in [(0, "a", 5), (1, "b", 6), (2, "a", 8)] {
        assert!(parked(&mut index, at, name, offset, "me"));
    }
    assert_eq!((index.records(), index.room(), index.next_wanted()), (3, 7, None));
    assert!(index.holds(&key("a"), source(8)) && !index.holds(&key("a"), source(6)));
    assert!(!index.holds(&key("a"), Source { offset: 8, millis: 9 }), "a topic that was made anew has other records");

    assert_eq!(index.try_again(|name, _| *name == key("a")), Count { keys: 1, records: 2 });
    assert_eq!(index.try_again(|name, _| *name == key("a")), Count::default(), "they are tried already");
    assert_eq!((index.hand_out(1), index.hand_out(0), index.hand_out(0)), (None, Some(source(5)), None));
    assert!(parked(&mut index, 3, "a", 9, "me"), "what comes meanwhile is behind them");
    index.settled(0);
    assert_eq!((index.hand_out(2), index.hand_out(3)), (Some(source(8)), Some(source(9))));
    index.failed_again(&key("a"), 2);
    assert_eq!(index.try_again(|name, why| *name == key("a") && why == Some(&2)), Count { keys: 1, records: 2 });
    index.settled_all(&OffsetSet::from_iter([2, 3]));
    let mut asked = Vec::new();
    index.release(|name| {
        asked.push(name.map(<[u8]>::to_vec));
        false
    });
    index.release(|_| true);
    assert_eq!(asked, [Some(b"a".to_vec())], "a key goes when nothing of it is under way");
    assert_eq!(index.keys().map(|(name, of)| (name.clone(), of.records())).collect::<Vec<_>>(), [(key("b"), 1)]);
}

#[test]
fn who_is_not_the_owner_any_more_parks_nothing() {
    let mut index = Parked::new(10);
    assert!(parked(&mut index, 0, "a", 5, "one"));
    index.owned_by("other".into());
    assert!(!parked(&mut index, 2, "b", 6, "one"));
    assert!(parked(&mut index, 3, "a", 7, "other"));
    assert_eq!(index.records(), 2);
}

#[test]
fn what_an_owner_writes_again_counts_where_it_stands_last() {
    let mut index = Parked::new(10);
    for (at, offset) in [(0, 5), (1, 7), (2, 6), (3, 7)] {
        assert!(parked(&mut index, at, "a", offset, "me"));
    }
    assert_eq!(in_turn(&mut index), [(0, 5), (2, 6), (3, 7)]);
}

#[test]
fn what_was_written_ahead_of_its_turn_does_not_count_for_whoever_comes_next() {
    let mut index = Parked::new(10);
    assert!(parked(&mut index, 0, "a", 5, "one"));
    // The one at offset 7 was refused, and its host died before it could write it otherwise.
    assert!(!index.parked(key("a"), Written { behind: Some(7), ..written(1, 8, "one") }));
    index.owned_by("other".into());
    assert!(!index.holds(&key("a"), source(7)) && !index.holds(&key("a"), source(8)));
    assert!(parked(&mut index, 3, "a", 7, "other"));
    assert!(index.parked(key("a"), Written { behind: Some(7), ..written(4, 8, "other") }));
    assert_eq!(in_turn(&mut index), [(0, 5), (3, 7), (4, 8)]);
}

#[test]
fn what_the_source_delivers_once_more_goes_behind_what_came_before_it() {
    let mut index = Parked::new(10);
    for (at, offset) in [(0, 2), (1, 4)] {
        assert!(parked(&mut index, at, "a", offset, "one"));
    }
    index.owned_by("other".into());
    assert!(index.holds(&key("a"), source(2)), "as after a crash");
    // The source is read from its beginning again.
    assert!(parked(&mut index, 3, "a", 0, "other"));
    assert!(!index.holds(&key("a"), source(2)) && !index.holds(&key("a"), source(4)));
    assert!(parked(&mut index, 4, "a", 2, "other"));
    assert!(index.holds(&key("a"), source(0)) && index.holds(&key("a"), source(2)));
    assert_eq!((index.place_of(2), index.place_of(4)), (Some(4), Some(1)));
    assert!(parked(&mut index, 5, "a", 4, "other"));
    assert_eq!(
        in_turn(&mut index),
        [(0, 2), (1, 4), (3, 0), (4, 2), (5, 4)],
        "as it lies, and once more from there on"
    );

    // Of a topic that was made anew it is another record.
    index.owned_by("third".into());
    let anew = Written { source: Source { offset: 2, millis: 9 }, ..written(7, 2, "third") };
    assert!(!index.holds(&key("a"), anew.source) && index.parked(key("a"), anew));
    assert_eq!(index.records(), 6);
}

#[test]
fn what_was_deleted_is_counted_and_holds_nothing_up() {
    let mut index = Parked::new(10);
    for (at, offset) in [(0, 5), (1, 7), (4, 9)] {
        assert!(parked(&mut index, at, "a", offset, "me"));
    }
    index.try_again(|_, _| true);
    assert_eq!((index.gone_before(4), index.next_wanted(), index.records()), (2, Some(4), 1));
}

const BOUNDS: Bounds = Bounds {
    call_records_max: 3,
    call_bytes_max: 1 << 20,
    calls_max: 4,
    records_max: 40,
    bytes_max: 1 << 20,
    span_max: 60,
};

#[derive(Debug, Clone)]
enum Step {
    Receive {
        key: u8,
    },
    /// One of the calls returns, whichever kind it is.
    Return {
        pick: prop::sample::Index,
        dice: Vec<u8>,
    },
    Wait,
    Unpark {
        key: u8,
    },
    /// The host dies, and another one begins with what is committed and parked. What was on its way there has arrived, or
    /// arrives when the next host has begun; but for one of its records, which the broker has refused.
    Crash {
        late: bool,
        refused: Option<prop::sample::Index>,
    },
    /// An operator lets the partition begin elsewhere.
    Move {
        to: prop::sample::Index,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u8..4).prop_map(|key| Step::Receive { key }),
        6 => (any::<prop::sample::Index>(), prop::collection::vec(0_u8..8, 1..4))
            .prop_map(|(pick, dice)| Step::Return { pick, dice }),
        1 => Just(Step::Wait),
        1 => (0_u8..4).prop_map(|key| Step::Unpark { key }),
    ];
    prop::collection::vec(step, 1..150)
}

fn steps_with_crashes() -> impl Strategy<Value = Vec<Step>> {
    let crash = (any::<bool>(), any::<Option<prop::sample::Index>>());
    with(crash.prop_map(|(late, refused)| Step::Crash { late, refused }))
}

fn steps_with_moves() -> impl Strategy<Value = Vec<Step>> {
    let crash = any::<bool>().prop_map(|late| Step::Crash { late, refused: None });
    with(prop_oneof![3 => any::<prop::sample::Index>().prop_map(|to| Step::Move { to }), 1 => crash])
}

fn with(few: impl Strategy<Value = Step>) -> impl Strategy<Value = Vec<Step>> {
    let few = prop::collection::vec((any::<prop::sample::Index>(), few), 0..4);
    (steps(), few).prop_map(|(mut steps, few)| {
        few.into_iter().for_each(|(at, step)| steps.insert(at.index(steps.len()), step));
        steps
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// PARK-1 and PARK-2: each record is handled once, those of a key in order, wherever they lie meanwhile.
    #[test]
    fn keys_keep_their_order_through_the_parked_topic(steps in steps()) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish(Expected::Once);
    }

    /// The same when hosts die: nothing is lost, and nothing is handled before all that came before it with its key.
    #[test]
    fn parked_keys_outlive_their_hosts(steps in steps_with_crashes()) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish(Expected::AllInOrder);
    }

    /// The same when an operator moves the partition back and ahead: nothing is lost but what was passed over, and what is
    /// read once more ends in order.
    #[test]
    fn parked_keys_outlive_moves_of_their_source(steps in steps_with_moves()) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish(Expected::AllInOrderAtLast);
    }
}

/// What is to be handled of a key, at the end of a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Each once and in order.
    Once,
    /// Each, and for the first time in order.
    AllInOrder,
    /// Each that was not passed over, and for the last time in order.
    AllInOrderAtLast,
}

/// What lies in the parked topic.
#[derive(Debug, Clone)]
enum Lies {
    Notice(Arc<str>),
    Record { key: u8, offset: Offset, behind: Option<Offset>, owner: Arc<str> },
    Receipt(OffsetSet),
}

enum Running {
    Source(Call),
    /// The offsets in the parked topic.
    Second(Call, Vec<Offset>),
    Parking(Call),
}

/// A partition, its parked topic, and a host wired as the real one is.
struct World {
    /// The keys of all records of the source.
    log: Vec<u8>,
    parked_log: Vec<Lies>,
    /// What the guest has handled, by key.
    handled: BTreeMap<u8, Vec<Offset>>,
    committed: Offset,
    /// What an operator has passed over, and did not let come again.
    passed_over: BTreeSet<Offset>,
    /// What an operator has passed over at any time: what is parked behind it does not wait for it.
    once_passed_over: BTreeSet<Offset>,
    hosts: usize,
    now: Duration,
    host: Host,
}

struct Host {
    source: Partition,
    second: Partition,
    index: Parked<u8>,
    owner: Arc<str>,
    received: Offset,
    handed: BTreeMap<Offset, Offset>,
    next: Offset,
    running: Vec<Running>,
}

impl World {
    fn new() -> Self {
        let mut world = World {
            log: Vec::new(),
            parked_log: Vec::new(),
            handled: BTreeMap::new(),
            committed: 0,
            passed_over: BTreeSet::new(),
            once_passed_over: BTreeSet::new(),
            hosts: 0,
            now: Duration::ZERO,
            host: Host::new("0".into(), 0),
        };
        world.begin();
        world
    }

    /// A host takes the partition over.
    fn begin(&mut self) {
        self.hosts += 1;
        let owner: Arc<str> = self.hosts.to_string().into();
        self.parked_log.push(Lies::Notice(Arc::clone(&owner)));
        let mut host = Host::new(owner, self.committed);
        for (at, lies) in self.parked_log.iter().enumerate() {
            let at = at as Offset;
            match lies.clone() {
                Lies::Notice(owner) => host.index.owned_by(owner),
                Lies::Record { key, offset, behind, owner } => {
                    let source = source(offset);
                    host.index.parked(name(key), Written { at, source, behind, owner, why: Some(0) });
                }
                Lies::Receipt(set) => host.index.settled_all(&set),
            }
        }
        for (key, _) in host.index.keys() {
            host.source.set_aside(key.as_deref());
        }
        host.index.release(|_| true);
        self.host = host;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Receive { key } => {
                self.log.push(key);
                self.receive();
            }
            Step::Return { .. } if self.host.running.is_empty() => {}
            Step::Return { pick, dice } => self.returned(pick.index(self.host.running.len()), &dice),
            Step::Wait => {
                self.now += Duration::from_millis(50);
                self.source(Event::Timer);
                self.second(Event::Timer);
            }
            Step::Unpark { key } => {
                self.host.index.try_again(|known, _| *known == name(key));
                self.hand_out();
            }
            Step::Crash { late, refused } => {
                let mut on_the_way = self.on_the_way();
                if let Some(refused) = refused.filter(|_| !on_the_way.is_empty()) {
                    on_the_way.remove(refused.index(on_the_way.len()));
                }
                if !late {
                    self.parked_log.extend(on_the_way.clone());
                }
                self.begin();
                if late {
                    self.parked_log.extend(on_the_way);
                }
                self.receive();
            }
            Step::Move { to } => {
                let to = to.index(self.log.len() + 1) as Offset;
                self.passed_over.retain(|offset| *offset < to);
                self.passed_over.extend(self.committed..to);
                self.once_passed_over.extend(self.committed..to);
                self.committed = to;
                self.begin();
                self.receive();
            }
        }
        self.slots();
    }

    /// What the host has sent to the parked topic and not heard of.
    fn on_the_way(&self) -> Vec<Lies> {
        let calls = self.host.running.iter().filter_map(|running| match running {
            Running::Parking(call) => Some(call),
            Running::Source(_) | Running::Second(..) => None,
        });
        calls.flat_map(|call| self.to_write(call)).collect()
    }

    /// What is to be written of a call that parks.
    fn to_write(&self, call: &Call) -> Vec<Lies> {
        let mut last: BTreeMap<u8, Offset> = BTreeMap::new();
        let mut lies = Vec::new();
        for offset in call.records.iter().map(|record| record.record.offset()) {
            let key = self.log[offset as usize];
            if last.contains_key(&key) || !self.host.index.holds(&name(key), source(offset)) {
                let behind = last.insert(key, offset);
                lies.push(Lies::Record { key, offset, behind, owner: Arc::clone(&self.host.owner) });
            }
        }
        lies
    }

    fn receive(&mut self) {
        while self.host.source.room() > 0 && (self.host.received as usize) < self.log.len() {
            let offset = self.host.received;
            self.host.received += 1;
            let chunk = chunk(offset, self.log[offset as usize]);
            self.source(Event::Received(chunk));
        }
    }

    fn returned(&mut self, at: usize, dice: &[u8]) {
        let running = self.host.running.remove(at);
        match running {
            Running::Source(call) => {
                let verdicts = self.verdicts(&call, None, dice);
                self.source(Event::Returned { call: call.id, verdicts });
            }
            Running::Second(call, places) => self.tried(call, &places, dice),
            Running::Parking(call) => self.parked(&call),
        }
        self.host.index.release(|key| self.host.source.release(key));
        self.receive();
        self.hand_out();
    }

    fn parked(&mut self, call: &Call) {
        for lies in self.to_write(call) {
            let Lies::Record { key, offset, behind, owner } = lies.clone() else { panic!("it is a record") };
            let at = self.parked_log.len() as Offset;
            self.parked_log.push(lies);
            let written = Written { at, source: source(offset), behind, owner, why: Some(0) };
            assert!(self.host.index.parked(name(key), written), "PARK-2: what is written counts");
        }
        let verdicts = vec![Verdict::Settled; call.records.len()];
        self.source(Event::Returned { call: call.id, verdicts });
    }

    fn tried(&mut self, call: Call, places: &[Offset], dice: &[u8]) {
        let verdicts = self.verdicts(&call, Some(places), dice);
        let settled = verdicts.iter().zip(places).filter(|(verdict, _)| **verdict == Verdict::Settled);
        let receipt = OffsetSet::from_iter(settled.map(|(_, at)| *at));
        self.host.index.settled_all(&receipt);
        self.parked_log.push(Lies::Receipt(receipt));
        let mut failed = Vec::new();
        for ((verdict, record), at) in verdicts.iter().zip(&call.records).zip(places) {
            if *verdict == Verdict::Settled {
                self.host.handed.remove(&record.record.offset());
            }
            if *verdict == Verdict::Park {
                let Lies::Record { key, .. } = self.parked_log[*at as usize] else { panic!("it is a record") };
                self.host.index.failed_again(&name(key), 1);
                failed.push(key);
            }
        }
        self.second(Event::Returned { call: call.id, verdicts });
        failed.into_iter().for_each(|key| assert!(self.host.second.release(name(key).as_deref())));
    }

    /// What the guest says. `places` are those in the parked topic, for records that lie there.
    fn verdicts(&mut self, call: &Call, places: Option<&[Offset]>, dice: &[u8]) -> Vec<Verdict> {
        let mut blocked = Vec::new();
        let mut verdicts = Vec::new();
        for (index, record) in call.records.iter().enumerate() {
            let offset = self.offset_of(record.record.offset(), places.map(|places| places[index]));
            let key = self.log[offset as usize];
            let verdict = match dice[index % dice.len()] {
                _ if blocked.contains(&key) => Verdict::Untouched,
                0 => Verdict::Retry { after: Duration::from_millis(50), charge: true },
                1 | 2 => Verdict::Park,
                _ => Verdict::Settled,
            };
            if verdict == Verdict::Settled {
                self.handled.entry(key).or_default().push(offset);
            } else {
                blocked.push(key);
            }
            verdicts.push(verdict);
        }
        verdicts
    }

    fn offset_of(&self, own: Offset, place: Option<Offset>) -> Offset {
        match place.map(|place| &self.parked_log[place as usize]) {
            Some(Lies::Record { offset, .. }) => *offset,
            Some(Lies::Notice(_) | Lies::Receipt(_)) => panic!("it is a record"),
            None => own,
        }
    }

    fn hand_out(&mut self) {
        while let Some(at) = self.host.index.next_wanted().filter(|_| self.host.second.room() > 0) {
            self.host.index.hand_out(at).expect("it is wanted");
            let Lies::Record { key, .. } = self.parked_log[at as usize] else { panic!("it is a record") };
            let own = self.host.next;
            self.host.next += 1;
            self.host.handed.insert(own, at);
            self.second(Event::Received(chunk(own, key)));
        }
    }

    fn slots(&mut self) {
        while self.host.source.wants_slot() {
            self.source(Event::Slot { spare: 1 });
        }
        while self.host.second.wants_slot() {
            self.second(Event::Slot { spare: 1 });
        }
    }

    fn source(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.host.source.on(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Invoke(call) => {
                    self.called(&call, None);
                    self.host.running.push(Running::Source(call));
                }
                Action::Park(call) => self.host.running.push(Running::Parking(call)),
                Action::Commit(offset) => self.committed = offset,
                Action::Drained => {}
            }
        }
    }

    fn second(&mut self, event: Event) {
        let mut actions = VecDeque::new();
        let mut more = Vec::new();
        self.host.second.on(self.now, event, &mut more);
        actions.extend(more);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Invoke(call) => {
                    let own = call.records.iter().map(|record| self.host.handed[&record.record.offset()]);
                    let places: Vec<Offset> = own.collect();
                    self.called(&call, Some(&places));
                    self.host.running.push(Running::Second(call, places));
                }
                Action::Park(Call { id, records }) => {
                    for record in &records {
                        self.host.handed.remove(&record.record.offset());
                    }
                    let verdicts = vec![Verdict::Settled; records.len()];
                    let mut more = Vec::new();
                    self.host.second.on(self.now, Event::Returned { call: id, verdicts }, &mut more);
                    actions.extend(more);
                }
                Action::Commit(_) | Action::Drained => {}
            }
        }
    }

    /// All that came before a record with its key is handled, or called beside it; and no two calls have one key.
    fn called(&self, call: &Call, places: Option<&[Offset]>) {
        let offsets = |call: &Call, places: Option<&[Offset]>| -> Vec<Offset> {
            let own = call.records.iter().enumerate();
            own.map(|(index, record)| self.offset_of(record.record.offset(), places.map(|places| places[index])))
                .collect()
        };
        let called = offsets(call, places);
        for (at, offset) in called.iter().enumerate() {
            let key = self.log[*offset as usize];
            let before = (0..*offset).filter(|before| self.log[*before as usize] == key);
            let handled = self.handled.get(&key).map(Vec::as_slice).unwrap_or_default();
            for before in before {
                let is_done = handled.contains(&before) || called[..at].contains(&before);
                assert!(
                    is_done || self.once_passed_over.contains(&before),
                    "PARK-2: {offset} is called before {before}, which has its key"
                );
            }
        }
        let mine: BTreeSet<u8> = called.iter().map(|offset| self.log[*offset as usize]).collect();
        for running in &self.host.running {
            let theirs = match running {
                Running::Source(call) => offsets(call, None),
                Running::Second(call, places) => offsets(call, Some(places)),
                Running::Parking(_) => continue,
            };
            assert!(theirs.iter().all(|offset| !mine.contains(&self.log[*offset as usize])), "PARK-1: one call a key");
        }
    }

    /// Everything is tried again and handled.
    fn finish(mut self, expected: Expected) {
        let all_well = [7_u8];
        for _ in 0..10_000 {
            self.host.index.try_again(|_, _| true);
            self.hand_out();
            self.now += Duration::from_millis(50);
            self.source(Event::Timer);
            self.second(Event::Timer);
            self.receive();
            self.slots();
            if self.host.running.is_empty() {
                break;
            }
            self.returned(0, &all_well);
            self.slots();
        }
        assert_eq!(self.committed, self.log.len() as Offset, "all of the source is settled");
        assert_eq!((self.host.index.records(), self.host.index.keys().count()), (0, 0), "nothing is parked any more");
        for key in 0..4 {
            let all: Vec<Offset> =
                (0..self.log.len()).filter(|at| self.log[*at] == key).map(|at| at as Offset).collect();
            let handled = self.handled.remove(&key).unwrap_or_default();
            match expected {
                Expected::Once => assert_eq!(handled, all, "each once and in order"),
                Expected::AllInOrder => {
                    assert_eq!(firsts(handled.iter()), all, "nothing is lost, and nothing overtakes");
                }
                Expected::AllInOrderAtLast => {
                    let mut lasts = firsts(handled.iter().rev());
                    lasts.retain(|offset| !self.passed_over.contains(offset));
                    lasts.reverse();
                    assert!(lasts.is_sorted(), "what is read once more ends in order: {handled:?}");
                    let is_lost = |offset: &&Offset| !lasts.contains(offset) && !self.passed_over.contains(offset);
                    assert_eq!(all.iter().find(is_lost), None, "nothing is lost but what was passed over");
                }
            }
        }
    }
}

impl Host {
    fn new(owner: Arc<str>, at: Offset) -> Self {
        Host {
            source: Partition::new(Order::Key, BOUNDS),
            second: Partition::new(Order::Key, BOUNDS),
            index: Parked::new(1000),
            owner,
            received: at,
            handed: BTreeMap::new(),
            next: 0,
            running: Vec::new(),
        }
    }
}

/// Each offset where it comes first.
fn firsts<'a>(offsets: impl Iterator<Item = &'a Offset>) -> Vec<Offset> {
    let mut firsts = Vec::new();
    for offset in offsets {
        if !firsts.contains(offset) {
            firsts.push(*offset);
        }
    }
    firsts
}

/// Keys 1 to 3, and the null key.
fn name(key: u8) -> Key {
    (key > 0).then(|| Arc::from([key].as_slice()))
}

fn chunk(offset: Offset, key: u8) -> Arc<crate::record::Chunk> {
    let mut chunk = ChunkBuilder::default();
    chunk.push(offset, Timestamp::None, name(key).as_deref(), None, []);
    Arc::new(chunk.build())
}
