//! Bytes in flight of the whole host: what all partitions of all handlers have received and not settled, together.
//!
//! A partition reads while there is room, and each may hold its floor in any case: what one holds up never keeps another from
//! going on. Whoever may not read leaves its records with the broker's client, which is the back-pressure.

use std::pin::pin;
use std::sync::Arc;

use super::sync::{AtomicUsize, Notify, Ordering};
use crate::metrics::HeldBytes;

/// The host's bound, shared by all who receive.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    /// Held by all shares. Passes `bytes_max` by at most the floor of each share, or a larger record of it.
    held: AtomicUsize,
    /// Told when there is room again.
    freed: Notify,
    metric: HeldBytes,
}

/// One partition's part of what is held; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    /// What it may hold however much others hold.
    floor: usize,
    held: usize,
}

impl Budget {
    /// Nothing is held.
    pub fn new(bytes_max: usize, metric: HeldBytes) -> Arc<Self> {
        Arc::new(Self { bytes_max, held: AtomicUsize::new(0), freed: Notify::new(), metric })
    }

    pub(super) fn share(self: &Arc<Self>, floor: usize) -> Share {
        Share { budget: Arc::clone(self), floor, held: 0 }
    }

    fn room(&self) -> usize {
        self.bytes_max.saturating_sub(self.held.load(Ordering::SeqCst))
    }

    fn add(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::SeqCst);
        self.metric.add(bytes);
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::SeqCst);
        self.metric.give_back(bytes);
        self.freed.notify_waiters();
    }
}

impl Share {
    /// Bytes that this partition may receive now: at most its floor, since others may receive at the same time, and then all
    /// of them together pass the bound by no more than their floors. What is less is left alone, so that records are not taken
    /// one by one.
    pub(super) fn room(&self) -> usize {
        if self.budget.room() >= self.floor { self.floor } else { self.floor.saturating_sub(self.held) }
    }

    /// Resolves when there is room again. Cancel-safe.
    pub(super) async fn freed(&self) {
        loop {
            let mut freed = pin!(self.budget.freed.notified());
            // Listens before it looks, so that nothing is missed in between.
            freed.as_mut().enable();
            if self.budget.room() >= self.floor {
                return;
            }
            freed.await;
        }
    }

    /// Notes what the partition holds now.
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes > self.held {
            self.budget.add(bytes - self.held);
        } else if bytes < self.held {
            self.budget.give_back(self.held - bytes);
        }
        self.held = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
