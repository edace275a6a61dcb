//! Appending: where each record goes, and what one transaction changes beside it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use rusqlite::{Connection, params};
use tidemill_core::murmur2::partition_for_key;
use tidemill_core::record::Offset;

use super::config::Config;
use super::headers;
use super::topics::{Partition, Topic, Topics};
use super::writer::{Transact, write_offsets};
use crate::broker::{Outgoing, Position, SendError, TransactionError};

/// A segment is closed at so many records, whatever their size.
const SEGMENT_RECORDS_MAX: i64 = 10_000;

/// A partition's limit is made of so many segments at least, so that deleting one does not take too much.
const SEGMENTS_MIN: u64 = 16;

/// The largest segment.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// Without a key, a partition is kept for so many bytes, so that records travel together.
const STICKY_BYTES: usize = 16 << 10;

/// What a record costs beyond its bytes, roughly: it is counted, so that empty records are bounded too.
const RECORD_OVERHEAD: usize = 32;

/// Where records without a key go next, for each topic.
#[derive(Debug, Default)]
pub(super) struct Sticky {
    topics: BTreeMap<Arc<str>, (usize, usize)>,
}

impl Sticky {
    /// The partition of the next record of some bytes.
    fn next(&mut self, topic: &Topic, bytes: usize) -> usize {
        let (turn, filled) = self.topics.entry(Arc::clone(&topic.name)).or_default();
        if *filled >= STICKY_BYTES {
            (*turn, *filled) = (*turn + 1, 0);
        }
        *filled += bytes;
        *turn % topic.partitions.len()
    }

    /// The next call begins in another partition.
    pub(super) fn turn(&mut self) {
        for (turn, filled) in self.topics.values_mut().filter(|(_, filled)| *filled > 0) {
            (*turn, *filled) = (*turn + 1, 0);
        }
    }
}

/// What the writer knows of a partition's end.
#[derive(Debug, Clone)]
pub(super) struct Tail {
    /// The next offset to be written.
    pub(super) next: Offset,
    /// All that is kept, for the limit by size.
    pub(super) bytes: u64,
    /// The greatest timestamp ever.
    latest_ms: i64,
    /// Where new records go; `None`: into a new one.
    segment: Option<Segment>,
}

#[derive(Debug, Clone)]
struct Segment {
    first: Offset,
    bytes: u64,
}

impl Tail {
    /// Reads it from the database.
    pub(super) fn load(connection: &Connection, partition: i64) -> rusqlite::Result<Self> {
        let next = connection
            .prepare_cached("SELECT next FROM partition WHERE id = ?1")?
            .query_row([partition], |row| row.get(0))?;
        let mut sums = connection.prepare_cached(
            "SELECT coalesce(sum(bytes), 0), coalesce(max(latest_ms), ?2) FROM segment WHERE partition = ?1",
        )?;
        let (bytes, latest_ms) =
            sums.query_row([partition, i64::MIN], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))?;
        let bytes = bytes as u64;
        // After a start, new records begin a new segment: what was is not counted again.
        Ok(Self { next, bytes, latest_ms, segment: None })
    }

    /// The oldest segment was deleted; it may have been the one that was written to.
    pub(super) fn deleted(&mut self, first: Offset, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.segment.as_ref().is_some_and(|segment| segment.first == first) {
            self.segment = None;
        }
    }
}

/// One transaction's work on the tails: nothing is kept of it unless it commits.
pub(super) struct Appending<'a> {
    pub(super) connection: &'a Connection,
    pub(super) topics: &'a Topics,
    pub(super) config: &'a Config,
    pub(super) now_ms: i64,
    /// The tails before, by partition id.
    pub(super) tails: &'a BTreeMap<i64, Tail>,
    /// The tails after, of the partitions that were written to.
    pub(super) touched: BTreeMap<i64, Touched>,
    /// The last record's topic: most have the same.
    topic: Option<(Arc<str>, Option<Arc<Topic>>)>,
}

pub(super) struct Touched {
    pub(super) topic: Arc<str>,
    pub(super) partition: Arc<Partition>,
    pub(super) tail: Tail,
    segment_bytes_max: u64,
}

