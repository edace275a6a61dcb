//! Reads one partition from its own queue, in batches, into chunks.

use std::ffi::{CStr, CString};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::error::RDKafkaErrorCode as Code;
use tidemill_core::record::{Chunk, ChunkBuilder, Offset, TopicPartition};
use tokio::sync::mpsc;

use super::errors;
use super::ffi::{self, Native, Queue};
use super::ranged::Fetching;
use crate::broker::{BrokerError, ConsumerEvent, Reader};

/// Bytes of one chunk; a larger record still comes alone. Memory of this size is used again while it is warm: with half a
/// mebibyte, up to a third of the CPU of a pipeline went into clearing new pages. And a record that waits keeps no more than this.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// What a record is thought to weigh before the first one was seen.
const FIRST_GUESS_BYTES: usize = 1024;

/// Reads one partition. What is not read stays in librdkafka's queue, bounded by `queued.max.messages.kbytes`.
pub struct PartitionReader {
    /// What fetches, where no group does; ends before the queue.
    _fetching: Option<Fetching>,
    client: Arc<dyn Native>,
    topic: CString,
    of: TopicPartition,
    queue: Queue,
    /// False once the partition was given back.
    ours: Arc<AtomicBool>,
    /// The lowest offset that was not delivered. A pause inside of the library, at each rebalance of the group, may
    /// bring again what was taken just before.
    next: Offset,
    /// Where the group stood when it was assigned; `None` where it has committed nothing.
    start: Option<Offset>,
    /// What was deleted before it was read, until the caller asks for it.
    skipped: Option<Range<Offset>>,
    /// Where the member is told that it has to begin anew.
    events: mpsc::Sender<ConsumerEvent>,
    /// What a record weighed of late: the library takes by count, and the caller bounds by bytes, too.
    usual_bytes: usize,
}

impl PartitionReader {
    pub(super) fn new(
        client: Arc<dyn Native>,
        of: &TopicPartition,
        queue: Queue,
        ours: Arc<AtomicBool>,
        start: Option<Offset>,
        events: mpsc::Sender<ConsumerEvent>,
    ) -> Result<Self, BrokerError> {
        let topic = CString::new(&*of.topic).map_err(|_| BrokerError::NoSuchTopic(of.topic.to_string()))?;
        let (of, usual_bytes) = (of.clone(), FIRST_GUESS_BYTES);
        let _fetching = None;
        Ok(Self { _fetching, client, topic, of, queue, ours, next: 0, start, skipped: None, events, usual_bytes })
    }

    /// The same outside of groups.
    pub(super) fn fetching(self, fetching: Fetching) -> Self {
        Self { _fetching: Some(fetching), ..self }
    }

