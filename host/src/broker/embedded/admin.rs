//! Looking after the embedded log's topics and groups. It answers from the file, so that it also can for another process's log.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rusqlite::Connection;
use tidemill_core::record::{Chunk, Offset, TopicPartition};
use tokio::sync::oneshot;

use super::Log;
use super::reads::{self, Reads};
use super::writer::{Command, Commit, Create};
use crate::broker::{Admin, BrokerError, CommitError, Committed, TopicInfo};

/// One reading outside of groups takes so much at most.
const READ_BYTES_MAX: usize = 4 << 20;

/// The admin of the embedded log.
pub(super) struct EmbeddedAdmin {
    log: Arc<Log>,
}

impl EmbeddedAdmin {
    pub(super) fn new(log: Arc<Log>) -> Self {
        Self { log }
    }

    fn ask<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, BrokerError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, BrokerError>> {
        Box::pin(Reads::with(Arc::clone(&self.log.reads), read))
    }
}

impl Admin for EmbeddedAdmin {
    fn topics(&self, name: Option<&str>) -> BoxFuture<'_, Result<Vec<TopicInfo>, BrokerError>> {
        let name = name.map(str::to_owned);
        self.ask(move |connection| reads::topics(connection, name.as_deref()))
    }

    fn takes_records<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<bool, BrokerError>> {
        Box::pin(std::future::ready(Ok(self.log.config.create_topics || self.log.topics.get(topic).is_some())))
    }

    fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        _replicas: Option<i32>,
    ) -> BoxFuture<'_, Result<(), BrokerError>> {
        let (answer, answered) = oneshot::channel();
        let queued = self.log.command(Command::Create(Create { name: name.to_owned(), partitions, answer }));
        Box::pin(async move {
            queued.map_err(BrokerError::Unavailable)?;
            answered.await.unwrap_or_else(|_| Err(BrokerError::Unavailable("the log's writer has ended".to_owned())))
        })
    }

    fn offsets_for_time(&self, topic: &str, millis: i64) -> BoxFuture<'_, Result<Vec<(i32, Offset)>, BrokerError>> {
        let topic = topic.to_owned();
        self.ask(move |connection| {
            let partitions = reads::partitions(connection, &topic)?;
            let offset = |of: &reads::Bounds| Ok((of.number, reads::offset_for_time(connection, of, millis)?));
            partitions.iter().map(offset).collect()
        })
    }

    fn committed(&self, group: &str, topic: &str) -> BoxFuture<'_, Result<Committed, BrokerError>> {
        let (group, topic) = (group.to_owned(), topic.to_owned());
        self.ask(move |connection| {
            let partitions = reads::partitions(connection, &topic)?;
            let committed = |of: &reads::Bounds| Ok((of.number, reads::committed(connection, &group, of.id)?));
            partitions.iter().map(committed).collect()
        })
    }

    fn commit(&self, group: &str, offsets: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, Result<(), BrokerError>> {
        let group = group.to_owned();
        Box::pin(async move {
            if self.log.groups.has_members(&group) {
                return Err(BrokerError::Rejected(format!("group `{group}` has members")));
            }
            let mut by_id = Vec::with_capacity(offsets.len());
            for (of, offset) in &offsets {
                let partition = self.log.topics.partition(of);
                by_id.push((partition.ok_or_else(|| BrokerError::NoSuchTopic(of.to_string()))?.id, *offset));
            }
            let (answer, answered) = oneshot::channel();
            let queued = self.log.command(Command::Commit(Commit { group, offsets: by_id, answer }));
            queued.map_err(BrokerError::Unavailable)?;
            let ended = |_| Err(CommitError::Retriable("the log's writer has ended".to_owned()));
            answered.await.unwrap_or_else(ended).map_err(|error| BrokerError::Unavailable(error.to_string()))
        })
    }

    fn read(
        &self,
        topic: &str,
        partition: i32,
        from: Offset,
        records_max: usize,
    ) -> BoxFuture<'_, Result<Arc<Chunk>, BrokerError>> {
        let topic = topic.to_owned();
        self.ask(move |connection| {
            let partitions = reads::partitions(connection, &topic)?;
            let Some(of) = partitions.iter().find(|of| of.number == partition) else {
                return Err(BrokerError::NoSuchTopic(format!("{topic}/{partition}")));
            };
            Ok(Arc::new(reads::chunk(connection, of.id, from, records_max, READ_BYTES_MAX)?))
        })
    }
}
