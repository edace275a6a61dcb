//! One group member: a thread that polls for events, and the answers to them.
//!
//! The rebalance callback only reports; partitions are taken and given back by [`KafkaConsumer::start`] and
//! [`KafkaConsumer::release`]. librdkafka raises no other rebalance until the last one is answered.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset as Place, TopicPartitionList};
use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use self::member::Client;
use super::config::{Config, refused_by_library};
use super::ends::ends;
use super::errors::code_of;
use super::ffi::transaction::GroupMetadata;
use super::reader::PartitionReader;
use crate::broker::{BrokerError, CommitError, Consumer, ConsumerEvent, StartAt, Subscription};

mod commit;
mod member;

/// Bounds the events that nobody reads yet: one rebalance at a time, and problems, which are dropped when it is full.
const EVENTS_MAX: usize = 64;

/// How long `start` may look for the place of a group that starts at the next record.
const PLACE_DEADLINE: Duration = Duration::from_secs(10);

/// How long `close` waits. A coordinator that is away holds the library up for as long as the session, and longer.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// A member of a Kafka consumer group.
pub struct KafkaConsumer {
    client: Arc<Client>,
    start_at: StartAt,
    topics: Vec<String>,
    /// For a start at the next record: how many partitions each topic had when this member joined. Those that came later are
    /// read from their beginning, and so is a topic that was not there.
    joined_with: Option<BTreeMap<String, i32>>,
    events: mpsc::Receiver<ConsumerEvent>,
    leave: LeaveOnDrop,
    /// Resolves when the thread has left the group and ended.
    ended: oneshot::Receiver<()>,
}

