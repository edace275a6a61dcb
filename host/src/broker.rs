//! The seams to a log of records: [`Broker`], [`Consumer`], [`Reader`], [`Producer`], [`Transactions`] and [`Admin`].
//!
//! Nothing here speaks librdkafka's words. Each seam has one contract test (`broker/contract.rs`) that runs against
//! every implementation: `kafka` (the only files that name rdkafka) and `embedded`, on disk and in memory.

#[doc(hidden)]
pub mod contract;
mod discard;
pub mod embedded;
pub mod kafka;
mod point;
mod ranged;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tidemill_core::record::{Chunk, Offset, TopicPartition};

pub use self::discard::Discard;
pub use self::point::{NotFound, Point, Selection};
pub use self::ranged::Ranged;

/// A record to be produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: Arc<str>,
    /// `None`: chosen from the key by murmur2, as Java clients do; without a key the broker's client chooses.
    pub partition: Option<i32>,
    /// Milliseconds since the Unix epoch; `None`: now.
    pub timestamp_ms: Option<i64>,
    /// `None` is null.
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
    /// In order; names may repeat.
    pub headers: Vec<Header>,
}

impl Outgoing {
    /// The size of its key, value and headers.
    pub fn bytes(&self) -> usize {
        length(self.key.as_ref()) + length(self.value.as_ref()) + self.headers.iter().map(Header::bytes).sum::<usize>()
    }
}

/// A header to be produced. Kafka promises no encoding, so the name is bytes too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The name.
    pub name: Bytes,
    /// `None` is null.
    pub value: Option<Bytes>,
}

impl Header {
    /// The size of its name and value.
    pub fn bytes(&self) -> usize {
        self.name.len() + length(self.value.as_ref())
    }
}

fn length(bytes: Option<&Bytes>) -> usize {
    bytes.map_or(0, Bytes::len)
}

/// Where a produced record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The partition.
    pub partition: i32,
    /// The offset in it; [`Position::UNKNOWN`] where nobody said, because its topic wants no acknowledgements.
    pub offset: Offset,
}

impl Position {
    /// An offset that nobody said.
    pub const UNKNOWN: Offset = -1;
}

/// Why a record was not acknowledged. All but [`SendError::Unknown`] mean that it is certainly not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The topic or the partition does not exist.
    #[error("there is no topic or partition `{0}`; create it, or correct the name")]
    NoSuchTopic(String),
    /// Larger than the broker, the topic or the client allows.
    #[error("the record is larger than the broker allows: {0}")]
    TooLarge(String),
    /// The broker's access rules refuse it.
    #[error("the broker refuses to write to `{0}`; its operator has to allow it")]
    Denied(String),
    /// The producer's queue is full; the broker is slower than what comes in.
    #[error("the producer's queue is full; send again later")]
    QueueFull,
    /// The broker is away; nothing was sent.
    #[error("the broker is not available: {0}; send again later")]
    Unavailable(String),
    /// Sent, and not confirmed in time: it may or may not be in the log.
    #[error("the broker did not confirm in time: {0}; the record may or may not be stored")]
    Unknown(String),
    /// Anything else that the broker says about this record; sending it again will not help.
    #[error("the broker refused the record: {0}")]
    Rejected(String),
}

/// What [`Producer::send`] does when its queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Wait for room. The pipeline's choice: nothing is lost by waiting.
    Wait,
    /// Answer [`SendError::QueueFull`] at once. Ingest's choice: its client can send again.
    Refuse,
}

