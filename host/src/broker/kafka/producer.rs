//! The producer: one client and one thread that hears what became of the records.
//!
//! A fatal error of the library (its promise of no duplicates is broken) ends the client and not the host: a new client
//! takes over, and the old one's records are reported as what they are, unavailable or unknown.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::time::{Instant, timeout, timeout_at};

use self::client::{Client, Queued};
use super::errors::outcome;
use super::ffi::Batch;
use crate::broker::{BrokerError, Outgoing, Position, Producer, SendError, WhenFull};

mod by_topic;
mod client;
pub(super) mod transactions;

pub(super) use self::by_topic::ByTopic;

/// How long a caller that waits for room listens to one client, which another may have replaced meanwhile.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// A Kafka producer.
pub(super) struct KafkaProducer {
    shared: Arc<Shared>,
}

/// What callers share.
struct Shared {
    this: Weak<Shared>,
    config: ClientConfig,
    current: ArcSwap<Client>,
    /// One build of a new client at a time.
    rebuilding: Mutex<()>,
    /// Callers that wait for room have it in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    /// How many wait for their turn, or have it.
    waiting: AtomicUsize,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.current.load().part();
    }
}

impl KafkaProducer {
    pub(super) fn new(config: ClientConfig) -> Result<Self, BrokerError> {
        let client = Arc::new(Client::new(&config)?);
        let shared = Arc::new_cyclic(|this| Shared {
            this: Weak::clone(this),
            config,
            current: ArcSwap::new(Arc::clone(&client)),
            rebuilding: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            waiting: AtomicUsize::new(0),
        });
        shared.serve(&client)?;
        Ok(Self { shared })
    }
}

impl Producer for KafkaProducer {
    fn send(
        &self,
        records: Vec<Outgoing>,
        when_full: WhenFull,
    ) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        Arc::clone(&self.shared).send(records, when_full).boxed()
    }

    fn ready(&self) -> bool {
        self.shared.current.load().ready()
    }

    fn warm<'a>(&'a self, topics: &'a [Arc<str>], deadline: Duration) -> BoxFuture<'a, Result<(), SendError>> {
        let client = self.shared.current.load_full();
        let topics = topics.to_vec();
        let warmed = tokio::task::spawn_blocking(move || client.warm(&topics, Instant::now() + deadline));
        async move {
            let stopped = |stopped| Err(SendError::Unavailable(format!("the call was stopped: {stopped}")));
            warmed.await.unwrap_or_else(stopped)
        }
        .boxed()
    }

    fn flush(&self, deadline: Duration) -> BoxFuture<'_, usize> {
        let deadline = Instant::now() + deadline;
        async move {
            loop {
                let client = self.shared.current.load_full();
                let mut reported = pin!(client.reported());
                reported.as_mut().enable();
                if client.in_flight() == 0 || timeout_at(deadline, reported).await.is_err() {
                    return client.in_flight();
                }
            }
        }
        .boxed()
    }
}

/// A batch's records that are not with the library yet; they are refused when this is dropped.
struct Unqueued {
    batch: Arc<Batch>,
    /// The first of them.
    next: usize,
}

impl Unqueued {
    fn refuse_next(&mut self, code: Code) {
        self.batch.refuse(self.next, code);
        self.next += 1;
    }

    fn refuse_all(&mut self, code: Code) {
        while self.next < self.batch.records().len() {
            self.refuse_next(code);
        }
    }
}

impl Drop for Unqueued {
    fn drop(&mut self) {
        self.refuse_all(Code::QueueFull);
    }
}

/// Counts one who waits for room.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    async fn send(self: Arc<Self>, records: Vec<Outgoing>, when_full: WhenFull) -> Vec<Result<Position, SendError>> {
        if records.is_empty() {
            return Vec::new();
        }
        let batch = Batch::new(Arc::new(records));
        let mut unqueued = Unqueued { batch: Arc::clone(&batch), next: 0 };
        // Whoever waits already is before us.
        let queued = self.waiting.load(Ordering::SeqCst) == 0 && self.queue(&mut unqueued);
        if !queued && when_full == WhenFull::Wait {
            self.queue_in_turn(&mut unqueued).await;
        }
        drop((unqueued, self));
        batch.reported().await;
        batch.records().iter().enumerate().map(|(at, record)| outcome(record, batch.report(at))).collect()
    }

    /// Waits for room as often as needed, before all who came later.
    async fn queue_in_turn(&self, unqueued: &mut Unqueued) {
        let _waiting = Waiting::new(&self.waiting);
        let _turn = self.turn.lock().await;
        loop {
            let client = self.current.load_full();
            let mut room = pin!(client.reported());
            room.as_mut().enable();
            if self.queue(unqueued) {
                return;
            }
            // Bounded, because a new client may have taken over while we listened to the old one.
            let _looked_again = timeout(ROOM_INTERVAL, room).await;
        }
    }

    /// Gives records to the library in order; false when it has no room for the next one.
    fn queue(&self, unqueued: &mut Unqueued) -> bool {
        let mut client = self.current.load_full();
        match client.queue(unqueued) {
            Queued::All => true,
            Queued::Full => false,
            Queued::Dead => {
                self.rebuild(&client);
                client = self.current.load_full();
                match client.queue(unqueued) {
                    Queued::All => true,
                    Queued::Full => false,
                    Queued::Dead => {
                        // No client can be made: the records are refused, and their caller sends them again.
                        unqueued.refuse_all(Code::Fatal);
                        true
                    }
                }
            }
        }
    }

    /// Puts a new client in the place of one that had a fatal error.
    fn rebuild(&self, dead: &Arc<Client>) {
        let _one_at_a_time = self.rebuilding.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&self.current.load(), dead) {
            return;
        }
        let built = Client::new(&self.config).and_then(|client| {
            let client = Arc::new(client);
            self.serve(&client).map(|()| client)
        });
        match built {
            Ok(client) => {
                tracing::warn!("the producer had a fatal error and was made anew");
                self.current.store(client);
                dead.part();
            }
            // The next send tries again.
            Err(error) => tracing::error!(%error, "the producer had a fatal error and can't be made anew"),
        }
    }

    /// Starts the thread that serves a client, and replaces it when that must be.
    fn serve(&self, client: &Arc<Client>) -> Result<(), BrokerError> {
        let (client, this) = (Arc::clone(client), Weak::clone(&self.this));
        let replace = move |dead: &Arc<Client>| {
            if let Some(shared) = this.upgrade() {
                shared.rebuild(dead);
            }
        };
        let thread = std::thread::Builder::new().name("kafka producer".into());
        let started = thread.spawn(move || client::serve(client, replace));
        started.map(drop).map_err(|error| BrokerError::Unavailable(format!("no thread for the producer: {error}")))
    }
}

#[cfg(test)]
mod tests;
