//! Rooms 1, 2 and 6 over the embedded log in memory, with a guest whose calls each test receives and answers itself.
//!
//! Each commit of each test is held against what was settled by then (OFF-1, OFF-2).

mod at_most_once;
mod bounds;
mod commits;
mod database;
mod drain;
mod moving;
mod order;
mod parked;
mod pause;
mod policy;
mod simulation;
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tidemill_core::record::{Offset, Record};
use tidemill_core::retry::{Class, Exhausted, RetryPolicy};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::*;
use crate::attempt::Attempt;
use crate::broker::tests::watched::{PATIENCE, Watched};
use crate::broker::{Outgoing, Producer, StartAt, WhenFull};
use crate::guest::{CallError, Called, Outcome, Reason};
use crate::metrics::{CommitResult, Metrics};
use crate::settle::DeadLetters;
use crate::settle::letter::HeaderStyle;
use crate::settle::parked::ParkedTopics;

const TOPIC: &str = "in";
const GROUP: &str = "g";
/// Nothing was committed.
const NONE: [Offset; 0] = [];
/// Longer than any test: what waits so long does not come back in it.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// One topic, and what became of its records.
struct World {
    broker: Watched,
    ledger: Arc<Ledger>,
    /// What each member's host may hold.
    bytes_max: usize,
}

/// What was settled and committed, by partition.
#[derive(Debug, Default)]
struct Ledger {
    settled: Mutex<BTreeMap<TopicPartition, BTreeSet<Offset>>>,
    committed: Mutex<BTreeMap<TopicPartition, Offset>>,
}

impl Ledger {
    fn settle(&self, from: &TopicPartition, offset: Offset) {
        let first = self.settled.lock().expect("not poisoned").entry(from.clone()).or_default().insert(offset);
        assert!(first, "{from} {offset} is settled twice");
    }

    fn settled(&self) -> usize {
        self.settled.lock().expect("not poisoned").values().map(BTreeSet::len).sum()
    }

    fn on_commit(&self, from: &TopicPartition, offset: Offset) {
        let settled = self.settled.lock().expect("not poisoned").get(from).cloned().unwrap_or_default();
        let open: Vec<Offset> = (0..offset).filter(|below| !settled.contains(below)).collect();
        assert!(open.is_empty(), "OFF-1: {from} is committed up to {offset} and {open:?} are not settled");
        self.rises(from, offset);
    }

    fn rises(&self, from: &TopicPartition, offset: Offset) {
        let before = self.committed.lock().expect("not poisoned").insert(from.clone(), offset);
        assert!(before.is_none_or(|before| before <= offset), "OFF-2: {from} fell from {before:?} to {offset}");
    }
}

impl World {
    async fn new(partitions: i32) -> Self {
        let ledger = Arc::new(Ledger::default());
        let rule = Arc::clone(&ledger);
        Self::ruled(partitions, ledger, Watched::new(move |from, offset| rule.on_commit(from, offset))).await
    }

    /// For commits that come before the calls: of them only that they do not fall is asked.
    async fn ahead(keys: &str) -> Self {
        Self::ahead_of(1, keys).await
    }

    /// The same, with these records in each partition.
    async fn ahead_of(partitions: i32, keys: &str) -> Self {
        let ledger = Arc::new(Ledger::default());
        let rule = Arc::clone(&ledger);
        let broker = Watched::new(move |from, offset| rule.rises(from, offset));
        let world = Self::ruled(partitions, ledger, broker).await;
        for partition in 0..partitions {
            world.store(partition, keys, 1).await;
        }
        world
    }

    /// A topic of one partition whose commits keep to no rule.
    #[cfg(feature = "fault-injection")]
    async fn unruled(keys: &str) -> Self {
        let world = Self::ruled(1, Arc::default(), Watched::new(|_, _| ())).await;
        world.store(0, keys, 1).await;
        world
    }

    async fn ruled(partitions: i32, ledger: Arc<Ledger>, broker: Watched) -> Self {
        let admin = broker.admin().expect("an admin");
        admin.create_topic(TOPIC, partitions, None).await.expect("the topic is made");
        Self { broker, ledger, bytes_max: usize::MAX }
    }

    /// A topic of one partition that holds records with these keys.
    async fn with(keys: &str) -> Self {
        let world = Self::new(1).await;
        world.store(0, keys, 1).await;
        world
    }

