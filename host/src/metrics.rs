//! Every metric's name, help, unit and labels.
//!
//! Names begin with `tidemill_` and one of the six verbs of a record's path (receive, admit, invoke, host_call, settle,
//! commit), or with `guest`, `ingest` or `process`. Whoever counts holds a handle ([`HandlerMetrics`],
//! [`RevisionMetrics`], [`PartitionMetrics`], [`IngestMetrics`]): an atomic add per batch, never a look-up per record.
//! `docs/metrics.md` lists them for operators; a test holds it to this file.

mod families;
mod handler;
mod ingest;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::registry::Registry;

use families::Families;
pub use families::HeldBytes;
pub use handler::{
    CommitResult, HandlerMetrics, HostCallResult, OutcomeKind, PartitionMetrics, Rebalance, RevisionMetrics,
    TransactionResult,
};
pub use ingest::{InFlight, IngestMetrics};

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of this process. Cheap to clone; the clones share the series.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    families: Arc<Families>,
    ingest: Arc<IngestMetrics>,
    held: HeldBytes,
    handlers: Arc<Mutex<BTreeMap<String, Arc<HandlerMetrics>>>>,
}

impl Metrics {
    /// Registers all families, with no series of any handler yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tidemill");
        let families = Arc::new(Families::register(&mut registry));
        let ingest = Arc::new(IngestMetrics::register(&mut registry));
        let held = HeldBytes::register(&mut registry);
        families::register_process(&mut registry);
        Self { registry: Arc::new(registry), families, ingest, held, handlers: Arc::default() }
    }

    /// The handle of one handler; the same one each time.
    pub fn handler(&self, name: &str) -> Arc<HandlerMetrics> {
        let mut handlers = lock(&self.handlers);
        if let Some(handler) = handlers.get(name) {
            return Arc::clone(handler);
        }
        let handler = Arc::new(HandlerMetrics::new(name, Arc::clone(&self.families)));
        handlers.insert(name.to_owned(), Arc::clone(&handler));
        handler
    }

    /// Removes the series of a handler that is configured no longer; handles that are still held count into the void.
    pub fn remove_handler(&self, name: &str) {
        if let Some(handler) = lock(&self.handlers).remove(name) {
            handler.remove_series();
        }
    }

    /// The handle of the ingest endpoint.
    pub fn ingest(&self) -> Arc<IngestMetrics> {
        Arc::clone(&self.ingest)
    }

    /// The bytes that the host holds.
    pub fn held_bytes(&self) -> HeldBytes {
        self.held.clone()
    }

    /// All series in the text format of OpenMetrics, which Prometheus reads; its media type is [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a `String` never fails");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Locks; a panic elsewhere while it was held can't have left these maps half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
