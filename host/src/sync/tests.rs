//! The types of [`super`] for tests of interleavings: each use is a moment at which any thread may go on.

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
pub(crate) use std::sync::PoisonError;

/// Interleavings that are tried of each test.
const INTERLEAVINGS: usize = 2000;

/// Runs a test in many interleavings of its threads, the same ones each time, and again in those that differ from the usual
/// order in few places: what is missed there is missed only by several changes of threads, each at a certain moment. A thread
/// that waits for good is told as a deadlock, and each failure with the schedule that `shuttle::replay` plays again.
pub(crate) fn in_any_order(test: impl Fn() + Send + Sync + 'static) {
    let test = std::sync::Arc::new(test);
    let again = std::sync::Arc::clone(&test);
    shuttle::check_random_with_seed(move || test(), 1, INTERLEAVINGS);
    shuttle::check_pct(move || again(), INTERLEAVINGS, 3);
}

/// Tokio's own, which nobody can look into: what it does is done at one moment, and others may go on before it.
#[derive(Debug, Default)]
pub(crate) struct Notify {
    inner: tokio::sync::Notify,
    moment: AtomicBool,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self { inner: tokio::sync::Notify::new(), moment: AtomicBool::new(false) }
    }

    fn others_may_go_on(&self) {
        self.moment.load(Ordering::SeqCst);
    }

    pub(crate) fn notify_one(&self) {
        self.others_may_go_on();
        self.inner.notify_one();
        self.others_may_go_on();
    }

    pub(crate) fn notify_waiters(&self) {
        self.others_may_go_on();
        self.inner.notify_waiters();
        self.others_may_go_on();
    }

    pub(crate) fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        self.others_may_go_on();
        self.inner.notified()
    }
}
