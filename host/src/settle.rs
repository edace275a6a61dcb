//! Room 5: outcome → outputs, retry or what the handler's policy says, then one verdict for each record.
//!
//! A record is settled when its outputs, or its dead letter, are acknowledged; nothing is settled before. In a Kafka
//! transaction it is settled at once, and what it leaves to be produced is handed on: its offset waits for that.

mod dead_letter;
pub mod letter;
pub mod parked;
mod produced;
mod told;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use tidemill_core::lanes::LaneId;
use tidemill_core::partition::{CallRecord, Verdict};
use tidemill_core::record::{Offset, TopicPartition};
use tidemill_core::retry::{Class, Decision, Exhausted, Failed, RetryPolicy};

pub use self::dead_letter::DeadLetters;
use self::letter::Dead;
use self::produced::Handled;
pub use self::produced::{Produced, Refusal};
use self::told::Told;
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
    /// That records wait for something that is away.
    away: Told,
    /// That dead letters can't be written.
    stalled: Told,
}

/// How often it is told that records wait.
const WAITING_INTERVAL: Duration = Duration::from_secs(30);

/// What became of an attempt.
#[derive(Debug)]
pub struct Settlement {
    /// One verdict for each of its records, in order.
    pub verdicts: Vec<Verdict>,
    /// What settled records leave to be produced in their transaction; nothing under any other guarantee.
    pub produced: Vec<Produced>,
    /// Why, for those whose verdict is [`Verdict::Stop`] or [`Verdict::Park`].
    pub stops: Vec<Stop>,
}

impl Settlement {
    /// Verdicts alone.
    pub fn of(verdicts: Vec<Verdict>) -> Self {
        Self { verdicts, produced: Vec::new(), stops: Vec::new() }
    }
}

