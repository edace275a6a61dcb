//! The handles of one handler, of its guest's revisions and of its partitions.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tidemill_core::hazards::Hazard;
use tidemill_core::record::TopicPartition;
use tidemill_core::retry::Class;

use super::families::{
    ByCapability, ByClass, ByFailure, ByHandler, ByKind, ByOutcome, ByPartition, ByResult, ByRevision, Families,
    Fraction, Labels,
};
use super::lock;

/// This many revisions keep their series: the live one and those to go back to.
const REVISIONS_MAX: usize = 4;

/// How an assignment changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebalance {
    /// Partitions came.
    Assigned,
    /// Partitions went, in order.
    Revoked,
    /// Partitions were somebody else's already.
    Lost,
}

/// What a commit came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitResult {
    /// The broker confirmed.
    Ok,
    /// It failed and is tried again.
    Failed,
    /// The group has moved on without this member.
    Fenced,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionResult {
    /// The broker confirmed.
    Committed,
    /// Nothing of it was kept; what it held is sent again.
    Aborted,
    /// Nobody knew; what the group has committed tells.
    Unknown,
}

/// How the guest said that a record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// Done.
    Ack,
    /// Not for this handler.
    Skip,
    /// Later.
    Retry,
    /// Never going to work.
    DeadLetter,
    /// Not processed.
    Untouched,
}

impl OutcomeKind {
    /// All of them.
    pub const ALL: [Self; OUTCOMES.len()] = [Self::Ack, Self::Skip, Self::Retry, Self::DeadLetter, Self::Untouched];

    /// Its name, as in labels.
    pub fn name(self) -> &'static str {
        OUTCOMES[self as usize]
    }
}

/// What a guest's call to the host came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostCallResult {
    /// It did what was asked.
    Ok,
    /// The handler has no grant for it.
    Denied,
    /// What it needs is away.
    Unavailable,
    /// It failed otherwise: a wrong statement, a name that is not there.
    Failed,
}

const REBALANCES: [&str; 3] = ["assigned", "revoked", "lost"];
const COMMIT_RESULTS: [&str; 3] = ["ok", "failed", "fenced"];
const TRANSACTION_RESULTS: [&str; 3] = ["committed", "aborted", "unknown"];
const OUTCOMES: [&str; 5] = ["ack", "skip", "retry", "dead-letter", "untouched"];
const HOST_CALL_RESULTS: [&str; 4] = ["ok", "denied", "unavailable", "failed"];

/// What is counted for one handler. The public series may be counted up by anyone who holds the handle.
#[derive(Debug)]
pub struct HandlerMetrics {
    name: Arc<str>,
    families: Arc<Families>,
    /// Records that the broker delivered.
    pub received_records: Counter,
    /// Their bytes.
    pub received_bytes: Counter,
    /// Fetches that failed.
    pub receive_errors: Counter,
    /// Calls, whatever the revision.
    pub attempts: Counter,
    /// Records in a call that has not returned.
    pub in_flight: Gauge,
    /// Outputs that the broker has acknowledged.
    pub outputs: Counter,
    /// Times that a dead letter could not be written.
    pub dead_letter_failures: Counter,
    /// Records that were committed ahead and whose calls did not end.
    pub lost_records: Counter,
    /// Offsets that were deleted before they were read.
    pub skipped_offsets: Counter,
    /// 1 while an operator has paused it.
    pub paused: Gauge,
    /// Dead letters that can't be written now.
    pub dead_letters_waiting: Gauge,
    /// Results of an earlier assignment that were dropped.
    pub stale_acknowledgements: Counter,
    /// Revisions that went live after the first.
    pub swaps: Counter,
    /// Files that could not become a revision.
    pub rejected_loads: Counter,
    /// Times that an operator went back.
    pub rollbacks: Counter,
    hazards: [Gauge; Hazard::KINDS.len()],
    retries: [Counter; Class::ALL.len()],
    dead_letters: [Counter; Class::ALL.len()],
    dropped: [Counter; Class::ALL.len()],
    rebalances: [Counter; REBALANCES.len()],
    commits: [Counter; COMMIT_RESULTS.len()],
    transactions: [Counter; TRANSACTION_RESULTS.len()],
    /// From when a transaction was closed to its confirmation.
    pub transaction_seconds: Histogram,
    /// Records that a committed transaction has produced.
    pub transaction_records: Histogram,
    /// The latest used last. Invariant: at most `REVISIONS_MAX`.
    revisions: Mutex<VecDeque<(Arc<str>, Arc<RevisionMetrics>)>>,
    /// How many handles there are for a partition: a new assignment may begin before the old one is dropped.
    partitions: Arc<Mutex<BTreeMap<TopicPartition, usize>>>,
    capabilities: Mutex<BTreeMap<&'static str, [Counter; HOST_CALL_RESULTS.len()]>>,
}

