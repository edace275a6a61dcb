//! A group member of the embedded log, and its readers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tidemill_core::record::{Chunk, Offset, TopicPartition};
use tokio::sync::{oneshot, watch};

use super::Log;
use super::groups::Membership;
use super::reads;
use super::topics::Partition;
use super::writer::{Command, Commit};
use crate::broker::{BrokerError, CommitError, Consumer, ConsumerEvent, Reader, Subscription};

/// A member of a group of this process.
pub struct EmbeddedConsumer {
    log: Arc<Log>,
    membership: Arc<Membership>,
}

/// Reads one partition from its position on.
pub struct EmbeddedReader {
    log: Arc<Log>,
    name: TopicPartition,
    partition: Arc<Partition>,
    /// The next offset to be read.
    position: Offset,
    /// What was deleted before it was read, until the caller asks for it.
    skipped: Option<Range<Offset>>,
    end: watch::Receiver<Offset>,
    /// A read that a dropped call began. Its result is taken by the next call with the same bounds.
    begun: Option<Begun>,
}

struct Begun {
    records_max: usize,
    bytes_max: usize,
    reading: BoxFuture<'static, Result<Found, BrokerError>>,
}

/// What a read found.
enum Found {
    Records {
        chunk: Arc<Chunk>,
        first: Offset,
        last: Offset,
    },
    /// Nothing from the position on; this is the oldest kept offset.
    Nothing {
        start: Offset,
    },
}

impl EmbeddedConsumer {
    pub(super) fn join(log: Arc<Log>, subscription: &Subscription) -> Self {
        let membership = Arc::new(log.groups.join(subscription));
        Self { log, membership }
    }

    /// Where a partition begins for this group, or `None` if it is not this member's any more.
    async fn begin(&self, name: &TopicPartition, partition: &Partition) -> Result<Option<Offset>, BrokerError> {
        let (group, id) = (self.membership.group.clone(), partition.id);
        let committed =
            Arc::clone(&self.log.reads).with(move |connection| reads::committed(connection, &group, id)).await?;
        let Some(begin) = self.membership.holding(name) else { return Ok(None) };
        let (start, end) = (partition.start(), partition.end());
        match (committed, begin) {
            (Some(committed), _) if committed > end => {
                tracing::warn!(partition = %name, committed, end, "the committed offset is beyond the end; the group begins anew");
                Ok(Some(begin.unwrap_or(start).max(start)))
            }
            (Some(committed), _) => {
                // What was deleted meanwhile is found, and told, with the first read.
                Ok(Some(committed))
            }
            (None, Some(begin)) => {
                // The group has a place from now on, so that it skips nothing if this host ends before it commits.
                self.write_commit(vec![(name.clone(), begin)])
                    .await
                    .map_err(|error| BrokerError::Unavailable(error.to_string()))?;
                Ok(Some(begin.max(start)))
            }
            (None, None) => Ok(Some(start)),
        }
    }

    fn write_commit(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + 'static {
        let log = Arc::clone(&self.log);
        let membership = Arc::clone(&self.membership);
        async move {
            let mut by_id = Vec::with_capacity(offsets.len());
            for (name, offset) in &offsets {
                let partition = log.topics.partition(name).ok_or_else(|| fenced(&offsets))?;
                by_id.push((partition.id, *offset));
            }
            let (answer, answered) = oneshot::channel();
            let commit = Commit { group: membership.group.clone(), offsets: by_id, answer };
            // Queued while it is certain who holds the partitions: the next holder's commits come after.
            let queued = membership.while_holding(&offsets, || log.command(Command::Commit(commit)));
            queued.ok_or_else(|| fenced(&offsets))?.map_err(CommitError::Retriable)?;
            answered.await.unwrap_or_else(|_| Err(CommitError::Retriable("the log's writer has ended".to_owned())))
        }
    }
}

impl Consumer for EmbeddedConsumer {
    type Reader = EmbeddedReader;
    type Member = Arc<Membership>;

    async fn next_event(&mut self) -> ConsumerEvent {
        self.membership.next_event().await
    }

    async fn start(
        &mut self,
        partitions: &[TopicPartition],
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, EmbeddedReader)>, BrokerError> {
        let mut readers = Vec::with_capacity(partitions.len());
        for name in partitions {
            let Some(partition) = self.log.topics.partition(name) else {
                return Err(BrokerError::NoSuchTopic(name.to_string()));
            };
            let begin = match places.get(name) {
                Some(place) => self.membership.holding(name).map(|_| *place),
                None => self.begin(name, &partition).await?,
            };
            if let Some(position) = begin {
                readers.push((name.clone(), EmbeddedReader::new(&self.log, name, partition, position)));
            }
        }
        Ok(readers)
    }

