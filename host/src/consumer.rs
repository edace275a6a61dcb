//! Rooms 1, 2 and 6 of one handler: group membership, assignment epochs, one task for each assigned partition, commits.
//!
//! The group's task owns the membership; a partition's task owns its [`tidemill_core::partition::Partition`]. They share
//! one [`Progress`]: how far the partition may be committed. Only progress of the current assignment is ever committed,
//! since a broker accepts commits for partitions that another member owns.

mod asked;
mod budget;
mod commit;
mod moving;
mod partition;
mod progress;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::lanes::Order;
use tidemill_core::partition::Bounds;
use tidemill_core::record::{Offset, TopicPartition};
use tidemill_core::transaction::Limits;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::asked::{Choice, NoAnswer, ParkedKey, ParkedKeys, Standing};
pub use self::budget::Budget;
use self::commit::Committer;
pub use self::commit::database::OffsetStore;
use self::commit::database::TakenOver;
use self::commit::transaction::Transactor;
pub use self::moving::{MoveError, Moved};
pub use self::progress::{Answer, Membership, PartitionView, Progress};
use crate::attempt::{Guarantee, Ownership};
use crate::broker::{Admin, Broker, CommitError, Consumer, ConsumerEvent, ReaderOf, Subscription};
use crate::fault::Fault;
use crate::guest::Handler;
use crate::metrics::{HandlerMetrics, Rebalance};
use crate::settle::Settler;
use crate::settle::parked::ParkedTopics;
use crate::sync;

/// How one handler consumes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The group and its topics.
    pub subscription: Subscription,
    /// What is promised around each call.
    pub guarantee: Guarantee,
    /// Which records run one after another.
    pub order: Order,
    /// At most once: records of a partition that are committed and not done, which is what a crash loses of it at most.
    pub ahead_max: usize,
    /// The bounds of each partition.
    pub bounds: Bounds,
    /// Calls of the guest at once, over all partitions of this host.
    pub concurrency: usize,
    /// After this long the host stops a call.
    pub call_deadline: Duration,
    /// How often the frontier is committed while it moves.
    pub commit_interval: Duration,
    /// The bounds of a transaction, where the guarantee is one on Kafka.
    pub transaction: Limits,
    /// How long it may take to give a partition back, or to stop, calls in hand included.
    pub drain_deadline: Duration,
}

impl Config {
    /// How long calls in hand may go on while other partitions wait: the rest of the drain deadline is for giving back.
    fn drain_time(&self) -> Duration {
        self.drain_deadline - GIVE_BACK_TIME.min(self.drain_deadline / 4)
    }
}

/// Consumes for one handler until it is told to stop.
pub struct Group<B: Broker> {
    broker: B,
    config: Config,
    parts: Arc<Parts>,
    membership: Arc<Membership>,
    /// Where offsets are kept beside the group, under [`Guarantee::SqlTransaction`].
    offsets: Option<OffsetStore>,
    /// Where keys are parked, if they are.
    parking: Option<Parking>,
    /// The assignments of this host, by partition.
    assigned: BTreeMap<TopicPartition, Assigned>,
    /// Commits instead of the group, where outputs and offsets belong together; runs as long as the handler.
    transactor: Option<Transactor<B>>,
    /// Why records come, in the word that guests read.
    delivery: &'static str,
    /// Counts assignments.
    epoch: u64,
    /// Earlier assignments whose progress is still committed: empty, unless the host is broken on purpose.
    stale: Vec<Assigned>,
}

/// What parking keys needs.
#[derive(Clone)]
pub struct Parking {
    /// Writes the parked topics.
    pub topics: Arc<ParkedTopics>,
    /// Reads them.
    pub admin: Arc<dyn Admin>,
    /// Records of a partition that may be parked.
    pub records_max: usize,
}

/// What the tasks of a group's partitions share.
struct Parts {
    handler: Arc<dyn Handler>,
    settler: Settler,
    metrics: Arc<HandlerMetrics>,
    /// One permit for each call of the guest.
    slots: Arc<Semaphore>,
    /// What the host may hold.
    budget: Arc<Budget>,
    /// Tells the group's task that a record waits for a commit.
    commit_wanted: Notify,
}

