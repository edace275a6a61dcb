//! One group member: a thread that polls for events, and the answers to them.
//!
//! The rebalance callback only reports; partitions are taken and given back by [`KafkaConsumer::start`] and
//! [`KafkaConsumer::release`]. librdkafka raises no other rebalance until the last one is answered.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::{RDKafka, RDKafkaRespErr};
use rdkafka::{Offset as Place, TopicPartitionList};
use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::config::{Config, refused_by_library};
use super::errors::{self, code_of};
use super::ffi::{self, Event, Native, Queue, Wakers};
use super::listener::Listener;
use super::reader::PartitionReader;
use crate::broker::{BrokerError, CommitError, Consumer, ConsumerEvent, StartAt, Subscription};
use crate::fault::Fault;

/// Bounds the events that nobody reads yet: one rebalance at a time, and problems, which are dropped when it is full.
const EVENTS_MAX: usize = 64;

/// How long the thread waits for an event before it looks whether it should end.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long a commit may go unanswered.
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);

/// How long `start` may look for the place of a group that starts at the next record.
const PLACE_DEADLINE: Duration = Duration::from_secs(10);

/// How long `close` waits. A coordinator that is away holds the library up for as long as the session, and longer.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// A member of a Kafka consumer group.
pub struct KafkaConsumer {
    client: Arc<Client>,
    start_at: StartAt,
    events: mpsc::Receiver<ConsumerEvent>,
    leave: LeaveOnDrop,
    /// Resolves when the thread has left the group and ended.
    ended: oneshot::Receiver<()>,
}

/// The client, alive as long as its thread, a reader or a commit holds it. The thread is always the last.
pub(super) struct Client {
    consumer: BaseConsumer<Context>,
    wakers: Arc<Wakers>,
}

impl Native for Client {
    fn native(&self) -> *mut RDKafka {
        self.consumer.client().native_ptr()
    }
}

/// What the library calls back.
struct Context {
    listener: Listener,
    events: mpsc::Sender<ConsumerEvent>,
    closing: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The rebalance that was reported and not yet answered.
    unanswered: Option<Rebalance>,
    /// What this member reads, each with the flag that tells its reader so.
    started: BTreeMap<TopicPartition, Arc<AtomicBool>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rebalance {
    Assign,
    Revoke,
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
        let context = Context {
            listener: Listener::new(format!("group {}", subscription.group)),
            events: sender,
            closing: Arc::clone(&closing),
            state: Mutex::default(),
        };
        let consumer = BaseConsumer::from_config_and_context(&native, context).map_err(refused_by_library)?;
        let topics: Vec<&str> = subscription.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| BrokerError::Config(format!("the topics are refused: {error}")))?;
        let client = Arc::new(Client { consumer, wakers: Arc::default() });
        let (end, ended) = oneshot::channel();
        let poller = Arc::clone(&client);
        std::thread::Builder::new()
            .name(format!("kafka {}", subscription.group))
            .spawn(move || {
                poll(poller);
                // Nobody may wait for it any more.
                let _unheard = end.send(());
            })
            .map_err(|error| BrokerError::Unavailable(format!("no thread for the consumer: {error}")))?;
        Ok(Self { client, start_at: subscription.start_at, events, leave: LeaveOnDrop(closing), ended })
    }

    /// Where partitions begin: committed offsets are the library's to find, but for a start at the next record.
    ///
    /// There the end is fixed and committed at once: otherwise the group would skip what is written until its first
    /// commit, at each rebalance again.
    async fn places(&self, partitions: &[TopicPartition]) -> Result<TopicPartitionList, BrokerError> {
        let mut places = list(partitions.iter().map(|partition| (partition, Place::Invalid)))?;
        if self.start_at == StartAt::Earliest {
            return Ok(places);
        }
        let client = Arc::clone(&self.client);
        let (found, fresh) = blocking(move || find_places(&client, places)).await?;
        places = found;
        if fresh.count() > 0 {
            let kept = commit(&self.client, fresh).await;
            kept.map_err(|code| BrokerError::Unavailable(self.client.context().listener.with_cause(&code.to_string())))?;
        }
        Ok(places)
    }
}

impl Consumer for KafkaConsumer {
    type Reader = PartitionReader;

    async fn next_event(&mut self) -> ConsumerEvent {
        let ended = || ConsumerEvent::Fatal("the consumer's thread has ended".into());
        self.events.recv().await.unwrap_or_else(ended)
    }

    async fn start(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<(TopicPartition, PartitionReader)>, BrokerError> {
        let places = self.places(partitions).await?;
        let client = Arc::clone(&self.client);
        let partitions = partitions.to_vec();
        blocking(move || client.start(&partitions, &places)).await
    }

    async fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), BrokerError> {
        let client = Arc::clone(&self.client);
        let partitions = partitions.to_vec();
        blocking(move || client.release(&partitions)).await
    }

    fn commit(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + 'static {
        let client = Arc::clone(&self.client);
        async move {
            client.check_ours(&offsets)?;
            let places = offsets.iter().map(|(partition, offset)| (partition, Place::Offset(*offset)));
            let places = list(places).map_err(|error| CommitError::Retriable(error.to_string()))?;
            commit(&client, places).await.map_err(|code| client.refused_commit(code, &offsets))
        }
    }

