//! The thread of a member, what librdkafka calls back on it, and the calls that answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::{RDKafka, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset as Place, TopicPartitionList};
use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::mpsc;

use super::commit::Commit;
use super::list;
use crate::broker::kafka::config::refused_by_library;
use crate::broker::kafka::errors::{self, code_of};
use crate::broker::kafka::ffi::transaction::GroupMetadata;
use crate::broker::kafka::ffi::{self, Native, Queue, Wakers};
use crate::broker::kafka::listener::Listener;
use crate::broker::kafka::reader::PartitionReader;
use crate::broker::{BrokerError, CommitError, ConsumerEvent, Subscription};
use crate::fault::Fault;

/// How long the thread waits for an event before it looks whether it should end.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long setting partitions to other places may take.
const SEEK_DEADLINE: Duration = Duration::from_secs(10);

/// How long brokers may take for an answer of which only the arrival counts. A member that leaves waits for it.
const WAKE_DEADLINE: Duration = Duration::from_millis(200);

/// A member of a generation that hears of no partitions for so long has none.
const NOTHING_AFTER: Duration = Duration::from_secs(1);

/// The client, alive as long as its thread, a reader or a commit holds it. The thread is always the last.
pub(in crate::broker::kafka) struct Client {
    pub(super) consumer: BaseConsumer<Context>,
    /// For a client that asks about the group and is no member.
    pub(super) asking: ClientConfig,
    wakers: Arc<Wakers>,
}

impl Native for Client {
    fn native(&self) -> *mut RDKafka {
        self.consumer.native()
    }
}

impl Native for BaseConsumer<Context> {
    fn native(&self) -> *mut RDKafka {
        self.client().native_ptr()
    }
}

/// What the library calls back.
pub(super) struct Context {
    listener: Listener,
    events: mpsc::Sender<ConsumerEvent>,
    closing: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The rebalance that was reported and not yet answered.
    unanswered: Option<Rebalance>,
    /// Whether the host knows that this member has joined.
    told: bool,
    /// What this member reads, each with the flag that tells its reader so.
    started: BTreeMap<TopicPartition, Arc<AtomicBool>>,
    /// This member's place in the group, as of the last rebalance that it was told of; none once it lost its partitions.
    place: Option<Arc<GroupMetadata>>,
    /// Commits under way. Bounded by their callers, who wait for each before the next.
    commits: Vec<Weak<Commit>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rebalance {
    Assign,
    Revoke,
}

impl Client {
    /// Makes a client that is subscribed, and joins once [`poll`] runs.
    pub(super) fn subscribe(
        config: &ClientConfig,
        asking: ClientConfig,
        subscription: &Subscription,
        events: mpsc::Sender<ConsumerEvent>,
        closing: Arc<AtomicBool>,
    ) -> Result<Arc<Self>, BrokerError> {
        let listener = Listener::new(format!("group {}", subscription.group));
        let context = Context { listener, events, closing, state: Mutex::default() };
        let consumer = BaseConsumer::from_config_and_context(config, context).map_err(refused_by_library)?;
        let topics: Vec<&str> = subscription.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| BrokerError::Config(format!("the topics are refused: {error}")))?;
        Ok(Arc::new(Self { consumer, asking, wakers: Arc::default() }))
    }

    fn context(&self) -> &Context {
        self.consumer.client().context()
    }

    /// What a caller is told when the broker does not answer.
    pub(super) fn unavailable(&self, code: Code) -> BrokerError {
        self.failed(code, "")
    }

    /// What a caller is told when a request about a topic fails.
    pub(super) fn failed(&self, code: Code, topic: &str) -> BrokerError {
        errors::of_topic(code, topic, &self.context().listener.with_cause(&code.to_string()))
    }

    /// What the group has committed, as this client is told: its own, or one that asks in another way. Blocks at most so long.
    pub(super) fn committed<C: ConsumerContext>(
        &self,
        asker: &BaseConsumer<C>,
        partitions: &[TopicPartition],
        within: Duration,
    ) -> Result<Vec<Option<Offset>>, BrokerError> {
        let asked = list(partitions.iter().map(|partition| (partition, Place::Invalid)))?;
        let found = asker.committed_offsets(asked, within).map_err(|error| self.unavailable(code_of(&error)))?;
        Ok(partitions.iter().map(|partition| committed(&found, partition)).collect())
    }

    /// Splits the partitions' queues, then assigns. The other way round records come out of the main queue.
    pub(super) fn start(
        self: &Arc<Self>,
        partitions: &[TopicPartition],
        places: &TopicPartitionList,
    ) -> Result<Vec<(TopicPartition, PartitionReader)>, BrokerError> {
        // To be assigned nothing is answered already.
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let readers = self.readers(partitions, |partition| committed(places, partition))?;
        let answered = self.state().unanswered.take();
        if let Err(error) = self.consumer.incremental_assign(places) {
            self.state().unanswered = answered;
            return Err(BrokerError::Rejected(format!("the assignment was not taken: {error}")));
        }
        let started = readers.iter().map(|(partition, reader)| (partition.clone(), reader.ours()));
        self.state().started.extend(started);
        Ok(readers)
    }

