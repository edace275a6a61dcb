//! Parked keys of one partition: parks their records, and tries them again in order.
//!
//! Beside the source's machine there is a second one, over what is parked: its verdicts end in receipts where the source's end
//! in commits. A key is let go of only when nothing of it is parked, on its way there, or in a call here.

mod driving;
mod shown;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::parked::{Key, Parked};
use tidemill_core::partition::Partition;
use tidemill_core::record::{Chunk, ChunkBuilder, Offset, Record, Timestamp, TopicPartition};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::{Admin, BrokerError, SendError};
use crate::consumer::{Config, Parking};
use crate::fault::Fault;
use crate::settle::Stop;
use crate::settle::parked::{Entry, Why, restored};

/// Records of the parked topic that are read at once, when all of it is read. The broker bounds their bytes.
const LOAD_RECORDS: usize = 10_000;
/// The same of what is tried again.
const PAGE_RECORDS: usize = 1000;
/// Waits before the parked topic is read again when that failed.
const READ_AGAIN_DELAY: Duration = Duration::from_secs(1);
/// How often it is told that there is no room to park.
const FULL_INTERVAL: Duration = Duration::from_secs(60);

/// What one assignment knows of its parked records.
pub(super) struct Keys {
    parking: Parking,
    source: Arc<str>,
    /// The parked topic's partition.
    place: TopicPartition,
    /// Names this assignment in what it writes there.
    owner: Arc<str>,
    index: Parked<Why>,
    /// The index knows what lies before there.
    known_to: Offset,
    /// Runs what is tried again.
    second: Partition,
    /// What was handed to it, by its own offsets.
    handed: BTreeMap<Offset, Handed>,
    next: Offset,
    handed_bytes: usize,
    /// A page of the parked topic on its way, and from where it is read.
    page: Option<(Offset, Reading)>,
    read_again: Option<Instant>,
    /// The failures of records that wait to be parked.
    failed: BTreeMap<Offset, Stop>,
    told_full: Option<Instant>,
}

/// What was read of the parked topic, and from where, or why it was not.
pub(super) type Page = Result<(Offset, Arc<Chunk>), String>;

type Reading = JoinHandle<Result<Arc<Chunk>, BrokerError>>;

/// A parked record that is tried again.
struct Handed {
    at: Offset,
    record: Record,
}

impl Keys {
    pub(super) fn new(parking: Parking, config: &Config, from: &TopicPartition) -> Self {
        Self {
            source: Arc::clone(&from.topic),
            place: parking.topics.place_of(from),
            index: Parked::new(parking.records_max),
            known_to: 0,
            parking,
            owner: format!("{:032x}", fastrand::u128(..)).into(),
            second: Partition::new(config.order, config.bounds.clone()),
            handed: BTreeMap::new(),
            next: 0,
            handed_bytes: 0,
            page: None,
            read_again: None,
            failed: BTreeMap::new(),
            told_full: None,
        }
    }

    /// Reads what is parked. Nothing of the source may be called before.
    async fn load(&mut self) {
        while let Err(error) = self.try_load().await {
            tracing::warn!(
                topic = &*self.place.topic,
                partition = self.place.partition,
                error,
                "it can't be read what is parked; the partition waits until it can"
            );
            tokio::time::sleep(READ_AGAIN_DELAY).await;
        }
    }

