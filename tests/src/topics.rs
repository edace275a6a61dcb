//! Topics from outside: made, written, read to their end, and the offsets that groups committed on them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::metadata::{Metadata, MetadataPartition};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use xtask::lab::wait;

use crate::checker::Stored;
use crate::ledger::Place;
use crate::names;
use crate::raw_headers::{self, RawHeader};

const TIMEOUT: Duration = Duration::from_secs(30);
/// One question to a broker that may be frozen: then it is asked again, perhaps elsewhere.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
const ASK_DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

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

/// Brings a topic to this many partitions.
pub fn add_partitions(bootstrap: &str, topic: &str, partitions: usize) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for result in runtime()?.block_on(admin.create_partitions([&NewPartitions::new(topic, partitions)], &options))? {
        result.map_err(|(topic, code)| anyhow!("add partitions to `{topic}`: {code}"))?;
    }
    Ok(())
}

/// Deletes what lies before an offset, as retention does.
pub fn delete_before(bootstrap: &str, topic: &str, partition: i32, offset: i64) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for deleted in runtime()?.block_on(admin.delete_records(&before, &options))?.elements() {
        deleted.error().with_context(|| format!("delete what lies before {offset} in `{topic}`"))?;
    }
    Ok(())
}

/// Deletes a topic. Its name is free a moment later.
pub fn delete(bootstrap: &str, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for result in runtime()?.block_on(admin.delete_topics(&[topic], &options))? {
        result.map_err(|(topic, code)| anyhow!("delete topic `{topic}`: {code}"))?;
    }
    Ok(())
}

/// Sets one of a topic's properties.
pub fn configure(bootstrap: &str, topic: &str, property: &str, value: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(property, value);
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for result in runtime()?.block_on(admin.alter_configs([&change], &options))? {
        result.map_err(|(_, code)| anyhow!("configure topic `{topic}`: {code}"))?;
    }
    Ok(())
}

