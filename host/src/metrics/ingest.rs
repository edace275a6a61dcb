//! The handle of the ingest endpoint.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::families::{Buckets, SECONDS, counter, histogram};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTopic {
    topic: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    topic: Arc<str>,
    status: u16,
}

/// What came in over HTTP. Topics are those that the configuration offers; anything else counts under the topic ``.
#[derive(Debug)]
pub struct IngestMetrics {
    requests: Family<ByStatus, Counter>,
    records: Family<ByTopic, Counter>,
    bytes: Family<ByTopic, Counter>,
    seconds: Family<ByTopic, Histogram, Buckets>,
    in_flight: Gauge,
}

/// Counts a request as in flight until it is dropped.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl IngestMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let in_flight = Gauge::default();
        registry.register("ingest_in_flight_requests", "Requests that are not answered yet", in_flight.clone());
        let records = Unit::Other("records".to_owned());
        Self {
            requests: counter(registry, "ingest_requests", None, "Answered requests, by HTTP status"),
            records: counter(registry, "ingest_stored", Some(records), "Records that the broker has acknowledged"),
            bytes: counter(registry, "ingest_stored", Some(Unit::Bytes), "Bytes of their keys, values and headers"),
            seconds: histogram(
                registry,
                "ingest_request",
                Some(Unit::Seconds),
                "From the request's head to its answer",
                &SECONDS,
            ),
            in_flight,
        }
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn begin(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Counts an answer. `topic` must be an offered one, or empty.
    pub fn answered(&self, topic: &Arc<str>, status: u16, took: Duration) {
        self.requests.get_or_create(&ByStatus { topic: Arc::clone(topic), status }).inc();
        self.seconds.get_or_create(&ByTopic { topic: Arc::clone(topic) }).observe(took.as_secs_f64());
    }

    /// Counts records of one request that the broker has acknowledged.
    pub fn stored(&self, topic: &Arc<str>, records: u64, bytes: u64) {
        let labels = ByTopic { topic: Arc::clone(topic) };
        self.records.get_or_create(&labels).inc_by(records);
        self.bytes.get_or_create(&labels).inc_by(bytes);
    }
}
