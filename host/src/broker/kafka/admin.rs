//! Topics, offsets and records outside of groups.
//!
//! librdkafka's calls block, so that each runs apart from the async runtime and has a deadline.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataTopic;
use rdkafka::types::RDKafka;
use rdkafka::{ClientConfig, Offset as Place, TopicPartitionList};
use tidemill_core::record::{Chunk, ChunkBuilder, Offset, TopicPartition};
use tokio::time::Instant;

use super::assignment::assignment;
use super::config::{Config, refused_by_library};
use super::ends::{self, ends};
use super::errors::{self, code_of};
use super::ffi::{self, Event, Native, Queue, Topic};
use super::listener::Listener;
use crate::broker::{Admin, BrokerError, Committed, PartitionInfo, TopicInfo, TopicSettings, Written};

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// One reading takes so many bytes at most; one record that is larger comes alone.
const READ_BYTES_MAX: usize = 4 << 20;

/// How long one look for records lasts.
const READ_MILLIS: i32 = 100;

/// Kafka's own topics; its metadata marks them, but librdkafka does not pass the mark on.
const INTERNAL: &[&str] = &["__consumer_offsets", "__transaction_state", "__share_group_state"];

impl ConsumerContext for Listener {}

/// Looks after topics and groups of a Kafka cluster.
pub(super) struct KafkaAdmin {
    making: AdminClient<Listener>,
    asking: Arc<Asking>,
}

/// The client that asks. It is in no group.
struct Asking {
    client: Arc<Client>,
    config: ClientConfig,
    /// Sees what is not committed, too; made when it is first needed.
    unbound: OnceLock<Arc<Client>>,
    /// The library reads a partition once at a time.
    reading: Mutex<()>,
}

struct Client(BaseConsumer<Listener>);

impl Native for Client {
    fn native(&self) -> *mut RDKafka {
        self.0.client().native_ptr()
    }
}

impl KafkaAdmin {
    pub(super) fn new(config: &Config) -> Result<Self, BrokerError> {
        let config = config.client()?;
        let making =
            AdminClient::from_config_and_context(&config, Listener::new("admin")).map_err(refused_by_library)?;
        let mut asking = config.clone();
        // Only `read` fetches, and only what it is asked for.
        asking.set("queued.max.messages.kbytes", "1024").set("fetch.queue.backoff.ms", "10");
        asking.set("isolation.level", "read_committed");
        let asking =
            BaseConsumer::from_config_and_context(&asking, Listener::new("admin")).map_err(refused_by_library)?;
        let client = Arc::new(Client(asking));
        let asking = Asking { client, config, unbound: OnceLock::new(), reading: Mutex::default() };
        Ok(Self { making, asking: Arc::new(asking) })
    }

    /// Runs a call apart from the runtime, and then hears what the library said meanwhile.
    fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Asking) -> Result<T, BrokerError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, BrokerError>> {
        let asking = Arc::clone(&self.asking);
        let called = tokio::task::spawn_blocking(move || {
            let answer = call(&asking);
            asking.hear();
            answer.map_err(|error| match error {
                BrokerError::Unavailable(text) => BrokerError::Unavailable(asking.listener().with_cause(&text)),
                other => other,
            })
        });
        async move {
            let stopped = |stopped| Err(BrokerError::Unavailable(format!("the call was stopped: {stopped}")));
            called.await.unwrap_or_else(stopped)
        }
        .boxed()
    }
}

