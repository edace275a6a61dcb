//! The one thread that writes: many waiting sends and commits become one transaction, and are answered once it is safe.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, TransactionBehavior, params};
use tidemill_core::record::Offset;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::append::{Appending, Sticky, Tail};
use super::config::{Config, check_partitions};
use super::database::{Database, WAL_BYTES_MAX};
use super::groups::Groups;
use super::lock::Lock;
use super::producer::InFlight;
use super::retention;
use super::topics::{Partition, Topic, Topics, check_name};
use crate::broker::{BrokerError, CommitError, Outgoing, Position, SendError, TransactionError};

/// A transaction takes in what waits until it has so many bytes: then those who wait are answered.
const TRANSACTION_BYTES_MAX: usize = 4 << 20;

/// A transaction takes in so many sends and commits at most.
const TRANSACTION_COMMANDS_MAX: usize = 10_000;

/// How often records are looked at that became too old.
const RETENTION_INTERVAL: Duration = Duration::from_secs(30);

/// What the writer is asked for.
pub(super) enum Command {
    Append(Append),
    Commit(Commit),
    Transact(Transact),
    Create(Create),
}

/// Records of one send.
pub(super) struct Append {
    pub(super) records: Vec<Outgoing>,
    pub(super) bytes: usize,
    pub(super) answer: oneshot::Sender<Vec<Result<Position, SendError>>>,
    /// Its place in the queue and in the count of what is in flight, given up when it was answered.
    pub(super) in_flight: InFlight,
}

/// Offsets of one commit, by partition id.
pub(super) struct Commit {
    pub(super) group: String,
    pub(super) offsets: Vec<(i64, Offset)>,
    pub(super) answer: oneshot::Sender<Result<(), CommitError>>,
}

/// Records and offsets, by partition id, that are written together or not at all.
pub(super) struct Transact {
    pub(super) records: Vec<Outgoing>,
    pub(super) bytes: usize,
    pub(super) group: String,
    pub(super) offsets: Vec<(i64, Offset)>,
    pub(super) answer: oneshot::Sender<Result<(), TransactionError>>,
    /// Its place in the queue, given up when it was answered.
    pub(super) _room: OwnedSemaphorePermit,
}

/// A topic to be made.
pub(super) struct Create {
    pub(super) name: String,
    pub(super) partitions: i32,
    pub(super) answer: oneshot::Sender<Result<(), BrokerError>>,
}

/// The running thread, as others see it. It ends once all senders of its queue are gone and the queue is empty.
pub(super) struct Writer {
    pub(super) commands: Sender<Command>,
    pub(super) thread: JoinHandle<()>,
}

/// What the thread works with.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) database: Arc<Database>,
    pub(super) connection: Connection,
    pub(super) topics: Arc<Topics>,
    pub(super) groups: Arc<Groups>,
    /// Held as long as the thread may write; none in memory.
    pub(super) _lock: Option<Lock>,
}

struct Body {
    parts: Parts,
    sticky: Sticky,
    tails: BTreeMap<i64, Tail>,
    /// Since the write-ahead log was cut back.
    written: i64,
    aged: Instant,
}

/// Starts the thread.
pub(super) fn start(parts: Parts) -> std::io::Result<Writer> {
    let (commands, inbox) = channel();
    let mut body = Body { parts, sticky: Sticky::default(), tails: BTreeMap::new(), written: 0, aged: Instant::now() };
    let thread = std::thread::Builder::new().name("log-writer".to_owned()).spawn(move || {
        body.delete_aged();
        body.run(&inbox);
    })?;
    Ok(Writer { commands, thread })
}

/// Makes a topic in the database.
pub(super) fn create_topic(connection: &mut Connection, name: &str, partitions: i32) -> rusqlite::Result<Topic> {
    let making = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let topic: i64 = making.query_row("INSERT INTO topic (name) VALUES (?1) RETURNING id", [name], |row| row.get(0))?;
    let mut made = Vec::new();
    for number in 0..partitions {
        let sql = "INSERT INTO partition (topic, number) VALUES (?1, ?2) RETURNING id";
        let id: i64 = making.prepare_cached(sql)?.query_row(params![topic, number], |row| row.get(0))?;
        making.execute_batch(&format!(
            "CREATE TABLE records_{id} (offset INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL, key BLOB, value BLOB, headers BLOB) STRICT"
        ))?;
        made.push(Arc::new(Partition::new(id, 0, 0)));
    }
    making.commit()?;
    Ok(Topic { name: name.into(), partitions: made })
}