struct Assigned {
    progress: Arc<Progress>,
    revoked: CancellationToken,
    /// The hold on the database's row.
    owner: Option<Arc<Ownership>>,
    task: JoinHandle<()>,
}

/// Waits before a consumer that failed is made again.
const REJOIN_DELAY: Duration = Duration::from_secs(2);
/// What is kept of the drain deadline, a quarter of it at most, to commit, give partitions back and read on in those that stay: these
/// stand still meanwhile, since librdkafka stops all of a member's partitions until a rebalance is answered.
const GIVE_BACK_TIME: Duration = Duration::from_millis(200);
/// How long a last commit may take before its partitions are given back without it.
const LAST_COMMIT_DEADLINE: Duration = Duration::from_secs(5);

/// Why a member stopped consuming.
enum End {
    Stopped,
    Failed(String),
}

impl<B: Broker> Group<B> {
    /// A member that has not joined yet.
    pub fn new(
        broker: B,
        config: Config,
        handler: Arc<dyn Handler>,
        settler: Settler,
        metrics: Arc<HandlerMetrics>,
        membership: Arc<Membership>,
        budget: Arc<Budget>,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(config.concurrency.max(1)));
        let parts = Arc::new(Parts { handler, settler, metrics, slots, budget, commit_wanted: Notify::new() });
        Self {
            broker,
            config,
            parts,
            membership,
            offsets: None,
            parking: None,
            assigned: BTreeMap::new(),
            transactor: None,
            delivery: "live",
            epoch: 0,
            stale: Vec::new(),
        }
    }

    /// The same, for [`Guarantee::SqlTransaction`]: offsets are kept in this database, together with what the guest writes.
    pub fn keeping_offsets_in(self, offsets: OffsetStore) -> Self {
        Self { offsets: Some(offsets), ..self }
    }

    /// The same, for a policy that parks keys.
    pub fn parking(self, parking: Parking) -> Self {
        Self { parking: Some(parking), ..self }
    }

    /// The same for records that come once more: guests are told so.
    pub fn replaying(self) -> Self {
        Self { delivery: "replay", ..self }
    }

    /// Joins the group and consumes until `stop`; then drains, commits and leaves. Joins again when the client fails.
    pub async fn run(mut self, stop: CancellationToken) {
        if self.config.guarantee == Guarantee::KafkaTransaction {
            let (group, limits) = (&self.config.subscription.group, self.config.transaction.clone());
            self.transactor = Some(Transactor::start(self.broker.clone(), group, limits, Arc::clone(&self.parts)));
        }
        while !stop.is_cancelled() {
            let end = match self.broker.consumer(&self.config.subscription) {
                Ok(consumer) => self.member(consumer, &stop).await,
                Err(error) => End::Failed(error.to_string()),
            };
            let End::Failed(cause) = end else { break };
            if stop.is_cancelled() {
                break;
            }
            self.membership.failed(&cause);
            tracing::error!(group = self.config.subscription.group, cause, "the consumer failed and joins again");
            tokio::select! {
                biased;
                () = tokio::time::sleep(REJOIN_DELAY) => {}
                () = stop.cancelled() => {}
            }
        }
        if let Some(transactor) = self.transactor.take() {
            transactor.end().await;
        }
        self.membership.left();
    }

    /// One membership, from joining to leaving.
    async fn member(&mut self, mut consumer: B::Consumer, stop: &CancellationToken) -> End {
        self.membership.joining();
        if let Some(transactor) = &self.transactor {
            transactor.joined(consumer.member());
        }
        let mut committer = Committer::new(&self.config, Arc::clone(&self.parts.metrics));
        let mut tick = tokio::time::interval(self.config.commit_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let membership = Arc::clone(&self.membership);
        let end = loop {
            tokio::select! {
                biased;
                result = committer.confirmed() => self.on_confirmed(&consumer, &mut committer, result),
                () = self.parts.commit_wanted.notified() => committer.start(&consumer, self.frontiers()),
                () = stop.cancelled() => break End::Stopped,
                event = consumer.next_event() => {
                    if let Err(cause) = self.on_event(&mut consumer, &mut committer, event, stop).await {
                        break End::Failed(cause);
                    }
                }
                wish = membership.moves.next() => {
                    if let Err(cause) = self.carry_out(&mut consumer, &mut committer, wish).await {
                        break End::Failed(cause);
                    }
                }
                _ = tick.tick() => {
                    if let Some(cause) = self.fenced_for_long() {
                        break End::Failed(cause);
                    }
                    committer.start(&consumer, self.frontiers());
                }
            }
        };
        let all: Vec<TopicPartition> = self.assigned.keys().cloned().collect();
        match end {
            End::Stopped => drop(self.give_back(&mut consumer, &mut committer, &all).await),
            End::Failed(_) => self.abandon(&all).await,
        }
        consumer.close().await;
        end
    }

    /// At most once, the next commit follows the last one at once, with all that came meanwhile; one that failed waits for
    /// the interval.
    fn on_confirmed(&self, consumer: &B::Consumer, committer: &mut Committer, result: Result<(), CommitError>) {
        if committer.on_confirmed(result) && self.config.guarantee == Guarantee::AtMostOnce {
            committer.start(consumer, self.frontiers());
        }
    }

    async fn on_event(
        &mut self,
        consumer: &mut B::Consumer,
        committer: &mut Committer,
        event: ConsumerEvent,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        match event {
            ConsumerEvent::Assigned(partitions) => {
                self.parts.metrics.rebalances(Rebalance::Assigned).inc();
                self.assign(consumer, &partitions, stop).await?;
            }
            ConsumerEvent::Revoked(partitions) => {
                self.parts.metrics.rebalances(Rebalance::Revoked).inc();
                tracing::info!(group = self.config.subscription.group, partitions = %names(&partitions), "partitions are revoked");
                self.give_back(consumer, committer, &partitions).await;
                consumer.release(&partitions).await.map_err(|error| error.to_string())?;
            }
            ConsumerEvent::Lost(partitions) => {
                self.parts.metrics.rebalances(Rebalance::Lost).inc();
                tracing::warn!(group = self.config.subscription.group, partitions = %names(&partitions), "partitions are lost; what they had in hand is redelivered elsewhere");
                self.abandon(&partitions).await;
                consumer.release(&partitions).await.map_err(|error| error.to_string())?;
            }
            ConsumerEvent::Problem(problem) => {
                tracing::warn!(group = self.config.subscription.group, problem, "the consumer goes on by itself");
            }
            ConsumerEvent::Fatal(cause) => return Err(cause),
        }
        Ok(())
    }

    async fn assign(
        &mut self,
        consumer: &mut B::Consumer,
        partitions: &[TopicPartition],
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let free = async {
            if let Some(transactor) = &self.transactor {
                transactor.past(partitions).await;
            }
            self.take_over(partitions).await
        };
        let TakenOver { owners, places } = tokio::select! {
            biased;
            taken = free => taken?,
            () = stop.cancelled() => return Err("the handler stops while partitions are assigned".to_owned()),
        };
        let readers = consumer.start(partitions, &places).await.map_err(|error| error.to_string())?;
        let group = &self.config.subscription.group;
        if partitions.is_empty() {
            tracing::info!(group, "joined; there is no partition for this host for now");
        } else {
            tracing::info!(group, partitions = %names(partitions), "partitions are assigned");
        }
        self.begin(readers, owners, &places);
        self.membership.joined();
        Ok(())
    }

    /// Begins to consume partitions, each as an assignment of its own; `places` is where those begin that were told so.
    fn begin(
        &mut self,
        readers: Vec<(TopicPartition, ReaderOf<B>)>,
        mut owners: BTreeMap<TopicPartition, Arc<Ownership>>,
        places: &BTreeMap<TopicPartition, Offset>,
    ) {
        for (from, reader) in readers {
            self.epoch += 1;
            let progress = Arc::new(Progress::new(from.clone(), self.epoch));
            if let Some(place) = places.get(&from) {
                // What ended before it could tell the group: of a partition that is done, nobody else would.
                progress.set_committable(*place);
            }
            let revoked = CancellationToken::new();
            let owner = owners.remove(&from);
            let outbox = self.transactor.as_ref().map(|transactor| transactor.assigned(&progress));
            let (questions, asked) = mpsc::channel(asked::QUESTIONS_MAX);
            self.membership.assigned(Arc::clone(&progress), questions);
            let task = partition::spawn(
                Arc::clone(&self.parts),
                self.config.clone(),
                reader,
                Arc::clone(&progress),
                partition::Ties {
                    owner: owner.clone(),
                    outbox,
                    asked,
                    parking: self.parking.clone(),
                    delivery: self.delivery,
                },
                revoked.clone(),
            );
            self.assigned.insert(from, Assigned { progress, revoked, owner, task });
        }
    }

    /// Takes the database's rows of partitions over, where offsets are kept in one.
    async fn take_over(&self, partitions: &[TopicPartition]) -> Result<TakenOver, String> {
        let Some(offsets) = &self.offsets else { return Ok(TakenOver::default()) };
        let group = &self.config.subscription.group;
        offsets.take_over(&self.broker, group, partitions, self.config.call_deadline).await
    }

    /// Whether a partition is this host's by the group and for long has not been by the database: then only taking it over
    /// again helps. A host that was left behind hears from the group before that.
    fn fenced_for_long(&self) -> Option<String> {
        let grace = self.offsets.as_ref()?.fenced_grace;
        let fenced = |assigned: &&Assigned| {
            let since = assigned.owner.as_ref().and_then(|owner| owner.fenced_since());
            since.is_some_and(|since| since.elapsed() >= grace)
        };
        let assigned = self.assigned.values().find(fenced)?;
        Some(format!(
            "somebody else has taken {} over in the database; is a host of another cluster in this group?",
            assigned.progress.from
        ))
    }

    /// Stops partitions the good way: calls in hand finish or are stopped at the deadline, then the frontier is committed.
    /// Answers whether it is known by then what became of that commit.
    async fn give_back(
        &mut self,
        consumer: &mut B::Consumer,
        committer: &mut Committer,
        partitions: &[TopicPartition],
    ) -> bool {
        let started = Instant::now();
        let mut leaving: Vec<Assigned> = partitions.iter().filter_map(|from| self.assigned.remove(from)).collect();
        for assigned in &leaving {
            assigned.revoked.cancel();
        }
        let others_stay = !self.assigned.is_empty();
        let deadline = started + if others_stay { self.config.drain_time() } else { self.config.drain_deadline };
        let all = leaving.iter().chain(self.assigned.values()).map(|assigned| Arc::clone(&assigned.progress));
        let all: Vec<Arc<Progress>> = all.collect();
        for assigned in &mut leaving {
            let ended = self.ended(consumer, committer, &all, &mut assigned.task);
            if tokio::time::timeout_at(deadline, ended).await.is_err() {
                self.interrupt(assigned).await;
            }
        }
        tracing::info!(group = self.config.subscription.group, took = ?started.elapsed(), "partitions are drained");
        // At most once, all that was asked for is confirmed by now, or must not be.
        let behind = self.config.guarantee != Guarantee::AtMostOnce;
        let last = async {
            match &self.transactor {
                Some(transactor) => transactor.finish(partitions).await,
                None => {
                    let frontiers = leaving.iter().filter(|_| behind).filter_map(Assigned::frontier).collect();
                    committer.finish(consumer, frontiers).await;
                }
            }
        };
        let known = tokio::time::timeout(LAST_COMMIT_DEADLINE, last).await.is_ok();
        if !known {
            tracing::warn!(partitions = %names(partitions), "the last commit was not confirmed in time; up to what was not committed is delivered again");
        }
        match &self.transactor {
            Some(transactor) if known => transactor.release(partitions),
            Some(transactor) => transactor.give_up(partitions),
            None => {}
        }
        for assigned in leaving {
            self.membership.released(&assigned.progress);
        }
        known
    }

    /// Waits for a partition's task. At most once, the task waits for commits in turn, which go on meanwhile.
    async fn ended(
        &self,
        consumer: &mut B::Consumer,
        committer: &mut Committer,
        all: &[Arc<Progress>],
        task: &mut JoinHandle<()>,
    ) {
        if self.config.guarantee != Guarantee::AtMostOnce {
            // What became of it is the caller's to see.
            let _ended = task.await;
            return;
        }
        let frontiers = || all.iter().filter_map(Progress::frontier).collect();
        let mut tick = tokio::time::interval(self.config.commit_interval);
        loop {
            tokio::select! {
                biased;
                result = committer.confirmed() => {
                    if committer.on_confirmed(result) {
                        committer.start(&*consumer, frontiers());
                    }
                }
                _ended = &mut *task => return,
                () = self.parts.commit_wanted.notified() => committer.start(&*consumer, frontiers()),
                _ = tick.tick() => committer.start(&*consumer, frontiers()),
            }
        }
    }

    /// Ends a partition's task whose calls did not finish in time. What they had in hand is delivered again.
    async fn interrupt(&self, assigned: &mut Assigned) {
        tracing::warn!(
            partition = %assigned.progress.from, deadline = ?self.config.drain_deadline,
            "calls did not end within the drain deadline; they are stopped, and their records are delivered again unless they \
             are called at most once"
        );
        assigned.task.abort();
        // The task ends at its next await; only then is its reader dropped.
        if let Err(error) = (&mut assigned.task).await
            && error.is_panic()
        {
            tracing::error!(partition = %assigned.progress.from, "a partition's task panicked");
        }
        self.count_lost(&assigned.progress);
    }

    /// Says what was committed and is not going to be called.
    fn count_lost(&self, progress: &Progress) {
        let records = progress.at_stake();
        if records > 0 {
            self.parts.metrics.lost_records.inc_by(records);
            tracing::warn!(
                partition = %progress.from, records,
                "these records are committed ahead, or may be, and their calls did not end: those that are committed are not delivered again"
            );
        }
    }

    /// Drops the work of partitions that are not ours any more: no commit.
    async fn abandon(&mut self, partitions: &[TopicPartition]) {
        if let Some(transactor) = &self.transactor {
            transactor.give_up(partitions);
        }
        for from in partitions {
            if let Some(mut assigned) = self.assigned.remove(from) {
                if Fault::IgnoreEpoch.is_on() {
                    assigned.revoked.cancel();
                    self.stale.push(assigned);
                    continue;
                }
                assigned.task.abort();
                if (&mut assigned.task).await.is_err_and(|error| error.is_panic()) {
                    tracing::error!(partition = %from, "a partition's task panicked");
                }
                self.count_lost(&assigned.progress);
                self.membership.released(&assigned.progress);
            }
        }
    }

    /// What the current assignments may commit, with their epochs.
    fn frontiers(&self) -> Vec<progress::Frontier> {
        // What is in a transaction is committed by it alone.
        if self.transactor.is_some() && !Fault::OffsetsOutsideTransaction.is_on() {
            return Vec::new();
        }
        let stale = self.stale.iter().filter(|stale| stale.task.is_finished());
        stale.chain(self.assigned.values()).filter_map(Assigned::frontier).collect()
    }
}

impl Assigned {
    /// What it may commit: nothing once somebody else owns the partition.
    fn frontier(&self) -> Option<progress::Frontier> {
        let fenced = self.owner.as_ref().is_some_and(|owner| owner.is_fenced());
        if fenced { None } else { self.progress.frontier() }
    }
}

fn names(partitions: &[TopicPartition]) -> String {
    partitions.iter().map(TopicPartition::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
