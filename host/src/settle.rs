//! Room 5: outcome → outputs, retry or dead letter, then one verdict for each record.
//!
//! A record is settled when its outputs, or its dead letter, are acknowledged; nothing is settled before. In a Kafka
//! transaction it is settled at once, and what it leaves to be produced is handed on: its offset waits for that.

mod dead_letter;
mod produced;
mod transaction;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidemill_core::lanes::LaneId;
use tidemill_core::partition::{CallRecord, Verdict};
use tidemill_core::retry::{Class, Decision, RetryPolicy};
use tokio::time::Instant;

use self::dead_letter::Dead;
pub use self::dead_letter::DeadLetters;
pub use self::produced::{Produced, Refusal};
use crate::attempt::{Attempt, Guarantee};
use crate::broker::{Outgoing, Producer, SendError, WhenFull};
use crate::guest::{CallError, Called, Outcome, Reason};
use crate::metrics::{HandlerMetrics, OutcomeKind};

/// Turns the outcomes of one handler's calls into verdicts.
pub struct Settler {
    producer: Arc<dyn Producer>,
    policy: RetryPolicy,
    dead_letters: DeadLetters,
    metrics: Arc<HandlerMetrics>,
    /// When it was told last that records wait for something that is away.
    told: Mutex<Option<Instant>>,
}

/// What became of an attempt.
#[derive(Debug)]
pub struct Settlement {
    /// One for each record.
    pub verdicts: Vec<Verdict>,
    /// What settled records leave to be produced in their transaction; nothing under any other guarantee.
    pub produced: Vec<Produced>,
}

/// How often it is told that records wait.
const WAITING_INTERVAL: Duration = Duration::from_secs(30);

/// A record that failed alone, and why.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What kind of failure.
    pub class: Class,
    /// Why, in the guest's or the host's words.
    pub reason: Reason,
    /// The delay that the guest asked for.
    pub after: Option<Duration>,
}

impl Settler {
    /// Settles with this producer, this policy and these dead letters.
    pub fn new(
        producer: Arc<dyn Producer>,
        policy: RetryPolicy,
        dead_letters: DeadLetters,
        metrics: Arc<HandlerMetrics>,
    ) -> Self {
        Self { producer, policy, dead_letters, metrics, told: Mutex::default() }
    }

    /// Does what the outcomes ask for and says what became of each record.
    ///
    /// Waits until outputs are acknowledged, and for as long as dead letters can't be written.
    pub async fn settle(&self, attempt: &Attempt, called: Called) -> Settlement {
        self.count(attempt, &called);
        let Called { revision, outcomes, .. } = called;
        match outcomes {
            Ok(outcomes) => self.each(attempt, &revision, outcomes).await,
            Err(error) => self.whole(attempt, &revision, error).await,
        }
    }

    /// Counts what the guest said, once for the batch.
    fn count(&self, attempt: &Attempt, called: &Called) {
        let revision = self.metrics.revision(&called.revision);
        revision.called(attempt.records.len(), called.took);
        match &called.outcomes {
            Ok(outcomes) => {
                let mut counts = [0_u64; 5];
                outcomes.iter().for_each(|outcome| counts[kind(outcome) as usize] += 1);
                let kinds = [
                    OutcomeKind::Ack,
                    OutcomeKind::Skip,
                    OutcomeKind::Retry,
                    OutcomeKind::DeadLetter,
                    OutcomeKind::Untouched,
                ];
                for kind in kinds.into_iter().filter(|kind| counts[*kind as usize] > 0) {
                    revision.outcomes(kind).inc_by(counts[kind as usize]);
                }
            }
            Err(error) => {
                revision.failures(error.class).inc();
            }
        }
    }

    /// The call failed as a whole: blame nobody until a record failed alone.
    async fn whole(&self, attempt: &Attempt, revision: &Arc<str>, error: CallError) -> Settlement {
        let records = &attempt.records;
        if error.class.charges() && records.len() > 1 && !is_once(attempt) {
            tracing::debug!(from = %attempt.from, records = records.len(), %error, "a call failed and is halved");
            return Settlement { verdicts: vec![Verdict::Halve; records.len()], produced: Vec::new() };
        }
        let reason = Reason { code: error.class.name().to_owned(), detail: error.detail };
        let failure = Failure { class: error.class, reason, after: None };
        let mut verdicts = Verdicts::new(records);
        let mut produced = Vec::new();
        for index in 0..records.len() {
            if !verdicts.is_blocked(index) {
                let verdict = self.failed(attempt, revision, index, &failure, &mut produced).await;
                verdicts.set(index, verdict);
            }
        }
        Settlement { verdicts: verdicts.finish(), produced }
    }

