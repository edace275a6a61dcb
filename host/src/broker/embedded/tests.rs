//! The broker's contract on the embedded log, and what it promises beyond.

mod durable;
mod limits;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use tidemill_core::record::Record;

use super::*;
use crate::broker::{Consumer, ConsumerEvent, Outgoing, Position, Reader, StartAt, WhenFull};

/// The contract on a log in a folder.
mod on_disk {
    use super::*;

    #[expect(clippy::unused_async, reason = "the contract opens every broker this way")]
    async fn setup(_promise: &str) -> (Embedded, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config { create_topics: false, ..Config::at("log") };
        (open(&config, folder.path()), folder)
    }

    crate::broker_contract!(setup);
}

/// The contract in memory.
mod in_memory {
    use super::*;

    struct Nothing;

    #[expect(clippy::unused_async, reason = "the contract opens every broker this way")]
    async fn setup(_promise: &str) -> (Embedded, Nothing) {
        let config = Config { create_topics: false, ..Config::at("") };
        (Embedded::start(config, Database::in_memory(), None).expect("the log opens"), Nothing)
    }

    crate::broker_contract!(setup);
}

fn open(config: &Config, folder: &Path) -> Embedded {
    Embedded::open(config, folder).expect("the log opens")
}

fn numbered(topic: &str, partition: Option<i32>, number: u64) -> Outgoing {
    Outgoing {
        topic: topic.into(),
        partition,
        timestamp_ms: None,
        key: None,
        value: Some(number.to_string().into()),
        headers: Vec::new(),
    }
}

fn number_of(record: &Record) -> u64 {
    let value = std::str::from_utf8(record.value().expect("it has a value")).expect("it is text");
    value.parse().expect("it is a number")
}

async fn store(broker: &Embedded, records: Vec<Outgoing>) -> Vec<Position> {
    let producer = broker.producer(&BTreeMap::new()).expect("it has a producer");
    let results = producer.send(records, WhenFull::Wait).await;
    results.into_iter().map(|result| result.expect("it is stored")).collect()
}

fn subscription(topic: &str, start_at: StartAt) -> Subscription {
    Subscription { group: "group".into(), topics: vec![topic.into()], start_at, properties: BTreeMap::new() }
}

/// Joins a group and starts the first partitions that it is given.
async fn join(broker: &Embedded, topic: &str, start_at: StartAt) -> (EmbeddedConsumer, Vec<EmbeddedReader>) {
    let mut consumer = broker.consumer(&subscription(topic, start_at)).expect("a member joins");
    // The first news may be that there is nothing yet.
    let partitions = loop {
        let ConsumerEvent::Assigned(partitions) = consumer.next_event().await else { panic!("it is assigned first") };
        if !partitions.is_empty() {
            break partitions;
        }
    };
    let readers = consumer.start(&partitions, &BTreeMap::new()).await.expect("they can be read");
    (consumer, readers.into_iter().map(|(_, reader)| reader).collect())
}

async fn bounds(broker: &Embedded, topic: &str) -> Vec<(i64, i64)> {
    let admin = broker.admin().expect("it has an admin");
    let topics = admin.topics(Some(topic)).await.expect("the topic is there");
    topics[0].partitions.iter().map(|partition| (partition.start, partition.end)).collect()
}
