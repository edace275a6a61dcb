//! An operator's wish that partitions begin elsewhere, while the group goes on: what is in hand is drained and committed,
//! then the new place is, where the guarantee keeps its offsets; and reading begins there as a new assignment.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::commit::Committer;
use super::{Group, LAST_COMMIT_DEADLINE};
use crate::broker::{Broker, Consumer};

/// One wish is carried out before the next is taken.
const MOVES_MAX: usize = 1;
/// How long a group may take that joins, rebalances or drains: a wish that was not taken by then is void.
const TAKEN_DEADLINE: Duration = Duration::from_secs(60);

/// A partition that begins elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The partition.
    pub of: TopicPartition,
    /// Where it stood, if that was known.
    pub from: Option<Offset>,
    /// Where it begins.
    pub to: Offset,
}

/// Why partitions were not moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// The group is busy, or has ended.
    #[error("the handler is busy with its group and did not take it; nothing has changed, try again")]
    NotTaken,
    /// Something failed on the way. The handler joins again, and begins where offsets are kept for it.
    #[error("{0}; some partitions may have moved: look at `tidemill offsets show`, and try again")]
    Failed(String),
}

/// A wish that waits to be taken.
#[derive(Debug)]
struct Wish {
    /// Told when it is taken, unless nobody waits any more.
    taking: oneshot::Sender<()>,
    what: Move,
}

/// What is to be done, and who hears of it.
#[derive(Debug)]
pub(super) struct Move {
    places: BTreeMap<TopicPartition, Offset>,
    answer: oneshot::Sender<Result<Vec<Moved>, MoveError>>,
}

/// Wishes on their way to the group's task.
#[derive(Debug)]
pub(super) struct Moves {
    wishes: mpsc::Sender<Wish>,
    inbox: Mutex<mpsc::Receiver<Wish>>,
}

impl Default for Moves {
    fn default() -> Self {
        let (wishes, inbox) = mpsc::channel(MOVES_MAX);
        Self { wishes, inbox: Mutex::new(inbox) }
    }
}

impl Moves {
    /// Lets partitions begin at these places, and says which did: those that are assigned here.
    pub(super) async fn wish(&self, places: BTreeMap<TopicPartition, Offset>) -> Result<Vec<Moved>, MoveError> {
        let (taking, mut taken) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let wish = Wish { taking, what: Move { places, answer } };
        let sent = self.wishes.send_timeout(wish, TAKEN_DEADLINE).await;
        sent.map_err(|_| MoveError::NotTaken)?;
        if tokio::time::timeout(TAKEN_DEADLINE, &mut taken).await.is_err() {
            // Closed first: what is not taken by now never is.
            taken.close();
            taken.try_recv().map_err(|_| MoveError::NotTaken)?;
        }
        // From here on the group's own deadlines count.
        answered.await.unwrap_or_else(|_| Err(MoveError::Failed("the handler has ended meanwhile".to_owned())))
    }

    /// The next wish that somebody still waits for. Cancel-safe.
    pub(super) async fn next(&self) -> Move {
        let mut inbox = self.inbox.lock().await;
        loop {
            // The sender lives as long as this.
            let Some(Wish { taking, what }) = inbox.recv().await else { return std::future::pending().await };
            if taking.send(()).is_ok() {
                return what;
            }
        }
    }
}

impl<B: Broker> Group<B> {
    /// Carries a wish out. An error says that the member has to join again.
    pub(super) async fn carry_out(
        &mut self,
        consumer: &mut B::Consumer,
        committer: &mut Committer,
        Move { mut places, answer }: Move,
    ) -> Result<(), String> {
        places.retain(|of, _| self.assigned.contains_key(of));
        let stood =
            |of: &TopicPartition| self.assigned.get(of).and_then(|assigned| assigned.progress.view().committable);
        let moved: Vec<Moved> =
            places.iter().map(|(of, to)| Moved { of: of.clone(), from: stood(of), to: *to }).collect();
        let done = if places.is_empty() { Ok(()) } else { self.begin_at(consumer, committer, &places).await };
        let group = &self.config.subscription.group;
        for Moved { of, from, to } in moved.iter().filter(|_| done.is_ok()) {
            tracing::warn!(group, partition = %of, from, to, "the partition begins elsewhere, as an operator wants it");
        }
        // Who asked may have gone.
        let _unheard = answer.send(done.clone().map(|()| moved).map_err(MoveError::Failed));
        done
    }

    async fn begin_at(
        &mut self,
        consumer: &mut B::Consumer,
        committer: &mut Committer,
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<(), String> {
        let partitions: Vec<TopicPartition> = places.keys().cloned().collect();
        if !self.give_back(consumer, committer, &partitions).await {
            // It may be confirmed behind the new place, and then count more.
            return Err("the last commit of what was in hand was not confirmed".to_owned());
        }
        let commit = consumer.commit(places.iter().map(|(of, to)| (of.clone(), *to)).collect());
        match tokio::time::timeout(LAST_COMMIT_DEADLINE, commit).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("the new place was not committed: {error}")),
            Err(_) => return Err(format!("the new place was not committed within {LAST_COMMIT_DEADLINE:?}")),
        }
        let owners = match &self.offsets {
            Some(offsets) => {
                offsets.begin_at(&self.config.subscription.group, places, self.config.call_deadline).await?
            }
            None => BTreeMap::new(),
        };
        let readers = consumer.seek(places).await.map_err(|error| format!("reading can't begin there: {error}"))?;
        self.begin(readers, owners, places);
        Ok(())
    }
}
