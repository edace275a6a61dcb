//! Sending: a bounded queue in front of the writer, in the order in which senders came.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::Log;
use super::append::room_of;
use super::writer::{Append, Command};
use crate::broker::{Outgoing, Position, Producer, SendError, WhenFull};

/// The room in front of the writer, for all producers of the log.
#[derive(Debug)]
pub(super) struct Queue {
    room: Arc<Semaphore>,
    bytes_max: u32,
    /// Waiting senders stand here, so that whoever came first is queued first.
    line: tokio::sync::Mutex<()>,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32);
        Self { room: Arc::new(Semaphore::new(bytes_max as usize)), bytes_max, line: tokio::sync::Mutex::new(()) }
    }

    /// Waits for room, behind all who came before.
    pub(super) async fn room_for(&self, bytes: usize) -> Result<OwnedSemaphorePermit, SendError> {
        let room = Arc::clone(&self.room);
        let _first = self.line.lock().await;
        let closed = |_| SendError::Unavailable("the log is closed".to_owned());
        room.acquire_many_owned(self.share(bytes)).await.map_err(closed)
    }

    /// What a send takes of the room; one that is larger than all of it takes all of it.
    fn share(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max)
    }
}

/// A send's place in the queue and in the count of its producer's records in flight.
pub(super) struct InFlight {
    _room: OwnedSemaphorePermit,
    _count: Count,
}

struct Count {
    records: usize,
    all: Arc<watch::Sender<usize>>,
}

impl Count {
    fn new(records: usize, all: &Arc<watch::Sender<usize>>) -> Self {
        all.send_modify(|all| *all += records);
        Self { records, all: Arc::clone(all) }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.all.send_modify(|all| *all -= self.records);
    }
}

/// A producer of the embedded log.
pub(super) struct EmbeddedProducer {
    log: Arc<Log>,
    in_flight: Arc<watch::Sender<usize>>,
}

impl EmbeddedProducer {
    pub(super) fn new(log: Arc<Log>) -> Self {
        Self { log, in_flight: Arc::new(watch::Sender::new(0)) }
    }
}

impl Producer for EmbeddedProducer {
    fn send(
        &self,
        records: Vec<Outgoing>,
        when_full: WhenFull,
    ) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        let log = Arc::clone(&self.log);
        let in_flight = Arc::clone(&self.in_flight);
        Box::pin(async move {
            let count = records.len();
            match queue(&log, in_flight, records, when_full).await {
                Ok(answered) => match answered.await {
                    Ok(results) => results,
                    Err(_) => vec![Err(SendError::Unknown("the log's writer has ended".to_owned())); count],
                },
                Err(error) => vec![Err(error); count],
            }
        })
    }

    fn ready(&self) -> bool {
        self.log.writer_runs()
    }

    fn warm<'a>(&'a self, topics: &'a [Arc<str>], _deadline: Duration) -> BoxFuture<'a, Result<(), SendError>> {
        let missing =
            topics.iter().find(|topic| !self.log.config.create_topics && self.log.topics.get(topic).is_none());
        let result = match missing {
            Some(topic) => Err(SendError::NoSuchTopic(topic.to_string())),
            None => Ok(()),
        };
        Box::pin(std::future::ready(result))
    }

    fn flush(&self, deadline: Duration) -> BoxFuture<'_, usize> {
        let mut in_flight = self.in_flight.subscribe();
        Box::pin(async move {
            let done = tokio::time::timeout(deadline, in_flight.wait_for(|records| *records == 0)).await.is_ok();
            if done { 0 } else { *in_flight.borrow() }
        })
    }
}

/// Queues records when there is room. Cancel-safe: they are queued once this returns.
async fn queue(
    log: &Arc<Log>,
    in_flight: Arc<watch::Sender<usize>>,
    records: Vec<Outgoing>,
    when_full: WhenFull,
) -> Result<oneshot::Receiver<Vec<Result<Position, SendError>>>, SendError> {
    let count = Count::new(records.len(), &in_flight);
    let bytes: usize = records.iter().map(room_of).sum();
    let (answer, answered) = oneshot::channel();
    let append = |room| {
        let in_flight = InFlight { _room: room, _count: count };
        log.command(Command::Append(Append { records, bytes, answer, in_flight })).map_err(SendError::Unavailable)
    };
    match when_full {
        WhenFull::Refuse => {
            let room = Arc::clone(&log.queue.room).try_acquire_many_owned(log.queue.share(bytes));
            append(room.map_err(|_| SendError::QueueFull)?)?;
        }
        WhenFull::Wait => append(log.queue.room_for(bytes).await?)?,
    }
    Ok(answered)
}