/// Writes records. One producer serves the whole host; records of one caller keep their order per partition.
pub trait Producer: Send + Sync + 'static {
    /// Sends records in order and resolves, once each is acknowledged (`acks=all`) or failed, to one result a record.
    ///
    /// Records are queued in order while the future is polled first; dropping it later does not unsend them.
    fn send(&self, records: Vec<Outgoing>, when_full: WhenFull)
    -> BoxFuture<'static, Vec<Result<Position, SendError>>>;

    /// Whether the producer can reach the broker now, as far as it knows.
    fn ready(&self) -> bool;

    /// Connects ahead of the first record, which would otherwise wait for it; resolves when done or at the deadline. Where
    /// there is nothing to connect to, it is done.
    fn warm<'a>(&'a self, _topics: &'a [Arc<str>], _deadline: Duration) -> BoxFuture<'a, Result<(), SendError>> {
        std::future::ready(Ok(())).boxed()
    }

    /// Waits until nothing is in flight, at most until the deadline; returns how many records still are. Where a record has its
    /// answer once it was sent, nothing is.
    fn flush(&self, _deadline: Duration) -> BoxFuture<'_, usize> {
        std::future::ready(0).boxed()
    }
}

/// Records and a group's offsets that are kept together or not at all: exactly once, from this log to this log.
///
/// One transaction at a time; it begins with its first record, or with its commit when it has none. After any error but
/// [`TransactionError::Unavailable`] of [`init`](Transactions::init), a transaction is ended by [`abort`](Transactions::abort)
/// or by dropping this value.
pub trait Transactions: Send + 'static {
    /// A group member as its transactions name it.
    type Member: Clone + Send + Sync + 'static;

    /// Takes the id over: whoever had it before is fenced, and what it left open is ended, one way or the other. Once, and
    /// successfully, before anything else.
    fn init(&mut self) -> impl Future<Output = Result<(), TransactionError>> + Send;

    /// Adds records to the transaction, in order. Resolves when they are queued; what became of them is told by the commit.
    /// They are shared, because whoever sends them may have to send them again.
    fn send(&mut self, records: Arc<Vec<Outgoing>>) -> impl Future<Output = Result<(), TransactionError>> + Send;

    /// Waits until nothing is in flight, then keeps the records together with the offsets, each the next to be read.
    ///
    /// The offsets are refused unless each partition is this member's by the last event that the member has answered: a
    /// broker fences generations and not ownership, so the host must. An error other than [`TransactionError::Unknown`] says
    /// that nothing is kept.
    fn commit(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &Self::Member,
    ) -> impl Future<Output = Result<(), TransactionError>> + Send;

    /// Ends the transaction with nothing kept. When this fails the value can only be dropped.
    fn abort(&mut self) -> impl Future<Output = Result<(), TransactionError>> + Send;

    /// Leaves the transaction to whoever takes the id over next, without waiting for a broker that may be away. Answers what
    /// may have reached one. The value can only be dropped then.
    fn give_up(&mut self) -> impl Future<Output = Remains> + Send;

    /// Ends once more what was not committed, in all partitions of these records' topics and in those that keep the group's
    /// offsets: each gets something in a transaction that is aborted. Before anything is committed again. False: the member
    /// has no place in its group yet, and without it the offsets are not reached.
    ///
    /// A broker that had trouble may count a transaction as aborted without having told its partitions (KAFKA-20734). What is
    /// committed next under the same id would be kept there together with what was not.
    fn sweep(
        &mut self,
        samples: &[Outgoing],
        offsets: &[(TopicPartition, Offset)],
        member: &Self::Member,
    ) -> impl Future<Output = Result<bool, TransactionError>> + Send;

    /// Commits offsets once more that were committed under this id and that the group does not have, though nothing that was
    /// begun before [`init`](Transactions::init) is open any more. False: the member has no place in its group yet.
    ///
    /// A broker that had trouble may count a transaction as committed without having told the partition that keeps the
    /// group's offsets (KAFKA-20734). They are undecided there, and whoever asks for them waits.
    fn restore(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &Self::Member,
    ) -> impl Future<Output = Result<bool, TransactionError>> + Send;

    /// What the member's group really has committed, for each of the partitions; waits for transactions that are open on them.
    fn committed(
        &mut self,
        partitions: &[TopicPartition],
        member: &Self::Member,
    ) -> impl Future<Output = Result<Vec<Option<Offset>>, TransactionError>> + Send;
}