impl HandlerMetrics {
    pub(super) fn new(name: &str, families: Arc<Families>) -> Self {
        let name: Arc<str> = name.into();
        let f = &families;
        let handler = || ByHandler { handler: Arc::clone(&name) };
        let class = |class: Class| ByClass { handler: Arc::clone(&name), class: class.name() };
        Self {
            received_records: f.received_records.get_or_create_owned(&handler()),
            received_bytes: f.received_bytes.get_or_create_owned(&handler()),
            receive_errors: f.receive_errors.get_or_create_owned(&handler()),
            attempts: f.attempts.get_or_create_owned(&handler()),
            in_flight: f.in_flight.get_or_create_owned(&handler()),
            outputs: f.outputs.get_or_create_owned(&handler()),
            dead_letter_failures: f.dead_letter_failures.get_or_create_owned(&handler()),
            lost_records: f.lost_records.get_or_create_owned(&handler()),
            skipped_offsets: f.skipped_offsets.get_or_create_owned(&handler()),
            paused: f.paused.get_or_create_owned(&handler()),
            dead_letters_waiting: f.dead_letters_waiting.get_or_create_owned(&handler()),
            stale_acknowledgements: f.stale_acknowledgements.get_or_create_owned(&handler()),
            swaps: f.swaps.get_or_create_owned(&handler()),
            rejected_loads: f.rejected_loads.get_or_create_owned(&handler()),
            rollbacks: f.rollbacks.get_or_create_owned(&handler()),
            hazards: Hazard::KINDS
                .map(|kind| f.hazards.get_or_create_owned(&ByKind { handler: Arc::clone(&name), kind })),
            retries: Class::ALL.map(|it| f.retries.get_or_create_owned(&class(it))),
            dead_letters: Class::ALL.map(|it| f.dead_letters.get_or_create_owned(&class(it))),
            dropped: Class::ALL.map(|it| f.dropped.get_or_create_owned(&class(it))),
            rebalances: REBALANCES
                .map(|kind| f.rebalances.get_or_create_owned(&ByKind { handler: Arc::clone(&name), kind })),
            commits: COMMIT_RESULTS
                .map(|result| f.commits.get_or_create_owned(&ByResult { handler: Arc::clone(&name), result })),
            transactions: TRANSACTION_RESULTS
                .map(|result| f.transactions.get_or_create_owned(&ByResult { handler: Arc::clone(&name), result })),
            transaction_seconds: f.transaction_seconds.get_or_create_owned(&handler()),
            transaction_records: f.transaction_records.get_or_create_owned(&handler()),
            revisions: Mutex::default(),
            partitions: Arc::default(),
            capabilities: Mutex::default(),
            name,
            families,
        }
    }

    /// Records that are to be tried again after a failure of this class.
    pub fn retries(&self, class: Class) -> &Counter {
        &self.retries[class as usize]
    }

    /// Records that the dead-letter topic has acknowledged.
    pub fn dead_letters(&self, class: Class) -> &Counter {
        &self.dead_letters[class as usize]
    }

    /// What is going to hurt, by the name of its kind.
    ///
    /// # Panics
    /// When there is no such kind.
    pub fn hazards(&self, kind: &str) -> &Gauge {
        let at = Hazard::KINDS.iter().position(|known| *known == kind).expect("a hazard's kind is one of its kinds");
        &self.hazards[at]
    }

    /// Records that were given up.
    pub fn dropped(&self, class: Class) -> &Counter {
        &self.dropped[class as usize]
    }

    /// Changes of the assignment.
    pub fn rebalances(&self, kind: Rebalance) -> &Counter {
        &self.rebalances[kind as usize]
    }

    /// Commits of offsets.
    pub fn commits(&self, result: CommitResult) -> &Counter {
        &self.commits[result as usize]
    }

    /// Ends of transactions.
    pub fn transactions(&self, result: TransactionResult) -> &Counter {
        &self.transactions[result as usize]
    }

    /// Counts a guest's call to the host.
    pub fn host_call(&self, capability: &'static str, result: HostCallResult) {
        lock(&self.capabilities).entry(capability).or_insert_with(|| self.host_calls(capability))[result as usize]
            .inc();
    }

    fn host_calls(&self, capability: &'static str) -> [Counter; HOST_CALL_RESULTS.len()] {
        HOST_CALL_RESULTS.map(|result| {
            let labels = ByCapability { handler: Arc::clone(&self.name), capability, result };
            self.families.host_calls.get_or_create_owned(&labels)
        })
    }

