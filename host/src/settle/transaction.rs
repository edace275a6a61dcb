//! Settling under a database's transaction: all records of a call together with their offset, or none of them.

use std::sync::Arc;

use tidemill_core::partition::Verdict;
use tidemill_core::retry::Class;

use super::dead_letter::{DELAY_MAX, DELAY_MIN};
use super::{Case, Failure, Settlement, Settler, Verdicts, output_failure};
use crate::attempt::{Attempt, Committed, Ownership};
use crate::broker::{Outgoing, WhenFull};
use crate::guest::{Called, Outcome, Reason};
use crate::metrics::CommitResult;
use crate::store::SqlError;

/// Why a call's transaction is rolled back.
#[derive(Debug)]
enum Trouble {
    /// A record failed.
    Failed(usize, Failure),
    /// The guest did not get to this record.
    Untouched(usize),
    /// The partition is somebody else's.
    Fenced,
}

impl Settler {
    /// Commits what the guest wrote together with the offset, if every record ended well and its outputs are acknowledged;
    /// otherwise rolls back, and has the call halved until the record that failed is alone.
    ///
    /// Waits for as long as it takes to know how a commit ended, and to store the offset of a dead letter.
    pub async fn settle_together(&self, attempt: &mut Attempt, owner: &Ownership, called: Called) -> Settlement {
        self.count(attempt, &called);
        let (revision, took) = (Arc::clone(&called.revision), called.took);
        match self.together(attempt, owner, called).await {
            Ok(()) => Settlement::of(vec![Verdict::Settled; attempt.records.len()]),
            Err(trouble) => {
                if let Some(open) = attempt.effects.open.take() {
                    open.roll_back().await;
                }
                self.rolled_back(Case { attempt, revision: &revision, took }, owner, trouble).await
            }
        }
    }

    async fn together(&self, attempt: &mut Attempt, owner: &Ownership, called: Called) -> Result<(), Trouble> {
        let (outputs, owners) = all_well(attempt, called)?;
        self.acknowledged(outputs, &owners).await?;
        let Some(last) = attempt.records.last() else { return Ok(()) };
        let next = last.record.offset() + 1;
        match owner.commit(attempt.effects.open.take(), next).await {
            Ok(Committed::Stored) => Ok(()),
            Ok(Committed::Fenced) => Err(Trouble::Fenced),
            Err(error) => {
                if error.is_conflict() {
                    attempt.effects.conflict.get_or_insert_with(|| error.to_string());
                }
                Err(Trouble::Failed(0, not_committed(attempt, &error)))
            }
        }
    }

    /// Sends all outputs, and waits until each is acknowledged. Those of a call that is rolled back after all come again.
    async fn acknowledged(&self, outputs: Vec<Outgoing>, owners: &[usize]) -> Result<(), Trouble> {
        if outputs.is_empty() {
            return Ok(());
        }
        let results = self.producer.send(outputs, WhenFull::Wait).await;
        self.metrics.outputs.inc_by(results.iter().filter(|result| result.is_ok()).count() as u64);
        match results.into_iter().zip(owners).find_map(|(result, owner)| Some((*owner, result.err()?))) {
            Some((owner, error)) => Err(Trouble::Failed(owner, output_failure(&error))),
            None => Ok(()),
        }
    }

    /// Nothing of the call was kept. Blames nobody until a record failed alone. A call that met another one in the same rows
    /// is halved too: the fewer rows it holds, the sooner it gets through.
    async fn rolled_back(&self, case: Case<'_>, owner: &Ownership, trouble: Trouble) -> Settlement {
        let Case { attempt, .. } = case;
        let records = attempt.records.len();
        let all = |verdict| Settlement::of(vec![verdict; records]);
        let failure = match trouble {
            Trouble::Failed(index, failure)
                if records > 1 && (self.policy.charges(failure.class) || attempt.effects.conflict.is_some()) =>
            {
                tracing::debug!(from = %attempt.from, records, index, code = failure.reason.code, "a call is rolled back and halved");
                return all(Verdict::Halve);
            }
            Trouble::Untouched(index) if index > 0 => return all(Verdict::Halve),
            Trouble::Failed(_, failure) => failure,
            Trouble::Untouched(_) => return all(Verdict::Untouched),
            Trouble::Fenced => {
                self.metrics.commits(CommitResult::Fenced).inc();
                return all(Verdict::Untouched);
            }
        };
        let mut settlement = self.end(case, vec![(0, failure)], Verdicts::new(&attempt.records), Vec::new()).await;
        let first = &mut settlement.verdicts[0];
        if *first == Verdict::Settled && !self.stored_alone(attempt, owner).await {
            *first = Verdict::Untouched;
        }
        settlement
    }

