//! The transactor of one handler: what the frontiers have passed, and the offsets that say so, in one transaction after
//! the other.
//!
//! A transaction that is not committed is not read again but sent again: its outputs are kept until the broker has
//! confirmed them, so that no guest is called twice for it. When nobody knows how one ended, its producer is given
//! up, another one takes its id over, which ends what was open, and what the group has committed by then says the rest.
//!
//! A broker that had trouble may have forgotten to tell partitions how a transaction ended (ADR 16). So behind trouble another
//! producer takes over, what may be left of the transaction that failed is ended once more before anything is committed
//! ([`Transactions::sweep`]), and offsets of those before it are committed once more where they are not there
//! ([`Transactions::restore`]).

mod open;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemill_core::record::{Offset, TopicPartition};
use tidemill_core::transaction::Limits;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::open::{Left, Open, Part};
use super::outbox::Outbox;
use crate::broker::{Admin, Broker, BrokerError, Consumer, Outgoing, Remains, TransactionError, Transactions};
use crate::consumer::partition::until;
use crate::consumer::{Parts, Progress};
use crate::fault::Fault;
use crate::metrics::TransactionResult;

/// Waits after a transaction that failed, doubled up to the cap while they fail in a row.
const DELAY_MIN: Duration = Duration::from_millis(10);
const DELAY_MAX: Duration = Duration::from_secs(2);
/// How long a record whose output is refused, for a reason that may pass, holds up what lies behind it.
const HOLD: Duration = Duration::from_secs(5);
/// How soon a member is looked for again that joins its group.
const PLACE_INTERVAL: Duration = Duration::from_millis(100);
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
    /// What was committed of partitions that were given up, until it is sure that the group has it.
    committed: BTreeMap<TopicPartition, Offset>,
    /// Whether partitions were given up since the transactor looked.
    lost: bool,
}

impl<M> Shared<M> {
    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part is committed.
    fn confirm(&self, Part { outbox, upto, bytes }: &Part) {
        outbox.confirmed(*upto, *bytes);
        if outbox.is_void() {
            self.state().committed.insert(outbox.progress.from.clone(), *upto);
        }
    }
}