impl Admin for KafkaAdmin {
    fn topics(&self, name: Option<&str>) -> BoxFuture<'_, Result<Vec<TopicInfo>, BrokerError>> {
        let name = name.map(str::to_owned);
        self.ask(move |asking| asking.topics(name.as_deref()))
    }

    fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replicas: Option<i32>,
    ) -> BoxFuture<'_, Result<(), BrokerError>> {
        let name = name.to_owned();
        async move {
            let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(replicas.unwrap_or(-1)));
            let options = AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE));
            let made = self.making.create_topics([&topic], &options).await;
            let made = made.map_err(|error| self.failed(&name, &error))?;
            match made.into_iter().next() {
                Some(Err((_, code))) => Err(errors::of_topic(code, &name, &code.to_string())),
                Some(Ok(_)) | None => Ok(()),
            }
        }
        .boxed()
    }

    fn settings<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<Option<TopicSettings>, BrokerError>> {
        async move {
            let options = AdminOptions::new().request_timeout(Some(DEADLINE));
            let asked = self.making.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await;
            let found = asked.map_err(|error| self.failed(topic, &error))?.into_iter().next();
            let found = found.ok_or_else(|| BrokerError::NoSuchTopic(topic.to_owned()))?;
            let found = found.map_err(|code| errors::of_topic(code, topic, &code.to_string()))?;
            let number = |name: &str| found.get(name).and_then(|entry| entry.value.as_deref()?.parse::<u64>().ok());
            let deletes = found.get("cleanup.policy").and_then(|entry| entry.value.as_deref());
            let deletes = deletes.is_none_or(|policy| policy.contains("delete"));
            Ok(Some(TopicSettings {
                in_sync_min: number("min.insync.replicas").and_then(|replicas| usize::try_from(replicas).ok()),
                // Without a bound they are -1, which is no such number.
                age_max: number("retention.ms").filter(|_| deletes).map(Duration::from_millis),
                bytes_max: number("retention.bytes").filter(|_| deletes),
            }))
        }
        .boxed()
    }

    fn members<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Option<usize>, BrokerError>> {
        let group = group.to_owned();
        self.ask(move |asking| asking.members(&group))
    }

    fn written<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<Option<Written>, BrokerError>> {
        let topic = topic.to_owned();
        self.ask(move |asking| asking.written(&topic).map(Some))
    }

    fn offsets_for_time(&self, topic: &str, millis: i64) -> BoxFuture<'_, Result<Vec<(i32, Offset)>, BrokerError>> {
        let topic = topic.to_owned();
        self.ask(move |asking| asking.offsets_for_time(&topic, millis))
    }

    fn committed(&self, group: &str, topic: &str) -> BoxFuture<'_, Result<Committed, BrokerError>> {
        let (group, topic) = (group.to_owned(), topic.to_owned());
        self.ask(move |asking| asking.committed(&group, &topic))
    }

    fn commit(&self, group: &str, offsets: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, Result<(), BrokerError>> {
        let group = group.to_owned();
        self.ask(move |asking| asking.commit(&group, &offsets))
    }

    fn owners<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<BTreeMap<TopicPartition, String>, BrokerError>> {
        let group = group.to_owned();
        self.ask(move |asking| asking.owners(&group))
    }

    fn read(
        &self,
        topic: &str,
        partition: i32,
        from: Offset,
        records_max: usize,
    ) -> BoxFuture<'_, Result<Arc<Chunk>, BrokerError>> {
        let topic = topic.to_owned();
        self.ask(move |asking| asking.read(&topic, partition, from, records_max.max(1)).map(Arc::new))
    }
}

impl KafkaAdmin {
    fn failed(&self, topic: &str, error: &KafkaError) -> BrokerError {
        self.asking.hear();
        let text = self.asking.listener().with_cause(&error.to_string());
        errors::of_topic(code_of(error), topic, &text)
    }
}

impl Asking {
    fn listener(&self) -> &Listener {
        self.client.0.client().context()
    }

    /// Takes in what the library logged; nobody polls these clients otherwise.
    fn hear(&self) {
        for client in [Some(&self.client), self.unbound.get()].into_iter().flatten() {
            let events = Queue::main(Arc::clone(client) as _);
            while let Some(event) = events.poll(0) {
                let _fatal_is_told_by_the_call = self.listener().hear(&event);
            }
        }
    }

    fn handle(&self) -> Arc<dyn Native> {
        Arc::clone(&self.client) as _
    }

    fn topics(&self, name: Option<&str>) -> Result<Vec<TopicInfo>, BrokerError> {
        let metadata = self.client.0.fetch_metadata(name, DEADLINE).map_err(|error| failed("", &error))?;
        let mut topics = Vec::new();
        for topic in metadata.topics() {
            if name.is_none() && INTERNAL.contains(&topic.name()) {
                continue;
            }
            topics.push(self.info(topic)?);
        }
        topics.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(topics)
    }

