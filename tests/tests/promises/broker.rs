//! The broker's seam on real Kafka: its contract by both group protocols, and what it does when the broker fails.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tests::{names, servers};
use tidemill::broker::kafka::{Config, Kafka, KafkaConsumer, PartitionReader};
use tidemill::broker::{
    Admin, Broker, CommitError, Consumer, ConsumerEvent, Outgoing, Producer, Reader, SendError, StartAt, Subscription,
    WhenFull,
};
use tidemill_core::record::{Offset, TopicPartition};
use tokio::time::timeout;
use xtask::lab;

/// Bounds each wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `close` may take: its own deadline, and a little more.
const CLOSE_MAX: Duration = Duration::from_secs(12);

mod classic {
    #[expect(clippy::unused_async, reason = "the contract opens every broker this way")]
    async fn setup(_name: &str) -> (tidemill::broker::kafka::Kafka, impl Drop) {
        (super::broker(&super::servers::kafka(), &[]), super::servers::in_company())
    }
    tidemill::broker_contract!(setup, "classic-");
}

mod newer_group_protocol {
    #[expect(clippy::unused_async, reason = "the contract opens every broker this way")]
    async fn setup(_name: &str) -> (tidemill::broker::kafka::Kafka, impl Drop) {
        let properties = [("group.protocol", "consumer")];
        (super::broker(&super::servers::kafka(), &properties), super::servers::in_company())
    }
    tidemill::broker_contract!(setup, "newer-");
}

fn broker(servers: &str, consumer: &[(&str, &str)]) -> Kafka {
    let own = |properties: &[(&str, &str)]| -> BTreeMap<String, String> {
        properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let config = Config {
        properties: own(&[("bootstrap.servers", servers)]),
        consumer: own(consumer),
        producer: BTreeMap::new(),
        topics: BTreeMap::new(),
    };
    Kafka::new(config).expect("the configuration is good")
}

/// A cluster of its own, with a topic of so many partitions.
struct Bench {
    lab: lab::kafka::Kafka,
    broker: Kafka,
    admin: Arc<dyn Admin>,
    topic: Arc<str>,
    _company: RwLockReadGuard<'static, ()>,
}

impl Bench {
    #[expect(clippy::await_holding_lock, reason = "a test's share of the machine, held by its only task to its end")]
    async fn new(partitions: i32, consumer: &[(&str, &str)]) -> Self {
        let _company = servers::in_company();
        let lab = lab::kafka::Kafka::start_nodes(1).expect("one kafka node starts");
        let broker = broker(&lab.bootstrap(), consumer);
        let admin = broker.admin().expect("a broker has an admin");
        let topic: Arc<str> = names::unique("records").into();
        admin.create_topic(&topic, partitions, None).await.expect("the topic is made");
        Self { lab, broker, admin, topic, _company }
    }

    async fn producer(&self, properties: &[(&str, &str)]) -> Arc<dyn Producer> {
        let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let producer = self.broker.producer(&properties).expect("a broker has a producer");
        producer.warm(&[Arc::clone(&self.topic)], PATIENCE).await.expect("the broker is there");
        producer
    }

    fn member(&self) -> KafkaConsumer {
        let subscription = Subscription {
            group: "group".into(),
            topics: vec![self.topic.to_string()],
            start_at: StartAt::Earliest,
            properties: BTreeMap::new(),
        };
        self.broker.consumer(&subscription).expect("a member joins")
    }

    fn numbers(&self, partition: i32, numbers: std::ops::Range<u64>) -> Vec<Outgoing> {
        let record = |number: u64| Outgoing {
            topic: Arc::clone(&self.topic),
            partition: Some(partition),
            timestamp_ms: None,
            key: None,
            value: Some(Bytes::from(number.to_string())),
            headers: Vec::new(),
        };
        numbers.map(record).collect()
    }
}

/// The next event that is not a problem.
async fn event(member: &mut KafkaConsumer) -> ConsumerEvent {
    let next = async {
        loop {
            let event = member.next_event().await;
            let ConsumerEvent::Problem(text) = event else { return event };
            eprintln!("problem: {text}");
        }
    };
    timeout(PATIENCE, next).await.expect("an event comes in time")
}

async fn assigned(member: &mut KafkaConsumer) -> Vec<(TopicPartition, PartitionReader)> {
    loop {
        let event = event(member).await;
        let ConsumerEvent::Assigned(partitions) = event else { panic!("an assignment was expected, not {event:?}") };
        // The first news may be that there is nothing yet.
        if !partitions.is_empty() {
            return member.start(&partitions, &std::collections::BTreeMap::new()).await.expect("they can be read");
        }
    }
}

/// Reads until a number was read, and returns all that came.
async fn read_to(reader: &mut PartitionReader, last: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&last) {
        let chunk = timeout(PATIENCE, reader.next(500, 1 << 20)).await.expect("records come in time");
        match chunk {
            Ok(chunk) => numbers.extend(chunk.records().map(|record| {
                let text = std::str::from_utf8(record.value().expect("it is not null")).expect("it is text");
                text.parse::<u64>().expect("it is a number")
            })),
            Err(error) => eprintln!("read error: {error}"),
        }
    }
    numbers
}