    /// Outcomes that were given stand, up to the first of each lane that does not settle.
    async fn each(&self, attempt: &Attempt, revision: &Arc<str>, outcomes: Vec<Outcome>) -> Settlement {
        let mut verdicts = Verdicts::new(&attempt.records);
        // What is not called again is not waited for either: each outcome stands for itself.
        let waits = !is_once(attempt);
        let mut outputs: Vec<Outgoing> = Vec::new();
        // How many of `outputs` belong to each record, for those that have any.
        let mut owners: Vec<(usize, usize)> = Vec::new();
        let mut failures: Vec<(usize, Failure)> = Vec::new();
        let mut produced: Vec<Produced> = Vec::new();
        let in_transaction = attempt.guarantee == Guarantee::KafkaTransaction;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            if verdicts.is_blocked(index) {
                continue;
            }
            match outcome {
                Outcome::Ack(mut own) => {
                    verdicts.set(index, Verdict::Settled);
                    if in_transaction && !own.is_empty() {
                        produced.push(Produced::outputs(&attempt.records[index], revision, own));
                    } else if !own.is_empty() {
                        owners.push((index, own.len()));
                        outputs.append(&mut own);
                    }
                }
                Outcome::Skip => verdicts.set(index, Verdict::Settled),
                Outcome::Untouched if waits => verdicts.block(index),
                Outcome::Untouched => {}
                Outcome::Retry { after, reason, unavailable } => {
                    let believed = unavailable && attempt.effects.unavailable.is_some();
                    let class = if believed { Class::Unavailable } else { Class::Retry };
                    if waits {
                        verdicts.block(index);
                    }
                    failures.push((index, Failure { class, reason, after }));
                }
                Outcome::DeadLetter(reason) => {
                    // A dead letter settles: what follows in its lane goes on.
                    let malformed = attempt.records[index].record.malformed();
                    let class = if malformed { Class::Malformed } else { Class::Rejected };
                    failures.push((index, Failure { class, reason, after: None }));
                }
            }
        }
        if !outputs.is_empty() {
            self.produce(outputs, &owners, waits, &mut verdicts, &mut failures).await;
        }
        for (index, failure) in failures {
            let verdict = self.failed(attempt, revision, index, &failure, &mut produced).await;
            verdicts.set(index, verdict);
        }
        let verdicts = verdicts.finish();
        produced::keep_settled(&mut produced, &attempt.records, &verdicts);
        Settlement { verdicts, produced }
    }

    async fn produce(
        &self,
        outputs: Vec<Outgoing>,
        owners: &[(usize, usize)],
        waits: bool,
        verdicts: &mut Verdicts<'_>,
        failures: &mut Vec<(usize, Failure)>,
    ) {
        let results = self.producer.send(outputs, WhenFull::Wait).await;
        self.metrics.outputs.inc_by(results.iter().filter(|result| result.is_ok()).count() as u64);
        if results.iter().all(Result::is_ok) {
            return;
        }
        let mut results = results.into_iter();
        for &(index, count) in owners {
            // Takes all of the record's results, also those behind the first error.
            let error = results.by_ref().take(count).filter_map(Result::err).last();
            if let Some(error) = error {
                // Later outputs of the lane are out already; they come again behind this one, so their order holds.
                if waits {
                    verdicts.block_from(index);
                }
                failures.push((index, output_failure(&error)));
            }
        }
        failures.retain(|(index, _)| !verdicts.is_superseded(*index));
    }

    /// Says once in a while what records wait for: nobody else would, since it costs no attempt and never ends by itself.
    fn tell_of_waiting(&self, attempt: &Attempt, revision: &Arc<str>, failure: &Failure) {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| now < told + WAITING_INTERVAL) {
            return;
        }
        *told = Some(now);
        tracing::warn!(
            handler = &*self.dead_letters.handler, from = %attempt.from, code = failure.reason.code,
            detail = failure.reason.detail, revision = crate::attempt::short(revision),
            "records wait for something that is away; they are tried again until it is back"
        );
    }

    /// One record failed alone: another attempt after a while, or its dead letter.
    async fn failed(
        &self,
        attempt: &Attempt,
        revision: &Arc<str>,
        index: usize,
        failure: &Failure,
        produced: &mut Vec<Produced>,
    ) -> Verdict {
        let record = &attempt.records[index];
        let charge = failure.class.charges();
        let tries = record.tries + 1;
        let charged = record.charged + u32::from(charge);
        let decision = self.policy.decide(failure.class, tries, charged, failure.after, fastrand::f64());
        // At most once, whatever the guest has seen is spent.
        let spent = is_once(attempt) && failure.class != Class::HostShortage;
        match if spent { Decision::DeadLetter } else { decision } {
            Decision::RetryAfter(after) => {
                self.metrics.retries(failure.class).inc();
                if failure.class == Class::Unavailable {
                    self.tell_of_waiting(attempt, revision, failure);
                }
                tracing::debug!(
                    from = %attempt.from, offset = record.record.offset(), class = failure.class.name(),
                    code = failure.reason.code, tries, ?after, revision = &**revision, "a record waits to be tried again"
                );
                Verdict::Retry { after, charge }
            }
            Decision::DeadLetter => {
                let dead = Dead { from: &attempt.from, revision, record, attempts: charged, failure };
                if attempt.guarantee == Guarantee::KafkaTransaction {
                    produced.push(Produced::letter(self.dead_letters.letter(&dead), &dead));
                    return Verdict::Settled;
                }
                self.dead_letters.write(&*self.producer, &self.metrics, &dead).await;
                self.metrics.dead_letters(failure.class).inc();
                Verdict::Settled
            }
        }
    }
}