    async fn seek(
        &mut self,
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, EmbeddedReader)>, BrokerError> {
        let mut readers = Vec::with_capacity(places.len());
        for (name, place) in places.iter().filter(|(name, _)| self.membership.holding(name).is_some()) {
            let partition = self.log.topics.partition(name);
            let partition = partition.ok_or_else(|| BrokerError::NoSuchTopic(name.to_string()))?;
            readers.push((name.clone(), EmbeddedReader::new(&self.log, name, partition, *place)));
        }
        Ok(readers)
    }

    fn release(&mut self, partitions: &[TopicPartition]) -> impl Future<Output = Result<(), BrokerError>> + Send {
        self.membership.release(partitions);
        std::future::ready(Ok(()))
    }

    fn commit(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + 'static {
        self.write_commit(offsets)
    }

    fn member(&self) -> Arc<Membership> {
        Arc::clone(&self.membership)
    }

    fn close(self) -> impl Future<Output = ()> + Send {
        drop(self);
        std::future::ready(())
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        // A commit in flight may still hold the membership: the group is left now all the same.
        self.membership.leave();
    }
}

fn fenced(offsets: &[(TopicPartition, Offset)]) -> CommitError {
    let names: Vec<_> = offsets.iter().map(|(name, _)| name.to_string()).collect();
    CommitError::Fenced(format!("not all of `{}` is this member's", names.join(", ")))
}

impl Reader for EmbeddedReader {
    async fn next(&mut self, records_max: usize, bytes_max: usize) -> Result<Arc<Chunk>, BrokerError> {
        let position = self.position;
        if self.end.wait_for(|end| *end > position).await.is_err() {
            return Err(BrokerError::Unavailable("the log is closed".to_owned()));
        }
        match self.read(records_max, bytes_max).await? {
            Found::Records { chunk, first, last } => {
                self.note_gap(first);
                self.position = last + 1;
                Ok(chunk)
            }
            Found::Nothing { start } if start > position => {
                self.note_gap(start);
                self.position = start;
                Ok(Arc::default())
            }
            Found::Nothing { .. } => {
                let text = format!("the log is damaged: `{}` has no records from {position} on", self.name);
                Err(BrokerError::Rejected(text))
            }
        }
    }

    fn skipped(&mut self) -> Option<Range<Offset>> {
        self.skipped.take()
    }

    fn end_offset(&self) -> Option<Offset> {
        Some((*self.end.borrow()).max(self.position))
    }

    fn position(&self) -> Option<Offset> {
        Some(self.position)
    }
}

impl EmbeddedReader {
    fn new(log: &Arc<Log>, name: &TopicPartition, partition: Arc<Partition>, position: Offset) -> Self {
        let (log, name, end) = (Arc::clone(log), name.clone(), partition.watch());
        Self { log, name, partition, position, skipped: None, end, begun: None }
    }

    /// Reads a partition from a place on. Of a log that another process holds it is read up to the end as it is now.
    pub(super) async fn outside_of_groups(
        log: &Arc<Log>,
        name: &TopicPartition,
        position: Offset,
    ) -> Result<Self, BrokerError> {
        let partition = match log.topics.partition(name) {
            Some(partition) => partition,
            None => {
                let topic = name.topic.to_string();
                let found =
                    Arc::clone(&log.reads).with(move |connection| reads::partitions(connection, &topic)).await?;
                let of = found.into_iter().find(|of| of.number == name.partition);
                let of = of.ok_or_else(|| BrokerError::NoSuchTopic(name.to_string()))?;
                Arc::new(Partition::new(of.id, of.start, of.next))
            }
        };
        Ok(Self::new(log, name, partition, position))
    }

    /// Reads from the position on. Cancel-safe: a read that was begun is kept.
    async fn read(&mut self, records_max: usize, bytes_max: usize) -> Result<Found, BrokerError> {
        let same = |begun: &Begun| begun.records_max == records_max && begun.bytes_max == bytes_max;
        let begun = match self.begun.take().filter(same) {
            Some(begun) => begun,
            None => {
                let (id, from) = (self.partition.id, self.position);
                let reading = Arc::clone(&self.log.reads)
                    .with(move |connection| find(connection, id, from, records_max, bytes_max));
                Begun { records_max, bytes_max, reading: Box::pin(reading) }
            }
        };
        let begun = self.begun.insert(begun);
        let found = (&mut begun.reading).await;
        self.begun = None;
        found
    }

    fn note_gap(&mut self, next: Offset) {
        if next > self.position {
            let from = self.skipped.take().map_or(self.position, |before| before.start);
            self.skipped = Some(from..next);
        }
    }
}

fn find(
    connection: &rusqlite::Connection,
    partition: i64,
    from: Offset,
    records_max: usize,
    bytes_max: usize,
) -> Result<Found, BrokerError> {
    let chunk = Arc::new(reads::chunk(connection, partition, from, records_max, bytes_max)?);
    let mut records = chunk.records();
    match records.next().map(|first| (first.offset(), records.last().map_or(first.offset(), |last| last.offset()))) {
        Some((first, last)) => Ok(Found::Records { chunk, first, last }),
        None => Ok(Found::Nothing { start: reads::start(connection, partition)? }),
    }
}
