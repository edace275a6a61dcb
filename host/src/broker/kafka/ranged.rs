//! Readers outside of any group: one client that joins nothing, and a queue of its own for each partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::types::RDKafka;
use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::mpsc;

use super::config::{Config, refused_by_library};
use super::errors;
use super::ffi::{Native, Queue, Topic};
use super::listener::Listener;
use super::reader::PartitionReader;
use crate::broker::BrokerError;

/// How often what the library says is brought to the log.
const HEAR_INTERVAL: Duration = Duration::from_millis(200);

struct Client(BaseConsumer<Listener>);

impl Native for Client {
    fn native(&self) -> *mut RDKafka {
        self.0.client().native_ptr()
    }
}

/// The fetching of one partition, until it is dropped.
pub(super) struct Fetching {
    topic: Topic,
    partition: i32,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.topic.consume_no_more(self.partition);
    }
}

/// Begins to read partitions at these places.
pub(super) fn readers(
    config: &Config,
    places: &BTreeMap<TopicPartition, Offset>,
    properties: &BTreeMap<String, String>,
) -> Result<Vec<(TopicPartition, PartitionReader)>, BrokerError> {
    let config = config.reader(properties)?;
    let client = BaseConsumer::from_config_and_context(&config, Listener::new("reader without a group"));
    let client = Arc::new(Client(client.map_err(refused_by_library)?));
    let keeper = Arc::clone(&client);
    std::thread::Builder::new()
        .name("kafka reader".to_owned())
        .spawn(move || keep(keeper))
        .map_err(|error| BrokerError::Unavailable(format!("no thread for the reader: {error}")))?;
    places.iter().map(|(of, from)| Ok((of.clone(), reader(&client, of, *from)?))).collect()
}

fn reader(client: &Arc<Client>, of: &TopicPartition, from: Offset) -> Result<PartitionReader, BrokerError> {
    let handle = || Arc::clone(client) as Arc<dyn Native>;
    let topic = Topic::new(handle(), &of.topic).ok_or_else(|| BrokerError::NoSuchTopic(of.topic.to_string()))?;
    let queue = Queue::new(handle());
    let refused = |code: Code| errors::of_topic(code, &of.topic, &code.to_string());
    topic.consume(of.partition, from, &queue).map_err(refused)?;
    let fetching = Fetching { topic, partition: of.partition };
    // Whoever reads a range is told of a log that begins anew by its error alone.
    let (events, _nobody) = mpsc::channel(1);
    let reader = PartitionReader::new(handle(), of, queue, Arc::new(AtomicBool::new(true)), Some(from), events)?;
    Ok(reader.fetching(fetching))
}

/// Hears the client until nobody else holds it, and ends it here, where that may wait.
fn keep(mut client: Arc<Client>) {
    loop {
        {
            let events = Queue::main(Arc::clone(&client) as _);
            while let Some(event) = events.poll(0) {
                let _fatal_is_told_by_the_reader = client.0.client().context().hear(&event);
            }
        }
        client = match Arc::try_unwrap(client) {
            Ok(last) => return drop(last),
            Err(client) => client,
        };
        std::thread::sleep(HEAR_INTERVAL);
    }
}