    fn info(&self, topic: &MetadataTopic) -> Result<TopicInfo, BrokerError> {
        if let Some(code) = topic.error().map(Code::from) {
            return Err(errors::of_topic(code, topic.name(), &code.to_string()));
        }
        let mut partitions = Vec::with_capacity(topic.partitions().len());
        for partition in topic.partitions() {
            let (start, end) = self.ends(topic.name(), partition.id())?;
            partitions.push(PartitionInfo {
                partition: partition.id(),
                start,
                end,
                replicas: partition.replicas().len(),
            });
        }
        partitions.sort_by_key(|info| info.partition);
        Ok(TopicInfo { name: topic.name().to_owned(), partitions })
    }

    fn ends(&self, topic: &str, partition: i32) -> Result<(Offset, Offset), BrokerError> {
        let found = ends(self.client.0.client(), topic, partition, Instant::now() + DEADLINE);
        found.map_err(|code| errors::of_topic(code, topic, &code.to_string()))
    }

    fn written(&self, topic: &str) -> Result<Written, BrokerError> {
        let client = match self.unbound.get() {
            Some(client) => client,
            None => {
                let mut config = self.config.clone();
                config.set("isolation.level", "read_uncommitted");
                let made = BaseConsumer::from_config_and_context(&config, Listener::new("admin"));
                let made = made.map_err(refused_by_library)?;
                // Whoever was quicker has made the same.
                self.unbound.get_or_init(|| Arc::new(Client(made)))
            }
        };
        let deadline = Instant::now() + DEADLINE;
        let partitions = self.partitions(topic, Place::Invalid)?;
        let each = partitions.elements().into_iter().map(|found| {
            let (_, end) = ends(client.0.client(), topic, found.partition(), deadline)
                .map_err(|code| errors::of_topic(code, topic, &code.to_string()))?;
            Ok((found.partition(), end))
        });
        each.collect()
    }

    /// A topic's partitions, each with the given place.
    fn partitions(&self, topic: &str, place: Place) -> Result<TopicPartitionList, BrokerError> {
        let metadata = self.client.0.fetch_metadata(Some(topic), DEADLINE).map_err(|error| failed(topic, &error))?;
        let mut list = TopicPartitionList::new();
        for found in metadata.topics() {
            if let Some(code) = found.error().map(Code::from) {
                return Err(errors::of_topic(code, topic, &code.to_string()));
            }
            for partition in found.partitions() {
                let added = list.add_partition_offset(topic, partition.id(), place);
                added.map_err(|error| failed(topic, &error))?;
            }
        }
        Ok(list)
    }

    fn offsets_for_time(&self, topic: &str, millis: i64) -> Result<Vec<(i32, Offset)>, BrokerError> {
        let times = self.partitions(topic, Place::Offset(millis.max(0)))?;
        let found = self.client.0.offsets_for_times(times, DEADLINE).map_err(|error| failed(topic, &error))?;
        let offset = |partition: i32, place: Place| match place {
            Place::Offset(offset) => Ok(offset),
            _ => self.ends(topic, partition).map(|(_, end)| end),
        };
        let each = found.elements().into_iter().map(|found| {
            found.error().map_err(|error| failed(topic, &error))?;
            Ok((found.partition(), offset(found.partition(), found.offset())?))
        });
        sorted(each.collect())
    }

    fn committed(&self, group: &str, topic: &str) -> Result<Committed, BrokerError> {
        let wanted = self.partitions(topic, Place::Invalid)?;
        let found =
            self.for_group(group)?.0.committed_offsets(wanted, DEADLINE).map_err(|error| failed(topic, &error))?;
        let each = found.elements().into_iter().map(|found| match found.offset() {
            Place::Offset(offset) => Ok((found.partition(), Some(offset))),
            _ => Ok((found.partition(), None)),
        });
        sorted(each.collect())
    }

    /// A client of its own, because a client has one group; it never joins.
    fn for_group(&self, group: &str) -> Result<Client, BrokerError> {
        let mut config = self.config.clone();
        config.set("group.id", group).set("enable.auto.commit", "false");
        let listener = Listener::new(format!("admin for group {group}"));
        BaseConsumer::from_config_and_context(&config, listener).map(Client).map_err(refused_by_library)
    }