    async fn try_load(&mut self) -> Result<(), String> {
        let admin = Arc::clone(&self.parking.admin);
        (self.index, self.known_to) = (Parked::new(self.parking.records_max), 0);
        match admin.topics(Some(&self.place.topic)).await {
            Ok(found) if found.iter().any(|of| of.partitions.len() as i64 > i64::from(self.place.partition)) => {}
            Err(BrokerError::NoSuchTopic(_)) if matches!(admin.takes_records(&self.place.topic).await, Ok(true)) => {
                self.make_topic().await.map_err(|error| error.to_string())?;
            }
            // Nothing was ever parked. What has to be says that there is no topic.
            Ok(_) | Err(BrokerError::NoSuchTopic(_)) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        let notice = match self.parking.topics.claim(&self.place, &self.owner).await {
            Ok(notice) => notice,
            Err(SendError::NoSuchTopic(_)) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        while self.known_to <= notice {
            let read = admin.read(&self.place.topic, self.place.partition, self.known_to, LOAD_RECORDS).await;
            let chunk = read.map_err(|error| error.to_string())?;
            if chunk.is_empty() {
                return Err("it ends before the notice that was just written".to_owned());
            }
            self.take_in(&[chunk]);
        }
        Ok(())
    }

    /// Where topics are made by their first record, this one is made with as many partitions as the source.
    async fn make_topic(&self) -> Result<(), BrokerError> {
        let admin = &self.parking.admin;
        let sources = admin.topics(Some(&self.source)).await?;
        let partitions = sources.iter().map(|topic| topic.partitions.len()).sum::<usize>() as i32;
        match admin.create_topic(&self.place.topic, partitions, None).await {
            // Another partition's task has made it.
            Ok(()) | Err(BrokerError::TopicExists(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether what this assignment writes counts, as far as it knows.
    fn owns(&self) -> bool {
        self.index.owner().is_none_or(|owner| *owner == self.owner)
    }

    /// Whether it is there that a record of the source lies.
    fn lies_at(&self, source: Offset, at: Offset) -> bool {
        self.index.place_of(source) == Some(at) || Fault::ParkedNotAwaited.is_on()
    }

    /// Learns what was read of the parked topic. Answers whether others have parked something that counts.
    fn take_in(&mut self, read: &[Arc<Chunk>]) -> bool {
        let mut of_others = false;
        for record in read.iter().flat_map(|chunk| chunk.records()) {
            self.known_to = record.offset() + 1;
            match Entry::of(&record) {
                Entry::Parked(written) => {
                    let is_others = written.owner != self.owner;
                    of_others |= self.index.parked(key_of(&record), written) && is_others;
                }
                Entry::Receipt(handled) => self.index.settled_all(&handled),
                Entry::Notice(owner) => self.index.owned_by(owner),
                Entry::Foreign => {}
            }
        }
        of_others
    }

    pub(super) fn bytes(&self) -> usize {
        self.handed_bytes
    }

    pub(super) fn next_timer(&self) -> Option<Duration> {
        self.second.next_timer()
    }

    pub(super) fn wants_slot(&self) -> bool {
        self.second.wants_slot()
    }

    pub(super) fn index(&self) -> &Parked<Why> {
        &self.index
    }

    /// Keeps why records are to be parked.
    pub(super) fn failed(&mut self, stops: Vec<Stop>) {
        self.failed.extend(stops.into_iter().map(|stop| (stop.offset, stop)));
    }

    /// Begins to read what is to be handed out next, if there is room for it.
    pub(super) fn read_on(&mut self, bytes_max: usize) {
        if self.page.is_some() || self.read_again.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.read_again = None;
        let Some(at) = self.index.next_wanted().filter(|_| self.handed_bytes < bytes_max && self.second.room() > 0)
        else {
            return;
        };
        let (admin, place) = (Arc::clone(&self.parking.admin), self.place.clone());
        let records = PAGE_RECORDS.min(self.second.room());
        let read = async move { admin.read(&place.topic, place.partition, at, records).await };
        self.page = Some((at, tokio::spawn(read)));
    }

    /// When to read again after a failure.
    pub(super) fn read_again(&self) -> Option<Instant> {
        self.read_again.filter(|_| self.page.is_none())
    }

    /// Waits for the page on its way, and says from where it was read; for ever without one. Cancel-safe.
    pub(super) async fn page(&mut self) -> Page {
        let Some((at, page)) = &mut self.page else { return std::future::pending().await };
        let (at, read) = (*at, page.await);
        self.page = None;
        match read {
            Ok(read) => read.map(|chunk| (at, chunk)).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What the second machine receives of a page that was read from there on.
    fn hand_out(&mut self, asked: Offset, chunk: &Arc<Chunk>) -> Option<Arc<Chunk>> {
        // What lies before it was let go on meanwhile, and comes first: it is read again, from there.
        if self.index.next_wanted().is_some_and(|at| at < asked) {
            return None;
        }
        let mut handed = ChunkBuilder::default();
        if let Some(first) = chunk.records().next() {
            let gone = self.index.gone_before(first.offset());
            if gone > 0 {
                tracing::error!(
                    topic = &*self.place.topic,
                    partition = self.place.partition,
                    records = gone,
                    "parked records were deleted before they were handled, and are lost; let the topic keep them for ever"
                );
            }
        }
        for record in chunk.records() {
            if self.index.hand_out(record.offset()).is_none() {
                continue;
            }
            let Some(restored) = restored(&record) else { continue };
            // The second machine counts in its own order: keys that are tried again later may lie before.
            handed.push(self.next, Timestamp::None, record.key(), None, []);
            self.handed_bytes += restored.bytes();
            self.handed.insert(self.next, Handed { at: record.offset(), record: restored });
            self.next += 1;
        }
        (!handed.is_empty()).then(|| Arc::new(handed.build()))
    }

    /// The first record of the page that it was read for is not there.
    fn read_nothing(&mut self, why: &str) {
        tracing::warn!(
            topic = &*self.place.topic,
            partition = self.place.partition,
            why,
            "parked records can't be read and are read again"
        );
        self.read_again = Some(Instant::now() + READ_AGAIN_DELAY);
    }

    fn forget(&mut self, own: Offset) {
        if let Some(Handed { record, .. }) = self.handed.remove(&own) {
            self.handed_bytes -= record.bytes();
        }
    }
}

/// Reads what lies in the parked topic from an offset up to one that was written; returns once it can be read, however long that
/// takes. Once the partition is revoked what can't be read is given up: `None`.
async fn read_back(
    admin: &dyn Admin,
    place: &TopicPartition,
    mut from: Offset,
    last: Offset,
    revoked: &CancellationToken,
) -> Option<Vec<Arc<Chunk>>> {
    let mut chunks = Vec::new();
    while from <= last {
        let error = match admin.read(&place.topic, place.partition, from, LOAD_RECORDS).await {
            Ok(chunk) => match chunk.records().next_back() {
                Some(end) => {
                    from = end.offset() + 1;
                    chunks.push(chunk);
                    continue;
                }
                None => "it ends before what was just written".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            topic = &*place.topic,
            partition = place.partition,
            error,
            "what was just parked can't be read; its keys wait until it can"
        );
        tokio::select! {
            biased;
            () = tokio::time::sleep(READ_AGAIN_DELAY) => {}
            () = revoked.cancelled() => return None,
        }
    }
    Some(chunks)
}

fn key_of(record: &Record) -> Key {
    record.key().map(Into::into)
}
