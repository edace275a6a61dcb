//! The families: one line of registration for each metric.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Seconds up to which the buckets of a duration count: from a tenth of a millisecond to half a minute.
pub(super) const SECONDS: [f64; 12] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// Records up to which the buckets of a call's size count.
const CALL_RECORDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// Records up to which the buckets of a transaction's size count.
const TRANSACTION_RECORDS: [f64; 10] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0];

/// A gauge of a fraction.
pub(super) type Fraction = Gauge<f64, AtomicU64>;

/// Makes histograms over these buckets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets(pub(super) &'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByHandler {
    pub(super) handler: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByClass {
    pub(super) handler: Arc<str>,
    pub(super) class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByKind {
    pub(super) handler: Arc<str>,
    pub(super) kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByResult {
    pub(super) handler: Arc<str>,
    pub(super) result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByCapability {
    pub(super) handler: Arc<str>,
    pub(super) capability: &'static str,
    pub(super) result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByRevision {
    pub(super) handler: Arc<str>,
    pub(super) revision: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByOutcome {
    pub(super) handler: Arc<str>,
    pub(super) revision: Arc<str>,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByFailure {
    pub(super) handler: Arc<str>,
    pub(super) revision: Arc<str>,
    pub(super) class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByPartition {
    pub(super) handler: Arc<str>,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
}

/// The families of everything that belongs to a handler.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) received_records: Family<ByHandler, Counter>,
    pub(super) received_bytes: Family<ByHandler, Counter>,
    pub(super) receive_errors: Family<ByHandler, Counter>,
    pub(super) rebalances: Family<ByKind, Counter>,
    pub(super) position: Family<ByPartition, Gauge>,
    pub(super) lag_records: Family<ByPartition, Gauge>,
    pub(super) lag_seconds: Family<ByPartition, Fraction>,
    pub(super) pending: Family<ByPartition, Gauge>,
    pub(super) lanes_waiting: Family<ByPartition, Gauge>,
    pub(super) stopped: Family<ByPartition, Gauge>,
    pub(super) parked: Family<ByPartition, Gauge>,
    pub(super) attempts: Family<ByHandler, Counter>,
    pub(super) in_flight: Family<ByHandler, Gauge>,
    pub(super) calls: Family<ByRevision, Counter>,
    pub(super) call_failures: Family<ByFailure, Counter>,
    pub(super) call_seconds: Family<ByRevision, Histogram, Buckets>,
    pub(super) call_records: Family<ByRevision, Histogram, Buckets>,
    pub(super) host_calls: Family<ByCapability, Counter>,
    pub(super) outcomes: Family<ByOutcome, Counter>,
    pub(super) outputs: Family<ByHandler, Counter>,
    pub(super) retries: Family<ByClass, Counter>,
    pub(super) dead_letters: Family<ByClass, Counter>,
    pub(super) dead_letter_failures: Family<ByHandler, Counter>,
    pub(super) lost_records: Family<ByHandler, Counter>,
    pub(super) skipped_offsets: Family<ByHandler, Counter>,
    pub(super) paused: Family<ByHandler, Gauge>,
    pub(super) hazards: Family<ByKind, Gauge>,
    pub(super) dead_letters_waiting: Family<ByHandler, Gauge>,
    pub(super) dropped: Family<ByClass, Counter>,
    pub(super) stale_acknowledgements: Family<ByHandler, Counter>,
    pub(super) commits: Family<ByResult, Counter>,
    pub(super) committed: Family<ByPartition, Gauge>,
    pub(super) transactions: Family<ByResult, Counter>,
    pub(super) transaction_seconds: Family<ByHandler, Histogram, Buckets>,
    pub(super) transaction_records: Family<ByHandler, Histogram, Buckets>,
    pub(super) swaps: Family<ByHandler, Counter>,
    pub(super) rejected_loads: Family<ByHandler, Counter>,
    pub(super) rollbacks: Family<ByHandler, Counter>,
    pub(super) live: Family<ByRevision, Gauge>,
}

impl Families {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let records = || Unit::Other("records".to_owned());
        let r = registry;
        Self {
            received_records: counter(r, "receive", Some(records()), "Records that the broker delivered"),
            received_bytes: counter(r, "receive", Some(Unit::Bytes), "Bytes of their keys, values and headers"),
            receive_errors: counter(r, "receive_errors", None, "Fetches that failed and were tried again"),
            rebalances: counter(r, "receive_rebalances", None, "Changes of the assignment, by kind"),
            position: gauge(r, "receive_position_offset", None, "The next offset to be received"),
            lag_records: gauge(
                r,
                "receive_lag",
                Some(records()),
                "Records from the committable offset to the partition's end",
            ),
            lag_seconds: gauge(
                r,
                "receive_lag",
                Some(Unit::Seconds),
                "Age of the oldest received record that is not settled; 0 when all are",
            ),
            pending: gauge(r, "admit_pending", Some(records()), "Records that were received and are not settled"),
            lanes_waiting: gauge(r, "admit_lanes_waiting", None, "Lanes that wait to try a failed record again"),
            stopped: gauge(
                r,
                "admit_stopped",
                None,
                "1 while the partition stands still at a record, as the handler's policy says",
            ),
            parked: gauge(
                r,
                "settle_parked",
                Some(records()),
                "Records that are parked, as the handler's policy says, and were not handled yet",
            ),
            attempts: counter(
                r,
                "invoke_attempts",
                None,
                "Calls of the guest, each one try of a batch, whatever the revision",
            ),
            in_flight: gauge(r, "invoke_in_flight", Some(records()), "Records in a call that has not returned"),
            calls: counter(r, "invoke_calls", None, "Calls of the guest, by revision"),
            call_failures: counter(r, "invoke_failures", None, "Calls that failed as a whole, by class"),
            call_seconds: histogram(r, "invoke_call", Some(Unit::Seconds), "How long the guest had a call", &SECONDS),
            call_records: histogram(r, "invoke_call", Some(records()), "How many records a call had", &CALL_RECORDS),
            host_calls: counter(
                r,
                "host_call_results",
                None,
                "What the guest's calls to the host came to, by capability",
            ),
            outcomes: counter(r, "settle_outcomes", None, "Records by what the guest said of them, by revision"),
            outputs: counter(
                r,
                "settle_outputs",
                Some(records()),
                "Records that guests emitted and the broker acknowledged",
            ),
            retries: counter(r, "settle_retries", None, "Records that are to be tried again, by class of the failure"),
            dead_letters: counter(
                r,
                "settle_dead_letters",
                None,
                "Records that the dead-letter topic has acknowledged, by class",
            ),
            dead_letter_failures: counter(
                r,
                "settle_dead_letter_failures",
                None,
                "Times that a dead letter could not be written; it is tried again",
            ),
            dead_letters_waiting: gauge(
                r,
                "settle_dead_letters_waiting",
                None,
                "Dead letters that can't be written now; their records wait",
            ),
            dropped: counter(
                r,
                "settle_dropped",
                Some(records()),
                "Records that were given up, as the handler's policy says, by class",
            ),
            lost_records: counter(
                r,
                "settle_lost",
                Some(records()),
                "Records that were committed ahead, as at most once wants it, and whose calls did not end",
            ),
            skipped_offsets: counter(
                r,
                "receive_skipped_offsets",
                None,
                "Offsets that were deleted before this handler has read them",
            ),
            hazards: gauge(
                r,
                "receive_hazards",
                None,
                "What is going to hurt if nobody mends it, by kind; the log has a WARN with each",
            ),
            paused: gauge(r, "admit_paused", None, "1 while an operator has paused the handler"),
            stale_acknowledgements: counter(
                r,
                "settle_stale_acknowledgements",
                None,
                "Results of an earlier assignment that were dropped",
            ),
            commits: counter(r, "commit_requests", None, "Commits of offsets, by result"),
            committed: gauge(r, "commit_offset", None, "The committed offset: the next to be delivered after a crash"),
            transactions: counter(r, "commit_transactions", None, "Kafka transactions, by how they ended"),
            transaction_seconds: histogram(
                r,
                "commit_transaction",
                Some(Unit::Seconds),
                "From when a transaction was closed to the broker's confirmation",
                &SECONDS,
            ),
            transaction_records: histogram(
                r,
                "commit_transaction",
                Some(records()),
                "How many records a committed transaction has produced",
                &TRANSACTION_RECORDS,
            ),
            swaps: counter(r, "guest_swaps", None, "Revisions that went live after the first"),
            rejected_loads: counter(
                r,
                "guest_rejected_loads",
                None,
                "Files that could not become a revision; the live one stayed",
            ),
            rollbacks: counter(r, "guest_rollbacks", None, "Times that an operator went back to the revision before"),
            live: gauge(r, "guest_live", None, "1 for the revision that takes new records, 0 for earlier ones"),
        }
    }
}

/// Bytes that the host has received and not settled.
#[derive(Debug, Clone)]
pub struct HeldBytes(Gauge);

impl HeldBytes {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let held = Gauge::default();
        let help = "Bytes of all handlers that were received and are not settled; `handlers.bytes_max` bounds them";
        registry.register_with_unit("admit_held", help, Unit::Bytes, held.clone());
        Self(held)
    }

    /// More are held.
    pub(crate) fn add(&self, bytes: usize) {
        self.0.inc_by(bytes as i64);
    }

    /// Fewer are.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.0.dec_by(bytes as i64);
    }
}

/// The version and the start of this process.
pub(super) fn register_process(registry: &mut Registry) {
    registry.register("process", "The version of this host", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let started = Fraction::default();
    started.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));
    registry.register_with_unit(
        "process_start_time",
        "When this process started, since the Unix epoch",
        Unit::Seconds,
        started,
    );
}

/// What a family's labels have to be able to do.
pub(super) trait Labels: EncodeLabelSet + Clone + Eq + Hash + Debug + Send + Sync + 'static {}
impl<T: EncodeLabelSet + Clone + Eq + Hash + Debug + Send + Sync + 'static> Labels for T {}

pub(super) fn counter<L: Labels>(
    registry: &mut Registry,
    name: &str,
    unit: Option<Unit>,
    help: &str,
) -> Family<L, Counter> {
    registered(registry, name, unit, help, Family::default())
}

fn gauge<L: Labels, M>(registry: &mut Registry, name: &str, unit: Option<Unit>, help: &str) -> Family<L, M>
where
    M: Default + Debug + Send + Sync + 'static,
    Family<L, M>: EncodeMetric,
{
    registered(registry, name, unit, help, Family::default())
}

pub(super) fn histogram<L: Labels>(
    registry: &mut Registry,
    name: &str,
    unit: Option<Unit>,
    help: &str,
    buckets: &'static [f64],
) -> Family<L, Histogram, Buckets> {
    registered(registry, name, unit, help, Family::new_with_constructor(Buckets(buckets)))
}

fn registered<F>(registry: &mut Registry, name: &str, unit: Option<Unit>, help: &str, family: F) -> F
where
    F: EncodeMetric + Clone + Debug + Send + Sync + 'static,
{
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family.clone()),
        None => registry.register(name, help, family.clone()),
    }
    family
}
