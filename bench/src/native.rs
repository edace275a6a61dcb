//! The native limit: the loop that a Rust program usually writes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::run::{Measured, Run, Watch};

const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(run: &Run) -> Result<Measured> {
    let consumer = run.consumer()?;
    let producer: ThreadedProducer<DefaultProducerContext> = ThreadedProducer::from_config(
        run.client().set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "5"),
    )?;
    consumer.subscribe(&[&run.input])?;
    let mut copied = 0;
    let mut watch = None;
    let mut committed = Instant::now();
    // When time was last looked at: each record would be too often.
    let mut last = Instant::now();
    while copied < run.records {
        // It may also return without a record when something else happened.
        let Some(message) = consumer.poll(POLL) else {
            ensure!(last.elapsed() < PATIENCE, "no record for {PATIENCE:?}");
            continue;
        };
        let message = message?;
        if watch.is_none() {
            watch = Some(Watch::start()?);
        }
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&run.output);
        record.key = message.key();
        record.payload = message.payload();
        while let Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) = producer.send(record) {
            producer.poll(Duration::from_millis(1));
            record = again;
        }
        copied += 1;
        if copied % 1024 == 0 {
            last = Instant::now();
            if last - committed >= COMMIT_INTERVAL {
                commit(&consumer)?;
                committed = last;
            }
        }
    }
    producer.flush(PATIENCE)?;
    commit(&consumer)?;
    match watch {
        Some(watch) => watch.stop(copied),
        None => bail!("nothing was to be copied"),
    }
}

fn commit(consumer: &BaseConsumer) -> Result<()> {
    match consumer.commit_consumer_state(CommitMode::Async) {
        Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
