//! Reads one partition from its own queue, in batches, into chunks.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::error::RDKafkaErrorCode as Code;
use tidemill_core::record::{Chunk, ChunkBuilder, Offset, TopicPartition};

use super::errors;
use super::ffi::{self, Native, Queue};
use crate::broker::{BrokerError, Reader};

/// Bytes of one chunk; a larger record still comes alone. Memory of this size is used again while it is warm: with half a
/// mebibyte, up to a third of the CPU of a pipeline went into clearing new pages. And a record that waits keeps no more than this.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// What a record is thought to weigh before the first one was seen.
const FIRST_GUESS_BYTES: usize = 1024;

/// Reads one assigned partition. What is not read stays in librdkafka's queue, bounded by `queued.max.messages.kbytes`.
pub struct PartitionReader {
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
    ) -> Result<Self, BrokerError> {
        let topic = CString::new(&*of.topic).map_err(|_| BrokerError::NoSuchTopic(of.topic.to_string()))?;
        Ok(Self { client, topic, of: of.clone(), queue, ours, next: 0, start, usual_bytes: FIRST_GUESS_BYTES })
    }

    /// The flag that the consumer clears when the partition is given back.
    pub(super) fn ours(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ours)
    }

    /// Takes what is there, up to the bounds; an error only when no record comes before it. `None`: nothing is there.
    fn take(&mut self, records_max: usize, bytes_max: usize) -> Option<Result<Chunk, BrokerError>> {
        let bytes_max = bytes_max.clamp(1, CHUNK_BYTES_MAX);
        let mut chunk = ChunkBuilder::default();
        while chunk.len() < records_max {
            let Some(message) = self.queue.front() else {
                let room = bytes_max.saturating_sub(chunk.bytes());
                let wanted = (room / self.usual_bytes).clamp(1, records_max - chunk.len());
                if room == 0 || self.queue.take(wanted) == 0 {
                    break;
                }
                if chunk.is_empty() {
                    let records = wanted.min(Queue::TAKE_MAX);
                    chunk = ChunkBuilder::with_capacity(records, (records * self.usual_bytes).min(bytes_max));
                }
                continue;
            };
            if let Some((code, text)) = message.error() {
                if !chunk.is_empty() {
                    break;
                }
                self.queue.drop_front();
                if code == Code::PartitionEOF {
                    continue;
                }
                return Some(Err(errors::of_topic(code, &self.of.topic, &text)));
            }
            if message.offset() >= self.next {
                let bytes = message.bytes();
                if !chunk.is_empty() && chunk.bytes() + bytes > bytes_max {
                    break;
                }
                message.push_to(&mut chunk);
                self.next = message.offset() + 1;
            }
            self.queue.drop_front();
        }
        if chunk.is_empty() {
            return None;
        }
        // Half of the new and half of the old, so that one odd chunk does not tip it.
        self.usual_bytes = (self.usual_bytes + chunk.bytes() / chunk.len()).div_ceil(2).max(1);
        Some(Ok(chunk.build()))
    }
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
        ffi::known_end(&*self.client, &self.topic, self.of.partition)
    }

    fn position(&self) -> Option<Offset> {
        // An empty partition has one place to stand.
        let in_empty = || self.end_offset().filter(|end| *end == 0);
        (self.next > 0).then_some(self.next).or(self.start).or_else(in_empty)
    }
}