    async fn close(self) {
        let Self { client, leave, ended, events, start_at: _ } = self;
        drop((leave, client, events));
        if timeout(CLOSE_DEADLINE, ended).await.is_err() {
            // The thread goes on trying; the broker forgets the member when its session ends.
            tracing::warn!(deadline = ?CLOSE_DEADLINE, "the consumer did not leave its group in time");
        }
    }
}

impl Client {
    fn context(&self) -> &Context {
        self.consumer.client().context()
    }

    /// Splits the partitions' queues, then assigns. The other way round records come out of the main queue.
    fn start(
        self: &Arc<Self>,
        partitions: &[TopicPartition],
        places: &TopicPartitionList,
    ) -> Result<Vec<(TopicPartition, PartitionReader)>, BrokerError> {
        let mut readers = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let queue = Queue::split(self.native_handle(), partition, &self.wakers);
            let queue = queue.ok_or_else(|| BrokerError::NoSuchTopic(partition.topic.to_string()))?;
            let ours = Arc::new(AtomicBool::new(true));
            readers.push((partition.clone(), PartitionReader::new(self.native_handle(), partition, queue, ours)?));
        }
        let answered = self.state().unanswered.take();
        if let Err(error) = self.consumer.incremental_assign(places) {
            self.state().unanswered = answered;
            return Err(BrokerError::Rejected(format!("the assignment was not taken: {error}")));
        }
        let started = readers.iter().map(|(partition, reader)| (partition.clone(), reader.ours()));
        self.state().started.extend(started);
        Ok(readers)
    }

    fn release(&self, partitions: &[TopicPartition]) -> Result<(), BrokerError> {
        let (held, answered) = {
            let mut state = self.state();
            let held: Vec<_> = partitions.iter().filter_map(|gone| state.started.remove_entry(gone)).collect();
            (held, state.unanswered.take())
        };
        for (_, ours) in &held {
            ours.store(false, Ordering::Release);
        }
        // What was never started is not assigned, and the library refuses the whole list for it.
        let gone = list(held.iter().map(|(partition, _)| (partition, Place::Invalid)))?;
        self.consumer.incremental_unassign(&gone).map_err(|error| {
            self.state().unanswered = answered;
            BrokerError::Rejected(format!("the partitions were not given back: {error}"))
        })
    }

    /// The broker accepts commits for partitions of other members, so that this host has to refuse them.
    fn check_ours(&self, offsets: &[(TopicPartition, Offset)]) -> Result<(), CommitError> {
        if Fault::IgnoreEpoch.is_on() {
            return Ok(());
        }
        let state = self.state();
        match offsets.iter().find(|(partition, _)| !state.started.contains_key(partition)) {
            Some((partition, _)) => Err(CommitError::Fenced(format!("{partition} is not this member's"))),
            None => Ok(()),
        }
    }

    fn refused_commit(&self, code: Code, offsets: &[(TopicPartition, Offset)]) -> CommitError {
        let text = self.context().listener.with_cause(&code.to_string());
        match code {
            Code::UnknownMemberId | Code::FencedInstanceId | Code::FencedMemberEpoch | Code::Fatal => {
                CommitError::Fenced(text)
            }
            // During a rebalance the members' next generation may have begun while the partitions stay here: then the
            // same commit is good a moment later. Only when they are lost it never will be.
            Code::IllegalGeneration | Code::StaleMemberEpoch
                if self.consumer.assignment_lost() || self.check_ours(offsets).is_err() =>
            {
                CommitError::Fenced(text)
            }
            _ => CommitError::Retriable(text),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.context().state()
    }

    fn native_handle(self: &Arc<Self>) -> Arc<dyn Native> {
        Arc::clone(self) as Arc<dyn Native>
    }
}

/// Commits and waits for the coordinator's answer, without the polling thread.
async fn commit(client: &Arc<Client>, places: TopicPartitionList) -> Result<(), Code> {
    let answer = Queue::new(client.native_handle());
    ffi::commit(&places, &answer)?;
    let answered = async {
        loop {
            if let Some(Event::Committed(result)) = answer.poll(0) {
                return result;
            }
            answer.woken().await;
        }
    };
    timeout(COMMIT_DEADLINE, answered).await.unwrap_or(Err(Code::OperationTimedOut))
}

/// The places of a group that starts at the next record, and those among them that it did not have before.
fn find_places(
    client: &Client,
    wanted: TopicPartitionList,
) -> Result<(TopicPartitionList, TopicPartitionList), BrokerError> {
    let failed = |topic: &str, error: &KafkaError| {
        errors::of_topic(code_of(error), topic, &client.context().listener.with_cause(&error.to_string()))
    };
    let committed = client.consumer.committed_offsets(wanted, PLACE_DEADLINE).map_err(|error| failed("", &error))?;
    let (mut places, mut fresh) = (TopicPartitionList::new(), TopicPartitionList::new());
    for found in committed.elements() {
        let (topic, partition) = (found.topic(), found.partition());
        let mut place = found.offset();
        if !matches!(place, Place::Offset(_)) {
            let ends = client.consumer.fetch_watermarks(topic, partition, PLACE_DEADLINE);
            let (_, end) = ends.map_err(|error| failed(topic, &error))?;
            place = Place::Offset(end);
            add(&mut fresh, topic, partition, place)?;
        }
        add(&mut places, topic, partition, place)?;
    }
    Ok((places, fresh))
}

