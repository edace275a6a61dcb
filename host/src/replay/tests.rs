//! A range through the rooms of a live handler, over the embedded log in memory.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::future::{BoxFuture, pending};
use tidemill_core::lanes::Order;
use tidemill_core::partition::Bounds;
use tidemill_core::rate::Rate;
use tidemill_core::retry::{Exhausted, RetryPolicy};
use tidemill_core::transaction::Limits;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::*;
use crate::attempt::{Attempt, Guarantee};
use crate::broker::embedded::Embedded;
use crate::broker::{Discard, Outgoing, StartAt, Subscription, WhenFull};
use crate::consumer::{Budget, Config, Group};
use crate::guest::{Called, Handler, Outcome, Reason};
use crate::metrics::Metrics;
use crate::settle::letter::HeaderStyle;
use crate::settle::{DeadLetters, Settler};

const TOPIC: &str = "in";
const GROUP: &str = "g";
const PATIENCE: Duration = Duration::from_secs(20);
/// So many records lie in each of two partitions.
const RECORDS: i64 = 20;

/// Notes what it is given, as what it comes; refuses one offset for good.
struct Guest {
    given: Mutex<BTreeSet<(i32, Offset, &'static str)>>,
    refused: Offset,
    called: Notify,
}

impl Handler for Guest {
    fn call<'a>(&'a self, attempt: &'a mut Attempt) -> BoxFuture<'a, Called> {
        Box::pin(async move {
            let mut given = self.given.lock().expect("not poisoned");
            let outcome = |offset| {
                let first = given.insert((attempt.from.partition, offset, attempt.delivery));
                assert!(first, "{offset} comes once");
                let reason = Reason { code: "never".to_owned(), detail: "as the test wants".to_owned() };
                if offset == self.refused { Outcome::DeadLetter(reason) } else { Outcome::Ack(Vec::new()) }
            };
            let outcomes = attempt.records.iter().map(|record| record.record.offset()).map(outcome).collect();
            self.called.notify_one();
            Called { revision: self.revision(), took: Duration::ZERO, outcomes: Ok(outcomes) }
        })
    }

    fn revision(&self) -> Arc<str> {
        "cafe".into()
    }
}

struct World {
    log: Embedded,
    guest: Arc<Guest>,
}

impl World {
    async fn new(refused: Offset) -> Self {
        let log = Embedded::in_memory().expect("a log");
        let admin = log.admin().expect("an admin");
        admin.create_topic(TOPIC, 2, None).await.expect("the topic is made");
        let record = |number: i64| Outgoing {
            topic: TOPIC.into(),
            partition: Some((number % 2) as i32),
            timestamp_ms: Some(1000 + number / 2),
            key: None,
            value: Some(Bytes::from(number.to_string())),
            headers: Vec::new(),
        };
        let producer = log.producer(&BTreeMap::new()).expect("a producer");
        let stored = producer.send((0..2 * RECORDS).map(record).collect(), WhenFull::Wait).await;
        assert!(stored.iter().all(Result::is_ok));
        let guest = Guest { given: Mutex::default(), refused, called: Notify::new() };
        Self { log, guest: Arc::new(guest) }
    }

    async fn plan(&self, from: &str, to: &str) -> Vec<Part> {
        let admin = self.log.admin().expect("an admin");
        let (from, to) = (from.parse().expect("a point"), to.parse().expect("a point"));
        plan(&*admin, &[TOPIC.to_owned()], &Selection::default(), from, to).await.expect("a plan")
    }

    async fn replay(
        &self,
        parts: Vec<Part>,
        guarantee: Guarantee,
        exhausted: Exhausted,
        rate: Option<Rate>,
        interrupted: impl Future<Output = ()>,
    ) -> Report {
        let ranges = parts.iter().map(|part| (part.of.clone(), part.range.clone())).collect();
        let ranged = Ranged::new(self.log.clone(), ranges, rate);
        let metrics = Metrics::new().handler("h");
        let letters =
            DeadLetters { handler: "h".into(), group: GROUP.into(), topic: None, headers: HeaderStyle::Native };
        let policy = RetryPolicy::new(1, Duration::ZERO, Duration::ZERO).expect("valid").exhausted(exhausted);
        let settler = Settler::new(Arc::new(Discard), policy, letters, Arc::clone(&metrics));
        let membership = Arc::<Membership>::default();
        let group = Group::new(
            ranged.clone(),
            config(guarantee),
            Arc::clone(&self.guest) as Arc<dyn Handler>,
            settler,
            Arc::clone(&metrics),
            Arc::clone(&membership),
            Budget::new(usize::MAX, Metrics::new().held_bytes()),
        );
        let stop = CancellationToken::new();
        let task = tokio::spawn(group.replaying().run(stop.clone()));
        let replay = Replay { parts, membership, metrics, revision: "cafe".into(), stop, task };
        timeout(PATIENCE, replay.run(&ranged, interrupted, |_| {})).await.expect("it ends")
    }

