//! Questions to the task that owns a partition (ARCH-5): sent through a bounded channel, each answered by a reply, with a
//! deadline for whoever asks.

use std::time::Duration;

use tidemill_core::parked::Count;
use tidemill_core::partition::Stage;
use tidemill_core::record::Offset;
use tokio::sync::{mpsc, oneshot};

use crate::settle::parked::Why;

/// Questions that wait for one partition's task; a further one is refused.
pub(super) const QUESTIONS_MAX: usize = 16;
/// How long a task may take to answer. It turns every second in any case.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// What a partition's task is asked.
#[derive(Debug)]
pub(super) enum Question {
    /// Where a record stands.
    Where(Offset, oneshot::Sender<Standing>),
    /// Which keys are parked.
    Parked(oneshot::Sender<ParkedKeys>),
    /// Tries parked keys again.
    Unpark(Choice, oneshot::Sender<Count>),
}

/// Which parked keys are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// This key, which may be null; `None`: all.
    pub key: Option<Option<Vec<u8>>>,
    /// Says how many they are, and changes nothing.
    pub only_count: bool,
}

/// The parked keys of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParkedKeys {
    /// Those that are shown.
    pub keys: Vec<ParkedKey>,
    /// How many more there are.
    pub more: usize,
}

/// A parked key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedKey {
    /// The key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// How many records of it are parked.
    pub records: usize,
    /// The offset in the source of the first of them.
    pub first_offset: Option<Offset>,
    /// Whether they are tried again just now.
    pub is_tried: bool,
    /// Why it is parked.
    pub why: Option<Why>,
}

/// Where a record stands in the assignment of its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What is done with it now.
    pub stage: Stage,
    /// Where it lies in the parked topic, if it is parked.
    pub parked_at: Option<Offset>,
    /// When it is tried again, from now on.
    pub again_in: Option<Duration>,
    /// The committed offset, as far as this assignment knows.
    pub committed: Option<Offset>,
}

/// Nobody has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Too many ask.
    #[error("too many ask for this partition at once; ask again")]
    Busy,
    /// The task has ended, or did not come to it.
    #[error("the partition is given back just now, still reads what is parked, or is busy; ask again")]
    Late,
}

/// Asks a partition's task and waits for its answer.
pub(super) async fn ask<T>(
    to: &mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Result<T, NoAnswer> {
    let (reply, answer) = oneshot::channel();
    to.try_send(question(reply)).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => NoAnswer::Busy,
        mpsc::error::TrySendError::Closed(_) => NoAnswer::Late,
    })?;
    let answered = tokio::time::timeout(ANSWER_DEADLINE, answer).await;
    answered.ok().and_then(Result::ok).ok_or(NoAnswer::Late)
}
