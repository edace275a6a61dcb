//! How far each partition has come: written by its task, read by commits, metrics and the admin.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use tidemill_core::parked::Count;
use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::{Notify, mpsc};

use super::asked::{self, Choice, NoAnswer, ParkedKeys, Question, Standing};
use super::moving::{MoveError, Moved, Moves};
use crate::settle::Stop;

/// No offset is known yet.
const UNKNOWN: i64 = -1;

/// One assignment of one partition.
#[derive(Debug)]
pub struct Progress {
    /// The partition.
    pub from: TopicPartition,
    /// Which assignment of this host it is: progress of an older one is void.
    pub epoch: u64,
    committable: AtomicI64,
    /// What the broker confirmed.
    confirmed: AtomicI64,
    /// Tells the partition's task that `confirmed` has moved.
    confirmation: Notify,
    /// Records that the end of the process would lose; none but at most once.
    at_stake: AtomicU64,
    /// Whether an operator has paused the handler.
    paused: AtomicBool,
    /// Tells the partition's task that `paused` was set.
    pausing: Notify,
    /// Where the partition stands while nothing was settled.
    position: AtomicI64,
    end: AtomicI64,
    pending: AtomicU64,
    /// Milliseconds since the Unix epoch of about the oldest unsettled record; `UNKNOWN` when there is none.
    oldest_ms: AtomicI64,
    parked: AtomicU64,
    /// The record at which the partition stands still.
    stopped: Mutex<Option<Stop>>,
    /// All of a range is done, and the task has ended by itself.
    through: AtomicBool,
}

/// An offset that may be committed, and the assignment that may commit it.
#[derive(Debug, Clone)]
pub(super) struct Frontier {
    pub(super) progress: Arc<Progress>,
    pub(super) offset: Offset,
}

impl Progress {
    /// Nothing is known yet.
    pub fn new(from: TopicPartition, epoch: u64) -> Self {
        Self {
            from,
            epoch,
            committable: AtomicI64::new(UNKNOWN),
            confirmed: AtomicI64::new(UNKNOWN),
            confirmation: Notify::new(),
            at_stake: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            pausing: Notify::new(),
            position: AtomicI64::new(UNKNOWN),
            end: AtomicI64::new(UNKNOWN),
            pending: AtomicU64::new(0),
            oldest_ms: AtomicI64::new(UNKNOWN),
            parked: AtomicU64::new(0),
            stopped: Mutex::default(),
            through: AtomicBool::new(false),
        }
    }

    pub(super) fn set_stopped(&self, stop: Option<Stop>) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = stop;
    }

    pub(super) fn set_parked(&self, records: usize) {
        self.parked.store(records as u64, Ordering::Relaxed);
    }

    /// All up to here is done, and nothing more is to be.
    pub(super) fn set_through(&self, end: Offset) {
        self.set_committable(end);
        self.through.store(true, Ordering::Release);
    }

    pub(super) fn set_committable(&self, offset: Offset) {
        self.committable.store(offset, Ordering::Release);
    }

    /// The broker has confirmed a commit of this assignment.
    pub(super) fn confirm(&self, offset: Offset) {
        self.confirmed.store(offset, Ordering::Release);
        self.confirmation.notify_one();
    }

    /// Waits for the next confirmation and answers the last one. Cancel-safe; one task waits.
    pub(super) async fn confirmation(&self) -> Offset {
        self.confirmation.notified().await;
        self.confirmed.load(Ordering::Acquire)
    }

    /// What the broker has confirmed of this assignment.
    pub(super) fn confirmed(&self) -> Option<Offset> {
        let offset = self.confirmed.load(Ordering::Acquire);
        (offset != UNKNOWN).then_some(offset)
    }

    pub(super) fn set_at_stake(&self, records: usize) {
        self.at_stake.store(records as u64, Ordering::Relaxed);
    }

    /// Records that are committed, or may be, and not done.
    pub(super) fn at_stake(&self) -> u64 {
        self.at_stake.load(Ordering::Relaxed)
    }

    fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
        self.pausing.notify_one();
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Waits until the handler is paused or goes on; may also return without reason. Cancel-safe; one task waits.
    pub(super) async fn pausing(&self) {
        self.pausing.notified().await;
    }

    pub(super) fn set_load(
        &self,
        position: Option<Offset>,
        end: Option<Offset>,
        pending: usize,
        oldest_ms: Option<i64>,
    ) {
        self.position.store(position.unwrap_or(UNKNOWN), Ordering::Relaxed);
        self.end.store(end.unwrap_or(UNKNOWN), Ordering::Relaxed);
        self.pending.store(pending as u64, Ordering::Relaxed);
        self.oldest_ms.store(oldest_ms.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// The offset that may be committed; `None` before anything was settled.
    pub(super) fn frontier(self: &Arc<Self>) -> Option<Frontier> {
        let offset = self.committable.load(Ordering::Acquire);
        (offset != UNKNOWN).then(|| Frontier { progress: Arc::clone(self), offset })
    }

    /// What an operator sees of it.
    pub fn view(&self) -> PartitionView {
        let known = |value: i64| (value != UNKNOWN).then_some(value);
        let committable = known(self.committable.load(Ordering::Acquire));
        let committable = committable.or(known(self.position.load(Ordering::Relaxed)));
        let end = known(self.end.load(Ordering::Relaxed));
        PartitionView {
            from: self.from.clone(),
            committable,
            end,
            pending: self.pending.load(Ordering::Relaxed),
            lag: end.zip(committable).map(|(end, committable)| (end - committable).max(0)),
            oldest_ms: known(self.oldest_ms.load(Ordering::Relaxed)),
            parked: self.parked.load(Ordering::Relaxed),
            stopped: self.stopped.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            through: self.through.load(Ordering::Acquire),
        }
    }
}

/// What the task of a partition answers.
pub type Answer<T> = (TopicPartition, Result<T, NoAnswer>);

/// What an operator sees of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionView {
    /// The partition.
    pub from: TopicPartition,
    /// The next offset to redeliver after a crash.
    pub committable: Option<Offset>,
    /// One past the last record in the log, as far as known.
    pub end: Option<Offset>,
    /// Received and not settled.
    pub pending: u64,
    /// Records from the frontier to the end.
    pub lag: Option<i64>,
    /// When about the oldest unsettled record was made, in milliseconds since the Unix epoch.
    pub oldest_ms: Option<i64>,
    /// Records that are parked.
    pub parked: u64,
    /// The record at which it stands still, as the handler's policy says.
    pub stopped: Option<Stop>,
    /// Whether a range was to be read, and all of it is done.
    pub through: bool,
}

