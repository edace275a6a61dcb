//! Says something once in a while, however often there is a reason.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When it was said last.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether it is time to say it again; if so, it counts as said.
    pub(super) fn is_due(&self, interval: Duration) -> bool {
        let now = Instant::now();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| now >= told + interval);
        if due {
            *told = Some(now);
        }
        due
    }

    /// The next time is the first again. Returns whether it was said since then.
    pub(super) fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }
}