    /// The offsets of a partition that came, all as a replay's.
    fn given(&self, partition: i32) -> Vec<Offset> {
        let given = self.guest.given.lock().expect("not poisoned");
        assert!(given.iter().all(|(.., delivery)| *delivery == "replay"));
        given.iter().filter(|(of, ..)| *of == partition).map(|(_, offset, _)| *offset).collect()
    }
}

fn config(guarantee: Guarantee) -> Config {
    let subscription = Subscription {
        group: GROUP.to_owned(),
        topics: vec![TOPIC.to_owned()],
        start_at: StartAt::Latest,
        properties: BTreeMap::new(),
    };
    let bounds = Bounds {
        call_records_max: 3,
        call_bytes_max: 1 << 20,
        calls_max: 4,
        records_max: 8,
        bytes_max: 1 << 20,
        span_max: 1000,
    };
    Config {
        subscription,
        guarantee,
        order: Order::Partition,
        ahead_max: 4,
        bounds,
        concurrency: 4,
        call_deadline: PATIENCE,
        commit_interval: Duration::from_millis(2),
        drain_deadline: PATIENCE,
        transaction: Limits { interval: Duration::from_millis(2), records_max: 1000, bytes_max: 1 << 20 },
    }
}

fn reached(report: &Report) -> Vec<Offset> {
    report.parts.iter().map(|done| done.reached).collect()
}

#[tokio::test]
async fn a_range_comes_once_and_whole_and_the_group_does_not_move() {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce] {
        let world = World::new(-1).await;
        let parts = world.plan("3", "1970-01-01T00:00:01.015Z").await;
        let report = world.replay(parts, guarantee, Exhausted::DeadLetter, None, pending()).await;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!((report.records, report.outcomes["ack"]), (24, 24));
        assert_eq!(reached(&report), [15, 15]);
        for partition in [0, 1] {
            assert_eq!(world.given(partition), (3..15).collect::<Vec<_>>());
        }
        let admin = world.log.admin().expect("an admin");
        assert_eq!(admin.committed(GROUP, TOPIC).await, Ok(vec![(0, None), (1, None)]));
    }
}

#[tokio::test]
async fn nothing_to_read_is_done_at_once() {
    let world = World::new(-1).await;
    let report =
        world.replay(world.plan("latest", "end").await, Guarantee::AtLeastOnce, Exhausted::Drop, None, pending()).await;
    assert!(report.is_clean() && report.records == 0, "{report:?}");
}

#[tokio::test]
async fn records_that_were_given_up_are_counted_and_make_it_unclean() {
    let world = World::new(5).await;
    let parts = world.plan("earliest", "end").await;
    let report = world.replay(parts, Guarantee::AtLeastOnce, Exhausted::DeadLetter, None, pending()).await;
    assert!(report.is_whole() && !report.is_clean());
    assert_eq!((report.dead_letters, report.dropped, report.outcomes["dead-letter"]), (2, 0, 2));
}

#[tokio::test]
async fn a_record_that_stops_its_partition_ends_the_replay_there() {
    let world = World::new(5).await;
    let parts = world.plan("earliest", "end").await;
    let report = world.replay(parts, Guarantee::AtLeastOnce, Exhausted::Stop, None, pending()).await;
    assert!(!report.is_whole());
    assert_eq!(reached(&report), [5, 5]);
    let stops: Vec<_> = report.parts.iter().map(|done| done.stopped.as_ref().map(|stop| stop.offset)).collect();
    assert_eq!(stops, [Some(5), Some(5)]);
}

#[tokio::test]
async fn one_that_is_interrupted_says_how_far_it_came() {
    let world = World::new(-1).await;
    let parts = world.plan("earliest", "end").await;
    // A record a second: the first has come, and the others have not.
    let rate = Rate::new(NonZeroU32::new(1).expect("not zero"));
    let guest = Arc::clone(&world.guest);
    let report = world
        .replay(
            parts,
            Guarantee::AtLeastOnce,
            Exhausted::Drop,
            Some(rate),
            async move { guest.called.notified().await },
        )
        .await;
    assert!(report.interrupted && !report.is_whole());
    let given = world.given(0).len() + world.given(1).len();
    assert_eq!(reached(&report).into_iter().sum::<Offset>(), given as Offset, "what came is settled and noted");
    assert!((1..4).contains(&given), "{given} came");
}

#[tokio::test(start_paused = true)]
async fn the_rate_bounds_all_partitions_together() {
    let world = World::new(-1).await;
    let parts = world.plan("earliest", "end").await;
    let rate = Rate::new(NonZeroU32::new(10).expect("not zero"));
    let report = world.replay(parts, Guarantee::AtLeastOnce, Exhausted::Drop, Some(rate), pending()).await;
    assert!(report.is_clean());
    assert!(report.took >= Duration::from_millis(3700), "40 records at 10 a second took {:?}", report.took);
}

#[test]
fn what_is_not_kept_any_more_is_told() {
    let info = PartitionInfo { partition: 0, start: 30, end: 100, replicas: 1 };
    // The plan's arithmetic alone: retention is the broker's.
    for (from, begin, end, range, gone) in [
        (Point::Earliest, 30, 100, 30..100, 30),
        (Point::Offset(10), 10, 100, 30..100, 20),
        (Point::Offset(50), 50, 200, 50..100, 0),
        (Point::Offset(0), 0, 10, 30..30, 10),
        (Point::Time(7), 30, 100, 30..100, 30),
        (Point::Time(9), 31, 100, 31..100, 0),
        (Point::Latest, 100, 100, 100..100, 0),
    ] {
        assert_eq!(part(&info, from, begin, end), (range, gone), "{from} to {end}");
    }
}
