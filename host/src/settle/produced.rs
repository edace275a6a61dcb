//! What settled records leave to be produced in a Kafka transaction, and what becomes of it there.

use std::sync::Arc;

use tidemill_core::partition::{CallRecord, Verdict};
use tidemill_core::record::{Offset, TopicPartition};
use tidemill_core::retry::Exhausted;
use tidemill_core::transaction::Item;

use super::letter::{Dead, Size};
use super::{DeadLetters, Failure, Settler, output_failure};
use crate::broker::{Outgoing, SendError};

/// What one settled record leaves to be produced: its outputs or its dead letter.
#[derive(Debug)]
pub struct Produced {
    /// In order.
    pub outputs: Vec<Outgoing>,
    record: CallRecord,
    revision: Arc<str>,
    /// Why the output is a dead letter; `None` when it is not.
    letter: Option<Letter>,
}

/// What a dead letter was made of, to make it again where it is too large.
#[derive(Debug)]
struct Letter {
    failure: Failure,
    attempts: u32,
    size: Size,
}

/// What becomes of a record whose output was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Something else is to be produced in its place.
    Replaced,
    /// It may be taken later.
    Waits,
}

impl Produced {
    pub(super) fn outputs(record: &CallRecord, revision: &Arc<str>, outputs: Vec<Outgoing>) -> Self {
        Self { outputs, record: record.clone(), revision: Arc::clone(revision), letter: None }
    }

    pub(super) fn letter(to: &DeadLetters, revision: &Arc<str>, dead: Dead<'_>) -> Self {
        let outputs = vec![dead.letter(to, Size::Whole)];
        let Dead { record, attempts, failure, .. } = dead;
        let letter = Some(Letter { failure, attempts, size: Size::Whole });
        Self { letter, ..Self::outputs(record, revision, outputs) }
    }

    /// The record's offset.
    pub fn offset(&self) -> Offset {
        self.record.record.offset()
    }
}

/// Leaves out what belongs to records that turned out not to be settled.
pub(super) fn keep_settled(produced: &mut Vec<Produced>, records: &[CallRecord], verdicts: &[Verdict]) {
    if produced.is_empty() || verdicts.iter().all(|verdict| *verdict == Verdict::Settled) {
        return;
    }
    let settled = |offset: Offset| {
        let at = records.iter().position(|record| record.record.offset() == offset);
        at.is_some_and(|at| verdicts[at] == Verdict::Settled)
    };
    produced.retain(|produced| settled(produced.offset()));
}

impl Settler {
    /// Counts and tells what a transaction has brought about.
    pub(crate) fn committed(&self, from: &TopicPartition, items: &[Item<Produced>]) {
        let mut outputs = 0;
        for item in items {
            match &item.what.letter {
                None => outputs += item.what.outputs.len(),
                Some(Letter { failure: Failure { class, .. }, .. }) => {
                    let class = *class;
                    self.metrics.dead_letters(class).inc();
                    tracing::warn!(
                        handler = &*self.dead_letters.handler, %from, offset = item.offset, class = class.name(),
                        revision = crate::attempt::short(&item.what.revision), "a record went to the dead-letter topic"
                    );
                }
            }
        }
        self.metrics.outputs.inc_by(outputs as u64);
    }

    /// A record's output was refused: what the policy says takes the place of an output that no broker will take.
    pub(crate) fn refused(&self, from: &TopicPartition, produced: &mut Produced, error: &SendError) -> Refusal {
        let Produced { outputs, record, revision, letter } = produced;
        let next = match letter.take() {
            None => {
                let failure = output_failure(error);
                let attempts = record.charged + 1;
                match self.policy.end() {
                    _ if !failure.class.is_final() => None,
                    Exhausted::DeadLetter => Some(Letter { failure, attempts, size: Size::Whole }),
                    Exhausted::Drop => {
                        self.tell_of_drop(from, record, revision, &failure, attempts);
                        outputs.clear();
                        return Refusal::Replaced;
                    }
                    // Its partition stands still, as it should. Parking has no part in a transaction.
                    Exhausted::Stop | Exhausted::Park => None,
                }
            }
            // A letter whose record filled the broker's limit goes without what was added for people.
            Some(whole) if matches!(error, SendError::TooLarge(_)) && whole.size == Size::Whole => {
                Some(Letter { size: Size::Bare, ..whole })
            }
            Some(refused) => {
                self.metrics.dead_letter_failures.inc();
                *letter = Some(refused);
                None
            }
        };
        if let Some(Letter { failure, attempts, size }) = next {
            let dead = Dead { from, revision, record, attempts, failure };
            *outputs = vec![dead.letter(&self.dead_letters, size)];
            *letter = Some(Letter { failure: dead.failure, attempts, size });
            return Refusal::Replaced;
        }
        tracing::error!(
            handler = &*self.dead_letters.handler, %from, offset = record.record.offset(), %error,
            "a record's output is refused; its partition stands still until it is taken"
        );
        Refusal::Waits
    }
}
