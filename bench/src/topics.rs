//! Topics of a benchmark: made, filled, deleted.

use std::time::Duration;

use anyhow::Result;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

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
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let results = wait(admin(bootstrap)?.create_topics([&new], &AdminOptions::new()))??;
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
