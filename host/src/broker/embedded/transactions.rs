//! Transactions of the embedded log: records wait in memory until the commit, and are written with the offsets in one
//! transaction of the database.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::oneshot;

use super::Log;
use super::append::room_of;
use super::groups::Membership;
use super::reads;
use super::writer::{Command, Commit, Transact};
use crate::broker::{BrokerError, Outgoing, Remains, TransactionError, Transactions, lacking};

/// Who has each transactional id now. One process holds the log, so that it need not be on disk.
#[derive(Debug, Default)]
pub(super) struct Owners(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    last: u64,
    by_id: BTreeMap<String, u64>,
}

impl Owners {
    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_over(&self, id: &str) -> u64 {
        let mut owners = self.lock();
        owners.last += 1;
        let generation = owners.last;
        owners.by_id.insert(id.to_owned(), generation);
        generation
    }
}

/// A transactional producer of the embedded log.
pub struct EmbeddedTransactions {
    log: Arc<Log>,
    id: String,
    /// Which owner of the id this is, once it has taken it over.
    generation: Option<u64>,
    records: Vec<Outgoing>,
}

impl EmbeddedTransactions {
    pub(super) fn new(log: Arc<Log>, id: &str) -> Self {
        Self { log, id: id.to_owned(), generation: None, records: Vec::new() }
    }

    fn queue(
        &self,
        transact: Transact,
        member: &Membership,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<(), TransactionError> {
        // Held while the command is queued: what an owner or a holder queues comes before what the next one does.
        let owners = self.log.owners.lock();
        if self.generation.is_none() || owners.by_id.get(&self.id).copied() != self.generation {
            return Err(TransactionError::Fenced(format!("`{}` has another owner", self.id)));
        }
        let queued = member.while_holding(offsets, || self.log.command(Command::Transact(transact)));
        let names = || offsets.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(", ");
        let stale = || TransactionError::StaleMember(format!("not all of `{}` is this member's", names()));
        queued.ok_or_else(stale)?.map_err(TransactionError::Fatal)
    }
}

impl Transactions for EmbeddedTransactions {
    type Member = Arc<Membership>;

    async fn init(&mut self) -> Result<(), TransactionError> {
        self.generation = Some(self.log.owners.take_over(&self.id));
        // What the owner before has queued is written, or not, once this is answered.
        let (answer, answered) = oneshot::channel();
        let barrier = Commit { group: String::new(), offsets: Vec::new(), answer };
        self.log.command(Command::Commit(barrier)).map_err(TransactionError::Fatal)?;
        match answered.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(TransactionError::Unavailable(error.to_string())),
            Err(_) => Err(TransactionError::Fatal("the log's writer has ended".to_owned())),
        }
    }

    fn send(&mut self, records: Arc<Vec<Outgoing>>) -> impl Future<Output = Result<(), TransactionError>> + Send {
        self.records.extend_from_slice(&records);
        std::future::ready(Ok(()))
    }

    async fn commit(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &Arc<Membership>,
    ) -> Result<(), TransactionError> {
        let records = std::mem::take(&mut self.records);
        let bytes = records.iter().map(room_of).sum();
        let room = self.log.queue.room_for(bytes).await.map_err(|error| TransactionError::Fatal(error.to_string()))?;
        let mut by_id = Vec::with_capacity(offsets.len());
        for (name, offset) in offsets {
            let missing = || TransactionError::StaleMember(format!("there is no `{name}`"));
            by_id.push((self.log.topics.partition(name).ok_or_else(missing)?.id, *offset));
        }
        let (answer, answered) = oneshot::channel();
        let transact = Transact { records, bytes, group: member.group.clone(), offsets: by_id, answer, _room: room };
        self.queue(transact, member, offsets)?;
        let ended = |_| Err(TransactionError::Unknown("the log's writer has ended".to_owned()));
        answered.await.unwrap_or_else(ended)
    }

    fn abort(&mut self) -> impl Future<Output = Result<(), TransactionError>> + Send {
        self.records.clear();
        std::future::ready(Ok(()))
    }

    /// All of it is written by the commit, or nothing.
    fn give_up(&mut self) -> impl Future<Output = Remains> + Send {
        self.generation = None;
        std::future::ready(Remains::default())
    }

    /// One database forgets nothing.
    fn sweep(
        &mut self,
        _samples: &[Outgoing],
        _offsets: &[(TopicPartition, Offset)],
        _member: &Arc<Membership>,
    ) -> impl Future<Output = Result<bool, TransactionError>> + Send {
        std::future::ready(Ok(true))
    }

    async fn restore(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &Arc<Membership>,
    ) -> Result<bool, TransactionError> {
        let names: Vec<TopicPartition> = offsets.iter().map(|(name, _)| name.clone()).collect();
        let kept = self.committed(&names, member).await?;
        let lacking = lacking(offsets, &kept);
        if !lacking.is_empty() {
            self.commit(&lacking, member).await?;
        }
        Ok(true)
    }

    async fn committed(
        &mut self,
        partitions: &[TopicPartition],
        member: &Arc<Membership>,
    ) -> Result<Vec<Option<Offset>>, TransactionError> {
        let ids: Vec<Option<i64>> =
            partitions.iter().map(|name| self.log.topics.partition(name).map(|found| found.id)).collect();
        let group = member.group.clone();
        let read = move |connection: &rusqlite::Connection| {
            let committed = |id: Option<i64>| match id {
                Some(id) => reads::committed(connection, &group, id),
                None => Ok(None),
            };
            ids.into_iter().map(committed).collect::<Result<Vec<_>, BrokerError>>()
        };
        let found = Arc::clone(&self.log.reads).with(read).await;
        found.map_err(|error| TransactionError::Unavailable(error.to_string()))
    }
}

impl Drop for EmbeddedTransactions {
    fn drop(&mut self) {
        let mut owners = self.log.owners.lock();
        if owners.by_id.get(&self.id).copied() == self.generation {
            owners.by_id.remove(&self.id);
        }
    }
}
