//! One commit and its answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::broker::kafka::ffi::{Event, Queue};

/// How long a commit may go unanswered.
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);

/// A commit under way.
pub(super) struct Commit {
    /// Where the answer comes to; gone once the client is to end, which a queue would keep alive.
    queue: Mutex<Option<Queue>>,
    woken: Arc<Notify>,
}

impl Commit {
    /// A commit that was asked for and is answered to this queue.
    pub(super) fn new(queue: Queue) -> Self {
        Self { woken: queue.wake(), queue: Mutex::new(Some(queue)) }
    }

    /// Waits for the coordinator's answer. Cancel-safe.
    pub(super) async fn answer(&self) -> Result<(), Code> {
        let answered = async {
            loop {
                match self.queue().as_ref().map(|queue| queue.poll(0)) {
                    Some(Some(Event::Committed(result))) => return result,
                    Some(_) => {}
                    None => return Err(Code::BrokerDestroy),
                }
                self.woken.notified().await;
            }
        };
        timeout(COMMIT_DEADLINE, answered).await.unwrap_or(Err(Code::OperationTimedOut))
    }

    /// Gives the answer up.
    pub(super) fn give_up(&self) {
        let queue = self.queue().take();
        drop(queue);
        self.woken.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Option<Queue>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
