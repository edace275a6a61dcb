//! The transactor of one handler: what the frontiers have passed, and the offsets that say so, in one transaction after
//! the other.
//!
//! A transaction that is not committed is not read again but sent again: its outputs are kept until the broker has
//! confirmed them, so that no guest is called twice for it. When nobody knows how one ended, its producer is given
//! up, another one takes its id over, which ends what was open, and what the group has committed by then says the rest.
//!
//! Behind a transaction that failed because a broker had trouble, what it left is ended once more before anything is committed:
//! see [`Transactions::sweep`].

mod open;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemill_core::record::TopicPartition;
use tidemill_core::transaction::Limits;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::open::{Left, Open};
use super::outbox::Outbox;
use crate::broker::{Broker, BrokerError, Consumer, Outgoing, TransactionError, Transactions};
use crate::consumer::partition::until;
use crate::consumer::{Parts, Progress};
use crate::fault::Fault;
use crate::metrics::TransactionResult;

/// Waits after a transaction that failed, doubled up to the cap while they fail in a row.
const DELAY_MIN: Duration = Duration::from_millis(10);
const DELAY_MAX: Duration = Duration::from_secs(2);
/// How long a record whose output is refused, for a reason that may pass, holds up what lies behind it.
const HOLD: Duration = Duration::from_secs(5);
/// How long the transactor may take to end: it may wait for the broker.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// What a broker's transactions call a member.
type MemberOf<B> = <<B as Broker>::Consumer as Consumer>::Member;

/// The group's side of it.
pub(in crate::consumer) struct Transactor<B: Broker> {
    shared: Arc<Shared<MemberOf<B>>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Shared<M> {
    state: Mutex<State<M>>,
    /// Told when there may be something to enter.
    filled: Arc<Notify>,
    /// Told when something was committed or given up.
    ended: Notify,
    /// How many wait for the end of the open transaction.
    hurrying: AtomicUsize,
}

struct State<M> {
    /// The member that commits, once the handler has joined its group.
    member: Option<M>,
    /// The outboxes of current assignments.
    outboxes: BTreeMap<TopicPartition, Arc<Outbox>>,
    /// The last one of each partition that was given up. The open transaction may have something of it.
    given_up: BTreeMap<TopicPartition, Arc<Outbox>>,
}

impl<M> Shared<M> {
    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Broker> Transactor<B> {
    /// Starts it; its producer takes over its id meanwhile.
    pub(in crate::consumer) fn start(broker: B, group: &str, limits: Limits, parts: Arc<Parts>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { member: None, outboxes: BTreeMap::new(), given_up: BTreeMap::new() }),
            filled: Arc::default(),
            ended: Notify::new(),
            hurrying: AtomicUsize::new(0),
        });
        let stop = CancellationToken::new();
        // An id of its own for each start of a handler: hosts with the same configuration must not fence each other.
        let id = format!("tidemill-{group}-{}", uuid::Uuid::new_v4());
        let body = Body {
            broker,
            id,
            group: group.to_owned(),
            parts,
            shared: Arc::clone(&shared),
            stop: stop.clone(),
            origin: Instant::now(),
            producer: None,
            open: Open::new(limits),
            left: Left::default(),
            failures: 0,
        };
        Self { shared, stop, task: tokio::spawn(body.run()) }
    }

    /// A new membership commits from now on.
    pub(in crate::consumer) fn joined(&self, member: MemberOf<B>) {
        self.shared.state().member = Some(member);
    }

    /// A new assignment.
    pub(in crate::consumer) fn assigned(&self, progress: &Arc<Progress>) -> Arc<Outbox> {
        let outbox = Arc::new(Outbox::new(Arc::clone(progress), Arc::clone(&self.shared.filled)));
        self.shared.state().outboxes.insert(progress.from.clone(), Arc::clone(&outbox));
        outbox
    }

    /// Waits until all that these partitions have settled is committed.
    pub(in crate::consumer) async fn finish(&self, partitions: &[TopicPartition]) {
        let outboxes: Vec<Arc<Outbox>> = {
            let state = self.shared.state();
            partitions.iter().filter_map(|from| state.outboxes.get(from).cloned()).collect()
        };
        self.hurry_until(|| outboxes.iter().all(|outbox| outbox.is_done())).await;
    }

    /// Lets transactions end early until this is so.
    async fn hurry_until(&self, is_so: impl Fn() -> bool) {
        let _hurry = Hurry::new(&self.shared.hurrying);
        self.shared.filled.notify_one();
        loop {
            let mut ended = pin!(self.shared.ended.notified());
            ended.as_mut().enable();
            if is_so() {
                return;
            }
            ended.await;
        }
    }

    /// Nothing of these partitions is committed from now on.
    pub(in crate::consumer) fn forget(&self, partitions: &[TopicPartition]) {
        let mut state = self.shared.state();
        for from in partitions {
            if let Some(outbox) = state.outboxes.remove(from) {
                outbox.give_up();
                state.given_up.insert(from.clone(), outbox);
            }
        }
    }

    /// Waits until no transaction is open any more that has something of an earlier assignment of these partitions. A member
    /// that has got them again could commit it, behind what the new assignment has found committed and begins at.
    pub(in crate::consumer) async fn past(&self, partitions: &[TopicPartition]) {
        let is_past = || {
            let given_up = &mut self.shared.state().given_up;
            given_up.retain(|_, outbox| outbox.has_entered());
            !partitions.iter().any(|from| given_up.contains_key(from))
        };
        self.hurry_until(is_past).await;
    }

    /// Ends it. What was not finished is delivered again.
    pub(in crate::consumer) async fn end(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(END_DEADLINE, &mut self.task).await.is_err() {
            tracing::warn!(deadline = ?END_DEADLINE, "the transactional producer waits for its broker and is left behind");
            self.task.abort();
        }
    }
}

