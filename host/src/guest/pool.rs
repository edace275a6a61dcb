//! Instances of one revision that are kept for the next call: none once another revision has taken over.

use super::sync::{AtomicBool, Mutex, MutexGuard, Ordering, PoisonError};

/// Started and not in use; the last used is used first.
#[derive(Debug)]
pub(super) struct Pool<I> {
    idle: Mutex<Vec<I>>,
    /// Nothing is kept.
    closed: AtomicBool,
}

impl<I> Pool<I> {
    /// An empty one, which keeps what it is given.
    pub(super) fn new() -> Self {
        Self { idle: Mutex::new(Vec::new()), closed: AtomicBool::new(false) }
    }

    /// One that is idle, if any is.
    pub(super) fn take(&self) -> Option<I> {
        self.idle().pop()
    }

    /// Keeps one for the next call, unless nothing is kept any more.
    pub(super) fn keep(&self, instance: I) {
        let mut idle = self.idle();
        // Looked at under the lock: `close` empties what was kept before, and nothing is kept after.
        if self.closed.load(Ordering::SeqCst) {
            drop(idle);
            return;
        }
        idle.push(instance);
    }

    /// From now on nothing is kept, and what was goes.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }

    /// It keeps what it is given again.
    pub(super) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// How many are idle.
    pub(super) fn len(&self) -> usize {
        self.idle().len()
    }

    /// Drops the one that is idle for longest.
    pub(super) fn drop_oldest(&self) {
        let mut idle = self.idle();
        let oldest = if idle.is_empty() { None } else { Some(idle.remove(0)) };
        drop(idle);
        drop(oldest);
    }

    /// Drops those of which this is true.
    pub(super) fn drop_if(&self, mut is_stale: impl FnMut(&I) -> bool) {
        let mut idle = self.idle();
        let stale: Vec<I> = idle.extract_if(.., |instance| is_stale(instance)).collect();
        drop(idle);
        drop(stale);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<I>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
