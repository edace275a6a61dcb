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
    call: Arc<Handled>,
    /// The record's place in its call.
    at: usize,
    /// Why the output is a dead letter; `None` when it is not.
    letter: Option<Box<Letter>>,
}

/// A call whose records leave something: kept once for all of them.
#[derive(Debug)]
pub(super) struct Handled {
    records: Vec<CallRecord>,
    revision: Arc<str>,
}

impl Handled {
    pub(super) fn new(records: &[CallRecord], revision: &Arc<str>) -> Arc<Self> {
        Arc::new(Self { records: records.to_vec(), revision: Arc::clone(revision) })
    }
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
    pub(super) fn outputs(call: &Arc<Handled>, at: usize, outputs: Vec<Outgoing>) -> Self {
        Self { outputs, call: Arc::clone(call), at, letter: None }
    }

    pub(super) fn letter(to: &DeadLetters, call: &Arc<Handled>, at: usize, dead: Dead<'_>) -> Self {
        let outputs = vec![dead.letter(to, Size::Whole)];
        let Dead { attempts, failure, .. } = dead;
        let letter = Some(Box::new(Letter { failure, attempts, size: Size::Whole }));
        Self { letter, ..Self::outputs(call, at, outputs) }
    }

    /// The record's offset.
    pub fn offset(&self) -> Offset {
        self.call.records[self.at].record.offset()
    }
}

/// Leaves out what belongs to records that turned out not to be settled.
pub(super) fn keep_settled(produced: &mut Vec<Produced>, verdicts: &[Verdict]) {
    produced.retain(|produced| verdicts[produced.at] == Verdict::Settled);
}

impl Settler {
    /// Counts and tells what a transaction has brought about for one record, whose outputs are its item's or were taken
    /// from it.
    pub(crate) fn committed(&self, from: &TopicPartition, item: &Item<Produced>) {
        let Some(letter) = &item.what.letter else {
            self.metrics.outputs.inc_by(item.weight.records as u64);
            return;
        };
        let class = letter.failure.class;
        self.metrics.dead_letters(class).inc();
        tracing::warn!(
            handler = &*self.dead_letters.handler, %from, offset = item.offset, class = class.name(),
            revision = crate::attempt::short(&item.what.call.revision), "a record went to the dead-letter topic"
        );
    }

    /// A record's output was refused: what the policy says takes the place of an output that no broker will take.
    pub(crate) fn refused(&self, from: &TopicPartition, produced: &mut Produced, error: &SendError) -> Refusal {
        let Produced { outputs, call, at, letter } = produced;
        let (record, revision) = (&call.records[*at], &call.revision);
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
                Some(Letter { size: Size::Bare, ..*whole })
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
            *letter = Some(Box::new(Letter { failure: dead.failure, attempts, size }));
            return Refusal::Replaced;
        }
        tracing::error!(
            handler = &*self.dead_letters.handler, %from, offset = produced.offset(), %error,
            "a record's output is refused; its partition stands still until it is taken"
        );
        Refusal::Waits
    }
}