    /// The handle of a revision, by its whole digest; ask once a batch. When a fifth revision comes, the series of the
    /// one that was used longest ago are removed.
    pub fn revision(&self, digest: &str) -> Arc<RevisionMetrics> {
        let digest = digest.get(..12).unwrap_or(digest);
        let mut revisions = lock(&self.revisions);
        if let Some(at) = revisions.iter().rposition(|(kept, _)| &**kept == digest) {
            let found = Arc::clone(&revisions[at].1);
            if at + 1 < revisions.len()
                && let Some(used) = revisions.remove(at)
            {
                revisions.push_back(used);
            }
            return found;
        }
        let revision: Arc<str> = digest.into();
        let created = Arc::new(RevisionMetrics::new(&self.families, &self.name, &revision));
        revisions.push_back((revision, Arc::clone(&created)));
        if revisions.len() > REVISIONS_MAX
            && let Some((oldest, _)) = revisions.pop_front()
        {
            self.remove_revision(&oldest);
        }
        created
    }

    /// Marks the revision that takes new records; the others are marked as earlier ones.
    pub fn live(&self, digest: &str) {
        let live = self.revision(digest);
        for (_, revision) in lock(&self.revisions).iter() {
            revision.live.set(i64::from(Arc::ptr_eq(revision, &live)));
        }
    }

    /// The handle of a partition; its series are removed when the last handle for it is dropped.
    pub fn partition(&self, topic: &str, partition: i32) -> PartitionMetrics {
        let place = TopicPartition::new(topic, partition);
        *lock(&self.partitions).entry(place.clone()).or_insert(0) += 1;
        let labels = by_partition(&self.name, &place);
        let f = &self.families;
        PartitionMetrics {
            position: f.position.get_or_create_owned(&labels),
            committed: f.committed.get_or_create_owned(&labels),
            lag_records: f.lag_records.get_or_create_owned(&labels),
            lag_seconds: f.lag_seconds.get_or_create_owned(&labels),
            lanes_waiting: f.lanes_waiting.get_or_create_owned(&labels),
            stopped: f.stopped.get_or_create_owned(&labels),
            pending: f.pending.get_or_create_owned(&labels),
            handler: Arc::clone(&self.name),
            place,
            families: Arc::clone(&self.families),
            handles: Arc::clone(&self.partitions),
        }
    }

    pub(super) fn remove_series(&self) {
        let f = &self.families;
        let handler = ByHandler { handler: Arc::clone(&self.name) };
        let of_handler = [
            &f.received_records,
            &f.received_bytes,
            &f.receive_errors,
            &f.attempts,
            &f.outputs,
            &f.dead_letter_failures,
            &f.lost_records,
            &f.skipped_offsets,
            &f.stale_acknowledgements,
            &f.swaps,
            &f.rejected_loads,
            &f.rollbacks,
        ];
        for family in of_handler {
            remove(family, &handler);
        }
        remove(&f.in_flight, &handler);
        remove(&f.paused, &handler);
        remove(&f.dead_letters_waiting, &handler);
        for class in Class::ALL {
            let labels = ByClass { handler: Arc::clone(&self.name), class: class.name() };
            remove(&f.retries, &labels);
            remove(&f.dead_letters, &labels);
            remove(&f.dropped, &labels);
        }
        for kind in REBALANCES {
            remove(&f.rebalances, &ByKind { handler: Arc::clone(&self.name), kind });
        }
        for kind in Hazard::KINDS {
            remove(&f.hazards, &ByKind { handler: Arc::clone(&self.name), kind });
        }
        for result in COMMIT_RESULTS {
            remove(&f.commits, &ByResult { handler: Arc::clone(&self.name), result });
        }
        for result in TRANSACTION_RESULTS {
            remove(&f.transactions, &ByResult { handler: Arc::clone(&self.name), result });
        }
        remove(&f.transaction_seconds, &handler);
        remove(&f.transaction_records, &handler);
        for capability in lock(&self.capabilities).keys() {
            for result in HOST_CALL_RESULTS {
                remove(&f.host_calls, &ByCapability { handler: Arc::clone(&self.name), capability, result });
            }
        }
        for (revision, _) in lock(&self.revisions).drain(..) {
            self.remove_revision(&revision);
        }
        for place in lock(&self.partitions).keys() {
            remove_partition(f, &self.name, place);
        }
    }

