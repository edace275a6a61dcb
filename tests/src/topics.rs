//! Topics from outside: made, written, read to their end, and the offsets that groups committed on them.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use xtask::lab::wait;

use crate::checker::Stored;
use crate::ledger::Place;
use crate::raw_headers::{self, RawHeader};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A record as it lies in a topic, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where it lies.
    pub place: Place,
    /// Its timestamp in milliseconds.
    pub timestamp: Option<i64>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: Vec<RawHeader>,
}

/// Creates a topic.
pub fn create(bootstrap: &str, topic: &str, partitions: i32) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    // As many replicas as the cluster says.
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let created =
        runtime()?.block_on(admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(TIMEOUT))));
    for result in created? {
        result.map_err(|(topic, code)| anyhow!("create topic `{topic}`: {code}"))?;
    }
    Ok(())
}

/// Sets one of a topic's properties.
pub fn configure(bootstrap: &str, topic: &str, property: &str, value: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(property, value);
    let changed = runtime()?.block_on(admin.alter_configs([&change], &AdminOptions::new()));
    for result in changed? {
        result.map_err(|(_, code)| anyhow!("configure topic `{topic}`: {code}"))?;
    }
    Ok(())
}

/// Writes records to a topic and returns once all are acknowledged. A partition below 0 leaves it to the key.
pub fn produce(bootstrap: &str, topic: &str, records: &[Kept]) -> Result<()> {
    let mut config = config(bootstrap);
    // How large a record may be is for the topic to say.
    config.set("partitioner", "murmur2_random").set("linger.ms", "5").set("message.max.bytes", "10000000");
    let producer: BaseProducer = config.create()?;
    for kept in records {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(raw_headers::to_owned_headers(&kept.headers));
        record.key = kept.key.as_deref();
        record.payload = kept.value.as_deref();
        record.timestamp = kept.timestamp;
        record.partition = (kept.place.partition >= 0).then_some(kept.place.partition);
        producer.send(record).map_err(|(error, _)| error)?;
        producer.poll(Duration::ZERO);
    }
    producer.flush(TIMEOUT).context("not every record was acknowledged")
}

/// Everything in a topic, by partition and offset.
pub fn read(bootstrap: &str, topic: &str) -> Result<Vec<Kept>> {
    let ends = ends(bootstrap, topic)?;
    let consumer: BaseConsumer = config(bootstrap).set("group.id", "reader").create()?;
    let mut kept = Vec::new();
    let mut assignment = TopicPartitionList::new();
    for (partition, end) in ends.iter().enumerate().filter(|(_, end)| **end > 0) {
        ensure!(*end > 0, "an end offset is not negative");
        assignment.add_partition_offset(topic, i32::try_from(partition)?, Offset::Beginning)?;
    }
    let mut open = assignment.count();
    consumer.assign(&assignment)?;
    while open > 0 {
        let polled = consumer.poll(TIMEOUT).with_context(|| format!("`{topic}` ends earlier than it should"))?;
        let message = match polled {
            Ok(message) => message,
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        if message.offset() + 1 == ends[usize::try_from(message.partition())?] {
            open -= 1;
        }
        kept.push(kept_of(&message));
    }
    kept.sort_by_key(|kept| kept.place);
    Ok(kept)
}

/// The end offset of each partition.
pub fn ends(bootstrap: &str, topic: &str) -> Result<Vec<i64>> {
    let consumer: BaseConsumer = config(bootstrap).create()?;
    let partitions = partitions(&consumer, topic)?;
    (0..partitions).map(|partition| Ok(consumer.fetch_watermarks(topic, partition, TIMEOUT)?.1)).collect()
}

/// What a group has committed on a topic, by partition; `None` where it has committed nothing.
pub fn committed(bootstrap: &str, group: &str, topic: &str) -> Result<Vec<Option<i64>>> {
    Group::new(bootstrap, group, topic)?.committed()
}

/// A group's offsets, asked for more than once.
pub struct Group {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl Group {
    /// Connects; the group gets no new member by that.
    pub fn new(bootstrap: &str, group: &str, topic: &str) -> Result<Group> {
        let consumer: BaseConsumer = config(bootstrap).set("group.id", group).create()?;
        let partitions = partitions(&consumer, topic)?;
        Ok(Group { consumer, topic: topic.to_owned(), partitions })
    }

    /// What it has committed now.
    pub fn committed(&self) -> Result<Vec<Option<i64>>> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(&self.topic, 0, self.partitions - 1);
        let answer = wait::until("the group's coordinator", TIMEOUT, || {
            match self.consumer.committed_offsets(asked.clone(), TIMEOUT) {
                Ok(answer) => Ok(Some(answer)),
                Err(error) if is_passing(&error) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        let offset = |element: &Offset| if let Offset::Offset(offset) = element { Some(*offset) } else { None };
        Ok(answer.elements().iter().map(|element| offset(&element.offset())).collect())
    }
}

impl Kept {
    /// A record to be produced.
    pub fn new(key: Option<&[u8]>, value: Option<&[u8]>) -> Kept {
        let place = Place { partition: -1, offset: -1 };
        let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
        Kept { place, timestamp: None, key, value, headers: Vec::new() }
    }

    /// The value of the last header with this name, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let header = self.headers.iter().rev().find(|header| header.name == name.as_bytes())?;
        Some(String::from_utf8_lossy(header.value.as_deref()?).into_owned())
    }

    /// For the judge: a dead letter stands for the record that it is the letter of.
    pub fn as_dead_letter(&self) -> Result<Stored> {
        let number = |name: &str| {
            let text = self.header(name).with_context(|| format!("a dead letter has a header `{name}`"))?;
            text.parse::<i64>().with_context(|| format!("`{name}` is a number"))
        };
        let partition = i32::try_from(number("tidemill.error.partition")?)?;
        let place = Place { partition, offset: number("tidemill.error.offset")? };
        Ok(Stored { place, key: self.key.clone(), value: self.value.clone() })
    }
}

fn kept_of(message: &BorrowedMessage<'_>) -> Kept {
    Kept {
        place: Place { partition: message.partition(), offset: message.offset() },
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: message.headers().map(raw_headers::from_borrowed).unwrap_or_default(),
    }
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let found = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    ensure!(found > 0, "there is no topic `{topic}`");
    Ok(i32::try_from(found)?)
}

/// Whether an error is a client's normal life while a node ends or a coordinator moves.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        AllBrokersDown, BrokerTransportFailure, CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator,
        Resolve,
    };
    let passing = [
        AllBrokersDown,
        BrokerTransportFailure,
        CoordinatorLoadInProgress,
        CoordinatorNotAvailable,
        NotCoordinator,
        Resolve,
    ];
    error.rdkafka_error_code().is_some_and(|code| passing.contains(&code))
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("enable.auto.commit", "false");
    config
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