/// What may be in the log of a transaction that was given up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// Whether anything may be.
    pub possible: bool,
    /// Where its first record surely is, in each partition that has acknowledged some.
    pub known: BTreeMap<TopicPartition, Offset>,
}

/// The offsets that are not reached by what a group has committed, of the same partitions in the same order.
pub(crate) fn lacking(
    offsets: &[(TopicPartition, Offset)],
    committed: &[Option<Offset>],
) -> Vec<(TopicPartition, Offset)> {
    let each = offsets.iter().zip(committed);
    each.filter(|((_, offset), at)| at.is_none_or(|at| at < *offset)).map(|(lacking, _)| lacking.clone()).collect()
}

/// Why a transaction was not committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// These records were refused, by their places in the order of sending; without them the rest can be sent again.
    #[error("{} of the transaction's records were refused, the first one: {}", .0.len(), first(.0))]
    Refused(Vec<(usize, SendError)>),
    /// Nothing is kept; the same can be sent again.
    #[error("the transaction was not committed: {0}")]
    Aborted(String),
    /// The group has moved on: these partitions may be another member's. Nothing is kept.
    #[error("the group has moved on without this member: {0}")]
    StaleMember(String),
    /// The broker is away, or too slow. Nothing is kept.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// Nobody knows whether it is committed. What the group has committed says so, once another value has taken the id over.
    #[error("it is not known whether the transaction was committed: {0}")]
    Unknown(String),
    /// A newer value has the id, or the broker gave the transaction up; nothing is kept, and this value can only be dropped.
    #[error("the transactional producer is fenced: {0}")]
    Fenced(String),
    /// This value can only be dropped. Nothing is kept.
    #[error("the transactional producer can't go on: {0}")]
    Fatal(String),
}

fn first(refused: &[(usize, SendError)]) -> String {
    refused.first().map(|(_, error)| error.to_string()).unwrap_or_default()
}

/// Where a group that has no committed offset begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartAt {
    /// At the oldest record that is kept.
    #[default]
    Earliest,
    /// At the next record that is written.
    Latest,
}

/// What a consumer subscribes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The consumer group.
    pub group: String,
    /// The topics; they need not exist yet.
    pub topics: Vec<String>,
    /// Where to begin without a committed offset.
    pub start_at: StartAt,
    /// The client's own properties, over those of the broker's configuration.
    pub properties: BTreeMap<String, String>,
}

/// What happens to a group member.
#[derive(Debug)]
pub enum ConsumerEvent {
    /// These partitions are now this member's, in addition to earlier ones: answer with [`Consumer::start`]. None at all
    /// says that the member has joined and has nothing to read for now.
    Assigned(Vec<TopicPartition>),
    /// The group takes these back: drain, commit, then answer with [`Consumer::release`]. Others may stand still until then.
    Revoked(Vec<TopicPartition>),
    /// These are already somebody else's: drop their work, do not commit, answer with [`Consumer::release`].
    Lost(Vec<TopicPartition>),
    /// Something that an operator should read; the consumer goes on by itself.
    Problem(String),
    /// The consumer can't go on; it must be made anew.
    Fatal(String),
}

/// Why an offset was not committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// This member's place in the group is gone (fenced, expired): its work is void.
    #[error("the group has moved on without this member: {0}")]
    Fenced(String),
    /// It may help to commit again.
    #[error("the offset was not committed: {0}")]
    Retriable(String),
}

/// Anything else that a broker call can fail by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// A configuration that can't work; the text names the key and the cure.
    #[error("{0}")]
    Config(String),
    /// The topic does not exist.
    #[error("there is no topic `{0}`; create it, or correct the name")]
    NoSuchTopic(String),
    /// The topic exists already.
    #[error("topic `{0}` exists already")]
    TopicExists(String),
    /// The broker can't be reached.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// Anything else that the broker said.
    #[error("the broker refused: {0}")]
    Rejected(String),
}