    fn remove_revision(&self, revision: &Arc<str>) {
        let f = &self.families;
        let labels = ByRevision { handler: Arc::clone(&self.name), revision: Arc::clone(revision) };
        remove(&f.calls, &labels);
        remove(&f.call_seconds, &labels);
        remove(&f.call_records, &labels);
        remove(&f.live, &labels);
        for outcome in OUTCOMES {
            remove(&f.outcomes, &by_outcome(&self.name, revision, outcome));
        }
        for class in Class::ALL {
            remove(&f.call_failures, &by_failure(&self.name, revision, class));
        }
    }
}

/// What is counted for one revision of a handler's guest.
#[derive(Debug)]
pub struct RevisionMetrics {
    /// Calls.
    pub calls: Counter,
    live: Gauge,
    seconds: Histogram,
    records: Histogram,
    outcomes: [Counter; OUTCOMES.len()],
    failures: [Counter; Class::ALL.len()],
}

impl RevisionMetrics {
    fn new(f: &Families, handler: &Arc<str>, revision: &Arc<str>) -> Self {
        let labels = ByRevision { handler: Arc::clone(handler), revision: Arc::clone(revision) };
        Self {
            calls: f.calls.get_or_create_owned(&labels),
            live: f.live.get_or_create_owned(&labels),
            seconds: f.call_seconds.get_or_create_owned(&labels),
            records: f.call_records.get_or_create_owned(&labels),
            outcomes: OUTCOMES.map(|it| f.outcomes.get_or_create_owned(&by_outcome(handler, revision, it))),
            failures: Class::ALL.map(|it| f.call_failures.get_or_create_owned(&by_failure(handler, revision, it))),
        }
    }

    /// Counts a call that returned: how many records it had and how long the guest had it.
    pub fn called(&self, records: usize, took: Duration) {
        self.calls.inc();
        self.records.observe(records as f64);
        self.seconds.observe(took.as_secs_f64());
    }

    /// Records by what the guest said of them; count a batch's with one `inc_by`.
    pub fn outcomes(&self, kind: OutcomeKind) -> &Counter {
        &self.outcomes[kind as usize]
    }

    /// Calls that failed as a whole: traps, deadlines, memory.
    pub fn failures(&self, class: Class) -> &Counter {
        &self.failures[class as usize]
    }
}

/// What is known of one assigned partition; dropping it removes the series.
#[derive(Debug)]
pub struct PartitionMetrics {
    /// The next offset to be received.
    pub position: Gauge,
    /// The committed offset.
    pub committed: Gauge,
    /// Records from the committable offset to the partition's end.
    pub lag_records: Gauge,
    /// Age of the oldest received record that is not settled.
    pub lag_seconds: Fraction,
    /// Lanes that wait to try again.
    pub lanes_waiting: Gauge,
    /// Records that were received and are not settled.
    pub pending: Gauge,
    /// 1 while it stands still at a record.
    pub stopped: Gauge,
    handler: Arc<str>,
    place: TopicPartition,
    families: Arc<Families>,
    handles: Arc<Mutex<BTreeMap<TopicPartition, usize>>>,
}

impl PartitionMetrics {
    /// The handler's name.
    pub fn handler(&self) -> &str {
        &self.handler
    }
}

impl Drop for PartitionMetrics {
    fn drop(&mut self) {
        let mut handles = lock(&self.handles);
        match handles.get_mut(&self.place) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                handles.remove(&self.place);
                remove_partition(&self.families, &self.handler, &self.place);
            }
        }
    }
}

fn by_partition(handler: &Arc<str>, place: &TopicPartition) -> ByPartition {
    ByPartition { handler: Arc::clone(handler), topic: Arc::clone(&place.topic), partition: place.partition }
}

fn by_outcome(handler: &Arc<str>, revision: &Arc<str>, outcome: &'static str) -> ByOutcome {
    ByOutcome { handler: Arc::clone(handler), revision: Arc::clone(revision), outcome }
}

fn by_failure(handler: &Arc<str>, revision: &Arc<str>, class: Class) -> ByFailure {
    ByFailure { handler: Arc::clone(handler), revision: Arc::clone(revision), class: class.name() }
}

fn remove_partition(f: &Families, handler: &Arc<str>, place: &TopicPartition) {
    let labels = by_partition(handler, place);
    for family in [&f.position, &f.committed, &f.lag_records, &f.lanes_waiting, &f.pending, &f.stopped] {
        remove(family, &labels);
    }
    remove(&f.lag_seconds, &labels);
}

/// Removes a series; that it is gone already is as good.
fn remove<L: Labels, M, C: MetricConstructor<M>>(family: &Family<L, M, C>, labels: &L) {
    let _was_there: bool = family.remove(labels);
}