    /// Stores one record for each of the keys.
    async fn store(&self, partition: i32, keys: &str, value_bytes: usize) {
        let record = |key: &str| Outgoing {
            topic: TOPIC.into(),
            partition: Some(partition),
            timestamp_ms: None,
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: Some(vec![b'v'; value_bytes].into()),
            headers: Vec::new(),
        };
        let producer = self.broker.producer(&BTreeMap::new()).expect("a producer");
        let stored = producer.send(keys.split_whitespace().map(record).collect(), WhenFull::Wait).await;
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    }

    fn join(&self, config: Config) -> Member {
        self.join_as(config, always_again(), Arc::default())
    }

    fn join_paused(&self, config: Config) -> Member {
        let membership = Arc::<Membership>::default();
        membership.pause(true);
        self.join_as(config, always_again(), membership)
    }

    fn join_with(&self, config: Config, policy: RetryPolicy) -> Member {
        self.join_as(config, policy, Arc::default())
    }

    fn join_as(&self, config: Config, policy: RetryPolicy, membership: Arc<Membership>) -> Member {
        let producer = self.broker.producer(&BTreeMap::new()).expect("a producer");
        self.join_through(producer, config, policy, membership)
    }

    fn join_through(
        &self,
        producer: Arc<dyn Producer>,
        config: Config,
        policy: RetryPolicy,
        membership: Arc<Membership>,
    ) -> Member {
        let (calls, received) = mpsc::unbounded_channel();
        let guest = Arc::new(Guest {
            calls,
            open: AtomicUsize::new(0),
            open_max: AtomicUsize::new(0),
            revision: Mutex::new("cafe".into()),
        });
        let metrics = Metrics::new().handler("h");
        let letters =
            DeadLetters { handler: "h".into(), group: GROUP.into(), topic: None, headers: HeaderStyle::Native };
        let parks = policy.end() == Exhausted::Park;
        let settler = Settler::new(Arc::clone(&producer), policy, letters, Arc::clone(&metrics));
        let handler = Arc::clone(&guest) as Arc<dyn Handler>;
        let budget = Budget::new(self.bytes_max, Metrics::new().held_bytes());
        let (broker, counted, place) = (self.broker.clone(), Arc::clone(&metrics), Arc::clone(&membership));
        let mut group = Group::new(broker, config, handler, settler, counted, place, budget);
        if parks {
            let topics = Arc::new(ParkedTopics::new("h".into(), producer));
            let admin = self.broker.admin().expect("an admin");
            group = group.parking(Parking { topics, admin, records_max: 5 });
        }
        let stop = CancellationToken::new();
        let task = tokio::spawn(group.run(stop.clone()));
        Member { calls: received, guest, metrics, membership, ledger: Arc::clone(&self.ledger), stop, task }
    }

    fn commits(&self, partition: i32) -> Vec<Offset> {
        self.broker.commits(GROUP, &TopicPartition::new(TOPIC, partition))
    }

    async fn committed(&self, partition: i32, offset: Offset) {
        self.broker.committed(GROUP, &TopicPartition::new(TOPIC, partition), offset).await;
    }
}

/// One record in a call, and room for everything.
fn config() -> Config {
    let subscription = Subscription {
        group: GROUP.to_owned(),
        topics: vec![TOPIC.to_owned()],
        start_at: StartAt::Earliest,
        properties: BTreeMap::new(),
    };
    let bounds = Bounds {
        call_records_max: 1,
        call_bytes_max: 1 << 20,
        calls_max: 4,
        records_max: 100,
        bytes_max: 1 << 20,
        span_max: 1000,
    };
    Config {
        subscription,
        guarantee: Guarantee::AtLeastOnce,
        order: Order::Key,
        ahead_max: 4,
        bounds,
        concurrency: 4,
        call_deadline: FOR_EVER,
        commit_interval: Duration::from_millis(2),
        drain_deadline: PATIENCE,
        transaction: Limits { interval: Duration::from_millis(2), records_max: 1000, bytes_max: 1 << 20 },
    }
}

/// What fails is tried again at once, for as long as a test looks.
fn always_again() -> RetryPolicy {
    RetryPolicy::new(100, Duration::ZERO, FOR_EVER).expect("valid")
}