    /// The broker takes offsets of no member only while the group has none.
    fn commit(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Result<(), BrokerError> {
        let mut list = TopicPartitionList::new();
        for (of, offset) in offsets {
            let added = list.add_partition_offset(&of.topic, of.partition, Place::Offset(*offset));
            added.map_err(|error| failed(&of.topic, &error))?;
        }
        let answers = Queue::new(Arc::new(self.for_group(group)?));
        let deadline = Instant::now() + DEADLINE;
        let sent = ffi::commit(&list, &answers);
        let answer = sent.and_then(|()| {
            loop {
                match answers.poll(ends::left(deadline).as_millis().try_into().unwrap_or(0)) {
                    Some(Event::Committed(answer)) => return answer,
                    Some(_) => {}
                    None => return Err(Code::OperationTimedOut),
                }
            }
        });
        answer.map_err(|code| match code {
            Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress | Code::StaleMemberEpoch => {
                BrokerError::Rejected(format!("group `{group}` has members ({code})"))
            }
            code => errors::of_topic(code, "", &code.to_string()),
        })
    }

    /// As for [`Asking::members`], nothing is told of groups of the newer protocol.
    fn owners(&self, group: &str) -> Result<BTreeMap<TopicPartition, String>, BrokerError> {
        let found = self.client.0.fetch_group_list(Some(group), DEADLINE).map_err(|error| failed("", &error))?;
        let mut owners = BTreeMap::new();
        for member in found.groups().iter().filter(|found| found.name() == group).flat_map(|found| found.members()) {
            let host = member.client_host().trim_start_matches('/');
            let name = format!("{host} ({})", member.client_id());
            let assigned = member.assignment().and_then(assignment).unwrap_or_default();
            owners.extend(assigned.into_iter().map(|of| (of, name.clone())));
        }
        Ok(owners)
    }

    /// Groups of the newer protocol are not told of here: they look as if they had no members.
    fn members(&self, group: &str) -> Result<Option<usize>, BrokerError> {
        let found = self.client.0.fetch_group_list(Some(group), DEADLINE).map_err(|error| failed("", &error))?;
        let members = found.groups().iter().find(|found| found.name() == group).map(|found| found.members().len());
        Ok(members.filter(|members| *members > 0))
    }

    fn read(&self, topic: &str, partition: i32, from: Offset, records_max: usize) -> Result<Chunk, BrokerError> {
        let known = self.partitions(topic, Place::Invalid)?;
        if known.find_partition(topic, partition).is_none() {
            return Err(BrokerError::NoSuchTopic(format!("{topic}/{partition}")));
        }
        let (start, end) = self.ends(topic, partition)?;
        let from = from.max(start);
        if from >= end {
            return Ok(Chunk::default());
        }
        let _one_at_a_time = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = Topic::new(self.handle(), topic).ok_or_else(|| BrokerError::NoSuchTopic(topic.to_owned()))?;
        let mut queue = Queue::new(self.handle());
        let refused = |code: Code| errors::of_topic(code, topic, &code.to_string());
        handle.consume(partition, from, &queue).map_err(refused)?;
        let read = collect(&mut queue, topic, from, end, records_max);
        handle.consume_no_more(partition);
        read
    }
}

/// Takes the first records that come, until a bound or the end that was known before.
fn collect(
    queue: &mut Queue,
    topic: &str,
    from: Offset,
    end: Offset,
    records_max: usize,
) -> Result<Chunk, BrokerError> {
    let deadline = Instant::now() + DEADLINE;
    let mut chunk = ChunkBuilder::default();
    let mut next = from;
    while chunk.len() < records_max && chunk.bytes() < READ_BYTES_MAX && next < end && Instant::now() < deadline {
        let Some(message) = queue.front() else {
            // A partition's last offsets may be markers that are no records: what came is given when no more comes.
            if queue.take_within(1, READ_MILLIS) == 0 && !chunk.is_empty() {
                break;
            }
            queue.take(records_max - chunk.len());
            continue;
        };
        match message.error() {
            Some((code, text)) => return Err(errors::of_topic(code, topic, &text)),
            None if message.offset() >= next => {
                next = message.offset() + 1;
                message.push_to(&mut chunk);
            }
            None => {}
        }
        queue.drop_front();
    }
    Ok(chunk.build())
}

fn failed(topic: &str, error: &KafkaError) -> BrokerError {
    errors::of_topic(code_of(error), topic, &error.to_string())
}

fn sorted<T>(each: Result<Vec<(i32, T)>, BrokerError>) -> Result<Vec<(i32, T)>, BrokerError> {
    each.map(|mut each| {
        each.sort_by_key(|(partition, _)| *partition);
        each
    })
}
