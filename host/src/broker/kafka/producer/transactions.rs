//! Transactions: a client of its own for each transactional id, whose calls that wait run on threads that may block.
//!
//! The library's end of a transaction is not to be trusted when it fails (2.12.1: a commit that had failed here may have
//! succeeded at the broker). So nothing is ever begun on a client whose last commit did not return well.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use tidemill_core::record::{Offset, TopicPartition};
use tokio::time::{Instant, timeout};

use super::client::{self, Client, Queued, millis_until};
use super::{ROOM_INTERVAL, Unqueued};
use crate::broker::kafka::consumer::KafkaMember;
use crate::broker::kafka::errors::outcome;
use crate::broker::kafka::ffi::Batch;
use crate::broker::kafka::ffi::transaction::{self as ffi, Failure};
use crate::broker::{BrokerError, Outgoing, Remains, SendError, TransactionError, Transactions, lacking};

/// How long one try to take the id over takes: it waits for the end of what was left open.
const INIT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a commit may take with all that belongs to it, before nobody knows its end.
const COMMIT_DEADLINE: Duration = Duration::from_secs(15);

/// How long an abort may take before the client is given up.
const ABORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long it may take until what is given up is reported.
const PURGE_DEADLINE: Duration = Duration::from_secs(1);

/// How long the coordinator may take to say what a group has committed.
const COMMITTED_DEADLINE: Duration = Duration::from_secs(10);

/// How long it may take to bring partitions into a transaction that is to be aborted.
const SWEEP_DEADLINE: Duration = Duration::from_secs(10);

/// The pause before a call is made again that failed for a moment.
const AGAIN_DELAY: Duration = Duration::from_millis(5);

/// A transactional producer.
pub struct KafkaTransactions {
    client: Arc<Client>,
    stage: Stage,
    /// The open transaction's records, in the order of sending.
    sent: Vec<Arc<Batch>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The id is not taken over yet.
    New,
    /// No transaction is open.
    Ready,
    /// A transaction is open.
    Open,
    /// It can only be dropped.
    Spent,
}

impl KafkaTransactions {
    pub(in crate::broker::kafka) fn new(config: &ClientConfig) -> Result<Self, BrokerError> {
        let client = Arc::new(Client::new(config)?);
        let served = Arc::clone(&client);
        let thread = std::thread::Builder::new().name("kafka transactions".into());
        // A client that has a fatal error says so to whoever uses it, and is not replaced.
        let started = thread.spawn(move || client::serve(served, |_dead| ()));
        started.map_err(|error| BrokerError::Unavailable(format!("no thread for the producer: {error}")))?;
        Ok(Self { client, stage: Stage::New, sent: Vec::new() })
    }

    /// Runs calls that wait.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> Result<T, TransactionError> + Send + 'static,
    ) -> Result<T, TransactionError> {
        let client = Arc::clone(&self.client);
        let done = tokio::task::spawn_blocking(move || call(&client)).await;
        done.unwrap_or_else(|ended| Err(TransactionError::Unknown(format!("the call was stopped: {ended}"))))
    }

    fn begin(&mut self) -> Result<(), TransactionError> {
        match self.stage {
            Stage::Open => return Ok(()),
            Stage::Ready => {}
            Stage::New => return Err(TransactionError::Fatal("its id is not taken over yet".into())),
            Stage::Spent => return Err(TransactionError::Fatal("its last transaction did not end well".into())),
        }
        ffi::begin(self.client.native()).map_err(|failure| self.failed(failure))?;
        self.stage = Stage::Open;
        Ok(())
    }

    fn failed(&mut self, failure: Failure) -> TransactionError {
        let error = told(failure);
        if matches!(error, TransactionError::Fatal(_) | TransactionError::Fenced(_)) {
            self.stage = Stage::Spent;
        }
        error
    }

    /// Whether all records are stored in the transaction.
    fn check_sent(sent: &[Arc<Batch>]) -> Result<(), TransactionError> {
        let (mut refused, mut failed, mut place) = (Vec::new(), None, 0);
        for batch in sent {
            if batch.is_stored() {
                place += batch.records().len();
                continue;
            }
            for (at, record) in batch.records().iter().enumerate() {
                match outcome(record, batch.report(at)) {
                    Ok(_) => {}
                    Err(
                        error @ (SendError::TooLarge(_)
                        | SendError::Rejected(_)
                        | SendError::NoSuchTopic(_)
                        | SendError::Denied(_)),
                    ) => refused.push((place, error)),
                    // The others suffer with a record that was refused, or with the broker.
                    Err(error @ (SendError::Unavailable(_) | SendError::Unknown(_) | SendError::QueueFull)) => {
                        failed.get_or_insert(error);
                    }
                }
                place += 1;
            }
        }
        match failed {
            _ if !refused.is_empty() => Err(TransactionError::Refused(refused)),
            Some(error) => Err(TransactionError::Aborted(format!("a record was not stored: {error}"))),
            None => Ok(()),
        }
    }
}

impl Transactions for KafkaTransactions {
    type Member = KafkaMember;