/// One call at a time.
fn one_by_one() -> Config {
    Config { concurrency: 1, ..config() }
}

/// A running member of the group.
struct Member {
    calls: mpsc::UnboundedReceiver<Call>,
    guest: Arc<Guest>,
    metrics: Arc<HandlerMetrics>,
    membership: Arc<Membership>,
    ledger: Arc<Ledger>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Member {
    /// The next call of the guest.
    async fn call(&mut self) -> Open {
        let call = timeout(PATIENCE, self.calls.recv()).await.expect("a call comes").expect("the guest is there");
        Open { call, ledger: Arc::clone(&self.ledger) }
    }

    /// The next call, which is with these records.
    async fn call_of(&mut self, offsets: &[Offset]) -> Open {
        let open = self.call().await;
        assert_eq!(open.offsets(), offsets);
        open
    }

    /// Waits for the member to leave.
    async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("it ends").expect("it does not panic");
    }
}

/// A call that the test has not answered yet.
struct Open {
    call: Call,
    ledger: Arc<Ledger>,
}

struct Call {
    from: TopicPartition,
    records: Vec<Record>,
    answer: oneshot::Sender<Answer>,
}

enum Answer {
    Outcomes(Vec<Outcome>),
    Panic,
}

impl Open {
    fn offsets(&self) -> Vec<Offset> {
        self.call.records.iter().map(Record::offset).collect()
    }

    fn key(&self) -> String {
        String::from_utf8_lossy(self.call.records[0].key().unwrap_or_default()).into_owned()
    }

    fn bytes(&self) -> usize {
        self.call.records.iter().map(Record::bytes).sum()
    }

    /// All records are handled.
    fn ack(self) {
        self.offsets().into_iter().for_each(|offset| self.ledger.settle(&self.call.from, offset));
        let outcomes = self.call.records.iter().map(|_| Outcome::Ack(Vec::new())).collect();
        self.answer(Answer::Outcomes(outcomes));
    }

    /// All records are to come again after a while.
    fn retry(self, after: Duration) {
        let again = Outcome::Retry { after: Some(after), reason: Reason::default(), unavailable: false };
        let outcomes = vec![again; self.call.records.len()];
        self.answer(Answer::Outcomes(outcomes));
    }

    /// All records are refused for good.
    fn refuse(self) {
        let reason = Reason { code: "never".to_owned(), detail: "it is not going to work".to_owned() };
        let outcomes = vec![Outcome::DeadLetter(reason); self.call.records.len()];
        self.answer(Answer::Outcomes(outcomes));
    }

    fn panic(self) {
        self.answer(Answer::Panic);
    }

    fn answer(self, answer: Answer) {
        assert!(self.call.answer.send(answer).is_ok(), "the call is still waited for");
    }

    /// Waits until the host stops the call.
    async fn stopped(mut self) {
        timeout(PATIENCE, self.call.answer.closed()).await.expect("the call is stopped");
    }
}

/// Hands its calls to the test.
struct Guest {
    calls: mpsc::UnboundedSender<Call>,
    open: AtomicUsize,
    open_max: AtomicUsize,
    revision: Mutex<Arc<str>>,
}

impl Handler for Guest {
    fn revision(&self) -> Arc<str> {
        Arc::clone(&self.revision.lock().expect("not poisoned"))
    }

    fn call<'a>(&'a self, attempt: &'a mut Attempt) -> BoxFuture<'a, Called> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let records = attempt.records.iter().map(|record| record.record.clone()).collect();
            let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
            self.open_max.fetch_max(open, Ordering::SeqCst);
            // A test that has ended does not receive.
            let answered = match self.calls.send(Call { from: attempt.from.clone(), records, answer }) {
                Ok(()) => answered.await,
                Err(_) => std::future::pending().await,
            };
            self.open.fetch_sub(1, Ordering::SeqCst);
            let outcomes = match answered {
                Ok(Answer::Outcomes(outcomes)) => Ok(outcomes),
                Ok(Answer::Panic) => panic!("the handler panics"),
                Err(_) => Err(CallError { class: Class::Trap, detail: "the test gave no answer".to_owned() }),
            };
            Called { revision: self.revision(), took: Duration::ZERO, outcomes }
        })
    }
}