/// Writes records to a topic and returns once all are acknowledged. A partition below 0 leaves it to the key.
pub fn produce(bootstrap: &str, topic: &str, records: &[Kept]) -> Result<()> {
    let mut config = config(bootstrap);
    // Each once, also when a request times out. How large a record may be is for the topic to say.
    config
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .set("message.max.bytes", "10000000");
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

/// Begins a transaction with a record for a topic, and goes away.
pub fn leave_a_transaction_open(bootstrap: &str, topic: &str) -> Result<()> {
    let mut config = config(bootstrap);
    // Nobody ends it before the test does.
    config.set("transactional.id", names::unique("abandoned")).set("transaction.timeout.ms", "600000");
    let producer: BaseProducer = config.create()?;
    producer.init_transactions(TIMEOUT)?;
    producer.begin_transaction()?;
    producer.send(BaseRecord::<[u8], [u8]>::to(topic).payload(b"never seen")).map_err(|(error, _)| error)?;
    producer.flush(TIMEOUT).context("the record was not acknowledged")
}

/// Everything that is committed in a topic, by partition and offset.
pub fn read(bootstrap: &str, topic: &str) -> Result<Vec<Kept>> {
    let mut config = config(bootstrap);
    // A transaction's end takes an offset that is never delivered: only the library knows when the end is reached.
    config.set("group.id", "reader").set("enable.partition.eof", "true").set("isolation.level", "read_committed");
    let consumer: BaseConsumer = config.create()?;
    let partitions = partitions(&consumer, topic)?;
    assign_all(&consumer, topic, partitions)?;
    let mut kept = Vec::new();
    // An end is told again when more has come, so that they can't just be counted.
    let mut open: BTreeSet<i32> = (0..partitions).collect();
    while !open.is_empty() {
        match consumer.poll(TIMEOUT).with_context(|| format!("`{topic}` ends earlier than it should"))? {
            Ok(message) => kept.push(kept_of(&message)),
            Err(KafkaError::PartitionEOF(partition)) => {
                open.remove(&partition);
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    kept.sort_by_key(|kept| kept.place);
    Ok(kept)
}

/// Reads a topic without transactions along with those who write it.
pub struct Tail {
    consumer: BaseConsumer,
    /// Asks for ends. A broker answers a client in turn, so that the reader's own question would wait for its open fetch.
    asker: BaseConsumer,
    topic: String,
    /// Where each partition is read next.
    next: Vec<i64>,
}

impl Tail {
    /// Begins with the oldest records.
    pub fn new(bootstrap: &str, topic: &str) -> Result<Tail> {
        let consumer: BaseConsumer = config(bootstrap).set("group.id", "tail").create()?;
        let partitions = partitions(&consumer, topic)?;
        assign_all(&consumer, topic, partitions)?;
        let asker = config(bootstrap).create()?;
        Ok(Tail { consumer, asker, topic: topic.to_owned(), next: vec![0; usize::try_from(partitions)?] })
    }

    /// What has come since the last call, up to what is there now.
    pub fn news(&mut self) -> Result<Vec<Kept>> {
        let ends = ends_of(&self.asker, &self.topic, i32::try_from(self.next.len())?)?;
        let mut kept = Vec::new();
        while self.next.iter().zip(&ends).any(|(next, end)| next < end) {
            match self
                .consumer
                .poll(TIMEOUT)
                .with_context(|| format!("`{}` ends earlier than it should", self.topic))?
            {
                Ok(message) => {
                    self.next[usize::try_from(message.partition())?] = message.offset() + 1;
                    kept.push(kept_of(&message));
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(kept)
    }
}

/// Reads what is committed in a topic of one partition along with those who write it, in a thread of its own.
pub struct Along {
    seen: Arc<Mutex<BTreeSet<i64>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Along {
    /// Begins with the oldest record.
    pub fn start(bootstrap: &str, topic: &str) -> Result<Along> {
        let mut config = config(bootstrap);
        let consumer: BaseConsumer =
            config.set("group.id", "along").set("isolation.level", "read_committed").create()?;
        assign_all(&consumer, topic, 1)?;
        let (seen, stop) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (theirs, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match consumer.poll(POLL) {
                    Some(Ok(message)) => {
                        theirs.lock().unwrap_or_else(PoisonError::into_inner).insert(message.offset());
                    }
                    Some(Err(error)) if !is_passing(&error) => return Err(error.into()),
                    Some(Err(_)) | None => {}
                }
            }
            Ok(())
        });
        Ok(Along { seen, stop, thread })
    }

    /// Waits until as many were seen, or in vain; the offsets of all that were seen.
    pub fn stop(self, expected: usize) -> Result<BTreeSet<i64>> {
        let seen = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // One who saw too little is a finding, and not a failure of this wait.
        let waited = wait::until("one who reads along", TIMEOUT, || Ok((seen().len() >= expected).then_some(())));
        if let Err(error) = waited {
            eprintln!("{error:#}");
        }
        let offsets = seen().clone();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the reader panicked"))??;
        Ok(offsets)
    }
}

fn assign_all(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Result<()> {
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    Ok(consumer.assign(&assignment)?)
}

/// Whether there is such a topic.
pub fn exists(bootstrap: &str, topic: &str) -> Result<bool> {
    let consumer: BaseConsumer = config(bootstrap).create()?;
    let metadata = metadata(&consumer, topic)?;
    Ok(metadata.topics().first().is_some_and(|topic| !topic.partitions().is_empty()))
}

/// Waits until every partition of a topic has so many replicas in sync.
pub fn wait_until_in_sync(bootstrap: &str, topic: &str, replicas: usize, deadline: Duration) -> Result<()> {
    let consumer: BaseConsumer = config(bootstrap).create()?;
    wait::until(&format!("{replicas} replicas of `{topic}` in sync"), deadline, || {
        let metadata = metadata(&consumer, topic)?;
        let all = metadata.topics().iter().flat_map(|topic| topic.partitions());
        Ok(all.clone().all(|partition| partition.isr().len() >= replicas).then_some(()))
    })
}

/// The brokers that have each partition, its leader first.
pub fn replicas(bootstrap: &str, topic: &str) -> Result<Vec<Vec<i32>>> {
    let consumer: BaseConsumer = config(bootstrap).create()?;
    let metadata = metadata(&consumer, topic)?;
    let topic = metadata.topics().first().context("the broker answers for the topic")?;
    let mut partitions: Vec<_> = topic.partitions().iter().collect();
    partitions.sort_by_key(|partition| partition.id());
    let of = |partition: &&MetadataPartition| {
        let mut replicas = partition.replicas().to_vec();
        replicas.sort_by_key(|id| *id != partition.leader());
        replicas
    };
    Ok(partitions.iter().map(of).collect())
}

/// Follows a topic from its beginning, as far as transactions are committed, and hears of each record once.
pub struct Follower {
    consumer: BaseConsumer,
    /// The values so far, in the order in which they came.
    pub values: Vec<Vec<u8>>,
}

impl Follower {
    /// Begins at the first record.
    pub fn new(bootstrap: &str, topic: &str) -> Result<Follower> {
        let mut config = config(bootstrap);
        config.set("group.id", "follower").set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions(&consumer, topic)? {
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        Ok(Follower { consumer, values: Vec::new() })
    }

    /// Takes in what comes until a moment passes without a record.
    pub fn catch_up(&mut self, moment: Duration) -> Result<()> {
        while let Some(polled) = self.consumer.poll(moment) {
            match polled {
                Ok(message) => self.values.push(message.payload().unwrap_or_default().to_vec()),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The end offset of each partition.
pub fn ends(bootstrap: &str, topic: &str) -> Result<Vec<i64>> {
    let consumer: BaseConsumer = config(bootstrap).create()?;
    let partitions = partitions(&consumer, topic)?;
    ends_of(&consumer, topic, partitions)
}

fn ends_of(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Result<Vec<i64>> {
    // A partition whose leader has just died is asked for again.
    let end = |partition: i32| {
        wait::until("a partition's leader", ASK_DEADLINE, || {
            match consumer.fetch_watermarks(topic, partition, ASK_TIMEOUT) {
                Ok((_, end)) => Ok(Some(end)),
                Err(error) if is_passing(&error) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    };
    (0..partitions).map(end).collect()
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

    /// The end offset of each partition now.
    pub fn ends(&self) -> Result<Vec<i64>> {
        ends_of(&self.consumer, &self.topic, self.partitions)
    }

    /// What it has committed now.
    pub fn committed(&self) -> Result<Vec<Option<i64>>> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(&self.topic, 0, self.partitions - 1);
        let answer = wait::until("the group's coordinator", ASK_DEADLINE, || {
            match self.consumer.committed_offsets(asked.clone(), ASK_TIMEOUT) {
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
        Ok(Stored { place, written: self.place.offset, key: self.key.clone(), value: self.value.clone() })
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

fn metadata(consumer: &BaseConsumer, topic: &str) -> Result<Metadata> {
    wait::until("a broker that knows the topics", ASK_DEADLINE, || {
        match consumer.fetch_metadata(Some(topic), ASK_TIMEOUT) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if is_passing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<i32> {
    // A broker may hear a moment later of a topic that was just made.
    wait::until(&format!("the topic `{topic}`"), TIMEOUT, || {
        let metadata = metadata(consumer, topic)?;
        let found = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        Ok((found > 0).then_some(i32::try_from(found)?))
    })
}

/// Whether an error is a client's normal life while a node ends or a coordinator moves.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        AllBrokersDown, BrokerNotAvailable, BrokerTransportFailure, CoordinatorLoadInProgress, CoordinatorNotAvailable,
        DestroyBroker, LeaderNotAvailable, NotCoordinator, NotLeaderForPartition, OffsetNotAvailable,
        OperationTimedOut, RequestTimedOut, Resolve,
    };
    let passing = [
        AllBrokersDown,
        BrokerNotAvailable,
        BrokerTransportFailure,
        CoordinatorLoadInProgress,
        CoordinatorNotAvailable,
        DestroyBroker,
        LeaderNotAvailable,
        NotCoordinator,
        NotLeaderForPartition,
        OffsetNotAvailable,
        OperationTimedOut,
        RequestTimedOut,
        Resolve,
    ];
    error.rdkafka_error_code().is_some_and(|code| passing.contains(&code))
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("enable.auto.commit", "false");
    // A broker that is frozen is given up by its client before the test is.
    config.set("socket.timeout.ms", "5000").set("topic.metadata.refresh.interval.ms", "2000");
    config
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