    async fn init(&mut self) -> Result<(), TransactionError> {
        let deadline = Instant::now() + INIT_DEADLINE;
        let taken = self
            .blocking(move |client| until(deadline, |millis| ffi::init(client.native(), millis)).map_err(told))
            .await;
        match taken {
            Ok(()) => self.stage = Stage::Ready,
            Err(TransactionError::Unavailable(_)) => {}
            Err(_) => self.stage = Stage::Spent,
        }
        taken
    }

    async fn send(&mut self, records: Arc<Vec<Outgoing>>) -> Result<(), TransactionError> {
        if records.is_empty() {
            return Ok(());
        }
        self.begin()?;
        let batch = Batch::new(records);
        self.sent.push(Arc::clone(&batch));
        let mut unqueued = Unqueued { batch, next: 0 };
        loop {
            let mut room = pin!(self.client.reported());
            room.as_mut().enable();
            match self.client.queue(&mut unqueued) {
                Queued::All => return Ok(()),
                Queued::Full => drop(timeout(ROOM_INTERVAL, room).await),
                Queued::Dead => {
                    self.stage = Stage::Spent;
                    return Err(TransactionError::Fatal("the producer had a fatal error".into()));
                }
            }
        }
    }

    async fn commit(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &KafkaMember,
    ) -> Result<(), TransactionError> {
        self.begin()?;
        let sent = self.sent.clone();
        let (offsets, member) = (offsets.to_vec(), member.clone());
        // Until it has ended well: this call may be given up while the thread goes on.
        self.stage = Stage::Spent;
        let ended = self.blocking(move |client| commit(client, &sent, &offsets, &member)).await;
        self.stage = match &ended {
            Ok(()) => {
                self.sent.clear();
                Stage::Ready
            }
            Err(TransactionError::Unknown(_) | TransactionError::Fenced(_) | TransactionError::Fatal(_)) => {
                Stage::Spent
            }
            Err(
                TransactionError::Refused(_)
                | TransactionError::Aborted(_)
                | TransactionError::StaleMember(_)
                | TransactionError::Unavailable(_),
            ) => Stage::Open,
        };
        ended
    }

    async fn abort(&mut self) -> Result<(), TransactionError> {
        match self.stage {
            Stage::New | Stage::Ready => return Ok(()),
            Stage::Spent => return Err(TransactionError::Fatal("its last transaction did not end well".into())),
            Stage::Open => {}
        }
        self.stage = Stage::Spent;
        let deadline = Instant::now() + ABORT_DEADLINE;
        let abort = move |client: &Client| until(deadline, |millis| ffi::abort(client.native(), millis)).map_err(told);
        self.blocking(abort).await.map_err(|error| TransactionError::Fatal(error.to_string()))?;
        self.sent.clear();
        self.stage = Stage::Ready;
        Ok(())
    }

    async fn give_up(&mut self) -> Remains {
        let was_open = !matches!(self.stage, Stage::New | Stage::Ready);
        self.stage = Stage::Spent;
        self.client.purge();
        // What was purged is reported at once.
        drop(timeout(PURGE_DEADLINE, self.client.all_reported()).await);
        let sent = std::mem::take(&mut self.sent);
        // Without records it may be about the offsets alone. With some, these come behind them.
        let possible = was_open && (sent.is_empty() || sent.iter().any(|batch| batch.may_be_stored()));
        let mut known = BTreeMap::new();
        for (topic, partition, offset) in sent.iter().flat_map(|batch| batch.stored()) {
            let first: &mut Offset = known.entry(TopicPartition::new(topic, partition)).or_insert(offset);
            *first = offset.min(*first);
        }
        Remains { possible, known }
    }

    async fn sweep(
        &mut self,
        samples: &[Outgoing],
        offsets: &[(TopicPartition, Offset)],
        member: &KafkaMember,
    ) -> Result<bool, TransactionError> {
        if !offsets.is_empty() && !member.has_place() {
            return Ok(false);
        }
        let mut records = Vec::new();
        for sample in samples {
            let topic = Arc::clone(&sample.topic);
            let deadline = Instant::now() + SWEEP_DEADLINE;
            let count = self.blocking(move |client| {
                client.partitions(&topic, deadline).map_err(|code| TransactionError::Unavailable(code.to_string()))
            });
            let partitions = 0..count.await?;
            records.extend(partitions.map(|partition| Outgoing { partition: Some(partition), ..sample.clone() }));
        }
        self.begin()?;
        self.send(Arc::new(records)).await?;
        let sent = self.sent.clone();
        let (offsets, member) = (offsets.to_vec(), member.clone());
        self.blocking(move |client| touch(client, &sent, &offsets, &member)).await?;
        self.abort().await?;
        Ok(true)
    }