/// Counts one who waits for the end of a transaction.
struct Hurry<'a>(&'a AtomicUsize);

impl<'a> Hurry<'a> {
    fn new(hurrying: &'a AtomicUsize) -> Self {
        hurrying.fetch_add(1, Ordering::SeqCst);
        Self(hurrying)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The task.
struct Body<B: Broker> {
    broker: B,
    id: String,
    group: String,
    parts: Arc<Parts>,
    shared: Arc<Shared<MemberOf<B>>>,
    stop: CancellationToken,
    /// The decisions' clock counts from here.
    origin: Instant,
    /// Has taken the id over. `None`: the last one was given up.
    producer: Option<B::Transactions>,
    open: Open,
    /// What may still be open of transactions that failed.
    left: Left,
    /// Transactions that failed since the last one that was committed.
    failures: u32,
}

impl<B: Broker> Body<B> {
    async fn run(mut self) {
        let stop = self.stop.clone();
        let work = async {
            loop {
                self.turn().await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    /// Sends what is new, and commits when it is time; then waits for something to do.
    async fn turn(&mut self) {
        if self.producer.is_none() {
            self.take_over().await;
        }
        if let Err(error) = self.sweep().await {
            tracing::warn!(group = self.group, %error, "what an earlier transaction may have left open is not ended yet; outputs wait for it");
            self.end_open(&error).await;
            return self.wait_longer().await;
        }
        let now = self.origin.elapsed();
        self.fill(now);
        if let Err(error) = self.send().await {
            return self.failed(error).await;
        }
        let urgent = self.open.parts.iter().any(|part| part.outbox.is_urgent());
        let hurried = urgent || self.shared.hurrying.load(Ordering::SeqCst) > 0;
        let due = self.open.filling.closes_at().is_some_and(|at| hurried || at <= now);
        if due && !self.open.is_empty() {
            return self.close().await;
        }
        let closes = self.open.filling.closes_at().map(|at| self.origin + at);
        let again = self.next_try(now).map(|at| self.origin + at);
        let next = [closes, again].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = self.shared.filled.notified() => {}
            () = until(next), if next.is_some() => {}
        }
    }

    fn fill(&mut self, now: Duration) {
        let state = self.shared.state();
        for outbox in state.outboxes.values() {
            self.open.fill(outbox, now);
        }
        if Fault::OffsetsOutsideTransaction.is_on() {
            // The group commits what is not committed yet, on its own.
            self.open.parts.iter().for_each(|part| part.outbox.progress.set_committable(part.upto));
        }
    }

    fn next_try(&self, now: Duration) -> Option<Duration> {
        self.shared.state().outboxes.values().filter_map(|outbox| outbox.next_try(now)).min()
    }

    async fn send(&mut self) -> Result<(), TransactionError> {
        let Some(producer) = &mut self.producer else { return Ok(()) };
        match self.open.give() {
            Some(outputs) => producer.send(outputs).await,
            None => Ok(()),
        }
    }

    /// Commits the open transaction.
    async fn close(&mut self) {
        let started = Instant::now();
        let member = self.shared.state().member.clone();
        let (Some(producer), Some(member)) = (&mut self.producer, member) else {
            return self.failed(TransactionError::StaleMember("the handler has not joined its group".to_owned())).await;
        };
        if self.open.parts.iter().any(|part| part.outbox.is_void()) {
            return self.failed(TransactionError::StaleMember("a partition was lost".to_owned())).await;
        }
        let offsets = if Fault::OffsetsOutsideTransaction.is_on() { Vec::new() } else { self.open.offsets() };
        match producer.commit(&offsets, &member).await {
            Ok(()) => {
                self.failures = 0;
                let metrics = &self.parts.metrics;
                metrics.transactions(TransactionResult::Committed).inc();
                metrics.transaction_seconds.observe(started.elapsed().as_secs_f64());
                metrics.transaction_records.observe(self.open.filling.weight().records as f64);
                for (part, item) in &self.open.items {
                    self.parts.settler.committed(&self.open.parts[*part].outbox.progress.from, item);
                }
                for part in &self.open.parts {
                    part.outbox.confirmed(part.upto, part.bytes);
                }
                self.open.clear();
                self.shared.ended.notify_waiters();
            }
            Err(error) => self.failed(error).await,
        }
    }

    /// The open transaction is not committed, or nobody knows: what it held enters the next one, unless it was.
    async fn failed(&mut self, error: TransactionError) {
        let unknown = matches!(error, TransactionError::Unknown(_));
        let result = if unknown { TransactionResult::Unknown } else { TransactionResult::Aborted };
        self.parts.metrics.transactions(result).inc();
        tracing::warn!(
            group = self.group, %error, outputs = self.open.filling.weight().records, failures = self.failures,
            "a transaction was not committed; what it held is sent again, unless it turns out to be committed"
        );
        if let TransactionError::Refused(refused) = &error {
            self.open.refused(refused, &self.parts.settler, self.origin.elapsed() + HOLD);
        }
        self.end_open(&error).await;
        let settled =
            if unknown && !Fault::NewTransactionAfterUnknown.is_on() { self.resolve().await } else { Vec::new() };
        if settled.is_empty() && is_trouble(&error) {
            self.open.note_in(&mut self.left);
        }
        for (part, items) in self.open.take() {
            let committed = settled.iter().any(|from| *from == part.outbox.progress.from);
            if committed {
                items.iter().for_each(|item| self.parts.settler.committed(&part.outbox.progress.from, item));
                part.outbox.confirmed(part.upto, part.bytes);
            } else {
                part.outbox.put_back(items);
            }
        }
        self.shared.ended.notify_waiters();
        self.wait_longer().await;
    }

    async fn wait_longer(&mut self) {
        let delay = DELAY_MIN.saturating_mul(1 << self.failures.min(16)).min(DELAY_MAX);
        self.failures += 1;
        tokio::time::sleep(delay).await;
    }

    /// Ends once more what brokers that had trouble may have left open.
    async fn sweep(&mut self) -> Result<(), TransactionError> {
        if self.left.is_empty() {
            return Ok(());
        }
        let member = self.shared.state().member.clone();
        let (Some(producer), Some(member)) = (&mut self.producer, member) else { return Ok(()) };
        let samples: Vec<Outgoing> = self.left.samples.values().cloned().collect();
        let offsets: Vec<_> = self.left.offsets.iter().map(|(from, offset)| (from.clone(), *offset)).collect();
        producer.sweep(&samples, &offsets, &member).await?;
        tracing::info!(
            group = self.group,
            topics = samples.len(),
            "what an earlier transaction may have left open is ended"
        );
        self.left = Left::default();
        Ok(())
    }

    /// Aborts, or gives up the producer that can't.
    async fn end_open(&mut self, error: &TransactionError) {
        let spent =
            matches!(error, TransactionError::Unknown(_) | TransactionError::Fenced(_) | TransactionError::Fatal(_));
        let aborted = match &mut self.producer {
            Some(producer) if !spent => producer.abort().await,
            Some(_) | None => Err(error.clone()),
        };
        if let Err(error) = aborted {
            tracing::warn!(group = self.group, %error, "the transactional producer is given up; another one takes over its id");
            self.producer = None;
        }
    }

    /// The partitions whose part of the open transaction is committed after all.
    async fn resolve(&mut self) -> Vec<TopicPartition> {
        let offsets = self.open.offsets();
        let names: Vec<TopicPartition> = offsets.iter().map(|(from, _)| from.clone()).collect();
        loop {
            // From here on nothing is open, and what is committed stays as it is.
            if self.producer.is_none() {
                self.take_over().await;
            }
            // Of partitions that are another member's by now nothing is to be sent again.
            if self.open.parts.iter().all(|part| part.outbox.is_void()) {
                return Vec::new();
            }
            let member = self.shared.state().member.clone();
            let (Some(producer), Some(member)) = (&mut self.producer, member) else { continue };
            match producer.committed(&names, &member).await {
                Ok(committed) => {
                    let reached = offsets.iter().zip(committed);
                    let reached = reached.filter(|((_, upto), committed)| committed.is_some_and(|at| at >= *upto));
                    return reached.map(|((from, _), _)| from.clone()).collect();
                }
                Err(error) => {
                    tracing::warn!(group = self.group, %error, "it is not known yet whether a transaction was committed");
                    // Forgotten where the offsets are kept, it would stay undecided for good.
                    self.open.note_in(&mut self.left);
                    if let Err(error) = self.sweep().await {
                        self.end_open(&error).await;
                    }
                    tokio::time::sleep(DELAY_MAX).await;
                }
            }
        }
    }

    /// Another producer takes the id over, which ends what the last one left open. Waits for as long as that takes.
    async fn take_over(&mut self) {
        let mut delay = DELAY_MIN;
        loop {
            match self.made().await {
                Ok(producer) => {
                    self.producer = Some(producer);
                    return;
                }
                Err(error) => {
                    tracing::error!(group = self.group, error, "no transactional producer yet; outputs wait for it");
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(DELAY_MAX);
        }
    }

    async fn made(&mut self) -> Result<B::Transactions, String> {
        let made = self.broker.transactions(&self.id, &BTreeMap::new());
        let mut producer = made.map_err(|error: BrokerError| error.to_string())?;
        producer.init().await.map_err(|error| error.to_string())?;
        Ok(producer)
    }
}

/// Whether a broker had trouble, so that it may have ended the transaction without telling each partition. In the other cases
/// it has just answered for all of them.
fn is_trouble(error: &TransactionError) -> bool {
    match error {
        TransactionError::Refused(_) | TransactionError::StaleMember(_) => false,
        TransactionError::Aborted(_)
        | TransactionError::Unavailable(_)
        | TransactionError::Unknown(_)
        | TransactionError::Fenced(_)
        | TransactionError::Fatal(_) => true,
    }
}
