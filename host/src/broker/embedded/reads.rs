//! Reading: a bounded number of connections of their own, on threads that may block.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use tidemill_core::record::{Chunk, ChunkBuilder, Offset, Timestamp};
use tokio::sync::Semaphore;

use super::database::Database;
use super::headers;
use crate::broker::{BrokerError, PartitionInfo, TopicInfo};

/// A chunk never grows beyond this, whatever is asked for.
const CHUNK_BYTES_MAX: usize = 64 << 20;

/// So much is set aside for a chunk at once; it grows when its records need more.
const CHUNK_BYTES_FIRST: usize = 64 << 10;

/// The connections that read.
#[derive(Debug)]
pub(super) struct Reads {
    database: Arc<Database>,
    /// Open and not in use. Invariant: with those in use, at most as many as there are permits.
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

/// A partition's id and the offsets that it keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) id: i64,
    pub(super) number: i32,
    pub(super) start: Offset,
    pub(super) next: Offset,
}

impl Reads {
    pub(super) fn new(database: Arc<Database>, readers_max: usize) -> Self {
        let permits = Arc::new(Semaphore::new(readers_max.min(Semaphore::MAX_PERMITS)));
        Self { database, idle: Mutex::default(), permits }
    }

    /// Reads with one of the connections, once one is free.
    pub(super) async fn with<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let closed = |_| BrokerError::Unavailable("the log is closed".to_owned());
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?;
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let connection = match self.idle().pop() {
                Some(connection) => connection,
                None => self.database.reader()?,
            };
            let turn = self.database.turn();
            let result = read(&connection);
            drop(turn);
            self.idle().push(connection);
            result
        });
        reading.await.unwrap_or_else(|_| Err(BrokerError::Unavailable("the host is ending".to_owned())))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records of a partition from an offset on, up to the bounds; the first one comes whatever its size.
pub(super) fn chunk(
    connection: &Connection,
    partition: i64,
    from: Offset,
    records_max: usize,
    bytes_max: usize,
) -> Result<Chunk, BrokerError> {
    let bytes_max = bytes_max.min(CHUNK_BYTES_MAX);
    let sql = format!(
        "SELECT offset, timestamp_ms, key, value, headers FROM records_{partition} WHERE offset >= ?1 ORDER BY offset LIMIT ?2"
    );
    let mut statement = connection.prepare_cached(&sql).map_err(refused)?;
    let limit = i64::try_from(records_max.max(1)).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![from, limit]).map_err(refused)?;
    let mut chunk = ChunkBuilder::with_capacity(records_max.min(1024), bytes_max.min(CHUNK_BYTES_FIRST));
    while let Some(row) = rows.next().map_err(refused)? {
        let bytes = |column| row.get_ref(column).map_err(refused).and_then(blob);
        let (key, value, encoded) = (bytes(2)?, bytes(3)?, bytes(4)?);
        let headers = headers::decode(encoded.unwrap_or_default()).map_err(|_| damaged(partition))?;
        let size = key.map_or(0, <[u8]>::len)
            + value.map_or(0, <[u8]>::len)
            + headers.iter().map(|header| header.name.len() + header.value.map_or(0, <[u8]>::len)).sum::<usize>();
        if !chunk.is_empty() && chunk.bytes() + size > bytes_max {
            break;
        }
        let timestamp = Timestamp::Create(row.get(1).map_err(refused)?);
        chunk.push(row.get(0).map_err(refused)?, timestamp, key, value, headers);
    }
    Ok(chunk.build())
}

/// The oldest kept offset of a partition.
pub(super) fn start(connection: &Connection, partition: i64) -> Result<Offset, BrokerError> {
    let mut statement = connection.prepare_cached("SELECT start FROM partition WHERE id = ?1").map_err(refused)?;
    statement.query_row([partition], |row| row.get(0)).map_err(refused)
}

/// All topics with their partitions, or the named one.
pub(super) fn topics(connection: &Connection, name: Option<&str>) -> Result<Vec<TopicInfo>, BrokerError> {
    let names = || -> rusqlite::Result<Vec<String>> {
        let mut statement =
            connection.prepare_cached("SELECT name FROM topic WHERE ?1 IS NULL OR name = ?1 ORDER BY name")?;
        statement.query_map([name], |row| row.get(0))?.collect()
    };
    let names = names().map_err(refused)?;
    if let (Some(name), true) = (name, names.is_empty()) {
        return Err(BrokerError::NoSuchTopic(name.to_owned()));
    }
    let topic = |name: String| {
        let info = |of: &Bounds| PartitionInfo { partition: of.number, start: of.start, end: of.next, replicas: 1 };
        let partitions = partitions(connection, &name)?.iter().map(info).collect();
        Ok(TopicInfo { name, partitions })
    };
    names.into_iter().map(topic).collect()
}

/// A topic's partitions, in order.
pub(super) fn partitions(connection: &Connection, topic: &str) -> Result<Vec<Bounds>, BrokerError> {
    let read = || -> rusqlite::Result<Vec<Bounds>> {
        let mut statement = connection.prepare_cached(
            "SELECT partition.id, number, start, next FROM partition JOIN topic ON topic.id = partition.topic
             WHERE name = ?1 ORDER BY number",
        )?;
        let bounds = |row: &rusqlite::Row<'_>| {
            Ok(Bounds { id: row.get(0)?, number: row.get(1)?, start: row.get(2)?, next: row.get(3)? })
        };
        statement.query_map([topic], bounds)?.collect()
    };
    let found = read().map_err(refused)?;
    if found.is_empty() { Err(BrokerError::NoSuchTopic(topic.to_owned())) } else { Ok(found) }
}

/// The first offset at or after a time, or the end.
pub(super) fn offset_for_time(connection: &Connection, partition: &Bounds, millis: i64) -> Result<Offset, BrokerError> {
    let find = || -> rusqlite::Result<Option<Offset>> {
        // `latest_ms` never falls along the segments, and no record before the first segment that reaches the time does so.
        let mut segment =
            connection.prepare_cached("SELECT min(first) FROM segment WHERE partition = ?1 AND latest_ms >= ?2")?;
        let Some(from) = segment.query_row([partition.id, millis], |row| row.get::<_, Option<Offset>>(0))? else {
            return Ok(None);
        };
        let sql = format!(
            "SELECT offset FROM records_{} WHERE offset >= ?1 AND timestamp_ms >= ?2 ORDER BY offset LIMIT 1",
            partition.id
        );
        connection.prepare_cached(&sql)?.query_row([from, millis], |row| row.get(0)).optional()
    };
    Ok(find().map_err(refused)?.unwrap_or(partition.next))
}

/// A group's committed offset of a partition.
pub(super) fn committed(connection: &Connection, group: &str, partition: i64) -> Result<Option<Offset>, BrokerError> {
    let find = || -> rusqlite::Result<Option<Offset>> {
        let sql = "SELECT next FROM committed WHERE consumer_group = ?1 AND partition = ?2";
        connection.prepare_cached(sql)?.query_row(params![group, partition], |row| row.get(0)).optional()
    };
    find().map_err(refused)
}

fn blob(value: ValueRef<'_>) -> Result<Option<&[u8]>, BrokerError> {
    value.as_blob_or_null().map_err(|error| BrokerError::Rejected(format!("the log is damaged: {error}")))
}

fn damaged(partition: i64) -> BrokerError {
    BrokerError::Rejected(format!("the log is damaged: headers in `records_{partition}` can't be read"))
}

fn refused(error: rusqlite::Error) -> BrokerError {
    BrokerError::Rejected(format!("the log can't be read: {error}"))
}