async fn close(member: KafkaConsumer) -> Duration {
    let started = Instant::now();
    timeout(CLOSE_MAX, member.close()).await.expect("closing has a deadline");
    started.elapsed()
}

/// The lone broker is killed and started again while records flow: none that was acknowledged is missed, none is read
/// twice, and the producer says when it is ready again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_and_comes_back_costs_no_record() {
    let mut bench = Bench::new(1, &[]).await;
    let producer = bench.producer(&[]).await;
    let mut member = bench.member();
    let mut readers = assigned(&mut member).await;
    let (_, reader) = &mut readers[0];
    let results = producer.send(bench.numbers(0, 0..1000), WhenFull::Wait).await;
    assert!(results.iter().all(Result::is_ok) && producer.ready());
    assert_eq!(read_to(reader, 999).await, (0..1000).collect::<Vec<_>>());

    bench.lab.kill(1).expect("the node is killed");
    let sending = producer.send(bench.numbers(0, 1000..2000), WhenFull::Wait);
    let sending = tokio::spawn(sending);
    let commit = member.commit(vec![(TopicPartition::new(Arc::clone(&bench.topic), 0), 1000)]).await;
    assert!(matches!(commit, Err(CommitError::Retriable(_))), "{commit:?}");
    assert!(!producer.ready(), "it knows that no broker is there");

    bench.lab.start(1).expect("the node starts again");
    let results = sending.await.expect("the send does not panic");
    let stored: Vec<u64> =
        (1000..).zip(&results).filter(|(_, result)| result.is_ok()).map(|(number, _)| number).collect();
    assert!(results.iter().all(|result| !matches!(result, Err(SendError::Rejected(_)))), "{results:?}");
    let results = producer.send(bench.numbers(0, 2000..3000), WhenFull::Wait).await;
    assert!(results.iter().all(Result::is_ok) && producer.ready(), "{results:?}");
    let read = read_to(reader, 2999).await;
    assert!(read.is_sorted_by(|one, next| one < next), "in order and once");
    assert!(stored.iter().all(|number| read.contains(number)), "what was acknowledged is read");
    member.commit(vec![(TopicPartition::new(Arc::clone(&bench.topic), 0), 3000)]).await.expect("it is committed");
    drop(readers);
    close(member).await;
}

/// A broker that hangs leaves records that were sent unknown, and those that were not unavailable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_hangs_leaves_sent_records_unknown() {
    let mut bench = Bench::new(1, &[]).await;
    let properties =
        [("delivery.timeout.ms", "3000"), ("linger.ms", "0"), ("max.in.flight.requests.per.connection", "1")];
    let producer = bench.producer(&properties).await;
    assert!(producer.send(bench.numbers(0, 0..1), WhenFull::Wait).await[0].is_ok());

    bench.lab.pause(1).expect("the node hangs");
    let mut sent = producer.send(bench.numbers(0, 1..2), WhenFull::Wait);
    assert!(timeout(Duration::from_millis(500), &mut sent).await.is_err(), "nobody answers");
    let waiting = producer.send(bench.numbers(0, 2..3), WhenFull::Wait);
    let (sent, waiting) = tokio::join!(sent, waiting);
    assert!(matches!(sent[0], Err(SendError::Unknown(_))), "{sent:?}");
    assert!(matches!(waiting[0], Err(SendError::Unavailable(_))), "{waiting:?}");

    bench.lab.resume(1).expect("the node goes on");
    let again = producer.send(bench.numbers(0, 3..4), WhenFull::Wait).await;
    assert!(again[0].is_ok(), "{again:?}");
    assert_eq!(producer.flush(PATIENCE).await, 0);
}

