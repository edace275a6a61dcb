//! Records as they were delivered, and their names.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// Position of a record in its partition.
pub type Offset = i64;

/// Whether Kafka takes this as a topic's name: up to 249 letters, digits, `.`, `_` and `-`.
pub fn is_topic_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(legal)
}

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// When a record was made, in milliseconds since the Unix epoch, and by whose clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timestamp {
    /// The record carries none.
    #[default]
    None,
    /// Set by the producer.
    Create(i64),
    /// Set by the broker.
    LogAppend(i64),
}

impl Timestamp {
    /// The milliseconds, whoever set them.
    pub fn millis(self) -> Option<i64> {
        match self {
            Self::None => None,
            Self::Create(millis) | Self::LogAppend(millis) => Some(millis),
        }
    }
}

/// One header as it came. Names may repeat; Kafka promises no encoding, so the name is bytes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    /// The name's bytes.
    pub name: &'a [u8],
    /// The value; `None` is null, which is not empty.
    pub value: Option<&'a [u8]>,
}

/// Headers of a record that was sent again from a dead-letter topic.
pub mod redriven {
    /// The id that it had at first.
    pub const ID: &str = "tidemill.redriven.id";
    /// The topic that it was sent to. In any other the id is not its own: a handler may have copied the headers.
    pub const TO: &str = "tidemill.redriven.to";
    /// How often it was sent again.
    pub const TIMES: &str = "tidemill.redriven.times";
    /// An id is not longer: a topic's name and three numbers.
    pub const ID_BYTES_MAX: usize = 400;
}

/// Records of one partition that were delivered together: one buffer for all their bytes.
///
/// One allocation holds hundreds of records, and a [`Record`] is a counted reference into it: receiving costs one copy
/// and no allocation a record. A chunk lives until the last of its records is settled, its bytes until the last output
/// that passes them on is written.
#[derive(Debug, Default)]
pub struct Chunk {
    bytes: Bytes,
    entries: Vec<Entry>,
    headers: Vec<HeaderEntry>,
}

/// A [`Chunk`] that is being filled.
#[derive(Debug, Default)]
pub struct ChunkBuilder {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    headers: Vec<HeaderEntry>,
}

#[derive(Debug)]
struct Entry {
    offset: Offset,
    timestamp: Timestamp,
    key: Option<Span>,
    value: Option<Span>,
    headers: Span,
    malformed: bool,
    redriven: bool,
}

#[derive(Debug)]
struct HeaderEntry {
    name: Span,
    value: Option<Span>,
}

/// A range of `u32`: half of a `Range<usize>`. Invariant: within the vector that it points into.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

impl ChunkBuilder {
    /// Nothing yet, with room for the given records and bytes.
    pub fn with_capacity(records: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), entries: Vec::with_capacity(records), headers: Vec::new() }
    }

    /// Copies a record in. Records must come in the order of their offsets.
    ///
    /// # Panics
    /// When the chunk passes [`Chunk::BYTES_MAX`]: readers bound their chunks far below.
    pub fn push<'a>(
        &mut self,
        offset: Offset,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = HeaderRef<'a>>,
    ) {
        debug_assert!(self.entries.last().is_none_or(|last| last.offset < offset), "records come in offset order");
        let key = key.map(|bytes| self.append(bytes));
        let value = value.map(|bytes| self.append(bytes));
        let first_header = self.headers.len() as u32;
        let (mut malformed, mut redriven) = (false, false);
        for header in headers {
            malformed |= std::str::from_utf8(header.name).is_err();
            redriven |= header.name == redriven::ID.as_bytes();
            let name = self.append(header.name);
            let value = header.value.map(|bytes| self.append(bytes));
            self.headers.push(HeaderEntry { name, value });
        }
        let headers = Span { start: first_header, end: self.headers.len() as u32 };
        self.entries.push(Entry { offset, timestamp, key, value, headers, malformed, redriven });
    }

    fn append(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        assert!(self.bytes.len() <= Chunk::BYTES_MAX, "readers bound their chunks");
        Span { start: start as u32, end: self.bytes.len() as u32 }
    }

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The size of all keys, values and headers.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What was copied in.
    pub fn build(self) -> Chunk {
        Chunk { bytes: self.bytes.into(), entries: self.entries, headers: self.headers }
    }
}

