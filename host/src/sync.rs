//! What threads share, as far as its interleavings are tested.
//!
//! A file that takes its atomics, locks and wake-ups from here, as `super::sync`, is compiled a second time by the tests: there
//! the same names are types that hand each use to a scheduler, which lets any thread go on (ADR 17).

pub(crate) use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use tokio::sync::Notify;

#[cfg(test)]
pub(crate) mod tests;
