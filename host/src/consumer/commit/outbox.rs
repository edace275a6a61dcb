//! Between a partition's task and the transactor of its handler: what settled records leave to be produced, until it is
//! committed. Like [`Progress`] it is read and not sent: an outbox that is not reachable any more can't be committed.

use std::sync::Arc;
use std::time::Duration;

use tidemill_core::partition::Bounds;
use tidemill_core::record::Offset;
use tidemill_core::transaction::{Entry, Filling, Item, Load, Outbox as Decisions, Weight};

use super::sync::{AtomicBool, Mutex, MutexGuard, Notify, Ordering, PoisonError};
use crate::broker::Outgoing;
use crate::consumer::Progress;
use crate::settle::Produced;

/// One assignment's outbox.
#[derive(Debug)]
pub(in crate::consumer) struct Outbox {
    pub(in crate::consumer) progress: Arc<Progress>,
    /// Locked for moments: to put in or to take out.
    decisions: Mutex<Decisions<Produced>>,
    /// The partition is not ours any more: nothing of it may be committed.
    void: AtomicBool,
    /// The partition stands still until something is committed.
    urgent: AtomicBool,
    /// Told when there may be something to enter a transaction.
    filled: Arc<Notify>,
    /// Told, with a permit that stays, when something was committed.
    emptied: Notify,
}

impl Outbox {
    /// An empty one; `filled` is the transactor's.
    pub(in crate::consumer) fn new(progress: Arc<Progress>, filled: Arc<Notify>) -> Self {
        let flag = || AtomicBool::new(false);
        Self { progress, decisions: Mutex::default(), void: flag(), urgent: flag(), filled, emptied: Notify::new() }
    }

    /// Notes where reading began.
    pub(in crate::consumer) fn begin(&self, at: Offset) {
        self.lock().begin(at);
    }

    /// Keeps what settled records leave behind.
    pub(in crate::consumer) fn keep(&self, produced: Vec<Produced>) {
        if produced.is_empty() {
            return;
        }
        let mut decisions = self.lock();
        for what in produced {
            decisions.keep(Item { offset: what.offset(), weight: weight(&what.outputs), what });
        }
    }

    /// Notes that all below is settled, and tells the transactor.
    pub(in crate::consumer) fn advance(&self, frontier: Offset) {
        self.lock().advance(frontier);
        self.filled.notify_one();
    }

    /// Whether more is not committed than these bounds allow: then the next commit is not to be waited for.
    pub(in crate::consumer) fn is_full(&self, bounds: &Bounds) -> bool {
        let Load { bytes, span } = self.lock().load();
        let full = bytes >= bounds.bytes_max || span >= bounds.span_max;
        if full && !self.urgent.swap(true, Ordering::SeqCst) {
            self.filled.notify_one();
        }
        full
    }

    /// Whether the partition stands still until something is committed.
    pub(in crate::consumer) fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::SeqCst)
    }

    /// Waits until something was committed since it was asked last; may also return without reason. Cancel-safe.
    pub(in crate::consumer) async fn emptied(&self) {
        self.emptied.notified().await;
    }

    /// All below is committed.
    pub(in crate::consumer) fn committed(&self) -> Option<Offset> {
        self.lock().committed()
    }

    /// Whether there is nothing left to commit, or nothing that may be.
    pub(in crate::consumer) fn is_done(&self) -> bool {
        self.is_void() || self.lock().is_done()
    }

    /// From now on nothing of it may be committed.
    pub(in crate::consumer) fn give_up(&self) {
        self.void.store(true, Ordering::SeqCst);
    }

    pub(in crate::consumer) fn is_void(&self) -> bool {
        self.void.load(Ordering::SeqCst)
    }

    /// Moves into a transaction what may enter.
    pub(in crate::consumer) fn enter(&self, now: Duration, filling: &mut Filling) -> Option<Entry<Produced>> {
        self.lock().enter(now, filling)
    }

    /// Whether something of it is in a transaction that has not ended.
    pub(in crate::consumer) fn has_entered(&self) -> bool {
        self.lock().has_entered()
    }

    /// What has entered, up to this offset, is committed.
    pub(in crate::consumer) fn confirmed(&self, upto: Offset, bytes: usize) {
        self.lock().confirmed(bytes);
        self.progress.set_committable(upto);
        self.urgent.store(false, Ordering::SeqCst);
        self.emptied.notify_one();
    }

    /// What has entered is not committed.
    pub(in crate::consumer) fn put_back(&self, items: Vec<Item<Produced>>) {
        self.lock().put_back(items);
    }

    /// Other outputs stand in for an item's.
    pub(in crate::consumer) fn replace(&self, item: &mut Item<Produced>) {
        let after = weight(&item.what.outputs);
        self.lock().replaced(item.weight, after);
        item.weight = after;
    }

    /// Lets nothing enter from this offset on before this time.
    pub(in crate::consumer) fn hold(&self, from: Offset, until: Duration) {
        self.lock().hold(from, until);
    }

    /// When more may enter without anything else happening.
    pub(in crate::consumer) fn next_try(&self, now: Duration) -> Option<Duration> {
        self.lock().next_try(now)
    }

    fn lock(&self) -> MutexGuard<'_, Decisions<Produced>> {
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What outputs take of a transaction's bounds.
fn weight(outputs: &[Outgoing]) -> Weight {
    Weight { records: outputs.len(), bytes: outputs.iter().map(Outgoing::bytes).sum() }
}
