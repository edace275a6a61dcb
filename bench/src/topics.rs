//! Topics of a benchmark: made, filled, deleted.

use std::time::Duration;

use anyhow::Result;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(120);

/// Makes a topic and stores records in it.
pub(crate) fn fill<V: AsRef<[u8]>>(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    records: impl Iterator<Item = (String, V)>,
) -> Result<()> {
    create(bootstrap, topic, partitions)?;
    let producer = producer(bootstrap, 20)?;
    for (key, value) in records {
        send(&producer, BaseRecord::to(topic).key(&key).payload(value.as_ref()));
    }
    producer.flush(PATIENCE)?;
    Ok(())
}

/// A producer that waits so long to fill a batch.
pub(crate) fn producer(bootstrap: &str, linger_ms: u32) -> Result<ThreadedProducer<DefaultProducerContext>> {
    let mut config = client(bootstrap);
    config.set("acks", "all").set("linger.ms", linger_ms.to_string()).set("partitioner", "murmur2_random");
    Ok(ThreadedProducer::from_config(&config)?)
}

/// Sends a record, and waits while the client's queue is full.
pub(crate) fn send(producer: &ThreadedProducer<DefaultProducerContext>, mut record: BaseRecord<'_, String, [u8]>) {
    while let Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) = producer.send(record) {
        producer.poll(Duration::from_millis(1));
        record = again;
    }
}

/// Makes a topic.
pub(crate) fn create(bootstrap: &str, topic: &str, partitions: i32) -> Result<()> {
    make(bootstrap, &NewTopic::new(topic, partitions, TopicReplication::Fixed(1)))
}

/// Makes a topic whose records have the time at which the broker has appended them.
pub(crate) fn create_stamped(bootstrap: &str, topic: &str, partitions: i32) -> Result<()> {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    make(bootstrap, &new.set("message.timestamp.type", "LogAppendTime"))
}

fn make(bootstrap: &str, new: &NewTopic<'_>) -> Result<()> {
    let results = wait(admin(bootstrap)?.create_topics([new], &AdminOptions::new()))??;
    results
        .into_iter()
        .try_for_each(|result| result.map(drop))
        .map_err(|(topic, error)| anyhow::anyhow!("create {topic}: {error}"))
}

/// Deletes a topic.
pub(crate) fn delete(bootstrap: &str, topic: &str) -> Result<()> {
    wait(admin(bootstrap)?.delete_topics(&[topic], &AdminOptions::new()))??;
    Ok(())
}

/// The end offset of each of a topic's partitions.
pub(crate) fn ends(bootstrap: &str, topic: &str, partitions: i32) -> Result<Vec<i64>> {
    let consumer: BaseConsumer = client(bootstrap).create()?;
    (0..partitions).map(|partition| Ok(consumer.fetch_watermarks(topic, partition, PATIENCE)?.1)).collect()
}

/// How many offsets of a topic a group has not committed.
pub(crate) fn lag(bootstrap: &str, group: &str, topic: &str, partitions: i32) -> Result<i64> {
    let consumer: BaseConsumer = client(bootstrap).set("group.id", group).create()?;
    let mut all = TopicPartitionList::new();
    all.add_partition_range(topic, 0, partitions - 1);
    let committed = consumer.committed_offsets(all, PATIENCE)?;
    let committed: i64 = committed.elements().iter().filter_map(|of| of.offset().to_raw()).map(|at| at.max(0)).sum();
    Ok(ends(bootstrap, topic, partitions)?.iter().sum::<i64>() - committed)
}

fn admin(bootstrap: &str) -> Result<AdminClient<DefaultClientContext>> {
    Ok(AdminClient::from_config(&client(bootstrap))?)
}

/// What each client has.
pub(crate) fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

fn wait<F: Future>(future: F) -> Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