    /// A reader of each partition, from its own queue.
    fn readers(
        self: &Arc<Self>,
        partitions: &[TopicPartition],
        start: impl Fn(&TopicPartition) -> Option<Offset>,
    ) -> Result<Vec<(TopicPartition, PartitionReader)>, BrokerError> {
        let mut readers = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let queue = Queue::split(self.native_handle(), partition, &self.wakers);
            let queue = queue.ok_or_else(|| BrokerError::NoSuchTopic(partition.topic.to_string()))?;
            let (ours, start) = (Arc::new(AtomicBool::new(true)), start(partition));
            let events = self.context().events.clone();
            let reader = PartitionReader::new(self.native_handle(), partition, queue, ours, start, events)?;
            readers.push((partition.clone(), reader));
        }
        Ok(readers)
    }

    /// Sets started partitions to other places. The assignment stays as it is, so that a rebalance that is reported and not
    /// yet answered is not answered by this. What was fetched from the old places is thrown away by the library.
    pub(super) fn seek(
        self: &Arc<Self>,
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, PartitionReader)>, BrokerError> {
        let ours: Vec<TopicPartition> = {
            let state = self.state();
            places.keys().filter(|partition| state.started.contains_key(*partition)).cloned().collect()
        };
        if ours.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = list(ours.iter().map(|partition| (partition, Place::Offset(places[partition]))))?;
        let sought = self.consumer.seek_partitions(wanted, SEEK_DEADLINE);
        let sought = sought.map_err(|error| self.unavailable(code_of(&error)))?;
        for found in sought.elements() {
            found.error().map_err(|error| self.failed(code_of(&error), found.topic()))?;
        }
        let readers = self.readers(&ours, |partition| places.get(partition).copied())?;
        let started = readers.iter().map(|(partition, reader)| (partition.clone(), reader.ours()));
        self.state().started.extend(started);
        Ok(readers)
    }

    pub(super) fn release(&self, partitions: &[TopicPartition]) -> Result<(), BrokerError> {
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

    /// Asks the brokers something, for the sake of being answered: librdkafka stops all partitions until a rebalance is answered, and
    /// then does not wake the threads that fetch those that stay (2.12.1). By themselves these look again within a second.
    pub(super) fn wake_fetchers(&self, brought: &[TopicPartition]) {
        let stay: Vec<TopicPartition> =
            self.state().started.keys().filter(|started| !brought.contains(started)).cloned().collect();
        let Ok(ends) = list(stay.iter().map(|partition| (partition, Place::End))) else { return };
        if ends.count() > 0
            && let Err(error) = self.consumer.offsets_for_times(ends, WAKE_DEADLINE)
        {
            tracing::debug!(%error, "the brokers did not answer");
        }
    }

    /// Asks the coordinator to keep offsets, apart from the polling thread.
    pub(super) fn commit(self: &Arc<Self>, places: &TopicPartitionList) -> Result<Arc<Commit>, Code> {
        let queue = Queue::new(self.native_handle());
        ffi::commit(places, &queue)?;
        let commit = Arc::new(Commit::new(queue));
        let mut state = self.state();
        state.commits.retain(|commit| commit.strong_count() > 0);
        state.commits.push(Arc::downgrade(&commit));
        Ok(commit)
    }

    /// The broker accepts commits for partitions of other members, so that this host has to refuse them.
    pub(super) fn check_ours(&self, offsets: &[(TopicPartition, Offset)]) -> Result<(), CommitError> {
        if Fault::IgnoreEpoch.is_on() {
            return Ok(());
        }
        let state = self.state();
        match offsets.iter().find(|(partition, _)| !state.started.contains_key(partition)) {
            Some((partition, _)) => Err(CommitError::Fenced(format!("{partition} is not this member's"))),
            None => Ok(()),
        }
    }

    /// The place that entitles this member to commit these partitions in a transaction, or why it has none.
    pub(super) fn entitled(&self, offsets: &[(TopicPartition, Offset)]) -> Result<Arc<GroupMetadata>, String> {
        let state = self.state();
        let foreign = offsets.iter().find(|(partition, _)| !state.started.contains_key(partition));
        match (foreign, &state.place) {
            (Some((partition, _)), _) if !Fault::IgnoreEpoch.is_on() => {
                Err(format!("{partition} is not this member's"))
            }
            (_, None) => Err("it has lost its partitions".to_owned()),
            (_, Some(place)) => Ok(Arc::clone(place)),
        }
    }

    pub(super) fn refused_commit(&self, code: Code, offsets: &[(TopicPartition, Offset)]) -> CommitError {
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

pub(super) fn committed(places: &TopicPartitionList, of: &TopicPartition) -> Option<Offset> {
    match places.find_partition(&of.topic, of.partition)?.offset() {
        Place::Offset(offset) => Some(offset),
        _ => None,
    }
}

/// The thread's loop: serves callbacks until the consumer is told to leave and nobody else uses the client.
pub(super) fn poll(mut client: Arc<Client>) {
    let context = Arc::clone(client.consumer.client().context());
    let mut member_since = None;
    loop {
        context.tell_of_joining(&*client, &mut member_since);
        context.keep_place(&*client);
        match client.consumer.poll(POLL_INTERVAL) {
            // It would be lost: partitions have queues of their own before they are assigned.
            Some(Ok(_)) => context.tell(ConsumerEvent::Fatal("a record came past its partition's queue".into())),
            // `Context::error` has told the others already.
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                let fatal = client.consumer.client().fatal_error();
                let (code, text) = fatal.unwrap_or((code, String::new()));
                let cure = if code == Code::FencedInstanceId {
                    "; another client has the same `group.instance.id`: each host needs one of its own"
                } else {
                    ""
                };
                context.tell(ConsumerEvent::Fatal(format!("{code}: {text}{cure}")));
            }
            Some(Err(_)) | None => {}
        }
        if context.closing.load(Ordering::SeqCst) {
            context.give_up_commits();
            // Readers, and calls that wait for the library, hold it too.
            client = match Arc::try_unwrap(client) {
                Ok(client) => return leave(client),
                Err(client) => client,
            };
        }
    }
}

/// Leaves the group: dropping the client polls until the library is done, with the callback answering at once.
fn leave(client: Client) {
    client.context().answer_the_unanswered(&client.consumer);
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

    /// The library calls nobody when a member gets nothing: that it has a generation, and no news for a while, says so.
    fn tell_of_joining(&self, client: &dyn Native, member_since: &mut Option<Instant>) {
        if self.state().told {
            return;
        }
        *member_since = GroupMetadata::of(client).is_some().then(|| member_since.unwrap_or_else(Instant::now));
        if member_since.is_some_and(|since| since.elapsed() >= NOTHING_AFTER) {
            self.state().told = true;
            self.tell(ConsumerEvent::Assigned(Vec::new()));
        }
    }

    /// The newer group protocol counts a member's epoch up without telling it when its share stays. Callbacks run on this
    /// thread too: what it was not told of yet, it has not lost, unless it was expelled; then its id is another one.
    fn keep_place(&self, client: &dyn Native) {
        let Some(known) = self.state().place.clone() else { return };
        let now = GroupMetadata::of(client).filter(|now| now.member_id() == known.member_id());
        if let Some(now) = now {
            self.state().place = Some(Arc::new(now));
        }
    }

    /// Takes down the place in the group as of this rebalance.
    fn take_place(&self, consumer: &BaseConsumer<Self>) {
        let place = if consumer.assignment_lost() { None } else { GroupMetadata::of(consumer) };
        self.state().place = place.map(Arc::new);
    }

    fn give_up_commits(&self) {
        let commits = std::mem::take(&mut self.state().commits);
        commits.iter().filter_map(Weak::upgrade).for_each(|commit| commit.give_up());
    }

    /// Answers what the host did not, so that the library can end: it waits for each answer without limit.
    fn answer_the_unanswered(&self, consumer: &BaseConsumer<Self>) {
        let unanswered = self.state().unanswered.take();
        if let Some(rebalance) = unanswered {
            self.answer(consumer, rebalance, false);
        }
    }

    /// Takes nothing, and gives back nothing or all.
    fn answer(&self, consumer: &BaseConsumer<Self>, rebalance: Rebalance, nothing: bool) {
        let mut gone = TopicPartitionList::new();
        let held = if nothing { BTreeMap::new() } else { std::mem::take(&mut self.state().started) };
        for (partition, ours) in held {
            ours.store(false, Ordering::Release);
            gone.add_partition(&partition.topic, partition.partition);
        }
        let answered = match rebalance {
            Rebalance::Assign => consumer.incremental_assign(&TopicPartitionList::new()),
            Rebalance::Revoke => consumer.incremental_unassign(&gone).or_else(|_| consumer.unassign()),
        };
        answered.unwrap_or_else(|error| tracing::debug!(%error, ?rebalance, "the library did not want an answer"));
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
        self.take_place(consumer);
        // Cooperative rebalances come with nothing to do, too, and want their answer.
        let nothing = partitions.count() == 0;
        if nothing || self.closing.load(Ordering::SeqCst) {
            return self.answer(consumer, rebalance, nothing);
        }
        let of = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            TopicPartition::new(element.topic(), element.partition())
        };
        let partitions: Vec<_> = partitions.elements().into_iter().map(of).collect();
        {
            let mut state = self.state();
            state.unanswered = Some(rebalance);
            state.told |= rebalance == Rebalance::Assign;
        }
        self.tell(match rebalance {
            Rebalance::Assign => ConsumerEvent::Assigned(partitions),
            Rebalance::Revoke if consumer.assignment_lost() => ConsumerEvent::Lost(partitions),
            Rebalance::Revoke => ConsumerEvent::Revoked(partitions),
        });
    }
}