    /// Stores the offset behind the call's first record, whose dead letter is acknowledged, however long that takes. False
    /// if the partition is somebody else's, who will write the letter again.
    async fn stored_alone(&self, attempt: &Attempt, owner: &Ownership) -> bool {
        let next = attempt.records[0].record.offset() + 1;
        let mut delay = DELAY_MIN;
        loop {
            match owner.commit(None, next).await {
                Ok(Committed::Stored) => return true,
                Ok(Committed::Fenced) => {
                    self.metrics.commits(CommitResult::Fenced).inc();
                    return false;
                }
                Err(error) => {
                    tracing::warn!(from = %attempt.from, next, %error, "a record's dead letter is written, its offset not yet; the partition waits for the database");
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(DELAY_MAX);
        }
    }
}

/// The outputs of a call whose records all ended well, each with its record's index.
fn all_well(attempt: &Attempt, called: Called) -> Result<(Vec<Outgoing>, Vec<usize>), Trouble> {
    let outcomes = called.outcomes.map_err(|error| {
        let reason = Reason { code: error.class.name().to_owned(), detail: error.detail };
        Trouble::Failed(0, blamed(attempt, Failure { class: error.class, reason, after: None }))
    })?;
    let (mut outputs, mut owners) = (Vec::new(), Vec::new());
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Outcome::Ack(mut own) => {
                owners.resize(owners.len() + own.len(), index);
                outputs.append(&mut own);
            }
            Outcome::Skip => {}
            Outcome::Untouched => return Err(Trouble::Untouched(index)),
            Outcome::Retry { after, reason, unavailable } => {
                let believed = unavailable && attempt.effects.unavailable.is_some();
                let class = if believed { Class::Unavailable } else { Class::Retry };
                return Err(Trouble::Failed(index, blamed(attempt, Failure { class, reason, after })));
            }
            Outcome::DeadLetter(reason) => {
                let malformed = attempt.records[index].record.malformed();
                let class = if malformed { Class::Malformed } else { Class::Rejected };
                return Err(Trouble::Failed(index, blamed(attempt, Failure { class, reason, after: None })));
            }
        }
    }
    Ok((outputs, owners))
}

/// A failure of a call whose transaction had to give way to another is nobody's fault, whatever the guest made of it.
fn blamed(attempt: &Attempt, failure: Failure) -> Failure {
    match &attempt.effects.conflict {
        Some(conflict) if !matches!(failure.class, Class::Malformed | Class::Unavailable | Class::HostShortage) => {
            let reason = Reason { code: "transaction-conflict".to_owned(), detail: conflict.clone() };
            Failure { class: Class::Unavailable, reason, after: None }
        }
        Some(_) | None => failure,
    }
}

/// Why the transaction of a call that ended well was not committed.
fn not_committed(attempt: &Attempt, error: &SqlError) -> Failure {
    let nobodys = match error {
        SqlError::Unavailable(_) | SqlError::OutcomeUnknown(_) | SqlError::Transient(_) => true,
        // The guest passed over a statement that failed because the database was away.
        SqlError::TransactionAborted => attempt.effects.unavailable.is_some(),
        SqlError::Rejected(_) | SqlError::BadParameter(_) => false,
    };
    let class = if nobodys { Class::Unavailable } else { Class::Retry };
    let reason = Reason { code: "not-committed".to_owned(), detail: error.to_string() };
    blamed(attempt, Failure { class, reason, after: None })
}