impl Chunk {
    /// Bytes above which a chunk must not grow: its positions are 32 bits wide.
    pub const BYTES_MAX: usize = u32::MAX as usize;

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The size of all keys, values and headers.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Its records, in the order of their offsets.
    pub fn records(self: &Arc<Self>) -> impl ExactSizeIterator<Item = Record> + DoubleEndedIterator + use<> {
        let chunk = Arc::clone(self);
        (0..self.entries.len() as u32).map(move |index| Record { chunk: Arc::clone(&chunk), index })
    }
}

/// One entry of a partition: a counted reference into the [`Chunk`] with which it came. Cheap to clone.
#[derive(Clone)]
pub struct Record {
    chunk: Arc<Chunk>,
    /// Invariant: below `chunk.entries.len()`.
    index: u32,
}

impl Record {
    /// A record of its own, for tests and small uses.
    pub fn single(offset: Offset, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        let mut chunk = ChunkBuilder::default();
        chunk.push(offset, Timestamp::None, key, value, []);
        Self { chunk: Arc::new(chunk.build()), index: 0 }
    }

    fn entry(&self) -> &Entry {
        &self.chunk.entries[self.index as usize]
    }

    /// Where it stands in its partition.
    pub fn offset(&self) -> Offset {
        self.entry().offset
    }

    /// When it was made.
    pub fn timestamp(&self) -> Timestamp {
        self.entry().timestamp
    }

    /// Its key; `None` is null, which is not empty.
    pub fn key(&self) -> Option<&[u8]> {
        self.entry().key.map(|span| &self.chunk.bytes[span.range()])
    }

    /// Its value; `None` is a tombstone, which is not empty.
    pub fn value(&self) -> Option<&[u8]> {
        self.entry().value.map(|span| &self.chunk.bytes[span.range()])
    }

    /// Its key as bytes that outlive the record, without copying them.
    pub fn shared_key(&self) -> Option<Bytes> {
        self.entry().key.map(|span| self.chunk.bytes.slice(span.range()))
    }

    /// Its value as bytes that outlive the record, without copying them.
    pub fn shared_value(&self) -> Option<Bytes> {
        self.entry().value.map(|span| self.chunk.bytes.slice(span.range()))
    }

