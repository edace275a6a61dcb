//! The embedded log: a broker in the host's own process, on SQLite, for the first run, development, tests and small hosts.
//!
//! Topics, partitions, groups that rebalance, committed offsets and offsets by time are as on Kafka, and so is the
//! partitioner. It does not speak Kafka's protocol, and one process holds it at a time. What is acknowledged survives
//! `kill -9`; a power loss too with `sync = "full"`. `docs/embedded-log.md` tells an operator the rest.

mod admin;
mod append;
mod assign;
mod config;
mod consumer;
mod database;
mod group;
mod groups;
mod headers;
mod lock;
mod producer;
mod reads;
mod retention;
mod topics;
mod transactions;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rusqlite::Connection;
use tidemill_core::record::{Offset, TopicPartition};

use self::admin::EmbeddedAdmin;
pub use self::config::{Config, Sync, TopicConfig};
pub use self::consumer::{EmbeddedConsumer, EmbeddedReader};
use self::database::Database;
use self::groups::Groups;
use self::lock::Lock;
use self::producer::{EmbeddedProducer, Queue};
use self::reads::Reads;
use self::topics::Topics;
pub use self::transactions::EmbeddedTransactions;
use self::transactions::Owners;
use self::writer::{Command, Parts};
use super::{Admin, Broker, BrokerError, Producer, Subscription};

/// A log in a folder of this machine, or in memory. It is closed when its last consumer, reader and producer are gone.
#[derive(Clone)]
pub struct Embedded {
    log: Arc<Log>,
}

/// What the log's consumers, producers and admins share.
struct Log {
    config: Config,
    topics: Arc<Topics>,
    groups: Arc<Groups>,
    reads: Arc<Reads>,
    queue: Queue,
    owners: Owners,
    /// `None`: another process may hold the log, and this one only reads it.
    writer: Option<writer::Writer>,
}

impl Embedded {
    /// Checks a configuration without opening anything.
    pub fn check(config: &Config) -> Result<(), BrokerError> {
        config.check()
    }

    /// Opens the log for this process alone and makes the topics that the configuration declares.
    pub fn open(config: &Config, folder: &Path) -> Result<Self, BrokerError> {
        config.check()?;
        let path = folder.join(&config.path);
        let database = Database::in_folder(&path)?;
        let lock = Lock::take(&path)?;
        Self::start(config.clone(), database, Some(lock))
    }

    /// A log of its own that is gone when it is closed: for checks and tests.
    pub fn in_memory() -> Result<Self, BrokerError> {
        Self::start(Config::at(""), Database::in_memory(), None)
    }

    /// Opens the log to read it outside of groups, also while another process holds it.
    pub fn open_read_only(config: &Config, folder: &Path) -> Result<Self, BrokerError> {
        config.check()?;
        let database = Arc::new(Database::of_another(&folder.join(&config.path))?);
        drop(database.reader()?);
        Ok(Self { log: Arc::new(Log::new(config.clone(), database, Arc::default(), None)) })
    }

    fn start(config: Config, database: Database, lock: Option<Lock>) -> Result<Self, BrokerError> {
        let mut connection = database.writer(config.sync)?;
        let topics = Topics::load(&connection).map_err(unreadable)?;
        make_declared(&config, &mut connection, &topics)?;
        let (database, topics) = (Arc::new(database), Arc::new(topics));
        let mut log = Log::new(config.clone(), Arc::clone(&database), topics, None);
        let (topics, groups) = (Arc::clone(&log.topics), Arc::clone(&log.groups));
        let writer = writer::start(Parts { config, database, connection, topics, groups, _lock: lock });
        let failed = |cause| BrokerError::Unavailable(format!("the log's writer can't be started: {cause}"));
        log.writer = Some(writer.map_err(failed)?);
        Ok(Self { log: Arc::new(log) })
    }

    fn writable(&self) -> Result<(), BrokerError> {
        match self.log.writer {
            Some(_) => Ok(()),
            None => Err(BrokerError::Config("the log is opened only to be read".to_owned())),
        }
    }
}

impl Broker for Embedded {
    type Consumer = EmbeddedConsumer;
    type Transactions = EmbeddedTransactions;