impl Body {
    fn run(&mut self, inbox: &Receiver<Command>) {
        loop {
            let first = match inbox.recv_timeout(RETENTION_INTERVAL) {
                Ok(command) => command,
                Err(RecvTimeoutError::Timeout) => {
                    self.delete_aged();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut batch = Batch::default();
            let create = batch.gather(first, inbox);
            if !batch.is_empty() {
                self.write(batch);
            }
            if let Some(create) = create {
                // Whoever asked may be gone; the topic is made.
                drop(create.answer.send(self.create(&create.name, create.partitions)));
            }
            if self.aged.elapsed() >= RETENTION_INTERVAL {
                self.delete_aged();
            }
        }
    }

    fn create(&mut self, name: &str, partitions: i32) -> Result<(), BrokerError> {
        check_name(name)?;
        check_partitions("partitions", partitions)?;
        if self.parts.topics.get(name).is_some() {
            return Err(BrokerError::TopicExists(name.to_owned()));
        }
        let database = Arc::clone(&self.parts.database);
        let turn = database.turn();
        let made = create_topic(&mut self.parts.connection, name, partitions);
        drop(turn);
        self.parts.topics.publish(made.map_err(|error| BrokerError::Unavailable(error.to_string()))?);
        // Before the first record is written: a group that starts at the next record sees the topic while it is empty.
        self.parts.groups.topic_made();
        tracing::info!(topic = name, partitions, "the topic is made");
        Ok(())
    }

    /// Writes a batch in one transaction, then answers.
    fn write(&mut self, batch: Batch) {
        self.create_missing(&batch);
        let database = Arc::clone(&self.parts.database);
        let turn = database.turn();
        let written = self.transact(&batch);
        drop(turn);
        let Written { appended, transacted } = match written {
            Ok(written) => written,
            Err(error) => {
                // What is in the file is the truth now, whatever we believed.
                self.tails.clear();
                tracing::error!(%error, "the embedded log can't be written");
                return batch.fail(&error);
            }
        };
        self.written += batch.bytes as i64;
        for (append, results) in batch.appends.into_iter().zip(appended) {
            drop(append.answer.send(results));
            drop(append.in_flight);
        }
        for commit in batch.commits {
            drop(commit.answer.send(Ok(())));
        }
        for (transact, result) in batch.transacts.into_iter().zip(transacted) {
            drop(transact.answer.send(result));
        }
        if self.written > WAL_BYTES_MAX {
            self.written = 0;
            self.cut_back();
        }
    }

    /// Makes the topics that are written to and do not exist, where the configuration says so.
    fn create_missing(&mut self, batch: &Batch) {
        if !self.parts.config.create_topics {
            return;
        }
        let mut last: Option<&Arc<str>> = None;
        let appended = batch.appends.iter().flat_map(|append| &append.records);
        for record in appended.chain(batch.transacts.iter().flat_map(|transact| &transact.records)) {
            if last == Some(&record.topic) {
                continue;
            }
            last = Some(&record.topic);
            if self.parts.topics.get(&record.topic).is_none() {
                let partitions = self.parts.config.partitions_of(&record.topic);
                if let Err(error) = self.create(&record.topic, partitions) {
                    tracing::warn!(%error, "a topic that is written to can't be made");
                }
            }
        }
    }

    fn transact(&mut self, batch: &Batch) -> Result<Written, WriteError> {
        let now_ms = now_ms();
        let Parts { connection, topics, config, .. } = &mut self.parts;
        let before = |error| WriteError { error, unknown: false };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(before)?;
        let mut appending = Appending::new(&transaction, topics, config, now_ms, &self.tails);
        let mut appended = Vec::with_capacity(batch.appends.len());
        for append in &batch.appends {
            let mut positions = Vec::with_capacity(append.records.len());
            for record in &append.records {
                positions.push(appending.append(record, &mut self.sticky).map_err(before)?);
            }
            self.sticky.turn();
            appended.push(positions);
        }
        for commit in &batch.commits {
            write_offsets(&transaction, &commit.group, &commit.offsets).map_err(before)?;
        }
        let mut transacted = Vec::with_capacity(batch.transacts.len());
        for transact in &batch.transacts {
            transacted.push(appending.transact(transact, &mut self.sticky).map_err(before)?);
        }
        appending.finish().map_err(before)?;
        let touched = appending.touched;
        transaction.commit().map_err(|error| WriteError { error, unknown: true })?;
        for (id, mut touched) in touched {
            touched.partition.publish_end(touched.tail.next);
            let retention = config.retention_of(&touched.topic);
            if touched.tail.bytes > retention.bytes {
                delete_old(connection, &touched.partition, &mut touched.tail, retention, now_ms);
            }
            self.tails.insert(id, touched.tail);
        }
        Ok(Written { appended, transacted })
    }

    /// Deletes what became too old, in all partitions.
    fn delete_aged(&mut self) {
        self.aged = Instant::now();
        let now_ms = now_ms();
        let database = Arc::clone(&self.parts.database);
        for topic in self.parts.topics.all() {
            let retention = self.parts.config.retention_of(&topic.name);
            for partition in &topic.partitions {
                let _turn = database.turn();
                let connection = &mut self.parts.connection;
                let tail = match self.tails.remove(&partition.id) {
                    Some(tail) => Ok(tail),
                    None => Tail::load(connection, partition.id),
                };
                match tail {
                    Ok(mut tail) => {
                        delete_old(connection, partition, &mut tail, retention, now_ms);
                        self.tails.insert(partition.id, tail);
                    }
                    Err(error) => tracing::warn!(%error, topic = %topic.name, "old records are not deleted"),
                }
            }
        }
    }

    /// Cuts the write-ahead log back, which readers that overlap can otherwise prevent for ever.
    fn cut_back(&mut self) {
        let _turn = self.parts.database.turn();
        let cut = self.parts.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
        if let Err(error) = cut {
            tracing::warn!(%error, "the write-ahead log is not cut back");
        }
    }
}

fn delete_old(
    connection: &mut Connection,
    partition: &Arc<Partition>,
    tail: &mut Tail,
    retention: super::config::Retention,
    now_ms: i64,
) {
    if let Err(error) = retention::apply(connection, partition, tail, retention, now_ms) {
        tracing::warn!(%error, partition = partition.id, "old records are not deleted");
    }
}

/// Writes a group's offsets, by partition id.
pub(super) fn write_offsets(connection: &Connection, group: &str, offsets: &[(i64, Offset)]) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO committed (consumer_group, partition, next) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET next = ?3",
    )?;
    for (partition, next) in offsets {
        statement.execute(params![group, partition, next])?;
    }
    Ok(())
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Why a transaction failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
struct WriteError {
    error: rusqlite::Error,
    /// Whether it failed while it was being committed, so that it may be in the file.
    unknown: bool,
}

/// What became of the parts of a batch, each in its order.
struct Written {
    appended: Vec<Vec<Result<Position, SendError>>>,
    transacted: Vec<Result<(), TransactionError>>,
}

/// What becomes one transaction.
#[derive(Default)]
struct Batch {
    appends: Vec<Append>,
    commits: Vec<Commit>,
    transacts: Vec<Transact>,
    bytes: usize,
}

impl Batch {
    /// Takes in what waits, up to the bounds or to a topic that is to be made after it.
    fn gather(&mut self, first: Command, inbox: &Receiver<Command>) -> Option<Create> {
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Append(append) => {
                    self.bytes += append.bytes;
                    self.appends.push(append);
                }
                Command::Commit(commit) => self.commits.push(commit),
                Command::Transact(transact) => {
                    self.bytes += transact.bytes;
                    self.transacts.push(transact);
                }
                Command::Create(create) => return Some(create),
            }
            if self.bytes < TRANSACTION_BYTES_MAX && self.commands() < TRANSACTION_COMMANDS_MAX {
                next = inbox.try_recv().ok();
            }
        }
        None
    }

    fn commands(&self) -> usize {
        self.appends.len() + self.commits.len() + self.transacts.len()
    }

    fn is_empty(&self) -> bool {
        self.commands() == 0
    }

    fn fail(self, error: &WriteError) {
        let text = error.to_string();
        let refusal =
            if error.unknown { SendError::Unknown(text.clone()) } else { SendError::Unavailable(text.clone()) };
        for append in self.appends {
            drop(append.answer.send(append.records.iter().map(|_| Err(refusal.clone())).collect()));
        }
        for commit in self.commits {
            drop(commit.answer.send(Err(CommitError::Retriable(text.clone()))));
        }
        for transact in self.transacts {
            let text = text.clone();
            let refusal =
                if error.unknown { TransactionError::Unknown(text) } else { TransactionError::Unavailable(text) };
            drop(transact.answer.send(Err(refusal)));
        }
    }
}
