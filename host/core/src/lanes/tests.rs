use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A random step; numbers choose among what is possible then.
#[derive(Debug, Clone)]
enum Step {
    Push { gap: Offset, key: u8 },
    Take { lanes_max: usize, records_max: usize },
    Return { pick: prop::sample::Index, settled: usize, wait: Option<u64> },
    Wake { millis: u64 },
    Hold { pick: prop::sample::Index },
    Release,
    Forget { pick: prop::sample::Index },
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        8 => (0_i64..3, 0_u8..5).prop_map(|(gap, key)| Step::Push { gap, key }),
        6 => (1_usize..4, 1_usize..6).prop_map(|(lanes_max, records_max)| Step::Take { lanes_max, records_max }),
        6 => (pick(), 0_usize..4, prop::option::of(0_u64..100))
            .prop_map(|(pick, settled, wait)| Step::Return { pick, settled, wait }),
        3 => (0_u64..60).prop_map(|millis| Step::Wake { millis }),
        1 => pick().prop_map(|pick| Step::Hold { pick }),
        1 => Just(Step::Release),
        1 => pick().prop_map(|pick| Step::Forget { pick }),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Key), Just(Order::Partition), Just(Order::Unordered)]
}

proptest! {
    /// LANE-1, LANE-2 and STOP-1, lanes alone, against a list of all records.
    #[test]
    fn agree_with_a_list_of_records(order in order(), steps in prop::collection::vec(step(), 1..200)) {
        let mut model = Model::new(order);
        for step in steps {
            model.step(step);
            model.agrees();
        }
        model.finish();
    }
}

/// A lane by its nature: all, a key, or one record.
type Name = (Offset, Offset);

/// The naive model: each record that is left, and what its lane does.
struct Model {
    lanes: Lanes,
    order: Order,
    now: Duration,
    next: Offset,
    /// What is left, with its lane.
    left: BTreeMap<Offset, Name>,
    /// Taken lanes with their records, one call after the other.
    calls: Vec<Vec<(LaneId, Name, Vec<Entry>)>>,
    waits: BTreeMap<Name, Duration>,
    held_from: Option<Offset>,
    /// When each lane that is ready became so, by the number of the step.
    since: BTreeMap<Name, usize>,
    steps: usize,
}

impl Model {
    fn new(order: Order) -> Self {
        Self {
            lanes: Lanes::new(order),
            order,
            now: Duration::ZERO,
            next: 0,
            left: BTreeMap::new(),
            calls: Vec::new(),
            waits: BTreeMap::new(),
            held_from: None,
            since: BTreeMap::new(),
            steps: 0,
        }
    }

    fn step(&mut self, step: Step) {
        self.steps += 1;
        match step {
            Step::Push { gap, key } => self.push(gap, key),
            Step::Take { lanes_max, records_max } => self.take(lanes_max, records_max),
            Step::Return { pick, settled, wait } => {
                if !self.calls.is_empty() {
                    let call = self.calls.remove(pick.index(self.calls.len()));
                    self.returned(call, settled, wait);
                }
            }
            Step::Wake { millis } => {
                self.now += Duration::from_millis(millis);
                self.lanes.wake(self.now);
                let now = self.now;
                self.waits.retain(|_, until| *until > now);
            }
            Step::Hold { pick } => {
                if self.next > 0 {
                    let from = pick.index(self.next as usize) as Offset;
                    self.held_from = Some(self.held_from.map_or(from, |held| held.min(from)));
                    self.lanes.hold_from(from);
                }
            }
            Step::Release => {
                self.held_from = None;
                self.lanes.release();
            }
            Step::Forget { pick } => {
                if self.next > 0 {
                    let from = pick.index(self.next as usize) as Offset;
                    self.forget(from);
                }
            }
        }
    }

    fn push(&mut self, gap: Offset, key: u8) {
        let offset = self.next + gap;
        self.next = offset + 1;
        let lane = match self.order {
            Order::Partition => (0, 0),
            Order::Key => (1, Offset::from(key)),
            Order::Unordered => (2, offset),
        };
        self.left.insert(offset, lane);
        let key = (key > 0).then(|| vec![key]);
        self.lanes.push(Record::single(offset, key.as_deref(), None));
    }