/// A handler's place in its group, as others see it.
#[derive(Debug, Default)]
pub struct Membership {
    state: Mutex<State>,
    /// Where an operator wants partitions to begin.
    pub(super) moves: Moves,
}

#[derive(Debug, Default)]
struct State {
    joined: bool,
    paused: bool,
    failure: Option<String>,
    partitions: BTreeMap<TopicPartition, Assigned>,
}

/// An assignment, and the way to the task that owns it.
#[derive(Debug)]
struct Assigned {
    progress: Arc<Progress>,
    questions: mpsc::Sender<Question>,
}

impl Membership {
    /// Whether the group has given this member its share, which may be empty.
    pub fn is_joined(&self) -> bool {
        self.with(|state| state.joined)
    }

    /// Why the consumer failed, while it has not joined again.
    pub fn failure(&self) -> Option<String> {
        self.with(|state| state.failure.clone())
    }

    /// The assigned partitions.
    pub fn partitions(&self) -> Vec<PartitionView> {
        self.with(|state| state.partitions.values().map(|assigned| assigned.progress.view()).collect())
    }

    /// Where a record stands; `None` when its partition is not assigned to this member.
    pub async fn standing(&self, from: &TopicPartition, offset: Offset) -> Result<Option<Standing>, NoAnswer> {
        let to = self.with(|state| Some(state.partitions.get(from)?.questions.clone()));
        let Some(to) = to else { return Ok(None) };
        asked::ask(&to, |reply| Question::Where(offset, reply)).await.map(Some)
    }

    /// The parked keys of each partition of this member that is meant.
    pub async fn parked(&self, meant: impl Fn(&TopicPartition) -> bool) -> Vec<Answer<ParkedKeys>> {
        let asked = self.meant(meant).into_iter();
        join_all(asked.map(async |(from, to)| (from, asked::ask(&to, Question::Parked).await))).await
    }

    /// Tries parked keys again, or counts them; the answer of each partition of this member that is meant.
    pub async fn unpark(&self, meant: impl Fn(&TopicPartition) -> bool, choice: &Choice) -> Vec<Answer<Count>> {
        let asked = self.meant(meant).into_iter();
        let ask = async |(from, to): (_, _)| {
            let question = |reply| Question::Unpark(choice.clone(), reply);
            (from, asked::ask(&to, question).await)
        };
        join_all(asked.map(ask)).await
    }

    fn meant(&self, meant: impl Fn(&TopicPartition) -> bool) -> Vec<(TopicPartition, mpsc::Sender<Question>)> {
        self.with(|state| {
            let all = state.partitions.iter().filter(|(from, _)| meant(from));
            all.map(|(from, assigned)| (from.clone(), assigned.questions.clone())).collect()
        })
    }

    /// Starts no more calls, or goes on. The member keeps its partitions and its place in them.
    pub fn pause(&self, paused: bool) {
        self.with(|state| {
            state.paused = paused;
            state.partitions.values().for_each(|assigned| assigned.progress.pause(paused));
        });
    }

    /// Lets partitions that are assigned here begin at these places, which must lie between their oldest records and their
    /// ends; keeps that for whoever gets them next, and says which they were.
    pub async fn move_to(&self, places: BTreeMap<TopicPartition, Offset>) -> Result<Vec<Moved>, MoveError> {
        self.moves.wish(places).await
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.with(|state| state.paused)
    }

    pub(super) fn joining(&self) {
        self.with(|state| state.joined = false);
    }

    pub(super) fn joined(&self) {
        self.with(|state| {
            state.joined = true;
            state.failure = None;
        });
    }

    pub(super) fn failed(&self, cause: &str) {
        self.with(|state| {
            state.joined = false;
            state.failure = Some(cause.to_owned());
        });
    }

    pub(super) fn left(&self) {
        self.with(|state| *state = State { paused: state.paused, ..State::default() });
    }

    /// A new assignment, which from now on hears of pauses.
    pub(super) fn assigned(&self, progress: Arc<Progress>, questions: mpsc::Sender<Question>) {
        self.with(|state| {
            progress.pause(state.paused);
            state.partitions.insert(progress.from.clone(), Assigned { progress, questions });
        });
    }

    /// Forgets an assignment, unless a newer one of the same partition has taken its place.
    pub(super) fn released(&self, progress: &Arc<Progress>) {
        self.with(|state| {
            if state.partitions.get(&progress.from).is_some_and(|known| known.progress.epoch == progress.epoch) {
                state.partitions.remove(&progress.from);
            }
        });
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