/// A member of a consumer group. Dropping it leaves the group without waiting; [`Consumer::close`] waits.
pub trait Consumer: Send + 'static {
    /// Reads one assigned partition.
    type Reader: Reader;

    /// This member as its transactions name it.
    type Member: Clone + Send + Sync + 'static;

    /// Waits for the next event. Cancel-safe.
    fn next_event(&mut self) -> impl Future<Output = ConsumerEvent> + Send;

    /// Begins to read assigned partitions, each from the offset that `places` names, or else from its committed offset, or
    /// else from [`Subscription::start_at`]. What `places` names must lie between the partition's oldest record and its end.
    fn start(
        &mut self,
        partitions: &[TopicPartition],
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> impl Future<Output = Result<Vec<(TopicPartition, Self::Reader)>, BrokerError>> + Send;

    /// Begins started partitions anew at these places, which must lie between their oldest records and their ends; those that
    /// are not this member's any more are left out. Their readers must be dropped before.
    fn seek(
        &mut self,
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> impl Future<Output = Result<Vec<(TopicPartition, Self::Reader)>, BrokerError>> + Send;

    /// Gives partitions back after [`ConsumerEvent::Revoked`] or [`ConsumerEvent::Lost`]. Their readers must be dropped before.
    fn release(&mut self, partitions: &[TopicPartition]) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Commits offsets (each the next to be read) and resolves when the broker confirmed. At most one commit at a time.
    fn commit(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + 'static;

    /// This member, for [`Transactions::commit`]. It does not keep the membership alive.
    fn member(&self) -> Self::Member;

    /// Leaves the group, giving up all partitions; readers must be dropped before.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Reads one partition, in order. What is not read is not fetched without bound: leaving it alone is the back-pressure.
pub trait Reader: Send + 'static {
    /// Waits until there is a record, then takes what is there, up to the bounds; one record that is larger than
    /// `bytes_max` still comes alone. Never waits to fill. Cancel-safe: a dropped call has taken nothing.
    ///
    /// No record at all says that offsets were passed that hold none: [`Reader::position`] has moved.
    fn next(
        &mut self,
        records_max: usize,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Arc<Chunk>, BrokerError>> + Send;

    /// Offsets that were deleted before they were read, as found since it was asked last.
    fn skipped(&mut self) -> Option<Range<Offset>>;

    /// One past the last record of the partition, as far as is known without asking.
    fn end_offset(&self) -> Option<Offset>;

    /// The next offset to be read, as far as is known without asking: at first where the group stands.
    fn position(&self) -> Option<Offset>;

    /// Whether nothing more comes, because this reader is to read no further.
    fn ended(&self) -> bool {
        false
    }
}

/// What reads a broker's partitions.
pub type ReaderOf<B> = <<B as Broker>::Consumer as Consumer>::Reader;

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// For each partition, in order: its number, the oldest kept offset and the next to be written.
    pub partitions: Vec<PartitionInfo>,
}

/// What is known of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Its number.
    pub partition: i32,
    /// The oldest kept offset.
    pub start: Offset,
    /// The next to be written, or the first of a transaction that is open: one past what can be read as committed.
    pub end: Offset,
    /// How many replicas hold it; 1 where there is no replication.
    pub replicas: usize,
}

/// How a topic is kept; `None` where it is not known, or has no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicSettings {
    /// How many replicas have to have a record before it counts as stored.
    pub in_sync_min: Option<usize>,
    /// How long records are kept.
    pub age_max: Option<Duration>,
    /// How many bytes of each partition.
    pub bytes_max: Option<u64>,
}

/// For each partition of a topic, the offset that a group has committed there, if any.
pub type Committed = Vec<(i32, Option<Offset>)>;

/// For each partition of a topic, the next offset to be written.
pub type Written = Vec<(i32, Offset)>;