    fn consumer(&self, subscription: &Subscription) -> Result<EmbeddedConsumer, BrokerError> {
        self.writable()?;
        note_properties(&subscription.properties);
        Ok(EmbeddedConsumer::join(Arc::clone(&self.log), subscription))
    }

    async fn readers(
        &self,
        places: &BTreeMap<TopicPartition, Offset>,
        properties: &BTreeMap<String, String>,
    ) -> Result<Vec<(TopicPartition, EmbeddedReader)>, BrokerError> {
        note_properties(properties);
        let mut readers = Vec::with_capacity(places.len());
        for (of, from) in places {
            readers.push((of.clone(), EmbeddedReader::outside_of_groups(&self.log, of, *from).await?));
        }
        Ok(readers)
    }

    fn check(&self, _subscription: &Subscription) -> Result<(), BrokerError> {
        // Properties of Kafka's clients mean nothing here, so that one manifest serves both.
        Ok(())
    }

    fn producer(&self, properties: &BTreeMap<String, String>) -> Result<Arc<dyn Producer>, BrokerError> {
        self.writable()?;
        note_properties(properties);
        Ok(Arc::new(EmbeddedProducer::new(Arc::clone(&self.log))))
    }

    fn transactions(
        &self,
        id: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<EmbeddedTransactions, BrokerError> {
        self.writable()?;
        note_properties(properties);
        Ok(EmbeddedTransactions::new(Arc::clone(&self.log), id))
    }

    fn admin(&self) -> Result<Arc<dyn Admin>, BrokerError> {
        Ok(Arc::new(EmbeddedAdmin::new(Arc::clone(&self.log))))
    }
}

impl Log {
    fn new(config: Config, database: Arc<Database>, topics: Arc<Topics>, writer: Option<writer::Writer>) -> Self {
        let groups = Arc::new(Groups::new(Arc::clone(&topics), config.drain_deadline.0));
        let reads = Arc::new(Reads::new(database, config.readers_max));
        let queue = Queue::new(config.queue_bytes_max.0);
        Self { config, topics, groups, reads, queue, owners: Owners::default(), writer }
    }

    /// Queues work for the writer, or says why that can't be.
    fn command(&self, command: Command) -> Result<(), String> {
        let writer = self.writer.as_ref().ok_or("the log is opened only to be read")?;
        writer.commands.send(command).map_err(|_| "the log's writer has ended".to_owned())
    }

    fn writer_runs(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| !writer.thread.is_finished())
    }
}

impl Drop for Log {
    /// Waits for what is queued to be written, so that the log can be opened again at once.
    fn drop(&mut self) {
        let Some(writer::Writer { commands, thread }) = self.writer.take() else { return };
        drop(commands);
        if JoinHandle::join(thread).is_err() {
            tracing::error!("the log's writer ended badly");
        }
    }
}

/// Makes the declared topics that are missing, and refuses a number of partitions that is not the topic's.
fn make_declared(config: &Config, connection: &mut Connection, topics: &Topics) -> Result<(), BrokerError> {
    for (name, declared) in &config.topics {
        match (topics.get(name), declared.partitions) {
            (Some(topic), Some(partitions)) if topic.partitions.len() as i32 != partitions => {
                let has = topic.partitions.len();
                return Err(BrokerError::Config(format!(
                    "`topics.{name}.partitions` is {partitions}, and the topic has {has}; the number can't be changed: write {has}, or use another topic"
                )));
            }
            (Some(_), _) => {}
            (None, _) => {
                let made = writer::create_topic(connection, name, config.partitions_of(name)).map_err(unreadable)?;
                topics.publish(made);
            }
        }
    }
    Ok(())
}

/// Kafka's client has properties and this log has none: the same handler runs on both.
fn note_properties(properties: &BTreeMap<String, String>) {
    if !properties.is_empty() {
        let names: Vec<_> = properties.keys().collect();
        tracing::debug!(?names, "the embedded log has no client properties; they are for Kafka");
    }
}

fn unreadable(error: rusqlite::Error) -> BrokerError {
    BrokerError::Unavailable(format!("the embedded log can't be read: {error}"))
}

#[cfg(test)]
mod tests;