fn is_once(attempt: &Attempt) -> bool {
    attempt.guarantee == Guarantee::AtMostOnce
}

fn kind(outcome: &Outcome) -> OutcomeKind {
    match outcome {
        Outcome::Ack(_) => OutcomeKind::Ack,
        Outcome::Skip => OutcomeKind::Skip,
        Outcome::Retry { .. } => OutcomeKind::Retry,
        Outcome::DeadLetter(_) => OutcomeKind::DeadLetter,
        Outcome::Untouched => OutcomeKind::Untouched,
    }
}

/// Why an output was not acknowledged, as a failure of the record that it belongs to.
fn output_failure(error: &SendError) -> Failure {
    let class = match error {
        // The guest made something that no broker will take: another attempt makes it again.
        SendError::TooLarge(_) | SendError::Rejected(_) => Class::Malformed,
        // The operator's or the broker's move: the record waits.
        SendError::NoSuchTopic(_)
        | SendError::Denied(_)
        | SendError::QueueFull
        | SendError::Unavailable(_)
        | SendError::Unknown(_) => Class::Unavailable,
    };
    let reason = Reason { code: "output-not-stored".to_owned(), detail: error.to_string() };
    Failure { class, reason, after: None }
}

/// The verdicts of one call; after the first record of a lane that does not settle, the rest of the lane is untouched.
struct Verdicts<'a> {
    records: &'a [CallRecord],
    verdicts: Vec<Option<Verdict>>,
    /// Lanes with a record that does not settle, and its index. Nearly always empty.
    blocked: Vec<(LaneId, usize)>,
}

impl<'a> Verdicts<'a> {
    fn new(records: &'a [CallRecord]) -> Self {
        Self { records, verdicts: vec![None; records.len()], blocked: Vec::new() }
    }

    fn set(&mut self, index: usize, verdict: Verdict) {
        self.verdicts[index] = Some(verdict);
        if verdict != Verdict::Settled {
            self.block(index);
        }
    }

    fn block(&mut self, index: usize) {
        let lane = self.records[index].lane;
        match self.blocked.iter_mut().find(|(blocked, _)| *blocked == lane) {
            Some((_, first)) => *first = (*first).min(index),
            None => self.blocked.push((lane, index)),
        }
    }

    /// The same, for a record whose successors may have verdicts already: they lose them.
    fn block_from(&mut self, index: usize) {
        self.block(index);
        let lane = self.records[index].lane;
        for later in index..self.records.len() {
            if self.records[later].lane == lane {
                self.verdicts[later] = None;
            }
        }
    }

    fn is_blocked(&self, index: usize) -> bool {
        !self.blocked.is_empty() && self.blocked.iter().any(|(lane, _)| *lane == self.records[index].lane)
    }

    /// Whether an earlier record of the same lane does not settle.
    fn is_superseded(&self, index: usize) -> bool {
        self.blocked.iter().any(|(lane, first)| *lane == self.records[index].lane && *first < index)
    }

    fn finish(self) -> Vec<Verdict> {
        let blocked = &self.blocked;
        let records = self.records;
        let verdict = |(index, verdict): (usize, Option<Verdict>)| {
            let superseded = blocked.iter().any(|(lane, first)| *lane == records[index].lane && *first < index);
            verdict.filter(|_| !superseded).unwrap_or(Verdict::Untouched)
        };
        self.verdicts.into_iter().enumerate().map(verdict).collect()
    }
}

#[cfg(test)]
mod tests;
