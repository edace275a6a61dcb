//! The seam to a handler's guest: call one revision with one batch.
//!
//! `guest/` has the sandbox; a closure is enough for tests of the rooms around it.

pub mod bindings;
mod cache;
mod check;
mod clock;
mod convert;
mod engine;
mod entry;
mod failure;
mod instance;
mod limits;
pub mod live;
mod output;
mod packed;
mod revision;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tidemill_core::retry::Class;

pub use self::check::LoadError;
pub(crate) use self::check::digest;
pub use self::engine::{Engine, EngineError};
pub use self::limits::Limits;
use crate::attempt::Attempt;
use crate::broker::Outgoing;
pub use crate::capability::Backends;

/// How the guest says that one record ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done; these outputs are produced before its offset may be committed.
    Ack(Vec<Outgoing>),
    /// Not for this handler; settled, counted apart.
    Skip,
    /// Later.
    Retry {
        /// `None`: the operator's back-off.
        after: Option<Duration>,
        /// Why.
        reason: Reason,
        /// A dependency is away: it costs no attempt, if a host call of this attempt said so.
        unavailable: bool,
    },
    /// Never going to work.
    DeadLetter(Reason),
    /// Not processed; comes again at no cost.
    Untouched,
}

/// Why, for machines and for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reason {
    /// Machine-readable.
    pub code: String,
    /// For people; truncated to a bound before it is stored anywhere.
    pub detail: String,
}

/// Why a call failed as a whole. No record is blamed until it failed alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", class.name())]
pub struct CallError {
    /// What kind of failure.
    pub class: Class,
    /// What happened, in words.
    pub detail: String,
}

/// Calls a guest. One handler has one; which revision runs is decided inside, once for each call.
pub trait Handler: Send + Sync + 'static {
    /// Calls the guest with a batch and returns one outcome for each record.
    ///
    /// Fewer outcomes than records have been filled up with `Untouched`; more are a [`CallError`] already.
    fn call<'a>(&'a self, attempt: &'a mut Attempt) -> BoxFuture<'a, Called>;

    /// The digest of the revision that the next call would run on.
    fn revision(&self) -> Arc<str>;
}

/// What a call came to, and which revision ran it.
#[derive(Debug)]
pub struct Called {
    /// The digest of the revision: in each log line, dead letter and metric of this call.
    pub revision: Arc<str>,
    /// How long the guest had the call.
    pub took: Duration,
    /// One outcome for each record, or why there is none.
    pub outcomes: Result<Vec<Outcome>, CallError>,
}

#[cfg(test)]
pub(crate) mod tests;