    /// The flag that the consumer clears when the partition is given back.
    pub(super) fn ours(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ours)
    }

    /// Takes what is there, up to the bounds; an error only when no record comes before it. `None`: nothing is there.
    /// Outside of groups the end is told, too: markers and what was deleted leave offsets before it that hold no record.
    fn take(&mut self, records_max: usize, bytes_max: usize) -> Option<Result<Chunk, BrokerError>> {
        let bytes_max = bytes_max.clamp(1, CHUNK_BYTES_MAX);
        let mut chunk = self.begin_chunk(records_max, bytes_max)?;
        let mut passed = false;
        while chunk.len() < records_max {
            let Some(message) = self.queue.front() else {
                let room = bytes_max.saturating_sub(chunk.bytes());
                let wanted = (room / self.usual_bytes).clamp(1, records_max - chunk.len());
                if room == 0 || self.queue.take(wanted) == 0 {
                    break;
                }
                continue;
            };
            if let Some((code, text)) = message.error() {
                if !chunk.is_empty() {
                    break;
                }
                let end = message.offset();
                self.queue.drop_front();
                if code == Code::PartitionEOF {
                    passed |= end > self.next;
                    self.next = self.next.max(end);
                    continue;
                }
                return Some(Err(errors::of_topic(code, &self.of.topic, &text)));
            }
            let offset = message.offset();
            if offset < self.next && ends_before(&*self.client, &self.topic, self.of.partition, self.next) {
                if !chunk.is_empty() {
                    break;
                }
                let error = self.begin_anew();
                return Some(Err(error));
            }
            if offset >= self.next {
                let bytes = message.bytes();
                if !chunk.is_empty() && chunk.bytes() + bytes > bytes_max {
                    break;
                }
                message.push_to(&mut chunk);
                self.note_gap(offset);
                self.next = offset + 1;
            }
            self.queue.drop_front();
        }
        if chunk.is_empty() {
            return passed.then(|| Ok(chunk.build()));
        }
        // Half of the new and half of the old, so that one odd chunk does not tip it.
        self.usual_bytes = (self.usual_bytes + chunk.bytes() / chunk.len()).div_ceil(2).max(1);
        Some(Ok(chunk.build()))
    }

    /// An empty chunk with room for what is there now, if anything is, so that it need not grow: that would copy all of it, and leave half of
    /// its memory unused for as long as its records wait.
    fn begin_chunk(&mut self, records_max: usize, bytes_max: usize) -> Option<ChunkBuilder> {
        let wanted = (bytes_max / self.usual_bytes).clamp(1, records_max);
        while self.queue.taken() < wanted && self.queue.take(wanted - self.queue.taken()) > 0 {}
        let records = wanted.min(self.queue.taken());
        // One more than usual, because some are larger.
        let bytes = ((records + 1) * self.usual_bytes).min(bytes_max);
        (records > 0).then(|| ChunkBuilder::with_capacity(records, bytes))
    }

    /// Looks whether what lies before a record was deleted. Other gaps are usual: compaction and transactions leave them.
    fn note_gap(&mut self, offset: Offset) {
        let Some(expected) = Some(self.next).filter(|next| *next > 0).or(self.start) else { return };
        if offset == expected {
            return;
        }
        if offset < expected {
            let (of, committed) = (&self.of, expected);
            tracing::error!(partition = %of, committed, "the group's offset is beyond the log's end: the topic was deleted and made again, or lost records; it is read from offset {offset} on");
            return;
        }
        let (kept_from, _) = ffi::known_ends(&*self.client, &self.topic, self.of.partition);
        let deleted_to = kept_from.map_or(expected, |kept_from| kept_from.min(offset));
        if deleted_to > expected {
            let from = self.skipped.take().map_or(expected, |before| before.start);
            self.skipped = Some(from..deleted_to);
        }
    }

    /// Offsets start over: only a new assignment can tell records of the new log from those of the old one.
    fn begin_anew(&self) -> BrokerError {
        let text = format!(
            "{} ends before offset {}, which was read already: the topic was deleted and made again, or lost records; \
             it is read anew",
            self.of, self.next
        );
        // A member that is closing hears it no more; whoever fails already is told enough.
        let _told = self.events.try_send(ConsumerEvent::Fatal(text.clone()));
        BrokerError::Rejected(text)
    }
}

/// Whether the log has lost records that were read already. Records that come again without that are the library's doing.
fn ends_before(client: &dyn Native, topic: &CStr, partition: i32, next: Offset) -> bool {
    ffi::known_ends(client, topic, partition).1.is_some_and(|end| end < next)
}

impl Reader for PartitionReader {
    async fn next(&mut self, records_max: usize, bytes_max: usize) -> Result<Arc<Chunk>, BrokerError> {
        loop {
            if !self.ours.load(Ordering::Acquire) {
                return Err(BrokerError::Rejected(format!("{} is not this member's any more", self.of)));
            }
            // Taken and copied without waiting in between, so that a dropped call has taken nothing.
            if let Some(taken) = self.take(records_max.max(1), bytes_max) {
                return taken.map(Arc::new);
            }
            self.queue.woken().await;
        }
    }

    fn end_offset(&self) -> Option<Offset> {
        ffi::known_ends(&*self.client, &self.topic, self.of.partition).1
    }

    fn skipped(&mut self) -> Option<Range<Offset>> {
        self.skipped.take()
    }

    fn position(&self) -> Option<Offset> {
        // An empty partition has one place to stand.
        let in_empty = || self.end_offset().filter(|end| *end == 0);
        (self.next > 0).then_some(self.next).or(self.start).or_else(in_empty)
    }
}
