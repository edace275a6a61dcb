//! Outcomes: how records end, as the runtime, tests and the host look at them.

use crate::{Output, Reason, RetryRequest};

/// How one record of a call ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Done; these outputs are produced, in this order, before the record counts as settled.
    Ack(Vec<Output>),
    /// Not for this handler; settled like `Ack`, counted apart.
    Skip,
    /// Later.
    Retry(RetryRequest),
    /// Never going to work.
    DeadLetter(Reason),
    /// Not processed; it comes again and costs no attempt.
    Untouched,
}

impl Outcome {
    /// True if the record's life ends here: handled, skipped or dead-lettered.
    pub fn settles(&self) -> bool {
        match self {
            Outcome::Ack(_) | Outcome::Skip | Outcome::DeadLetter(_) => true,
            Outcome::Retry(_) | Outcome::Untouched => false,
        }
    }

    /// The outputs of a handled record; none for any other.
    pub fn outputs(&self) -> &[Output] {
        match self {
            Outcome::Ack(outputs) => outputs,
            Outcome::Skip | Outcome::DeadLetter(_) | Outcome::Retry(_) | Outcome::Untouched => &[],
        }
    }

    /// Why the record was dead-lettered or has to come again.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Outcome::DeadLetter(reason) => Some(reason),
            Outcome::Retry(request) => Some(&request.reason),
            Outcome::Ack(_) | Outcome::Skip | Outcome::Untouched => None,
        }
    }
}

/// Takes the outcomes of a call, one for each record, in order. Not for authors.
pub trait Answer {
    /// The record is handled. Takes its outputs and leaves the list empty, for the next record.
    fn ack(&mut self, outputs: &mut Vec<Output>);

    /// The record ended in any way.
    fn end(&mut self, outcome: Outcome);
}

impl Answer for Vec<Outcome> {
    fn ack(&mut self, outputs: &mut Vec<Output>) {
        self.push(Outcome::Ack(std::mem::take(outputs)));
    }

    fn end(&mut self, outcome: Outcome) {
        self.push(outcome);
    }
}