impl<'a> Appending<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        topics: &'a Topics,
        config: &'a Config,
        now_ms: i64,
        tails: &'a BTreeMap<i64, Tail>,
    ) -> Self {
        Self { connection, topics, config, now_ms, tails, touched: BTreeMap::new(), topic: None }
    }

    /// Stores a record, or says why it can't be. An error of the database ends the transaction.
    pub(super) fn append(
        &mut self,
        record: &Outgoing,
        sticky: &mut Sticky,
    ) -> rusqlite::Result<Result<Position, SendError>> {
        let bytes = record.bytes();
        let topic = match self.topic_for(record, bytes) {
            Ok(topic) => topic,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let number = match (record.partition, &record.key) {
            (Some(partition), _) => partition as usize,
            (None, Some(key)) => partition_for_key(key, topic.partitions.len() as i32) as usize,
            (None, None) => sticky.next(&topic, bytes + RECORD_OVERHEAD),
        };
        let partition = &topic.partitions[number];
        let offset = self.insert(&topic, partition, record, bytes)?;
        Ok(Ok(Position { partition: number as i32, offset }))
    }

    /// Stores records and offsets together, or none of them when a record can't be stored.
    pub(super) fn transact(
        &mut self,
        transact: &Transact,
        sticky: &mut Sticky,
    ) -> rusqlite::Result<Result<(), TransactionError>> {
        let refusal = |record: &Outgoing| self.topic_for(record, record.bytes()).err();
        let refused: Vec<_> =
            transact.records.iter().map(refusal).enumerate().filter_map(|(at, error)| Some((at, error?))).collect();
        if !refused.is_empty() {
            return Ok(Err(TransactionError::Refused(refused)));
        }
        for record in &transact.records {
            let stored = self.append(record, sticky)?;
            debug_assert!(stored.is_ok(), "what was not refused before is stored");
        }
        sticky.turn();
        write_offsets(self.connection, &transact.group, &transact.offsets)?;
        Ok(Ok(()))
    }

    /// Writes down how far the partitions go now.
    pub(super) fn finish(&mut self) -> rusqlite::Result<()> {
        for touched in self.touched.values_mut() {
            self.connection
                .prepare_cached("UPDATE partition SET next = ?2 WHERE id = ?1")?
                .execute(params![touched.partition.id, touched.tail.next])?;
            write_segment(self.connection, touched, self.now_ms)?;
        }
        Ok(())
    }

    /// The topic that takes a record, or why none does.
    fn topic_for(&mut self, record: &Outgoing, bytes: usize) -> Result<Arc<Topic>, SendError> {
        if bytes > self.config.record_bytes_max.0 {
            let text = format!("{bytes} bytes, and `record_bytes_max` is {:?}", self.config.record_bytes_max);
            return Err(SendError::TooLarge(text));
        }
        let Some(topic) = self.topic(&record.topic) else {
            return Err(SendError::NoSuchTopic(record.topic.to_string()));
        };
        match record.partition {
            Some(number) if usize::try_from(number).is_ok_and(|number| number < topic.partitions.len()) => Ok(topic),
            Some(number) => Err(SendError::NoSuchTopic(format!("{}/{number}", record.topic))),
            None => Ok(topic),
        }
    }

    fn topic(&mut self, name: &Arc<str>) -> Option<Arc<Topic>> {
        match &self.topic {
            Some((last, topic)) if last == name => topic.clone(),
            _ => {
                let topic = self.topics.get(name);
                self.topic = Some((Arc::clone(name), topic.clone()));
                topic
            }
        }
    }

    fn insert(
        &mut self,
        topic: &Topic,
        partition: &Arc<Partition>,
        record: &Outgoing,
        bytes: usize,
    ) -> rusqlite::Result<Offset> {
        let touched = match self.touched.entry(partition.id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let tail = match self.tails.get(&partition.id) {
                    Some(tail) => tail.clone(),
                    None => Tail::load(self.connection, partition.id)?,
                };
                let limit = self.config.retention_of(&topic.name).bytes;
                let segment_bytes_max = (limit / SEGMENTS_MIN).clamp(1, SEGMENT_BYTES_MAX);
                entry.insert(Touched {
                    topic: Arc::clone(&topic.name),
                    partition: Arc::clone(partition),
                    tail,
                    segment_bytes_max,
                })
            }
        };
        let tail = &mut touched.tail;
        let offset = tail.next;
        let timestamp_ms = record.timestamp_ms.unwrap_or(self.now_ms);
        self.connection.prepare_cached(&partition.insert)?.execute(params![
            offset,
            timestamp_ms,
            record.key.as_deref(),
            record.value.as_deref(),
            headers::encode(&record.headers),
        ])?;
        let stored = (bytes + RECORD_OVERHEAD) as u64;
        let segment = tail.segment.get_or_insert(Segment { first: offset, bytes: 0 });
        segment.bytes += stored;
        tail.next += 1;
        tail.bytes += stored;
        tail.latest_ms = tail.latest_ms.max(timestamp_ms);
        if segment.bytes >= touched.segment_bytes_max || tail.next - segment.first >= SEGMENT_RECORDS_MAX {
            write_segment(self.connection, touched, self.now_ms)?;
            touched.tail.segment = None;
        }
        Ok(offset)
    }
}

/// Writes down the segment that is being filled.
fn write_segment(connection: &Connection, touched: &Touched, now_ms: i64) -> rusqlite::Result<()> {
    let tail = &touched.tail;
    let Some(segment) = &tail.segment else { return Ok(()) };
    connection
        .prepare_cached(
            "INSERT INTO segment (partition, first, next, bytes, appended_ms, latest_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO UPDATE SET next = ?3, bytes = ?4, appended_ms = ?5, latest_ms = ?6",
        )?
        .execute(params![touched.partition.id, segment.first, tail.next, segment.bytes as i64, now_ms, tail.latest_ms])?;
    Ok(())
}

/// What a record takes of the queue.
pub(super) fn room_of(record: &Outgoing) -> usize {
    record.bytes() + RECORD_OVERHEAD
}