/// The thread's loop: serves callbacks until the consumer is told to leave and nobody else uses the client.
fn poll(client: Arc<Client>) {
    let context = Arc::clone(client.consumer.client().context());
    loop {
        match client.consumer.poll(POLL_INTERVAL) {
            // `Context::error` has told it already.
            None | Some(Err(_)) if client.consumer.client().fatal_error().is_none() => {}
            None | Some(Err(_)) => context.tell_fatal(client.consumer.client().fatal_error()),
            // It would be lost: partitions have queues of their own before they are assigned.
            Some(Ok(_)) => context.tell(ConsumerEvent::Fatal("a record came past its partition's queue".into())),
        }
        if context.closing.load(Ordering::SeqCst) && Arc::strong_count(&client) == 1 {
            break;
        }
    }
    context.answer_the_unanswered(&client.consumer);
    // Leaves the group: polls until the library is done, with the callback answering at once.
    drop(client);
}

impl Context {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes an event on. There is room for each that matters; a receiver that is gone is closing.
    fn tell(&self, event: ConsumerEvent) {
        if let Err(unheard) = self.events.try_send(event) {
            tracing::debug!(%unheard, "nobody hears the consumer's event");
        }
    }

    fn tell_fatal(&self, fatal: Option<(Code, String)>) {
        let (code, text) = fatal.unwrap_or((Code::Fatal, "unknown".into()));
        self.tell(ConsumerEvent::Fatal(format!("{code}: {text}")));
    }

    /// Answers what the host did not, so that the library can end: it waits for each answer without limit.
    fn answer_the_unanswered(&self, consumer: &BaseConsumer<Self>) {
        let unanswered = self.state().unanswered.take();
        if let Some(rebalance) = unanswered {
            self.answer(consumer, rebalance);
        }
    }

    /// Takes nothing, or gives back all.
    fn answer(&self, consumer: &BaseConsumer<Self>, rebalance: Rebalance) {
        let mut gone = TopicPartitionList::new();
        for (partition, ours) in std::mem::take(&mut self.state().started) {
            ours.store(false, Ordering::Release);
            gone.add_partition(&partition.topic, partition.partition);
        }
        let answered = match rebalance {
            Rebalance::Assign => consumer.incremental_assign(&TopicPartitionList::new()),
            Rebalance::Revoke => consumer.incremental_unassign(&gone).or_else(|_| consumer.unassign()),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, ?rebalance, "the library did not want an answer");
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.listener.line(level, facility, text);
        // Offsets that are gone: records were deleted before this group read them.
        if facility == "OFFSET" && matches!(level, RDKafkaLogLevel::Warning) {
            self.tell(ConsumerEvent::Problem(text.to_owned()));
        }
    }

    fn error(&self, error: KafkaError, text: &str) {
        if let Some(text) = self.listener.problem(code_of(&error), text) {
            self.tell(ConsumerEvent::Problem(text));
        }
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let rebalance = match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assign,
            _ => Rebalance::Revoke,
        };
        // Cooperative rebalances come with nothing to do, too, and want their answer.
        if self.closing.load(Ordering::SeqCst) || partitions.count() == 0 {
            if partitions.count() == 0 {
                let nothing = TopicPartitionList::new();
                let answered = match rebalance {
                    Rebalance::Assign => consumer.incremental_assign(&nothing),
                    Rebalance::Revoke => consumer.incremental_unassign(&nothing),
                };
                answered.unwrap_or_else(|error| tracing::debug!(%error, "an empty rebalance was not answered"));
            } else {
                self.answer(consumer, rebalance);
            }
            return;
        }
        let of = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            TopicPartition::new(element.topic(), element.partition())
        };
        let partitions: Vec<_> = partitions.elements().into_iter().map(of).collect();
        self.state().unanswered = Some(rebalance);
        self.tell(match rebalance {
            Rebalance::Assign => ConsumerEvent::Assigned(partitions),
            Rebalance::Revoke if consumer.assignment_lost() => ConsumerEvent::Lost(partitions),
            Rebalance::Revoke => ConsumerEvent::Revoked(partitions),
        });
    }
}

/// Runs a call that waits for the library's main thread.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, BrokerError> + Send + 'static,
) -> Result<T, BrokerError> {
    let done = tokio::task::spawn_blocking(call).await;
    done.unwrap_or_else(|ended| Err(BrokerError::Unavailable(format!("the call was stopped: {ended}"))))
}

fn list<'a>(
    places: impl IntoIterator<Item = (&'a TopicPartition, Place)>,
) -> Result<TopicPartitionList, BrokerError> {
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
