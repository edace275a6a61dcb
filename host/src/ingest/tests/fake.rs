//! A producer that answers as each test says.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, Semaphore};

use crate::broker::{Outgoing, Position, Producer, SendError, WhenFull};

pub(super) type Sent = Result<Position, SendError>;

/// Answers each record with the next prepared result, and otherwise with ever higher offsets.
pub(super) struct Fake {
    records: Mutex<Vec<Outgoing>>,
    results: Mutex<Vec<Sent>>,
    pub(super) sends: AtomicUsize,
    pub(super) ready: AtomicBool,
    /// Each answer takes one permit; open by default.
    pub(super) gate: Arc<Semaphore>,
    pub(super) arrived: Notify,
}

impl Fake {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            records: Mutex::default(),
            results: Mutex::default(),
            sends: AtomicUsize::new(0),
            ready: AtomicBool::new(true),
            gate: Arc::new(Semaphore::new(1_000_000)),
            arrived: Notify::new(),
        })
    }

    pub(super) fn answering(results: Vec<Sent>) -> Arc<Self> {
        let fake = Self::new();
        *fake.results.lock().unwrap() = results;
        fake
    }

    /// Holds every answer back until permits are added to `gate`.
    pub(super) fn held() -> Arc<Self> {
        let fake = Self::new();
        fake.gate.forget_permits(1_000_000);
        fake
    }

    pub(super) fn records(&self) -> Vec<Outgoing> {
        self.records.lock().unwrap().clone()
    }
}

impl Producer for Fake {
    fn send(&self, records: Vec<Outgoing>, when_full: WhenFull) -> BoxFuture<'static, Vec<Sent>> {
        assert_eq!(when_full, WhenFull::Refuse, "ingest never waits for room");
        self.sends.fetch_add(1, Ordering::SeqCst);
        let mut prepared = self.results.lock().unwrap();
        let mut all = self.records.lock().unwrap();
        let results = records.iter().enumerate().map(|(index, _)| {
            if prepared.is_empty() {
                Ok(Position { partition: 0, offset: (all.len() + index) as i64 })
            } else {
                prepared.remove(0)
            }
        });
        let results: Vec<Sent> = results.collect();
        all.extend(records);
        let gate = Arc::clone(&self.gate);
        self.arrived.notify_one();
        Box::pin(async move {
            gate.acquire_owned().await.unwrap().forget();
            results
        })
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }
}
