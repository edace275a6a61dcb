use std::collections::BTreeMap;
use std::fmt::Write;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::record::ChunkBuilder;

mod at_most_once;

const BOUNDS: Bounds = Bounds {
    call_records_max: 1,
    call_bytes_max: 1 << 20,
    calls_max: 16,
    records_max: 1000,
    bytes_max: 1 << 20,
    span_max: 1000,
};

#[test]
fn same_key_waits_other_key_does_not() {
    check(
        Order::Key,
        BOUNDS,
        "recv 10 a, recv 11 a, recv 12 b, done 12, done 10, done 11",
        expect![[r#"
            recv 10 a -> invoke 10
            recv 11 a ->
            recv 12 b -> invoke 12
            done 12   ->
            done 10   -> commit 11, invoke 11
            done 11   -> commit 13
        "#]],
    );
}

#[test]
fn null_keys_are_one_lane() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 -, recv 2 -, recv 3 a, done 1, done 2",
        expect![[r#"
            recv 1 - -> invoke 1
            recv 2 - ->
            recv 3 a -> invoke 3
            done 1   -> commit 2, invoke 2
            done 2   -> commit 3
        "#]],
    );
}

#[test]
fn partition_order_runs_one_call_at_a_time() {
    check(
        Order::Partition,
        Bounds { call_records_max: 2, ..BOUNDS },
        "recv 1 a, recv 2 b, recv 3 c, recv 4 d, done 1, done 2+3, done 4",
        expect![[r#"
            recv 1 a -> invoke 1
            recv 2 b ->
            recv 3 c ->
            recv 4 d ->
            done 1   -> commit 2, invoke 2+3
            done 2+3 -> commit 4, invoke 4
            done 4   -> commit 5
        "#]],
    );
}

#[test]
fn unordered_records_wait_for_none() {
    check(
        Order::Unordered,
        Bounds { calls_max: 3, ..BOUNDS },
        "recv 1 a, recv 2 a, recv 3 -, recv 4 a, retry 2 50, done 3, done 1, done 4, at 50, done 2",
        expect![[r#"
            recv 1 a   -> invoke 1
            recv 2 a   -> invoke 2
            recv 3 -   -> invoke 3
            recv 4 a   ->
            retry 2 50 -> invoke 4
            done 3     ->
            done 1     -> commit 2
            done 4     ->
            at 50      -> invoke 2
            done 2     -> commit 5
        "#]],
    );
}

#[test]
fn lanes_that_could_run_at_once_are_shared_out_among_the_calls_that_may_start() {
    check(
        Order::Key,
        Bounds { call_records_max: 100, ..BOUNDS },
        "spare 0, recv 1 a, recv 2 a, recv 3 b, recv 4 c, recv 5 d, spare 2, spare 0, recv 6 e, recv 7 f, spare 4",
        expect![[r#"
            spare 0  ->
            recv 1 a ->
            recv 2 a ->
            recv 3 b ->
            recv 4 c ->
            recv 5 d ->
            spare 2  -> invoke 1+2+3, invoke 4+5
            spare 0  ->
            recv 6 e ->
            recv 7 f ->
            spare 4  -> invoke 6, invoke 7
        "#]],
    );
}

#[test]
fn a_paused_partition_starts_nothing_and_goes_on_where_it_stood() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 a, recv 2 a, pause, done 1, unpause, done 2",
        expect![[r#"
            recv 1 a -> invoke 1
            recv 2 a ->
            pause    ->
            done 1   -> commit 2
            unpause  -> invoke 2
            done 2   -> commit 3
        "#]],
    );
}

#[test]
fn a_paused_partition_is_given_back_without_another_call() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 a, recv 2 a, recv 3 b, done 3, pause, revoke, done 1",
        expect![[r#"
            recv 1 a -> invoke 1
            recv 2 a ->
            recv 3 b -> invoke 3
            done 3   ->
            pause    ->
            revoke   ->
            done 1   -> commit 2, drained
        "#]],
    );
}

#[test]
fn a_paused_partition_takes_nothing_in() {
    let mut partition = Partition::new(Order::Key, BOUNDS);
    partition.on(Duration::ZERO, Event::Paused(true), &mut Vec::new());
    assert_eq!(partition.room(), 0);
    partition.on(Duration::ZERO, Event::Paused(false), &mut Vec::new());
    assert_eq!(partition.room(), BOUNDS.records_max);
}

#[test]
fn a_retry_holds_only_its_lane_and_the_frontier() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 a, retry 1 50, recv 2 a, recv 3 b, done 3, at 49, at 50, done 1, done 2",
        expect![[r#"
            recv 1 a   -> invoke 1
            retry 1 50 ->
            recv 2 a   ->
            recv 3 b   -> invoke 3
            done 3     ->
            at 49      ->
            at 50      -> invoke 1
            done 1     -> commit 2, invoke 2
            done 2     -> commit 4
        "#]],
    );
}

#[test]
fn untouched_records_come_again_before_later_ones_of_their_lane() {
    check(
        Order::Key,
        Bounds { call_records_max: 3, calls_max: 1, ..BOUNDS },
        "recv 0 z, recv 1 a, recv 2 a, recv 3 a, recv 4 a, done 0, outcome 1 done 2 retry 3 untouched, at 100, done 2+3+4",
        expect![[r#"
            recv 0 z                           -> invoke 0
            recv 1 a                           ->
            recv 2 a                           ->
            recv 3 a                           ->
            recv 4 a                           ->
            done 0                             -> commit 1, invoke 1+2+3
            outcome 1 done 2 retry 3 untouched -> commit 2
            at 100                             -> invoke 2+3+4
            done 2+3+4                         -> commit 5
        "#]],
    );
}

#[test]
fn a_call_that_fails_as_a_whole_is_halved_until_the_culprit_is_alone() {
    check(
        Order::Partition,
        Bounds { call_records_max: 4, ..BOUNDS },
        "recv 0 a, recv 1 a, recv 2 a, recv 3 a, recv 4 a, done 0, halve 1+2+3+4, done 1+2, halve 3+4, done 3, done 4",
        expect![[r#"
            recv 0 a      -> invoke 0
            recv 1 a      ->
            recv 2 a      ->
            recv 3 a      ->
            recv 4 a      ->
            done 0        -> commit 1, invoke 1+2+3+4
            halve 1+2+3+4 -> invoke 1+2
            done 1+2      -> commit 3, invoke 3+4
            halve 3+4     -> invoke 3
            done 3        -> commit 4, invoke 4
            done 4        -> commit 5
        "#]],
    );
}

#[test]
fn a_revoked_partition_takes_nothing_new_on_and_says_when_it_is_drained() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 a, recv 2 b, recv 3 a, revoke, recv 4 c, done 2, done 1",
        expect![[r#"
            recv 1 a -> invoke 1
            recv 2 b -> invoke 2
            recv 3 a ->
            revoke   ->
            recv 4 c ->
            done 2   ->
            done 1   -> commit 3, drained
        "#]],
    );
}

#[test]
fn a_revoked_partition_closes_its_gaps_so_that_nothing_settled_is_repeated() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 a, recv 2 a, recv 3 a, recv 4 b, recv 5 b, done 4, revoke, done 1, done 2, done 3, done 5",
        expect![[r#"
            recv 1 a -> invoke 1
            recv 2 a ->
            recv 3 a ->
            recv 4 b -> invoke 4
            recv 5 b ->
            done 4   -> invoke 5
            revoke   ->
            done 1   -> commit 2, invoke 2
            done 2   -> commit 3, invoke 3
            done 3   -> commit 5
            done 5   -> commit 6, drained
        "#]],
    );
}

#[test]
fn a_revoked_partition_does_not_wait_for_what_waits_to_be_tried_again() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 a, recv 2 b, retry 1 50, revoke, done 2",
        expect![[r#"
            recv 1 a   -> invoke 1
            recv 2 b   -> invoke 2
            retry 1 50 ->
            revoke     ->
            done 2     -> drained
        "#]],
    );
}

#[test]
fn an_idle_partition_is_drained_at_once() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 a, done 1, revoke",
        expect![[r#"
            recv 1 a -> invoke 1
            done 1   -> commit 2
            revoke   -> drained
        "#]],
    );
}

#[test]
fn offset_gaps_are_not_waited_for() {
    check(
        Order::Key,
        BOUNDS,
        "recv 5 a, recv 90 b, done 90, done 5",
        expect![[r#"
            recv 5 a  -> invoke 5
            recv 90 b -> invoke 90
            done 90   ->
            done 5    -> commit 91
        "#]],
    );
}

#[test]
fn a_partition_stops_at_a_record_finishes_what_lies_before_it_and_goes_on_when_it_is_told() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 a, recv 2 a, recv 3 b, recv 4 c, recv 5 d, recv 6 b, stop 3, done 4, done 1, done 2, done 5, resume, done 3, done 6",
        expect![[r#"
            recv 1 a -> invoke 1
            recv 2 a ->
            recv 3 b -> invoke 3
            recv 4 c -> invoke 4
            recv 5 d -> invoke 5
            recv 6 b ->
            stop 3   ->
            done 4   ->
            done 1   -> commit 2, invoke 2
            done 2   -> commit 3
            done 5   ->
            resume   -> invoke 3
            done 3   -> commit 6, invoke 6
            done 6   -> commit 7
        "#]],
    );
}

#[test]
fn a_partition_that_stopped_takes_nothing_more_and_does_not_hold_up_a_drain() {
    let mut partition = Partition::new(Order::Key, BOUNDS);
    let mut story = Story::default();
    for step in ["recv 1 a", "recv 2 b", "stop 1"] {
        story.step(&mut partition, step);
    }
    assert_eq!((partition.room(), partition.stopped_at()), (0, Some(1)));
    assert_eq!(story.step(&mut partition, "revoke"), "");
    assert_eq!(story.step(&mut partition, "done 2"), "drained");
}

#[test]
fn a_record_that_stopped_its_partition_has_all_its_attempts_when_it_comes_again() {
    let mut partition = Partition::new(Order::Key, BOUNDS);
    let mut actions = Vec::new();
    let mut on = |at, event| {
        partition.on(Duration::from_secs(at), event, &mut actions);
        partition.on(Duration::from_secs(at), Event::Slot { spare: 1 }, &mut actions);
        actions.drain(..).find_map(|action| match action {
            Action::Invoke(call) => call.records.first().map(|first| (call.id, first.tries, first.charged, first.age)),
            Action::Commit(_) | Action::Drained => None,
        })
    };
    let retry =
        |call| Event::Returned { call, verdicts: vec![Verdict::Retry { after: Duration::from_secs(5), charge: true }] };
    let (call, ..) = on(0, Event::Received(chunk(0, "a"))).expect("a call");
    assert_eq!(on(1, retry(call)), None);
    let (call, tries, charged, age) = on(6, Event::Timer).expect("a call");
    assert_eq!((tries, charged, age), (1, 1, Duration::from_secs(5)));
    assert_eq!(on(7, Event::Returned { call, verdicts: vec![Verdict::Stop] }), None);
    let (_, tries, charged, age) = on(60, Event::Resumed).expect("a call");
    assert_eq!((tries, charged, age), (0, 0, Duration::ZERO));
}

#[test]
fn what_a_revoked_partition_forgot_does_not_come_back_when_its_wait_is_over() {
    check(
        Order::Key,
        BOUNDS,
        "recv 1 b, recv 2 a, retry 2 50, revoke, at 50, done 1",
        expect![[r#"
            recv 1 b   -> invoke 1
            recv 2 a   -> invoke 2
            retry 2 50 ->
            revoke     ->
            at 50      ->
            done 1     -> commit 2, drained
        "#]],
    );
}

#[test]
fn a_full_partition_takes_no_more_until_the_frontier_moves() {
    let mut partition = Partition::new(Order::Key, Bounds { records_max: 2, span_max: 3, ..BOUNDS });
    let mut story = Story::default();
    story.step(&mut partition, "recv 1 a");
    assert_eq!(partition.room(), 1);
    story.step(&mut partition, "recv 2 b");
    assert_eq!(partition.room(), 0, "records_max");
    story.step(&mut partition, "done 2");
    assert_eq!(partition.room(), 1);
    story.step(&mut partition, "recv 3 b");
    story.step(&mut partition, "done 3");
    assert_eq!(partition.room(), 0, "span_max: a slow key stops the partition in the end");
    story.step(&mut partition, "done 1");
    assert_eq!(partition.room(), 2);
}

/// Replays a story, one step a line, and compares what was decided.
#[track_caller]
fn check(order: Order, bounds: Bounds, story: &str, expected: Expect) {
    check_on(Partition::new(order, bounds), story, expected);
}

#[track_caller]
fn check_on(mut partition: Partition, story: &str, expected: Expect) {
    let mut replay = Story::default();
    let steps: Vec<&str> = story.split(", ").collect();
    let width = steps.iter().map(|step| step.len()).max().unwrap_or(0);
    let mut out = String::new();
    for step in steps {
        let decided = replay.step(&mut partition, step);
        writeln!(out, "{}", format!("{step:width$} -> {decided}").trim_end()).expect("a string takes all");
    }
    expected.assert_eq(&out);
}

#[derive(Default)]
struct Story {
    now: Duration,
    /// Running calls by the offsets of their records.
    running: BTreeMap<Vec<Offset>, CallId>,
    /// How many more calls may start; `None`: always one.
    spare: Option<usize>,
}

impl Story {
    fn step(&mut self, partition: &mut Partition, step: &str) -> String {
        let words: Vec<&str> = step.split(' ').collect();
        let event = match words[0] {
            "recv" => Event::Received(chunk(words[1].parse().expect("offset"), words[2])),
            "done" => self.all(words[1], Verdict::Settled),
            "halve" => self.all(words[1], Verdict::Halve),
            "retry" => {
                let after = Duration::from_millis(words[2].parse().expect("milliseconds"));
                self.all(words[1], Verdict::Retry { after, charge: true })
            }
            "outcome" => self.mixed(&words[1..]),
            "at" => {
                self.now = Duration::from_millis(words[1].parse().expect("milliseconds"));
                Event::Timer
            }
            "revoke" => Event::Revoked,
            "commit" => Event::Committed(words[1].parse().expect("offset")),
            "pause" => Event::Paused(true),
            "unpause" => Event::Paused(false),
            "stop" => self.all(words[1], Verdict::Stop),
            "resume" => Event::Resumed,
            "spare" => {
                self.spare = Some(words[1].parse().expect("number"));
                Event::Timer
            }
            other => panic!("no such step: {other}"),
        };
        let mut actions = Vec::new();
        partition.on(self.now, event, &mut actions);
        while partition.wants_slot() && self.spare != Some(0) {
            partition.on(self.now, Event::Slot { spare: self.spare.unwrap_or(1) }, &mut actions);
            self.spare = self.spare.map(|spare| spare - 1);
        }
        actions.iter().map(|action| self.describe(action)).collect::<Vec<_>>().join(", ")
    }

    fn all(&mut self, offsets: &str, verdict: Verdict) -> Event {
        let offsets: Vec<Offset> = offsets.split('+').map(|offset| offset.parse().expect("offset")).collect();
        let call = self.running.remove(&offsets).expect("the call runs");
        Event::Returned { call, verdicts: vec![verdict; offsets.len()] }
    }

    fn mixed(&mut self, words: &[&str]) -> Event {
        let offsets: Vec<Offset> = words.chunks(2).map(|pair| pair[0].parse().expect("offset")).collect();
        let verdicts = words.chunks(2).map(|pair| match pair[1] {
            "done" => Verdict::Settled,
            "retry" => Verdict::Retry { after: Duration::from_millis(100), charge: true },
            "untouched" => Verdict::Untouched,
            other => panic!("no such outcome: {other}"),
        });
        let call = self.running.remove(&offsets).expect("the call runs");
        Event::Returned { call, verdicts: verdicts.collect() }
    }

    fn describe(&mut self, action: &Action) -> String {
        match action {
            Action::Invoke(call) => {
                let offsets: Vec<Offset> = call.records.iter().map(|record| record.record.offset()).collect();
                let text = offsets.iter().map(Offset::to_string).collect::<Vec<_>>().join("+");
                self.running.insert(offsets, call.id);
                format!("invoke {text}")
            }
            Action::Commit(offset) => format!("commit {offset}"),
            Action::Drained => "drained".to_owned(),
        }
    }
}

fn chunk(offset: Offset, key: &str) -> Arc<Chunk> {
    let mut chunk = ChunkBuilder::default();
    let key = (key != "-").then_some(key.as_bytes());
    chunk.push(offset, crate::record::Timestamp::None, key, Some(b"value"), []);
    Arc::new(chunk.build())
}

/// A random step of a story; numbers choose among what is possible then.
#[derive(Debug, Clone)]
enum Step {
    Receive {
        gap: i64,
        key: u8,
    },
    Return {
        pick: prop::sample::Index,
        verdicts: Vec<u8>,
    },
    Wait {
        millis: u64,
    },
    Pause(bool),
    /// What stopped the partition may be mended.
    Resume,
    Spare {
        calls: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_i64..3, 0_u8..5).prop_map(|(gap, key)| Step::Receive { gap, key }),
        3 => (any::<prop::sample::Index>(), prop::collection::vec(0_u8..8, 8))
            .prop_map(|(pick, verdicts)| Step::Return { pick, verdicts }),
        1 => (0_u64..200).prop_map(|millis| Step::Wait { millis }),
        1 => (1_usize..6).prop_map(|calls| Step::Spare { calls }),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => Just(Step::Resume),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Key), Just(Order::Partition), Just(Order::Unordered)]
}

proptest! {
    /// OFF-1 to OFF-3, LANE-1, LANE-2 and STOP-1 under random stories of pauses, stops and failures, against a list of what
    /// was received and settled.
    #[test]
    fn keeps_its_invariants_in_any_story(
        order in order(),
        call_records_max in 1_usize..6,
        calls_max in 1_usize..5,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        Model::after(order, call_records_max, calls_max, steps).finish();
    }

    /// DRAIN-1: what was settled when a revoked partition is drained is committed, unless a failure is in between.
    #[test]
    fn leaves_no_settled_record_uncommitted_when_it_is_revoked(
        order in order(),
        call_records_max in 1_usize..6,
        calls_max in 1_usize..5,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        Model::after(order, call_records_max, calls_max, steps).revoke();
    }
}

proptest! {
    /// SPREAD-1: as many calls start as may and as there are lanes for, and no call has a lane more than another needs.
    #[test]
    fn no_lane_waits_in_a_call_while_another_call_could_take_it(
        order in order(),
        calls_max in 1_usize..20,
        spare in 1_usize..20,
        keys in prop::collection::vec(0_u8..30, 1..60),
    ) {
        let bounds = Bounds { call_records_max: usize::MAX, calls_max, ..BOUNDS };
        let mut partition = Partition::new(order, bounds);
        for (offset, key) in (0..).zip(&keys) {
            partition.on(Duration::ZERO, Event::Received(chunk(offset, &key.to_string())), &mut Vec::new());
        }
        let lanes = match order {
            Order::Partition => 1,
            Order::Key => keys.iter().collect::<std::collections::BTreeSet<_>>().len(),
            Order::Unordered => keys.len(),
        };
        let mut actions = Vec::new();
        for left in (1..=spare).rev() {
            partition.on(Duration::ZERO, Event::Slot { spare: left }, &mut actions);
        }
        let shares: Vec<usize> = actions.iter().map(|action| match action {
            Action::Invoke(call) => {
                call.records.iter().map(|record| record.lane).collect::<std::collections::BTreeSet<_>>().len()
            }
            Action::Commit(_) | Action::Drained => 0,
        }).collect();
        let calls_max = if order == Order::Partition { 1 } else { calls_max };
        prop_assert_eq!(shares.len(), lanes.min(spare).min(calls_max), "SPREAD-1: every call that may start does");
        prop_assert_eq!(shares.iter().sum::<usize>(), lanes, "SPREAD-1: nothing that is ready is left");
        let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
        prop_assert!(most <= least.map(|least| least + 1), "SPREAD-1: even shares: {:?}", shares);
    }
}

proptest! {
    /// A call that fails as a whole charges nobody but a record that was alone: whoever the culprits are, only they are ever
    /// charged, and each of them is found.
    #[test]
    fn halving_charges_only_a_culprit_that_is_alone(
        by_key in any::<bool>(),
        call_records_max in 1_usize..20,
        keys in prop::collection::vec((0_u8..6, prop::bool::weighted(0.2)), 1..60),
    ) {
        let order = if by_key { Order::Key } else { Order::Partition };
        let mut partition = Partition::new(order, Bounds { call_records_max, ..BOUNDS });
        let culprits: Vec<Offset> = (0..).zip(&keys).filter(|(_, (_, bad))| *bad).map(|(offset, _)| offset).collect();
        let mut found: BTreeMap<Offset, u32> = BTreeMap::new();
        let mut calls = Vec::new();
        let mut on = |event| {
            let mut actions = Vec::new();
            partition.on(Duration::ZERO, event, &mut actions);
            while partition.wants_slot() {
                partition.on(Duration::ZERO, Event::Slot { spare: 1 }, &mut actions);
            }
            actions.into_iter().filter_map(|action| match action {
                Action::Invoke(call) => Some(call),
                Action::Commit(_) | Action::Drained => None,
            }).collect::<Vec<_>>()
        };
        for (offset, (key, _)) in (0..).zip(&keys) {
            calls.extend(on(Event::Received(chunk(offset, &key.to_string()))));
        }
        let mut made = 0;
        while let Some(call) = calls.pop() {
            made += 1;
            prop_assert!(made < 100 * keys.len(), "the halving ends");
            for record in &call.records {
                let charged = found.get(&record.record.offset()).copied().unwrap_or(0);
                prop_assert_eq!((record.charged, record.tries), (charged, charged));
            }
            let bad = call.records.iter().any(|record| culprits.contains(&record.record.offset()));
            let verdict = match (bad, call.records.len()) {
                (false, _) => Verdict::Settled,
                (true, 1) if call.records[0].charged == 2 => Verdict::Settled,
                (true, 1) => {
                    *found.entry(call.records[0].record.offset()).or_default() += 1;
                    Verdict::Retry { after: Duration::ZERO, charge: true }
                }
                (true, _) => Verdict::Halve,
            };
            calls.extend(on(Event::Returned { call: call.id, verdicts: vec![verdict; call.records.len()] }));
            calls.extend(on(Event::Timer));
        }
        prop_assert_eq!(found.keys().copied().collect::<Vec<_>>(), culprits);
        prop_assert_eq!(partition.committable(), Some(keys.len() as Offset));
    }
}

/// The naive model: every record with its key, whether it runs and whether it is settled.
struct Model {
    partition: Partition,
    order: Order,
    /// What each slot is said to be one of.
    spare: usize,
    now: Duration,
    next: Offset,
    keys: BTreeMap<Offset, u8>,
    settled: BTreeMap<Offset, bool>,
    running: Vec<(CallId, Vec<Offset>)>,
    stopped: Option<Offset>,
    paused: bool,
    committed: Offset,
    revoked: bool,
    drained: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            partition: Partition::new(Order::Key, BOUNDS),
            order: Order::Key,
            spare: 1,
            now: Duration::ZERO,
            next: 0,
            keys: BTreeMap::new(),
            settled: BTreeMap::new(),
            running: Vec::new(),
            stopped: None,
            paused: false,
            committed: 0,
            revoked: false,
            drained: false,
        }
    }
}

impl Model {
    fn after(order: Order, call_records_max: usize, calls_max: usize, steps: Vec<Step>) -> Self {
        let bounds = Bounds { call_records_max, calls_max, records_max: 40, span_max: 60, ..BOUNDS };
        let mut model = Model { partition: Partition::new(order, bounds), order, ..Model::default() };
        for step in steps {
            model.step(step);
        }
        model
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Receive { gap, key } => {
                if self.partition.room() == 0 {
                    return;
                }
                let offset = self.next + gap;
                self.next = offset + 1;
                self.keys.insert(offset, key);
                self.settled.insert(offset, false);
                let name = if key == 0 { "-".to_owned() } else { key.to_string() };
                self.on(Event::Received(chunk(offset, &name)));
            }
            Step::Return { pick, verdicts } => {
                if self.running.is_empty() {
                    return;
                }
                let (call, offsets) = self.running.remove(pick.index(self.running.len()));
                let verdicts = self.verdicts(&offsets, &verdicts);
                self.on(Event::Returned { call, verdicts });
            }
            Step::Wait { millis } => {
                self.now += Duration::from_millis(millis);
                self.on(Event::Timer);
            }
            Step::Spare { calls } => self.spare = calls,
            Step::Pause(paused) => self.pause(paused),
            Step::Resume => {
                self.stopped = None;
                self.on(Event::Resumed);
            }
        }
        assert!(!self.paused || self.partition.room() == 0, "a paused partition takes nothing in");
        assert!(self.stopped.is_none() || self.partition.room() == 0, "STOP-1: it takes nothing more in");
        assert_eq!(self.partition.stopped_at(), self.stopped, "STOP-1");
    }

    fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.on(Event::Paused(paused));
    }

    /// Outcomes as the host gives them: once a lane has one that does not settle, the rest of it is untouched.
    fn verdicts(&mut self, offsets: &[Offset], dice: &[u8]) -> Vec<Verdict> {
        let mut blocked = Vec::new();
        let mut verdicts = Vec::new();
        for (index, offset) in offsets.iter().enumerate() {
            let lane = self.lane(*offset);
            let verdict = match dice[index % dice.len()] {
                _ if blocked.contains(&lane) => Verdict::Untouched,
                0 => Verdict::Retry { after: Duration::from_millis(50), charge: true },
                1 => Verdict::Halve,
                2 => Verdict::Untouched,
                3 => Verdict::Stop,
                _ => Verdict::Settled,
            };
            if verdict == Verdict::Settled {
                self.settled.insert(*offset, true);
            } else {
                blocked.push(lane);
            }
            if verdict == Verdict::Stop {
                self.stopped = Some(self.stopped.map_or(*offset, |stopped| stopped.min(*offset)));
            }
            verdicts.push(verdict);
        }
        verdicts
    }

    fn lane(&self, offset: Offset) -> Offset {
        match self.order {
            Order::Key => Offset::from(self.keys[&offset]),
            Order::Partition => 0,
            Order::Unordered => offset,
        }
    }

    fn on(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.partition.on(self.now, event, &mut actions);
        while self.partition.wants_slot() {
            self.partition.on(self.now, Event::Slot { spare: self.spare }, &mut actions);
        }
        for action in actions {
            match action {
                Action::Invoke(call) => self.invoked(&call),
                Action::Commit(offset) => {
                    assert!(offset > self.committed, "OFF-2");
                    assert!(self.settled.range(..offset).all(|(_, settled)| *settled), "OFF-1");
                    self.committed = offset;
                }
                Action::Drained => {
                    assert!(
                        self.revoked && self.running.is_empty(),
                        "it is drained when it was revoked and nothing runs"
                    );
                    self.drained = true;
                }
            }
        }
    }

    fn invoked(&mut self, call: &Call) {
        let offsets: Vec<Offset> = call.records.iter().map(|record| record.record.offset()).collect();
        assert!(offsets.is_sorted(), "LANE-1: in offset order");
        assert!(!self.paused, "a paused partition calls nobody");
        assert!(self.stopped.is_none_or(|stopped| offsets.iter().all(|offset| *offset < stopped)), "STOP-1");
        for offset in &offsets {
            let lane = self.lane(*offset);
            let busy = self.running.iter().flat_map(|(_, running)| running).any(|other| self.lane(*other) == lane);
            assert!(!busy, "LANE-1: one call a lane");
            let overtaken = self
                .settled
                .range(..offset)
                .any(|(before, settled)| !settled && self.lane(*before) == lane && !offsets.contains(before));
            assert!(!overtaken, "LANE-1: in offset order");
        }
        self.running.push((call.id, offsets));
    }

    fn resume(&mut self) {
        // What lies before a stop is worked off without it.
        self.now += Duration::from_secs(1);
        self.on(Event::Timer);
        self.pause(false);
        self.stopped = None;
        self.on(Event::Resumed);
    }

    fn revoke(mut self) {
        self.resume();
        let touched = self.running.iter().flat_map(|(_, offsets)| offsets).copied().max();
        let touched = touched.max(self.settled.iter().rev().find(|(_, settled)| **settled).map(|(offset, _)| *offset));
        self.revoked = true;
        self.on(Event::Revoked);
        while let Some((call, offsets)) = self.running.pop() {
            assert!(offsets.iter().all(|offset| Some(*offset) <= touched), "nothing new is taken on");
            for offset in &offsets {
                self.settled.insert(*offset, true);
            }
            self.on(Event::Returned { call, verdicts: vec![Verdict::Settled; offsets.len()] });
        }
        assert!(self.drained);
        let beyond = self.settled.range(self.committed..).any(|(_, settled)| *settled);
        assert!(!beyond, "DRAIN-1: what was settled is committed");
    }

    /// LANE-2 and OFF-3: when everything returns settled, everything was run and the frontier is at the end.
    fn finish(mut self) {
        self.resume();
        for _ in 0..100_000 {
            self.now += Duration::from_millis(50);
            self.on(Event::Timer);
            let Some((call, offsets)) = self.running.pop() else { break };
            for offset in &offsets {
                self.settled.insert(*offset, true);
            }
            self.on(Event::Returned { call, verdicts: vec![Verdict::Settled; offsets.len()] });
        }
        assert!(self.settled.values().all(|settled| *settled), "LANE-2: nothing is left waiting");
        assert_eq!(self.partition.committable().unwrap_or(0), self.next, "OFF-3");
        assert_eq!((self.partition.pending(), self.partition.bytes), (0, 0));
    }
}