/// A record at which a partition stops, or that is to be parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The record's offset.
    pub offset: Offset,
    /// What kind of failure.
    pub class: Class,
    /// Why, in the guest's or the host's words.
    pub reason: Reason,
    /// The digest of the revision on which it failed.
    pub revision: Arc<str>,
    /// Attempts that it cost.
    pub attempts: u32,
}

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
        Self { producer, policy, dead_letters, metrics, away: Told::default(), stalled: Told::default() }
    }

    /// Does what the outcomes ask for and says what became of each record.
    ///
    /// Waits until outputs are acknowledged, and for as long as dead letters can't be written.
    pub async fn settle(&self, attempt: &Attempt, called: Called) -> Settlement {
        self.count(attempt, &called);
        let Called { revision, outcomes, took } = called;
        let case = Case { attempt, revision: &revision, took };
        match outcomes {
            Ok(outcomes) => self.each(case, outcomes).await,
            Err(error) => self.whole(case, error).await,
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
                for kind in OutcomeKind::ALL.into_iter().filter(|kind| counts[*kind as usize] > 0) {
                    revision.outcomes(kind).inc_by(counts[kind as usize]);
                }
            }
            Err(error) => {
                revision.failures(error.class).inc();
            }
        }
    }

    /// The call failed as a whole: blame nobody until a record failed alone.
    async fn whole(&self, case: Case<'_>, error: CallError) -> Settlement {
        let Case { attempt, .. } = case;
        let records = &attempt.records;
        if self.policy.charges(error.class) && records.len() > 1 && !is_once(attempt) {
            tracing::debug!(from = %attempt.from, records = records.len(), %error, "a call failed and is halved");
            return Settlement::of(vec![Verdict::Halve; records.len()]);
        }
        let reason = Reason { code: error.class.name().to_owned(), detail: error.detail };
        let failure = Failure { class: error.class, reason, after: None };
        let mut verdicts = Verdicts::new(records);
        let mut failures = Vec::new();
        for index in 0..records.len() {
            // The first of each lane: what follows it was not to blame either, and waits behind it.
            if !verdicts.is_blocked(index) {
                if !is_once(attempt) {
                    verdicts.block(index);
                }
                failures.push((index, failure.clone()));
            }
        }
        self.end(case, failures, verdicts, Vec::new()).await
    }

    /// Outcomes that were given stand, up to the first of each lane that does not settle.
    async fn each(&self, case: Case<'_>, outcomes: Vec<Outcome>) -> Settlement {
        let Case { attempt, .. } = case;
        let mut verdicts = Verdicts::new(&attempt.records);
        // What is not called again is not waited for either: each outcome stands for itself.
        let waits = !is_once(attempt);
        let mut outputs: Vec<Outgoing> = Vec::new();
        // How many of `outputs` belong to each record, for those that have any.
        let mut owners: Vec<(usize, usize)> = Vec::new();
        let mut failures: Vec<(usize, Failure)> = Vec::new();
        let mut produced: Vec<Produced> = Vec::new();
        let in_transaction = attempt.guarantee == Guarantee::KafkaTransaction;
        let mut handled: Option<Arc<Handled>> = None;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            if verdicts.is_blocked(index) {
                continue;
            }
            match outcome {
                Outcome::Ack(own) if own.is_empty() => verdicts.set(index, Verdict::Settled),
                Outcome::Ack(own) if in_transaction => {
                    verdicts.set(index, Verdict::Settled);
                    let call = handled.get_or_insert_with(|| case.handled());
                    produced.push(Produced::outputs(call, index, own));
                }
                Outcome::Ack(mut own) => {
                    verdicts.set(index, Verdict::Settled);
                    owners.push((index, own.len()));
                    outputs.append(&mut own);
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
                    if matches!(self.policy.end(), Exhausted::Stop | Exhausted::Park) {
                        verdicts.block(index);
                    }
                    let malformed = attempt.records[index].record.malformed();
                    let class = if malformed { Class::Malformed } else { Class::Rejected };
                    failures.push((index, Failure { class, reason, after: None }));
                }
            }
        }
        if !outputs.is_empty() {
            self.produce(outputs, &owners, waits, &mut verdicts, &mut failures).await;
        }
        self.end(case, failures, verdicts, produced).await
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
    fn tell_of_waiting(&self, Case { attempt, revision, .. }: Case<'_>, failure: &Failure) {
        if self.away.is_due(WAITING_INTERVAL) {
            tracing::warn!(
                handler = &*self.dead_letters.handler, from = %attempt.from, code = failure.reason.code,
                detail = failure.reason.detail, revision = crate::attempt::short(revision),
                "records wait for something that is away; they are tried again until it is back"
            );
        }
    }

    /// Ends the records that failed alone: another attempt after a while, or what the policy says.
    async fn end(
        &self,
        case: Case<'_>,
        failures: Vec<(usize, Failure)>,
        mut verdicts: Verdicts<'_>,
        mut produced: Vec<Produced>,
    ) -> Settlement {
        let mut stops = Vec::new();
        let mut dead: Vec<(usize, Dead<'_>)> = Vec::new();
        for (index, failure) in failures {
            let (failed, charge) = self.history(case, index, &failure);
            // At most once, whatever the guest has seen is spent.
            let spent = is_once(case.attempt) && failure.class != Class::HostShortage;
            let decision =
                if spent { Decision::End(self.policy.end()) } else { self.policy.decide(failed, fastrand::f64()) };
            match decision {
                Decision::RetryAfter(after) => {
                    self.tell_of_retry(case, index, &failure, failed.tries, after);
                    verdicts.set(index, Verdict::Retry { after, charge });
                }
                Decision::End(Exhausted::DeadLetter) => dead.push((
                    index,
                    Dead {
                        from: &case.attempt.from,
                        revision: case.revision,
                        record: &case.attempt.records[index],
                        attempts: failed.charged,
                        failure,
                    },
                )),
                Decision::End(Exhausted::Drop) => {
                    let Case { attempt, revision, .. } = case;
                    self.tell_of_drop(&attempt.from, &attempt.records[index], revision, &failure, failed.charged);
                    verdicts.set(index, Verdict::Settled);
                }
                Decision::End(end @ (Exhausted::Stop | Exhausted::Park)) => {
                    let Failure { class, reason, .. } = failure;
                    let offset = case.attempt.records[index].record.offset();
                    let (revision, attempts) = (Arc::clone(case.revision), failed.charged);
                    stops.push(Stop { offset, class, reason, revision, attempts });
                    verdicts.set(index, if end == Exhausted::Park { Verdict::Park } else { Verdict::Stop });
                }
            }
        }
        if !dead.is_empty() && case.attempt.guarantee == Guarantee::KafkaTransaction {
            let call = case.handled();
            for (index, dead) in dead.drain(..) {
                produced.push(Produced::letter(&self.dead_letters, &call, index, dead));
                verdicts.set(index, Verdict::Settled);
            }
        }
        if !dead.is_empty() {
            let (indexes, dead): (Vec<usize>, Vec<Dead<'_>>) = dead.into_iter().unzip();
            let revoked = &case.attempt.revoked;
            let written = self.dead_letters.write(&*self.producer, &self.metrics, &self.stalled, revoked, &dead).await;
            // Not to be called again before the partition is gone, and no reason to hold up its drain.
            let again = Verdict::Retry { after: dead_letter::DELAY_MAX, charge: false };
            for (index, written) in indexes.into_iter().zip(written) {
                verdicts.set(index, if written { Verdict::Settled } else { again });
            }
        }
        let verdicts = verdicts.finish();
        produced::keep_settled(&mut produced, &verdicts);
        Settlement { verdicts, produced, stops }
    }

    /// What the policy is told of a record that failed alone, and whether that costs an attempt.
    fn history(&self, case: Case<'_>, index: usize, failure: &Failure) -> (Failed, bool) {
        let record = &case.attempt.records[index];
        let charge = self.policy.charges(failure.class);
        let age = if record.age.is_zero() { Duration::ZERO } else { record.age + case.took };
        let failed = Failed {
            class: failure.class,
            tries: record.tries + 1,
            charged: record.charged + u32::from(charge),
            age,
            asked: failure.after,
        };
        (failed, charge)
    }

    fn tell_of_retry(&self, case: Case<'_>, index: usize, failure: &Failure, tries: u32, after: Duration) {
        self.metrics.retries(failure.class).inc();
        if failure.class == Class::Unavailable {
            self.tell_of_waiting(case, failure);
        }
        tracing::debug!(
            from = %case.attempt.from, offset = case.attempt.records[index].record.offset(),
            class = failure.class.name(), code = failure.reason.code, tries, ?after, revision = &**case.revision,
            "a record waits to be tried again"
        );
    }

    fn tell_of_drop(
        &self,
        from: &TopicPartition,
        record: &CallRecord,
        revision: &str,
        failure: &Failure,
        attempts: u32,
    ) {
        self.metrics.dropped(failure.class).inc();
        tracing::warn!(
            handler = &*self.dead_letters.handler, %from, offset = record.record.offset(),
            class = failure.class.name(), code = failure.reason.code, attempts,
            revision = crate::attempt::short(revision), "a record is dropped, as `retry.exhausted` says"
        );
    }
}

/// A call that is being settled.
#[derive(Clone, Copy)]
struct Case<'a> {
    attempt: &'a Attempt,
    revision: &'a Arc<str>,
    /// How long the guest had it.
    took: Duration,
}

impl Case<'_> {
    /// The call as those of its records keep it that leave something for a Kafka transaction.
    fn handled(&self) -> Arc<Handled> {
        Handled::new(&self.attempt.records, self.revision)
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
