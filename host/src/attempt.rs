//! One try of a batch: its records, its deadline, and what it does to the world.
//!
//! `Attempt` is what makes the delivery promises one code path (ARCH-7): whatever a guest does goes through it, and an
//! attempt that fails leaves no buffered output and no open transaction.

use std::sync::Arc;
use std::time::Duration;

use tidemill_core::partition::CallRecord;
use tidemill_core::record::TopicPartition;

/// What the host promises around a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guarantee {
    /// Committed before the call.
    AtMostOnce,
    /// Outputs acknowledged, then the offset committed.
    #[default]
    AtLeastOnce,
    /// Outputs and offsets in one Kafka transaction.
    KafkaTransaction,
    /// The guest's SQL and the offset in one database transaction.
    SqlTransaction,
}

/// One try of a batch of one partition, handed to [`crate::guest::Handler::call`].
#[derive(Debug)]
pub struct Attempt {
    /// Where the records come from.
    pub from: TopicPartition,
    /// Counts assignments of partitions to this host: work of an older one is void.
    pub epoch: u64,
    /// The records, in offset order.
    pub records: Vec<CallRecord>,
    /// After this long the host stops the call.
    pub deadline: Duration,
    /// "live"; later also "replay" and "shadow".
    pub delivery: &'static str,
    /// What the host promises around it.
    pub guarantee: Guarantee,
    /// What the guest's host calls did.
    pub effects: Effects,
}

/// What the guest's host calls did in one attempt.
#[derive(Debug, Default)]
pub struct Effects {
    /// The first host call that failed because something is away: a guest's claim that it is not to blame is believed
    /// only then.
    pub unavailable: Option<String>,
    /// Records sent at once with `producer.send`: they are not undone.
    pub sent_at_once: u64,
}

impl Attempt {
    /// An attempt at least once on these records.
    pub fn new(from: TopicPartition, epoch: u64, records: Vec<CallRecord>, deadline: Duration) -> Self {
        Self {
            from,
            epoch,
            records,
            deadline,
            delivery: "live",
            guarantee: Guarantee::AtLeastOnce,
            effects: Effects::default(),
        }
    }
}

/// The text of a digest that people read: its first twelve characters.
pub fn short(digest: &Arc<str>) -> &str {
    digest.get(..12).unwrap_or(digest)
}
