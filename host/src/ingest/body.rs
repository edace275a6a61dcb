//! Reads a request's body within its bounds: size, time, and the memory of all bodies in hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::answer::Refusal;

/// What is left of a refused body is read and dropped for at most this long, so that the client gets to read the answer
/// instead of a reset connection.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
/// And at most so much of it.
const DISCARD_BYTES_MAX: usize = 16 << 20;

/// The memory that all bodies in hand may take.
#[derive(Debug)]
pub(super) struct Budget {
    taken: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), max })
    }
}

/// A share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    pub(super) fn of(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let before = self.budget.taken.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before + bytes > self.budget.max { Err(Refusal::OutOfMemory) } else { Ok(()) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A body that is being read.
pub(super) struct Incoming(BodyDataStream);

impl Incoming {
    pub(super) fn new(body: Body) -> Self {
        Self(body.into_data_stream())
    }

    /// Reads the whole body; what it takes is added to the share.
    pub(super) async fn read(&mut self, max: usize, within: Duration, share: &mut Share) -> Result<Bytes, Refusal> {
        timeout(within, self.collect(max, share)).await.unwrap_or(Err(Refusal::BodyTimeout(within)))
    }

    async fn collect(&mut self, max: usize, share: &mut Share) -> Result<Bytes, Refusal> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(chunk) = self.0.next().await {
            let chunk = chunk.map_err(|error| Refusal::BodyBroken(error.to_string()))?;
            if first.len() + all.len() + chunk.len() > max {
                return Err(Refusal::BodyTooLarge { max });
            }
            share.grow(chunk.len())?;
            // Most bodies come in one piece, which is kept without a copy.
            if first.is_empty() && all.is_empty() {
                first = chunk;
                continue;
            }
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&chunk);
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }

    /// Drops what is left, within bounds.
    pub(super) async fn discard(mut self) {
        let mut left = DISCARD_BYTES_MAX;
        let rest = async {
            while let Some(Ok(chunk)) = self.0.next().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    break;
                }
            }
        };
        // Either way the answer follows.
        timeout(DISCARD_TIMEOUT, rest).await.ok();
    }
}