/// A member whose session ended is told so, and goes on at the committed offset once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_too_long_loses_its_partitions() {
    let properties = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "1000")];
    let mut bench = Bench::new(1, &properties).await;
    let producer = bench.producer(&[]).await;
    let results = producer.send(bench.numbers(0, 0..100), WhenFull::Wait).await;
    assert!(results.iter().all(Result::is_ok));
    let mut member = bench.member();
    let mut readers = assigned(&mut member).await;
    assert_eq!(read_to(&mut readers[0].1, 99).await.len(), 100);
    let partition = readers[0].0.clone();
    member.commit(vec![(partition.clone(), 60)]).await.expect("it is committed");

    bench.lab.pause(1).expect("the node hangs");
    tokio::time::sleep(Duration::from_secs(8)).await;
    bench.lab.resume(1).expect("the node goes on");
    let told = event(&mut member).await;
    let ConsumerEvent::Lost(lost) = told else { panic!("a loss was expected, not {told:?}") };
    assert_eq!(lost, std::slice::from_ref(&partition));
    drop(readers);
    member.release(&lost).await.expect("lost partitions can be given back");
    let late = member.commit(vec![(partition, 100)]).await;
    assert!(matches!(late, Err(CommitError::Fenced(_))), "{late:?}");
    let mut readers = assigned(&mut member).await;
    assert_eq!(read_to(&mut readers[0].1, 99).await, (60..100).collect::<Vec<_>>());
    drop(readers);
    close(member).await;
}

/// Whatever state a member is in, with a broker or without, it ends in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_has_a_deadline_in_every_state() {
    let mut bench = Bench::new(2, &[]).await;
    let prompt = Duration::from_secs(5);

    let joining = bench.member();
    assert!(close(joining).await < prompt, "while it joins");

    let mut unanswered = bench.member();
    let ConsumerEvent::Assigned(_) = event(&mut unanswered).await else { panic!("an assignment comes first") };
    assert!(close(unanswered).await < prompt, "with an assignment that nobody answered");

    let mut first = bench.member();
    let readers = assigned(&mut first).await;
    let mut second = bench.member();
    let ConsumerEvent::Revoked(_) = event(&mut first).await else { panic!("a revocation comes next") };
    drop(readers);
    assert!(close(first).await < prompt, "with a revocation that nobody answered");
    let readers = assigned(&mut second).await;
    assert_eq!(readers.len(), 2, "the member that stays gets all");

    bench.lab.kill(1).expect("the node is killed");
    drop(readers);
    close(second).await;
    close(bench.member()).await;
}

/// Records come from the right place and in order from the first one on, however often a member starts under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_holds_from_the_first_record_of_each_start() {
    const STARTS: u64 = 15;
    let bench = Bench::new(1, &[]).await;
    let producer = bench.producer(&[]).await;
    let feeding = async {
        for first in (0..STARTS * 2000).step_by(500) {
            let results = producer.send(bench.numbers(0, first..first + 500), WhenFull::Wait).await;
            assert!(results.iter().all(Result::is_ok));
        }
    };
    let reading = async {
        let mut next = 0;
        for _ in 0..STARTS {
            let mut member = bench.member();
            let mut readers = assigned(&mut member).await;
            // A chunk may pass the mark, so the last start has less to read.
            let until = (next + 2000).min((STARTS * 2000) as i64);
            while next < until {
                let chunk = timeout(PATIENCE, readers[0].1.next(300, 1 << 20)).await.expect("records come in time");
                let chunk = chunk.expect("the partition can be read");
                let offsets: Vec<Offset> = chunk.records().map(|record| record.offset()).collect();
                assert_eq!(offsets, (next..next + offsets.len() as i64).collect::<Vec<_>>());
                next += offsets.len() as i64;
            }
            member.commit(vec![(readers[0].0.clone(), next)]).await.expect("it is committed");
            drop(readers);
            close(member).await;
        }
    };
    tokio::join!(feeding, reading);
    let ends = bench.admin.topics(Some(&bench.topic)).await.expect("the topic is known");
    assert_eq!(ends[0].partitions[0].end, (STARTS * 2000) as i64);
}
