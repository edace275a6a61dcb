//! Reads a dead-letter topic: first which letters were sent again, then the letters, a page at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tidemill_core::offset_set::OffsetSet;
use tidemill_core::record::{Chunk, Offset, Record, redriven};

use super::receipt::note;
use super::{DlqError, Filter};
use crate::broker::{Admin, BrokerError, Header, PartitionInfo, TopicInfo};
use crate::settle::letter::{Account, header};

/// Letters of a page. It is also what a run that ends in the middle may send twice.
const PAGE_RECORDS: usize = 500;

/// A dead-letter topic, as far as it went when it was opened.
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    partitions: Vec<PartitionInfo>,
    /// The letters that were sent again, by partition.
    redriven: BTreeMap<i32, OffsetSet>,
}

/// A dead letter.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Letter {
    pub(in crate::cli) topic: Arc<str>,
    pub(in crate::cli) partition: i32,
    pub(in crate::cli) record: Record,
    pub(in crate::cli) account: Account,
    /// Whether it was sent again.
    pub(in crate::cli) redriven: bool,
}

/// Goes through the letters of a topic, partition by partition.
pub(super) struct Pages<'a> {
    admin: &'a dyn Admin,
    topic: &'a Topic,
    filter: &'a Filter,
    left: VecDeque<PartitionInfo>,
}

impl Topic {
    /// Reads the whole topic once for what was sent again.
    pub(super) async fn open(admin: &dyn Admin, topic: TopicInfo) -> Result<Self, DlqError> {
        let TopicInfo { name, partitions } = topic;
        let mut redriven: BTreeMap<i32, OffsetSet> = BTreeMap::new();
        for of in &partitions {
            let mut next = of.start;
            while let Some(chunk) = page(admin, &name, of.partition, &mut next, of.end).await? {
                let noted = redriven.entry(of.partition).or_default();
                for record in chunk.records() {
                    note(noted, &record);
                }
            }
        }
        Ok(Self { name: name.into(), partitions, redriven })
    }

    /// Its letters that fit.
    pub(super) fn pages<'a>(&'a self, admin: &'a dyn Admin, filter: &'a Filter) -> Pages<'a> {
        Pages { admin, topic: self, filter, left: self.partitions.iter().cloned().collect() }
    }
}

impl Pages<'_> {
    /// The next letters, all of one partition; `None` at the end. A page may be empty.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Letter>>, DlqError> {
        while let Some(of) = self.left.front_mut() {
            let (partition, end) = (of.partition, of.end);
            match page(self.admin, &self.topic.name, partition, &mut of.start, end).await? {
                Some(chunk) => return Ok(Some(self.letters(partition, end, &chunk))),
                None => drop(self.left.pop_front()),
            }
        }
        Ok(None)
    }

    fn letters(&self, partition: i32, end: Offset, chunk: &Arc<Chunk>) -> Vec<Letter> {
        let noted = self.topic.redriven.get(&partition);
        let letter = |record: Record| Letter {
            topic: Arc::clone(&self.topic.name),
            partition,
            account: Account::of(&record).unwrap_or_default(),
            redriven: noted.is_some_and(|noted| noted.contains(record.offset())),
            record,
        };
        let records = chunk.records().filter(|record| record.offset() < end);
        let letters = records.filter(|record| !note(&mut OffsetSet::default(), record)).map(letter);
        letters.filter(|letter| self.filter.fits(letter)).collect()
    }
}

/// Which letter is looked for: the one that a handler wrote of one record.
pub(in crate::cli) struct Wanted<'a> {
    pub(in crate::cli) handler: &'a str,
    pub(in crate::cli) topic: &'a str,
    pub(in crate::cli) partition: i32,
    pub(in crate::cli) offset: Offset,
}

/// What a search has found.
#[derive(Debug, Default)]
pub(in crate::cli) struct Search {
    /// The latest letter of the record.
    pub(in crate::cli) letter: Option<Letter>,
    /// Whether the search ended before the topic did, at its bound.
    pub(in crate::cli) cut: bool,
}

/// Looks for a record's letter among the records of a topic that are not older than it, at most so many.
pub(in crate::cli) async fn find(
    admin: &dyn Admin,
    topic: TopicInfo,
    since_ms: Option<i64>,
    wanted: &Wanted<'_>,
    records_max: usize,
) -> Result<Search, BrokerError> {
    let TopicInfo { name, partitions } = topic;
    let name: Arc<str> = name.into();
    // A letter has its record's time, or a later one where the broker dates records itself.
    let starts: BTreeMap<i32, Offset> = match since_ms {
        Some(millis) => admin.offsets_for_time(&name, millis).await?.into_iter().collect(),
        None => BTreeMap::new(),
    };
    let mut search = Search::default();
    let mut left = records_max;
    for of in &partitions {
        let mut next = starts.get(&of.partition).copied().unwrap_or(of.start).max(of.start);
        let mut sent = OffsetSet::default();
        while let Some(chunk) = page(admin, &name, of.partition, &mut next, of.end).await? {
            for record in chunk.records().filter(|record| !note(&mut sent, record)) {
                let Some(account) = Account::of(&record).filter(|account| wanted.is(account)) else { continue };
                search.letter = Some(Letter {
                    topic: Arc::clone(&name),
                    partition: of.partition,
                    record,
                    account,
                    redriven: false,
                });
            }
            left = left.saturating_sub(chunk.len().max(1));
            if left == 0 {
                search.cut = true;
                break;
            }
        }
        if let Some(letter) = search.letter.as_mut().filter(|letter| letter.partition == of.partition) {
            letter.redriven = sent.contains(letter.record.offset());
        }
        if search.cut {
            break;
        }
    }
    Ok(search)
}

impl Wanted<'_> {
    fn is(&self, account: &Account) -> bool {
        account.handler.as_deref() == Some(self.handler)
            && account.topic.as_deref() == Some(self.topic)
            && account.partition == Some(self.partition)
            && account.offset == Some(self.offset)
    }
}

/// The next records of a partition; `None` at the end that was known when the topic was opened.
async fn page(
    admin: &dyn Admin,
    topic: &str,
    partition: i32,
    next: &mut Offset,
    end: Offset,
) -> Result<Option<Arc<Chunk>>, BrokerError> {
    if *next >= end {
        return Ok(None);
    }
    let chunk = admin.read(topic, partition, *next, PAGE_RECORDS).await?;
    // Without records up to the end there is only what a transaction or compaction left.
    *next = chunk.records().last().map_or(end, |last| last.offset() + 1);
    Ok(Some(chunk))
}

impl Letter {
    /// Where it lies, as flags and other commands name it.
    pub(in crate::cli) fn place(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.record.offset())
    }

    /// How often the record was sent again before.
    pub(super) fn times(&self) -> u32 {
        let times = self.record.last_header(redriven::TIMES).and_then(|times| std::str::from_utf8(times).ok());
        times.and_then(|times| times.parse().ok()).unwrap_or(0)
    }

    /// The record's own headers, as they were before it failed: the letter's are behind them.
    pub(super) fn own_headers(&self) -> Vec<Header> {
        let own = self.record.headers().take_while(|own| !own.name.starts_with(header::PREFIX.as_bytes()));
        let copied = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        own.map(|own| Header { name: copied(own.name), value: own.value.map(copied) }).collect()
    }
}