/// Tells the thread to leave, whether the consumer is closed or dropped.
struct LeaveOnDrop(Arc<AtomicBool>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl KafkaConsumer {
    /// Subscribes, and starts the thread that keeps the membership.
    pub(super) fn join(config: &Config, subscription: &Subscription) -> Result<Self, BrokerError> {
        let native = config.consumer(subscription)?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let closing = Arc::new(AtomicBool::new(false));
        let mut asking = config.client()?;
        asking.set("group.id", &subscription.group).set("isolation.level", "read_uncommitted");
        let client = Client::subscribe(&native, asking, subscription, sender, Arc::clone(&closing))?;
        let (end, ended) = oneshot::channel();
        let poller = Arc::clone(&client);
        std::thread::Builder::new()
            .name(format!("kafka {}", subscription.group))
            .spawn(move || {
                member::poll(poller);
                // Nobody may wait for it any more.
                let _unheard = end.send(());
            })
            .map_err(|error| BrokerError::Unavailable(format!("no thread for the consumer: {error}")))?;
        let (start_at, topics) = (subscription.start_at, subscription.topics.clone());
        Ok(Self { client, start_at, topics, joined_with: None, events, leave: LeaveOnDrop(closing), ended })
    }

    /// Where partitions begin: at their committed offsets. The library would find those, too, but not tell them, and how
    /// far a quiet partition is behind would be unknown.
    ///
    /// For a start at the next record the end is fixed and committed at once: otherwise the group would skip what is
    /// written until its first commit, at each rebalance again.
    async fn places(&mut self, partitions: &[TopicPartition]) -> Result<TopicPartitionList, BrokerError> {
        let unknown = list(partitions.iter().map(|partition| (partition, Place::Invalid)))?;
        let client = Arc::clone(&self.client);
        if self.start_at == StartAt::Earliest {
            if partitions.is_empty() {
                return Ok(unknown);
            }
            let asked = unknown.clone();
            let committed = blocking(move || {
                let found = client.consumer.committed_offsets(asked, PLACE_DEADLINE);
                found.map_err(|error| client.unavailable(code_of(&error)))
            });
            // Without an answer the library looks by itself, for as long as it takes.
            return Ok(committed.await.unwrap_or(unknown));
        }
        let joined_with = match &self.joined_with {
            Some(joined_with) => joined_with.clone(),
            None => {
                let (client, topics) = (Arc::clone(&self.client), self.topics.clone());
                let counted = blocking(move || count_partitions(&client, &topics)).await?;
                self.joined_with.insert(counted).clone()
            }
        };
        if partitions.is_empty() {
            return Ok(unknown);
        }
        let (places, fresh) = blocking(move || find_places(&client, unknown, &joined_with)).await?;
        if fresh.count() > 0 {
            let kept = match self.client.commit(&fresh) {
                Ok(commit) => commit.answer().await,
                Err(code) => Err(code),
            };
            kept.map_err(|code| self.client.unavailable(code))?;
        }
        Ok(places)
    }

    /// Lets partitions that stay be read on at once behind a rebalance that has brought these. Nobody waits for it.
    fn wake_fetchers(&self, brought: Vec<TopicPartition>) {
        let client = Arc::downgrade(&self.client);
        drop(tokio::task::spawn_blocking(move || client.upgrade().map(|client| client.wake_fetchers(&brought))));
    }
}

/// A member as transactions name it: by its place in the group when it last heard from the group. Does not keep it a member.
#[derive(Clone)]
pub struct KafkaMember(Weak<Client>);

impl KafkaMember {
    /// Offsets of this member's partitions, and the place that entitles it to commit them; or why it is not.
    ///
    /// Both are read at once, and the place is never newer than what the member was told: asked of the library now, it would
    /// be that of a member that has lost these partitions without knowing.
    pub(super) fn place(
        &self,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<(TopicPartitionList, Arc<GroupMetadata>), String> {
        let places = offsets.iter().map(|(partition, offset)| (partition, Place::Offset(*offset)));
        let places = list(places).map_err(|error| error.to_string())?;
        let client = self.0.upgrade().ok_or("the consumer is closed")?;
        Ok((places, client.entitled(offsets)?))
    }

    /// Whether it has a place in its group now.
    pub(super) fn has_place(&self) -> bool {
        self.0.upgrade().is_some_and(|client| GroupMetadata::of(&*client).is_some())
    }

    /// The same as [`place`](Self::place), whoever has the partitions by now: for what others can't have gone beyond, and for a
    /// transaction that is not going to be committed.
    pub(super) fn claim(
        &self,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<(TopicPartitionList, GroupMetadata), String> {
        let places = offsets.iter().map(|(partition, offset)| (partition, Place::Offset(*offset)));
        let places = list(places).map_err(|error| error.to_string())?;
        let client = self.0.upgrade().ok_or("the consumer is closed")?;
        let metadata = GroupMetadata::of(&*client).ok_or("it has no place in its group")?;
        Ok((places, metadata))
    }

    /// What the group has committed. Blocks at most so long.
    pub(super) fn committed(
        &self,
        partitions: &[TopicPartition],
        within: Duration,
    ) -> Result<Vec<Option<Offset>>, BrokerError> {
        let client = self.open()?;
        client.committed(&client.consumer, partitions, within)
    }

    /// The same as far as it is decided: what transactions that are still open are going to commit is not waited for.
    pub(super) fn decided(
        &self,
        partitions: &[TopicPartition],
        within: Duration,
    ) -> Result<Vec<Option<Offset>>, BrokerError> {
        let client = self.open()?;
        let asker: BaseConsumer = client.asking.create().map_err(refused_by_library)?;
        client.committed(&asker, partitions, within)
    }

    fn open(&self) -> Result<Arc<Client>, BrokerError> {
        self.0.upgrade().ok_or_else(|| BrokerError::Unavailable("the consumer is closed".to_owned()))
    }
}

impl Consumer for KafkaConsumer {
    type Reader = PartitionReader;
    type Member = KafkaMember;

    async fn next_event(&mut self) -> ConsumerEvent {
        let ended = || ConsumerEvent::Fatal("the consumer's thread has ended".into());
        self.events.recv().await.unwrap_or_else(ended)
    }

    async fn start(
        &mut self,
        partitions: &[TopicPartition],
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, PartitionReader)>, BrokerError> {
        let (told, untold): (Vec<_>, Vec<_>) =
            partitions.iter().cloned().partition(|partition| places.contains_key(partition));
        // Asked with none as well: what the group has joined with is noted then.
        let mut found = self.places(&untold).await?;
        for partition in told {
            add(&mut found, &partition.topic, partition.partition, Place::Offset(places[&partition]))?;
        }
        let client = Arc::clone(&self.client);
        let brought = partitions.to_vec();
        let partitions = partitions.to_vec();
        let started = blocking(move || client.start(&partitions, &found)).await?;
        self.wake_fetchers(brought);
        Ok(started)
    }

    async fn seek(
        &mut self,
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, PartitionReader)>, BrokerError> {
        let (client, places) = (Arc::clone(&self.client), places.clone());
        blocking(move || client.seek(&places)).await
    }

    async fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), BrokerError> {
        let client = Arc::clone(&self.client);
        let partitions = partitions.to_vec();
        blocking(move || client.release(&partitions)).await?;
        self.wake_fetchers(Vec::new());
        Ok(())
    }

    fn commit(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + 'static {
        // Weak, so that a forgotten commit does not keep the member in its group.
        let client = Arc::downgrade(&self.client);
        async move {
            let closed = || CommitError::Retriable("the consumer is closed".into());
            let commit = {
                let client = client.upgrade().ok_or_else(closed)?;
                client.check_ours(&offsets)?;
                let places = offsets.iter().map(|(partition, offset)| (partition, Place::Offset(*offset)));
                let places = list(places).map_err(|error| CommitError::Retriable(error.to_string()))?;
                client.commit(&places).map_err(|code| client.refused_commit(code, &offsets))?
            };
            let answer = commit.answer().await;
            let client = client.upgrade().ok_or_else(closed)?;
            answer.map_err(|code| client.refused_commit(code, &offsets))
        }
    }

    fn member(&self) -> KafkaMember {
        KafkaMember(Arc::downgrade(&self.client))
    }

    async fn close(self) {
        let Self { client, leave, ended, events, .. } = self;
        drop((leave, client, events));
        if timeout(CLOSE_DEADLINE, ended).await.is_err() {
            // The thread goes on trying; the broker forgets the member when its session ends.
            tracing::warn!(deadline = ?CLOSE_DEADLINE, "the consumer did not leave its group in time");
        }
    }
}

/// How many partitions each of these topics has; one that is not there has none.
fn count_partitions(client: &Client, topics: &[String]) -> Result<BTreeMap<String, i32>, BrokerError> {
    let mut counted = BTreeMap::new();
    for name in topics {
        let metadata = client.consumer.fetch_metadata(Some(name), PLACE_DEADLINE);
        let metadata = metadata.map_err(|error| client.unavailable(code_of(&error)))?;
        let found = metadata.topics().iter().find(|topic| topic.name() == name);
        counted.insert(name.clone(), found.map_or(0, |topic| topic.partitions().len() as i32));
    }
    Ok(counted)
}

/// The places of a group that starts at the next record, and those among them that it did not have before.
fn find_places(
    client: &Client,
    wanted: TopicPartitionList,
    joined_with: &BTreeMap<String, i32>,
) -> Result<(TopicPartitionList, TopicPartitionList), BrokerError> {
    let deadline = Instant::now() + PLACE_DEADLINE;
    let committed = client.consumer.committed_offsets(wanted, PLACE_DEADLINE);
    let committed = committed.map_err(|error| client.unavailable(code_of(&error)))?;
    let (mut places, mut fresh) = (TopicPartitionList::new(), TopicPartitionList::new());
    for found in committed.elements() {
        let (topic, partition) = (found.topic(), found.partition());
        let mut place = found.offset();
        if !matches!(place, Place::Offset(_)) {
            let found = ends(client.consumer.client(), topic, partition, deadline);
            let (start, end) = found.map_err(|code| client.failed(code, topic))?;
            let is_new = joined_with.get(topic).is_none_or(|partitions| partition >= *partitions);
            place = Place::Offset(if is_new { start } else { end });
            add(&mut fresh, topic, partition, place)?;
        }
        add(&mut places, topic, partition, place)?;
    }
    Ok((places, fresh))
}

/// Runs a call that waits for the library's main thread.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, BrokerError> + Send + 'static,
) -> Result<T, BrokerError> {
    let done = tokio::task::spawn_blocking(call).await;
    done.unwrap_or_else(|ended| Err(BrokerError::Unavailable(format!("the call was stopped: {ended}"))))
}

fn list<'a>(places: impl IntoIterator<Item = (&'a TopicPartition, Place)>) -> Result<TopicPartitionList, BrokerError> {
    let mut list = TopicPartitionList::new();
    for (partition, place) in places {
        // The library's list panics on a name that it can't hold.
        CString::new(&*partition.topic).map_err(|_| BrokerError::NoSuchTopic(partition.topic.to_string()))?;
        add(&mut list, &partition.topic, partition.partition, place)?;
    }
    Ok(list)
}

fn add(list: &mut TopicPartitionList, topic: &str, partition: i32, place: Place) -> Result<(), BrokerError> {
    let added = list.add_partition_offset(topic, partition, place);
    added.map_err(|error| BrokerError::Rejected(format!("{topic}/{partition} has no place {place:?}: {error}")))
}