    fn take(&mut self, lanes_max: usize, records_max: usize) {
        let ready = self.ready();
        let taken = self.lanes.take(lanes_max, records_max, usize::MAX);
        assert!(taken.len() <= records_max, "a call keeps its bound");
        assert!(taken.is_sorted_by_key(|entry| entry.record.offset()), "LANE-1: a call is in offset order");
        assert_eq!(taken.is_empty(), ready.is_empty(), "what is ready can be taken");
        let mut call: Vec<(LaneId, Name, Vec<Entry>)> = Vec::new();
        for entry in taken {
            let lane = self.left[&entry.record.offset()];
            match call.iter_mut().find(|(_, name, _)| *name == lane) {
                Some((id, _, entries)) => {
                    assert_eq!(*id, entry.lane, "a lane has one number");
                    entries.push(entry);
                }
                None => call.push((entry.lane, lane, vec![entry])),
            }
        }
        assert!(call.len() <= lanes_max, "SPREAD-1: a call takes no more lanes than its share");
        for (_, name, entries) in &call {
            assert!(ready.contains(name), "LANE-1: one call a lane, and none that waits");
            let offsets: Vec<Offset> = entries.iter().map(|entry| entry.record.offset()).collect();
            let own = self.left.iter().filter(|(_, lane)| *lane == name).map(|(offset, _)| *offset);
            assert_eq!(offsets, own.take(offsets.len()).collect::<Vec<_>>(), "LANE-1: the first of a lane, in order");
            assert!(self.held_from.is_none_or(|from| offsets.iter().all(|offset| *offset < from)), "STOP-1");
        }
        let newest = call.iter().map(|(_, name, _)| self.since[name]).max();
        let passed = ready.iter().filter(|name| !call.iter().any(|(_, taken, _)| taken == *name));
        let oldest = passed.map(|name| self.since[name]).min();
        assert!(oldest.is_none() || newest <= oldest, "LANE-2: who is ready longest is taken first");
        if !call.is_empty() {
            self.calls.push(call);
        }
    }

    /// The first records of each lane settle, the others come again.
    fn returned(&mut self, call: Vec<(LaneId, Name, Vec<Entry>)>, settled: usize, wait: Option<u64>) {
        let until = wait.map(|millis| self.now + Duration::from_millis(millis));
        for (id, name, mut entries) in call {
            for entry in entries.drain(..settled.min(entries.len())) {
                self.left.remove(&entry.record.offset());
            }
            self.lanes.returned(id, entries.into_iter(), until);
            if let Some(until) = until.filter(|_| self.left.values().any(|lane| *lane == name)) {
                self.waits.insert(name, until);
            }
        }
    }

    fn forget(&mut self, from: Offset) {
        self.lanes.forget_from(from);
        let running: Vec<Offset> = self.running().map(|entry| entry.record.offset()).collect();
        self.left.retain(|offset, _| *offset < from || running.contains(offset));
        let left = &self.left;
        self.waits.retain(|name, _| left.values().any(|lane| lane == name));
    }

    fn running(&self) -> impl Iterator<Item = &Entry> {
        self.calls.iter().flatten().flat_map(|(_, _, entries)| entries)
    }

    /// Lanes that may run: they have a record that is not held, are in no call and do not wait.
    fn ready(&self) -> Vec<Name> {
        let mut firsts: BTreeMap<Name, Offset> = BTreeMap::new();
        for (offset, lane) in &self.left {
            firsts.entry(*lane).or_insert(*offset);
        }
        let busy = |name: &Name| self.calls.iter().flatten().any(|(_, lane, _)| lane == name);
        let held = |first: &Offset| self.held_from.is_some_and(|from| *first >= from);
        let ready =
            firsts.into_iter().filter(|(name, first)| !busy(name) && !held(first) && !self.waits.contains_key(name));
        ready.map(|(name, _)| name).collect()
    }

    fn agrees(&mut self) {
        let ready = self.ready();
        self.since.retain(|name, _| ready.contains(name));
        for name in &ready {
            self.since.entry(*name).or_insert(self.steps);
        }
        assert_eq!(self.lanes.ready(), ready.len());
        assert_eq!(self.lanes.waiting(), self.waits.len());
        assert_eq!(self.lanes.next_wake(), self.waits.values().min().copied());
        assert_eq!(self.lanes.held_from_offset(), self.held_from);
    }

    /// LANE-2: when everything goes well, nothing is left.
    fn finish(mut self) {
        self.step(Step::Release);
        self.agrees();
        for _ in 0..1000 {
            self.step(Step::Wake { millis: 100 });
            self.agrees();
            self.step(Step::Take { lanes_max: 2, records_max: 3 });
            self.agrees();
            match self.calls.pop() {
                Some(call) => self.returned(call, usize::MAX, None),
                None => break,
            }
            self.agrees();
        }
        assert!(self.left.is_empty(), "LANE-2: {:?} are left", self.left);
    }
}