impl<B: Broker> Transactor<B> {
    /// Starts it; its producer takes over its id meanwhile.
    pub(in crate::consumer) fn start(broker: B, group: &str, limits: Limits, parts: Arc<Parts>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                member: None,
                outboxes: BTreeMap::new(),
                given_up: BTreeMap::new(),
                committed: BTreeMap::new(),
                lost: false,
            }),
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
            doubted: false,
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

    /// All that these partitions have settled is committed, and they are not this member's any more.
    pub(in crate::consumer) fn release(&self, partitions: &[TopicPartition]) {
        let mut state = self.shared.state();
        for from in partitions {
            state.outboxes.remove(from);
            state.committed.remove(from);
        }
    }

    /// Nothing of these partitions is committed from now on.
    pub(in crate::consumer) fn give_up(&self, partitions: &[TopicPartition]) {
        let mut state = self.shared.state();
        for from in partitions {
            if let Some(outbox) = state.outboxes.remove(from) {
                outbox.give_up();
                if let Some(frontier) = outbox.progress.frontier() {
                    state.committed.insert(from.clone(), frontier.offset);
                }
                state.given_up.insert(from.clone(), outbox);
                state.lost = true;
            }
        }
        drop(state);
        self.shared.filled.notify_one();
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
    /// Whether there was trouble since it was sure that the group has what was committed.
    doubted: bool,
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
        if std::mem::take(&mut self.shared.state().lost) {
            // It may have missed trouble, too.
            self.doubted = true;
            if !self.open.is_empty() {
                return self.failed(TransactionError::StaleMember("partitions were lost".to_owned())).await;
            }
            self.producer = None;
        }
        if self.producer.is_none() {
            self.take_over().await;
        }
        match self.clear_up().await {
            Ok(true) => {}
            // It joins its group, and is asked again for so long.
            Ok(false) => return tokio::time::sleep(PLACE_INTERVAL).await,
            Err(error) => {
                tracing::warn!(group = self.group, %error, "what earlier transactions have left behind is not cleared up yet; outputs wait for it");
                self.end_open(&error).await;
                return self.wait_longer().await;
            }
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
                self.open.parts.iter().for_each(|part| self.shared.confirm(part));
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
        let remains = self.end_open(&error).await;
        let settled = if unknown && !Fault::NewTransactionAfterUnknown.is_on() {
            self.resolve(&remains.known).await
        } else {
            Vec::new()
        };
        if settled.is_empty() && remains.possible {
            self.open.note_in(&mut self.left);
        }
        for (part, items) in self.open.take() {
            let committed = settled.iter().any(|from| *from == part.outbox.progress.from);
            if committed {
                items.iter().for_each(|item| self.parts.settler.committed(&part.outbox.progress.from, item));
                self.shared.confirm(&part);
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

    /// Behind trouble: ends once more what failed, and makes sure of what was committed. False: only a member can do that.
    async fn clear_up(&mut self) -> Result<bool, TransactionError> {
        Ok(self.sweep().await? && self.restore().await?)
    }

    /// Ends once more what brokers that had trouble may have left open.
    async fn sweep(&mut self) -> Result<bool, TransactionError> {
        if self.left.is_empty() {
            return Ok(true);
        }
        let member = self.shared.state().member.clone();
        let (Some(producer), Some(member)) = (&mut self.producer, member) else { return Ok(false) };
        let samples: Vec<Outgoing> = self.left.samples.values().cloned().collect();
        let offsets: Vec<_> = self.left.offsets.iter().map(|(from, offset)| (from.clone(), *offset)).collect();
        if !producer.sweep(&samples, &offsets, &member).await? {
            return Ok(false);
        }
        tracing::info!(
            group = self.group,
            topics = samples.len(),
            "what an earlier transaction may have left open is ended"
        );
        self.left = Left::default();
        Ok(true)
    }

    /// Makes sure that the group has the offsets of what was committed. The producer was made behind the trouble: nothing is open
    /// in it, and what the coordinator knew until then is ended.
    async fn restore(&mut self) -> Result<bool, TransactionError> {
        if !self.doubted {
            return Ok(true);
        }
        let (offsets, member) = {
            let state = self.shared.state();
            let mut committed = state.committed.clone();
            committed.extend(state.outboxes.iter().filter_map(|(from, outbox)| {
                outbox.progress.frontier().map(|frontier| (from.clone(), frontier.offset))
            }));
            (committed.into_iter().collect::<Vec<_>>(), state.member.clone())
        };
        if !offsets.is_empty() {
            let (Some(producer), Some(member)) = (&mut self.producer, member) else { return Ok(false) };
            if !producer.restore(&offsets, &member).await? {
                return Ok(false);
            }
        }
        self.doubted = false;
        // More may have been given up meanwhile.
        let restored: BTreeMap<_, _> = offsets.into_iter().collect();
        self.shared.state().committed.retain(|from, at| restored.get(from).is_none_or(|restored| restored < at));
        Ok(true)
    }

    /// Aborts, or gives up the producer where that can't be done or where there was trouble. Answers what may be left of it.
    async fn end_open(&mut self, error: &TransactionError) -> Remains {
        let Some(producer) = &mut self.producer else { return Remains::default() };
        let mut cause = error.clone();
        if !self.doubted && !is_trouble(error) {
            match producer.abort().await {
                Ok(()) => return Remains::default(),
                Err(error) => cause = error,
            }
        }
        tracing::warn!(group = self.group, error = %cause, "the transactional producer is given up; another one takes over its id");
        let remains = producer.give_up().await;
        self.producer = None;
        self.doubted = true;
        remains
    }

    /// The partitions whose part of the open transaction is committed after all; `known` says where it has records.
    async fn resolve(&mut self, known: &BTreeMap<TopicPartition, Offset>) -> Vec<TopicPartition> {
        let offsets = self.open.offsets();
        let names: Vec<TopicPartition> = offsets.iter().map(|(from, _)| from.clone()).collect();
        loop {
            // From here on nothing is open, and what is committed stays as it is.
            if self.producer.is_none() {
                self.take_over().await;
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
                    match is_visible(self.broker.admin(), known).await {
                        // The offsets are committed once more before anything else.
                        Ok(true) => return names,
                        // Forgotten where the offsets are kept, it would stay undecided for good.
                        Ok(false) => {
                            self.open.note_in(&mut self.left);
                            if let Err(error) = self.sweep().await {
                                self.end_open(&error).await;
                            }
                        }
                        Err(error) => tracing::warn!(group = self.group, %error, "nor do its outputs say so"),
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

/// Whether one who reads what is committed sees one of these records.
async fn is_visible(
    admin: Result<Arc<dyn Admin>, BrokerError>,
    records: &BTreeMap<TopicPartition, Offset>,
) -> Result<bool, BrokerError> {
    let admin = admin?;
    for (of, offset) in records {
        let read = admin.read(&of.topic, of.partition, *offset, 1).await?;
        if read.records().next().is_some_and(|record| record.offset() == *offset) {
            return Ok(true);
        }
    }
    Ok(false)
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