/// Looks after topics and groups, for commands and for checks at start.
pub trait Admin: Send + Sync + 'static {
    /// All topics, or the named one, by name. Internal topics are left out.
    fn topics(&self, name: Option<&str>) -> BoxFuture<'_, Result<Vec<TopicInfo>, BrokerError>>;

    /// Whether a topic is there, or would be made by its first record.
    fn takes_records<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<bool, BrokerError>> {
        async move {
            match self.topics(Some(topic)).await {
                Ok(found) => Ok(!found.is_empty()),
                Err(BrokerError::NoSuchTopic(_)) => Ok(false),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    /// Makes a topic. `replicas` is ignored where there is no replication; `None` is the broker's default.
    fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replicas: Option<i32>,
    ) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// The first offset at or after a time, for each partition of a topic; the end where none is later.
    fn offsets_for_time(&self, topic: &str, millis: i64) -> BoxFuture<'_, Result<Vec<(i32, Offset)>, BrokerError>>;

    /// How a topic is kept; `None` where there is no replication, and nothing to be asked.
    fn settings<'a>(&'a self, _topic: &'a str) -> BoxFuture<'a, Result<Option<TopicSettings>, BrokerError>> {
        std::future::ready(Ok(None)).boxed()
    }

    /// How many members a group has; `None` where that can't be asked.
    fn members<'a>(&'a self, _group: &'a str) -> BoxFuture<'a, Result<Option<usize>, BrokerError>> {
        std::future::ready(Ok(None)).boxed()
    }

    /// The next offset to be written of each partition of a topic, whatever is committed; `None` where nothing is ever hidden.
    fn written<'a>(&'a self, _topic: &'a str) -> BoxFuture<'a, Result<Option<Written>, BrokerError>> {
        std::future::ready(Ok(None)).boxed()
    }

    /// A group's committed offsets of a topic.
    fn committed(&self, group: &str, topic: &str) -> BoxFuture<'_, Result<Committed, BrokerError>>;

    /// Commits offsets, each the next to be read, for a group that has no members; while it has some, that is refused.
    fn commit(&self, group: &str, offsets: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Who holds which partition for a group, in words, as far as that can be asked.
    fn owners<'a>(&'a self, _group: &'a str) -> BoxFuture<'a, Result<BTreeMap<TopicPartition, String>, BrokerError>> {
        std::future::ready(Ok(BTreeMap::new())).boxed()
    }

    /// Reads partitions outside any group, from the given offsets, at most so many records and a few megabytes at once.
    fn read(
        &self,
        topic: &str,
        partition: i32,
        from: Offset,
        records_max: usize,
    ) -> BoxFuture<'_, Result<Arc<Chunk>, BrokerError>>;
}

/// A log of records: where consumers, producers and the admin come from. Cheap to clone.
pub trait Broker: Clone + Send + Sync + 'static {
    /// Its group members.
    type Consumer: Consumer;

    /// Its transactions.
    type Transactions: Transactions<Member = <Self::Consumer as Consumer>::Member>;

    /// Joins a group.
    fn consumer(&self, subscription: &Subscription) -> Result<Self::Consumer, BrokerError>;

    /// Reads partitions outside of any group, each from a place between its oldest record and its end: nothing is joined, and
    /// nothing is committed. Such a reader passes offsets that hold no record up to the end as it was when it began, so that
    /// its position gets there.
    fn readers(
        &self,
        places: &BTreeMap<TopicPartition, Offset>,
        properties: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<Vec<(TopicPartition, ReaderOf<Self>)>, BrokerError>> + Send;

    /// Whether a member could be made so, down to its properties. Nothing is joined or connected.
    fn check(&self, subscription: &Subscription) -> Result<(), BrokerError>;

    /// Makes a producer with the given properties over those of the configuration.
    fn producer(&self, properties: &BTreeMap<String, String>) -> Result<Arc<dyn Producer>, BrokerError>;

    /// Makes a transactional producer. Nobody else may use the id, except to take it over.
    fn transactions(&self, id: &str, properties: &BTreeMap<String, String>) -> Result<Self::Transactions, BrokerError>;

    /// Looks after topics and groups.
    fn admin(&self) -> Result<Arc<dyn Admin>, BrokerError>;
}
