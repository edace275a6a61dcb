//! What is called at most once: committed before it is called, and never called again.

use super::*;

#[test]
fn a_record_is_called_once_its_commit_is_confirmed() {
    check(
        2,
        "recv 1 a, recv 2 b, recv 3 c, commit 3, done 1, commit 4, done 3, done 2",
        expect![[r#"
            recv 1 a -> commit 2
            recv 2 b -> commit 3
            recv 3 c ->
            commit 3 -> invoke 1, invoke 2
            done 1   -> commit 4
            commit 4 -> invoke 3
            done 3   ->
            done 2   ->
        "#]],
    );
}

#[test]
fn a_commit_may_be_confirmed_in_parts() {
    check(
        10,
        "recv 1 a, recv 2 b, recv 5 c, commit 2, commit 6",
        expect![[r#"
            recv 1 a -> commit 2
            recv 2 b -> commit 3
            recv 5 c -> commit 6
            commit 2 -> invoke 1
            commit 6 -> invoke 2, invoke 5
        "#]],
    );
}

#[test]
fn whatever_comes_of_a_call_its_records_are_not_called_again() {
    check(
        3,
        "recv 1 a, recv 2 a, recv 3 a, commit 4, retry 1 0, halve 2, done 3",
        expect![[r#"
            recv 1 a  -> commit 2
            recv 2 a  -> commit 3
            recv 3 a  -> commit 4
            commit 4  -> invoke 1
            retry 1 0 -> invoke 2
            halve 2   -> invoke 3
            done 3    ->
        "#]],
    );
}

#[test]
fn a_record_that_was_not_touched_is_called() {
    let bounds = Bounds { call_records_max: 2, ..BOUNDS };
    super::check_on(
        Partition::at_most_once(Order::Key, bounds, 5),
        "recv 1 a, recv 2 a, commit 3, outcome 1 done 2 untouched, done 2",
        expect![[r#"
            recv 1 a                   -> commit 2
            recv 2 a                   -> commit 3
            commit 3                   -> invoke 1+2
            outcome 1 done 2 untouched -> invoke 2
            done 2                     ->
        "#]],
    );
}

#[test]
fn a_revoked_partition_calls_what_is_committed_and_nothing_else() {
    check(
        2,
        "recv 1 a, recv 2 b, recv 3 c, revoke, commit 2, done 1, commit 3, done 2",
        expect![[r#"
            recv 1 a -> commit 2
            recv 2 b -> commit 3
            recv 3 c ->
            revoke   ->
            commit 2 -> invoke 1
            done 1   ->
            commit 3 -> invoke 2
            done 2   -> drained
        "#]],
    );
}

#[test]
fn a_pause_lets_what_is_committed_run_and_commits_no_more() {
    check(
        1,
        "recv 1 a, recv 2 b, pause, commit 2, done 1, unpause, commit 3, done 2",
        expect![[r#"
            recv 1 a -> commit 2
            recv 2 b ->
            pause    ->
            commit 2 -> invoke 1
            done 1   ->
            unpause  -> commit 3
            commit 3 -> invoke 2
            done 2   ->
        "#]],
    );
}

#[track_caller]
fn check(ahead_max: usize, story: &str, expected: Expect) {
    super::check_on(Partition::at_most_once(Order::Key, BOUNDS, ahead_max), story, expected);
}

/// A step of a story of many lives.
#[derive(Debug, Clone)]
enum Step {
    Receive {
        gap: Offset,
        key: u8,
    },
    /// The broker applies the commit that was asked for last.
    Apply,
    /// And the partition hears of it.
    Confirm,
    Return {
        pick: prop::sample::Index,
        dice: Vec<u8>,
    },
    Pause(bool),
    /// Everything that is not at the broker is gone.
    Crash,
    Revoke,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_i64..3, 0_u8..4).prop_map(|(gap, key)| Step::Receive { gap, key }),
        4 => Just(Step::Apply),
        4 => Just(Step::Confirm),
        6 => (any::<prop::sample::Index>(), prop::collection::vec(0_u8..8, 6))
            .prop_map(|(pick, dice)| Step::Return { pick, dice }),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => Just(Step::Crash),
        1 => Just(Step::Revoke),
    ]
}

proptest! {
    /// OFF-1 of what is called at most once, over crashes and orderly ends, against a list of what was called.
    #[test]
    fn no_record_is_processed_twice_and_only_a_crash_loses_any(
        order in order(),
        call_records_max in 1_usize..5,
        calls_max in 1_usize..5,
        ahead_max in 1_usize..7,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut lives = Lives::new(order, Bounds { call_records_max, calls_max, records_max: 20, ..BOUNDS }, ahead_max);
        steps.into_iter().for_each(|step| lives.step(step));
        lives.end();
    }
}

/// One partition's log, its lives one after another, and what became of each record.
struct Lives {
    order: Order,
    bounds: Bounds,
    ahead_max: usize,
    partition: Partition,
    /// The whole log, with keys; a later life reads what an earlier one has read before.
    log: BTreeMap<Offset, u8>,
    /// What this life reads next.
    position: Offset,
    /// The broker's.
    committed: Offset,
    asked: Offset,
    confirmed: Offset,
    running: Vec<(CallId, Vec<Offset>)>,
    processed: BTreeMap<Offset, usize>,
    /// What crashes may have lost so far.
    losses_max: usize,
    drained: bool,
}

impl Lives {
    fn new(order: Order, bounds: Bounds, ahead_max: usize) -> Self {
        Self {
            partition: Partition::at_most_once(order, bounds.clone(), ahead_max),
            order,
            bounds,
            ahead_max,
            log: BTreeMap::new(),
            position: 0,
            committed: 0,
            asked: 0,
            confirmed: 0,
            running: Vec::new(),
            processed: BTreeMap::new(),
            losses_max: 0,
            drained: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Receive { gap, key } => self.receive(gap, key),
            Step::Apply => self.committed = self.committed.max(self.asked),
            Step::Confirm => self.confirm(),
            Step::Return { pick, dice } => {
                if !self.running.is_empty() {
                    let (call, offsets) = self.running.remove(pick.index(self.running.len()));
                    self.returned(call, &offsets, &dice);
                }
            }
            Step::Pause(paused) => self.on(Event::Paused(paused)),
            Step::Crash => {
                let unprocessed = |offset: &Offset| !self.processed.contains_key(offset);
                let lost = self.log.range(..self.committed).filter(|(offset, _)| unprocessed(offset)).count();
                self.losses_max += self.ahead_max;
                assert!(lost <= self.losses_max, "a crash loses at most what was committed ahead");
                self.next_life();
            }
            Step::Revoke => self.revoke(),
        }
    }

    fn receive(&mut self, gap: Offset, key: u8) {
        if self.partition.room() == 0 {
            return;
        }
        let known = self.log.range(self.position..).next().map(|(offset, key)| (*offset, *key));
        let (offset, key) = known.unwrap_or((self.position + gap, key));
        self.log.insert(offset, key);
        self.position = offset + 1;
        self.on(Event::Received(chunk(offset, &key.to_string())));
    }

    fn confirm(&mut self) {
        if self.committed > self.confirmed {
            self.confirmed = self.committed;
            self.on(Event::Committed(self.committed));
        }
    }

    /// Whatever the guest or the host says of a record: but for what costs nothing it was processed.
    fn returned(&mut self, call: CallId, offsets: &[Offset], dice: &[u8]) {
        let mut verdicts = Vec::new();
        for (index, offset) in offsets.iter().enumerate() {
            let verdict = match dice[index % dice.len()] {
                0 => Verdict::Retry { after: Duration::ZERO, charge: true },
                1 => Verdict::Halve,
                2 => Verdict::Untouched,
                3 => Verdict::Retry { after: Duration::ZERO, charge: false },
                _ => Verdict::Settled,
            };
            if !matches!(verdict, Verdict::Untouched | Verdict::Retry { charge: false, .. }) {
                *self.processed.entry(*offset).or_default() += 1;
                assert_eq!(self.processed[offset], 1, "OFF-1: {offset} is processed twice");
            }
            verdicts.push(verdict);
        }
        self.on(Event::Returned { call, verdicts });
    }

    fn on(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.partition.on(Duration::ZERO, event, &mut actions);
        self.partition.on(Duration::ZERO, Event::Timer, &mut actions);
        while self.partition.wants_slot() {
            self.partition.on(Duration::ZERO, Event::Slot { spare: 1 }, &mut actions);
        }
        for action in actions {
            match action {
                Action::Invoke(call) => {
                    let offsets: Vec<Offset> = call.records.iter().map(|record| record.record.offset()).collect();
                    let confirmed = offsets.iter().all(|offset| *offset < self.confirmed);
                    assert!(confirmed, "OFF-1: {offsets:?} are called and {} is confirmed", self.confirmed);
                    self.running.push((call.id, offsets));
                }
                Action::Commit(offset) => {
                    assert!(offset > self.asked, "OFF-2");
                    self.asked = offset;
                    let open =
                        self.log.range(..offset).filter(|(offset, _)| !self.processed.contains_key(offset)).count();
                    assert!(open <= self.ahead_max + self.losses_max, "no more is committed than may be lost");
                }
                Action::Drained => self.drained = true,
            }
        }
        assert!(self.partition.at_stake() <= self.ahead_max);
    }

    /// An orderly end: the commit that was asked for is confirmed, calls return; then the next life.
    fn revoke(&mut self) {
        self.on(Event::Revoked);
        self.step(Step::Apply);
        self.confirm();
        while let Some((call, offsets)) = self.running.pop() {
            self.returned(call, &offsets, &[7]);
        }
        assert!(self.drained, "an orderly end comes to its end");
        let lost = self.log.range(..self.committed).filter(|(offset, _)| !self.processed.contains_key(offset)).count();
        assert!(lost <= self.losses_max, "an orderly end loses none");
        self.next_life();
    }

    fn next_life(&mut self) {
        self.partition = Partition::at_most_once(self.order, self.bounds.clone(), self.ahead_max);
        self.running.clear();
        (self.position, self.asked, self.confirmed) = (self.committed, self.committed, self.committed);
        self.drained = false;
    }

    /// Nothing is left behind for good: at the end all that crashes did not lose was processed.
    fn end(mut self) {
        self.on(Event::Paused(false));
        while self.position < self.log.keys().last().map_or(0, |last| last + 1) || self.partition.pending() > 0 {
            let before = (self.position, self.processed.len());
            if self.log.range(self.position..).next().is_some() {
                self.receive(0, 0);
            }
            self.step(Step::Apply);
            self.confirm();
            while let Some((call, offsets)) = self.running.pop() {
                self.returned(call, &offsets, &[7]);
            }
            assert!((self.position, self.processed.len()) != before, "it does not stand still");
        }
        let lost = self.log.len() - self.processed.len();
        assert!(lost <= self.losses_max, "{lost} records are lost, {} could be", self.losses_max);
    }
}