    /// Its headers, in order, with repeated names.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = HeaderRef<'_>> {
        self.chunk.headers[self.entry().headers.range()].iter().map(|header| HeaderRef {
            name: &self.chunk.bytes[header.name.range()],
            value: header.value.map(|span| &self.chunk.bytes[span.range()]),
        })
    }

    /// Whether it can't be shown to a guest: a header's name is not UTF-8.
    pub fn malformed(&self) -> bool {
        self.entry().malformed
    }

    /// The size of its key, value and headers in bytes.
    pub fn bytes(&self) -> usize {
        let entry = self.entry();
        let span = |span: Option<Span>| span.map_or(0, Span::len);
        let headers = &self.chunk.headers[entry.headers.range()];
        span(entry.key)
            + span(entry.value)
            + headers.iter().map(|header| header.name.len() + span(header.value)).sum::<usize>()
    }

    /// The value of its last header with this name.
    pub fn last_header(&self, name: &str) -> Option<&[u8]> {
        self.headers().filter(|header| header.name == name.as_bytes()).last()?.value
    }

    /// The id that it had at first, if it was sent again to this topic from a dead-letter topic.
    pub fn first_id(&self, topic: &str) -> Option<&str> {
        // The headers are searched only where one of that name was seen when the record came.
        if !self.entry().redriven || self.last_header(redriven::TO) != Some(topic.as_bytes()) {
            return None;
        }
        let id = std::str::from_utf8(self.last_header(redriven::ID)?).ok()?;
        (1..=redriven::ID_BYTES_MAX).contains(&id.len()).then_some(id)
    }

    /// Its stable id, the key for idempotent effects: `topic/partition/offset/timestamp`, or its [`Record::first_id`].
    ///
    /// The timestamp tells it from a record of a topic that was deleted and made again, whose offsets start over.
    pub fn id(&self, from: &TopicPartition) -> String {
        if let Some(id) = self.first_id(&from.topic) {
            return id.to_owned();
        }
        let millis = self.timestamp().millis().unwrap_or(-1);
        format!("{}/{}/{}/{}", from.topic, from.partition, self.offset(), millis)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never a key or a value: debug output reaches logs.
        f.debug_struct("Record").field("offset", &self.offset()).field("bytes", &self.bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_not_empty_and_headers_repeat_in_order() {
        let mut chunk = ChunkBuilder::with_capacity(2, 64);
        let headers = [
            HeaderRef { name: b"a", value: Some(b"1") },
            HeaderRef { name: b"a", value: None },
            HeaderRef { name: b"a", value: Some(b"") },
        ];
        chunk.push(5, Timestamp::Create(7), None, Some(b""), headers);
        chunk.push(9, Timestamp::LogAppend(8), Some(b""), None, []);
        let chunk = Arc::new(chunk.build());
        let records: Vec<Record> = chunk.records().collect();

        assert_eq!((records[0].key(), records[0].value()), (None, Some(&b""[..])));
        assert_eq!((records[1].shared_key(), records[1].shared_value()), (Some(Bytes::new()), None));
        assert_eq!(records[0].headers().collect::<Vec<_>>(), headers);
        assert_eq!((records[1].key(), records[1].value()), (Some(&b""[..]), None));
        assert_eq!(records[1].headers().len(), 0);
        assert_eq!(records[0].id(&TopicPartition::new("t", 3)), "t/3/5/7");
        assert_eq!(records[0].bytes(), 4);
        assert!(!records[0].malformed());
    }

    #[test]
    fn a_header_name_that_is_not_text_makes_a_record_malformed_and_keeps_its_bytes() {
        let mut chunk = ChunkBuilder::default();
        chunk.push(0, Timestamp::None, None, None, [HeaderRef { name: b"\xff\xfe", value: Some(b"x") }]);
        let record = Arc::new(chunk.build()).records().next().expect("one record was pushed");
        assert!(record.malformed());
        assert_eq!(record.headers().next().map(|header| header.name), Some(&b"\xff\xfe"[..]));
    }

    #[test]
    fn a_redriven_record_keeps_its_first_id_in_the_topic_that_it_was_sent_to() {
        let id = "orders/3/7/1000";
        let record = |to: &'static [u8], id: &[u8]| {
            let mut chunk = ChunkBuilder::default();
            let headers = [
                HeaderRef { name: redriven::ID.as_bytes(), value: Some(id) },
                HeaderRef { name: redriven::TO.as_bytes(), value: Some(to) },
            ];
            chunk.push(9, Timestamp::Create(5), None, None, headers);
            Arc::new(chunk.build()).records().next().expect("one record was pushed")
        };
        let from = TopicPartition::new("orders", 1);
        assert_eq!(record(b"orders", id.as_bytes()).id(&from), id);
        let own = "orders/1/9/5";
        assert_eq!(record(b"other", id.as_bytes()).id(&from), own, "a copied header names another topic");
        for wrong in [&b""[..], b"\xff", &[b'x'; redriven::ID_BYTES_MAX + 1]] {
            assert_eq!(record(b"orders", wrong).id(&from), own);
        }
    }

    #[test]
    fn debug_output_shows_no_content() {
        let record = Record::single(1, Some(b"secret-key"), Some(b"secret-value"));
        assert!(!format!("{record:?}").contains("secret"));
    }
}
