//! One try of a batch: its records, its deadline, and what it does to the world.
//!
//! `Attempt` is what makes the delivery promises one code path (ARCH-7): whatever a guest does goes through it, and an
//! attempt that fails leaves no buffered output and no open transaction.

mod transaction;

use std::sync::Arc;
use std::time::Duration;

use tidemill_core::partition::CallRecord;
use tidemill_core::record::TopicPartition;
use tokio_util::sync::CancellationToken;

pub use self::transaction::{Committed, Open, Ownership};
use crate::guest::{Called, Handler, Outcome, Reason};
use crate::settle::{Settlement, Settler};

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
    /// "live" or "replay"; later also "shadow".
    pub delivery: &'static str,
    /// What the host promises around it.
    pub guarantee: Guarantee,
    /// The hold on the row that keeps the partition's offset, under [`Guarantee::SqlTransaction`].
    pub owner: Option<Arc<Ownership>>,
    /// Once the partition is revoked: what can't end soon is left to whoever gets the partition next.
    pub revoked: CancellationToken,
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
    /// The delivery's transaction, once the guest has asked for it.
    pub open: Option<Open>,
    /// Why that transaction had to give way to another one, if it had.
    pub conflict: Option<String>,
}

impl Attempt {
    /// An attempt on these records of a live delivery.
    pub fn new(
        from: TopicPartition,
        epoch: u64,
        records: Vec<CallRecord>,
        guarantee: Guarantee,
        deadline: Duration,
        revoked: CancellationToken,
    ) -> Self {
        let effects = Effects::default();
        Self { from, epoch, records, deadline, delivery: "live", guarantee, owner: None, revoked, effects }
    }
}

/// Runs one attempt to its end: the guest's call, then settling what it said. Returns what became of each record.
///
/// `slot` is given back as soon as the guest has returned: waiting for acknowledgements takes no instance.
pub async fn run<S>(handler: &dyn Handler, settler: &Settler, mut attempt: Attempt, slot: S) -> Settlement {
    let called = call(handler, &mut attempt).await;
    drop(slot);
    match attempt.owner.clone() {
        Some(owner) => settler.settle_together(&mut attempt, &owner, called).await,
        None => settler.settle(&attempt, called).await,
    }
}

/// Calls the guest with the records that can be shown to one; the others are rejected beside it.
async fn call(handler: &dyn Handler, attempt: &mut Attempt) -> Called {
    if !attempt.records.iter().any(|record| record.record.malformed()) {
        return handler.call(attempt).await;
    }
    let all = std::mem::take(&mut attempt.records);
    attempt.records = all.iter().filter(|record| !record.record.malformed()).cloned().collect();
    let mut called = if attempt.records.is_empty() {
        Called { revision: handler.revision(), took: Duration::ZERO, outcomes: Ok(Vec::new()) }
    } else {
        handler.call(attempt).await
    };
    attempt.records = all;
    if let Ok(outcomes) = &mut called.outcomes {
        let mut given = std::mem::take(outcomes).into_iter();
        *outcomes = attempt
            .records
            .iter()
            .map(
                |record| {
                    if record.record.malformed() { malformed() } else { given.next().unwrap_or(Outcome::Untouched) }
                },
            )
            .collect();
    }
    called
}

fn malformed() -> Outcome {
    Outcome::DeadLetter(Reason {
        code: "malformed".to_owned(),
        detail: "a header's name is not UTF-8, so the record can't be shown to a guest".to_owned(),
    })
}

/// The text of a digest that people read: its first twelve characters.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
