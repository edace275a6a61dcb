//! Which topics there are, and how far each partition goes: what everyone in the process sees of the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rusqlite::Connection;
use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::watch;

use crate::broker::BrokerError;

/// The longest name of a topic, as on Kafka.
const NAME_BYTES_MAX: usize = 249;

/// All topics. The writer publishes; everyone else looks.
#[derive(Debug, Default)]
pub(super) struct Topics {
    by_name: RwLock<BTreeMap<Arc<str>, Arc<Topic>>>,
}

/// One topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    /// By number. Invariant: never empty, and never grows.
    pub(super) partitions: Vec<Arc<Partition>>,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    /// Its key in the database, and the name of its table.
    pub(super) id: i64,
    /// How a record is stored: the text is made once.
    pub(super) insert: String,
    /// The oldest kept offset. Only the writer sets it.
    start: AtomicI64,
    /// The next to be written. Only the writer sends, after its commit; readers wait for it.
    end: watch::Sender<Offset>,
}

impl Partition {
    pub(super) fn new(id: i64, start: Offset, next: Offset) -> Self {
        let insert =
            format!("INSERT INTO records_{id} (offset, timestamp_ms, key, value, headers) VALUES (?1, ?2, ?3, ?4, ?5)");
        Self { id, insert, start: AtomicI64::new(start), end: watch::Sender::new(next) }
    }

    pub(super) fn start(&self) -> Offset {
        self.start.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) -> Offset {
        *self.end.borrow()
    }

    /// A view that wakes whoever waits for a record.
    pub(super) fn watch(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    pub(super) fn publish_start(&self, start: Offset) {
        self.start.store(start, Ordering::Relaxed);
    }

    pub(super) fn publish_end(&self, end: Offset) {
        self.end.send_replace(end);
    }
}

impl Topics {
    /// Reads what the database holds.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut statement = connection.prepare(
            "SELECT topic.name, partition.id, partition.start, partition.next FROM topic
             JOIN partition ON partition.topic = topic.id ORDER BY topic.name, partition.number",
        )?;
        let mut rows = statement.query([])?;
        let mut found: BTreeMap<String, Vec<Arc<Partition>>> = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let partition = Partition::new(row.get(1)?, row.get(2)?, row.get(3)?);
            found.entry(row.get(0)?).or_default().push(Arc::new(partition));
        }
        let topics = Self::default();
        for (name, partitions) in found {
            topics.publish(Topic { name: name.into(), partitions });
        }
        Ok(topics)
    }

    pub(super) fn publish(&self, topic: Topic) {
        let mut topics = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        topics.insert(Arc::clone(&topic.name), Arc::new(topic));
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Topic>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(super) fn partition(&self, of: &TopicPartition) -> Option<Arc<Partition>> {
        let topic = self.get(&of.topic)?;
        topic.partitions.get(usize::try_from(of.partition).ok()?).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Topic>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Refuses a name that Kafka would refuse, so that a topic can move there.
pub(super) fn check_name(name: &str) -> Result<(), BrokerError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(legal) && name != "." && name != ".." {
        return Ok(());
    }
    Err(BrokerError::Rejected(format!(
        "`{name}` is no name for a topic; use 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` and `-`"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kafka() {
        for name in ["orders", "orders.enriched", "a-b_C.9", &"x".repeat(249)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "über", &"x".repeat(250)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