    async fn restore(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &KafkaMember,
    ) -> Result<bool, TransactionError> {
        if !member.has_place() {
            return Ok(false);
        }
        let (partitions, asked) = (offsets.iter().map(|(from, _)| from.clone()).collect::<Vec<_>>(), member.clone());
        let decided = self.blocking(move |_| {
            let found = asked.decided(&partitions, COMMITTED_DEADLINE);
            found.map_err(|error| TransactionError::Unavailable(error.to_string()))
        });
        let lacking = lacking(offsets, &decided.await?);
        if lacking.is_empty() {
            return Ok(true);
        }
        self.begin()?;
        self.stage = Stage::Spent;
        let member = member.clone();
        let partitions = lacking.len();
        self.blocking(move |client| commit_claimed(client, &lacking, &member)).await?;
        self.stage = Stage::Ready;
        tracing::warn!(
            partitions,
            "the broker has counted a transaction as committed without keeping the group's offsets (KAFKA-20734); they are committed once more"
        );
        Ok(true)
    }

    async fn committed(
        &mut self,
        partitions: &[TopicPartition],
        member: &KafkaMember,
    ) -> Result<Vec<Option<Offset>>, TransactionError> {
        let (partitions, member) = (partitions.to_vec(), member.clone());
        self.blocking(move |_| {
            let found = member.committed(&partitions, COMMITTED_DEADLINE);
            found.map_err(|error| TransactionError::Unavailable(error.to_string()))
        })
        .await
    }
}

impl Drop for KafkaTransactions {
    fn drop(&mut self) {
        // What is still queued belongs to nothing any more.
        self.client.part_at_once();
    }
}

/// The whole commit, on a thread that may wait.
fn commit(
    client: &Client,
    sent: &[Arc<Batch>],
    offsets: &[(TopicPartition, Offset)],
    member: &KafkaMember,
) -> Result<(), TransactionError> {
    let deadline = Instant::now() + COMMIT_DEADLINE;
    let native = client.native();
    stored(client, sent, deadline)?;
    if !offsets.is_empty() {
        let (places, metadata) = member.place(offsets).map_err(TransactionError::StaleMember)?;
        until(deadline, |millis| ffi::send_offsets(native, &places, &metadata, millis)).map_err(told)?;
    }
    // From here on a failure says nothing: the broker may have heard of the end.
    until(deadline, |millis| ffi::commit(native, millis))
        .map_err(|failure| TransactionError::Unknown(failure.to_string()))
}

/// Waits until all records are stored in the transaction.
fn stored(client: &Client, sent: &[Arc<Batch>], deadline: Instant) -> Result<(), TransactionError> {
    if sent.is_empty() {
        return Ok(());
    }
    if !ffi::flush(client.native(), millis_until(deadline)) {
        return Err(TransactionError::Unavailable("not all records were acknowledged in time".into()));
    }
    // A client that is fenced loses its records, and that is the reason to tell.
    if let Some((code, text)) = client.fatal() {
        return Err(told(Failure { code, text, fatal: true, retriable: false }));
    }
    KafkaTransactions::check_sent(sent)
}

/// Brings partitions into the transaction, on a thread that may wait: those of the records, and those of the group's offsets.
fn touch(
    client: &Client,
    sent: &[Arc<Batch>],
    offsets: &[(TopicPartition, Offset)],
    member: &KafkaMember,
) -> Result<(), TransactionError> {
    let deadline = Instant::now() + SWEEP_DEADLINE;
    match stored(client, sent, deadline) {
        // What no partition takes is open in none.
        Ok(()) | Err(TransactionError::Refused(_)) => {}
        Err(error) => return Err(error),
    }
    if offsets.is_empty() {
        return Ok(());
    }
    let (places, metadata) = member.claim(offsets).map_err(TransactionError::StaleMember)?;
    match until(deadline, |millis| ffi::send_offsets(client.native(), &places, &metadata, millis)).map_err(told) {
        // Whoever has the partitions now: their offsets' partition is in the transaction.
        Ok(()) | Err(TransactionError::StaleMember(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Commits offsets of the group, whoever has the partitions by now, on a thread that may wait.
fn commit_claimed(
    client: &Client,
    offsets: &[(TopicPartition, Offset)],
    member: &KafkaMember,
) -> Result<(), TransactionError> {
    let deadline = Instant::now() + COMMIT_DEADLINE;
    let (places, metadata) = member.claim(offsets).map_err(TransactionError::StaleMember)?;
    until(deadline, |millis| ffi::send_offsets(client.native(), &places, &metadata, millis)).map_err(told)?;
    until(deadline, |millis| ffi::commit(client.native(), millis)).map_err(told)
}

/// Makes a call until it succeeds, fails for good, or the time is over.
fn until(deadline: Instant, call: impl Fn(c_int) -> Result<(), Failure>) -> Result<(), Failure> {
    loop {
        match call(millis_until(deadline)) {
            Err(failure) if failure.retriable && Instant::now() < deadline => std::thread::sleep(AGAIN_DELAY),
            result => return result,
        }
    }
}

/// A failed call of which the broker keeps nothing.
fn told(failure: Failure) -> TransactionError {
    let text = failure.to_string();
    match failure.code {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => TransactionError::Fenced(text),
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::FencedInstanceId
        | Code::FencedMemberEpoch
        | Code::StaleMemberEpoch
        | Code::RebalanceInProgress => TransactionError::StaleMember(text),
        _ if failure.fatal => TransactionError::Fatal(text),
        _ if failure.retriable => TransactionError::Unavailable(text),
        _ => TransactionError::Aborted(text),
    }
}
