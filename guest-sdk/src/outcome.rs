//! Outcomes, as tests and the runtime look at them.

use crate::{Outcome, Output, Reason};

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
