//! The native limit for exactly once: the usual transactional loop, with its commit fixed.
//!
//! As it is usually written, rdkafka's `flush` and commit wait in quanta of 100 ms. Here the loop polls until nothing is in
//! flight before it commits, and the client tries again after 2 ms where it would after 100.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::run::{Measured, Run, Watch};

const INTERVAL: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
/// Reports are served after so many records, as a loop does that does not want to stop for each.
const SERVE_EVERY: u64 = 256;

pub(crate) fn run(run: &Run) -> Result<Measured> {
    let consumer = run.consumer()?;
    let producer = BaseProducer::from_config(
        run.client()
            .set("transactional.id", &run.group)
            .set("linger.ms", "5")
            .set("retry.backoff.ms", "2")
            .set("queue.buffering.max.messages", "500000"),
    )?;
    producer.init_transactions(PATIENCE)?;
    producer.begin_transaction()?;
    consumer.subscribe(&[&run.input])?;
    let mut copied = 0;
    let mut watch = None;
    let mut began = Instant::now();
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
            began = Instant::now();
        }
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&run.output);
        record.key = message.key();
        record.payload = message.payload();
        while let Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) = producer.send(record) {
            producer.poll(Duration::from_millis(1));
            record = again;
        }
        copied += 1;
        if copied % SERVE_EVERY == 0 {
            producer.poll(Duration::ZERO);
            last = Instant::now();
            if last - began >= INTERVAL {
                commit(&consumer, &producer)?;
                producer.begin_transaction()?;
                began = last;
            }
        }
    }
    commit(&consumer, &producer)?;
    match watch {
        Some(watch) => watch.stop(copied),
        None => bail!("nothing was to be copied"),
    }
}

fn commit(consumer: &BaseConsumer, producer: &BaseProducer) -> Result<()> {
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_micros(200));
    }
    let member = consumer.group_metadata().ok_or_else(|| anyhow::anyhow!("it is no member"))?;
    producer.send_offsets_to_transaction(&consumer.position()?, &member, PATIENCE)?;
    producer.commit_transaction(PATIENCE)?;
    Ok(())
}
