//! Where a handler's work is seen from outside: in a table, in books, or in a topic that it forwards to.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::books::{Books, Entry};
use crate::checker::Stored;
use crate::ledger::Place;
use crate::scenario::Scenario;
use crate::sink::Sink;
use crate::topics::{self, Kept, Tail};

/// Where results are read.
#[derive(Debug, Clone)]
pub enum Results {
    /// The table of the guest `store`.
    Table(Sink),
    /// What guests forward as it came.
    Topic(Forwarded),
    /// The books of the guest `ledger`.
    Books(Booked),
}

/// Books, and the topic that their records come from.
#[derive(Debug, Clone)]
pub struct Booked {
    /// `bootstrap.servers`.
    pub bootstrap: String,
    /// Where records come from.
    pub source: String,
    /// The books.
    pub books: Books,
}

/// A topic that is forwarded to, and the one that its records come from.
#[derive(Debug, Clone)]
pub struct Forwarded {
    /// `bootstrap.servers`.
    pub bootstrap: String,
    /// Where records come from.
    pub source: String,
    /// Where they go: a topic of one partition, so that what comes later has a higher offset.
    pub out: String,
}

/// Counts the settled records of a partition below an offset.
pub type Count = Box<dyn FnMut(i32, i64) -> Result<i64> + Send>;

impl Results {
    /// Everything that was ever stored, repeats too, in order.
    pub fn stored(&self) -> Result<Vec<Stored>> {
        match self {
            Results::Table(sink) => sink.stored(),
            Results::Topic(forwarded) => forwarded.stored(),
            Results::Books(booked) => booked.stored(),
        }
    }

    /// The highest number of a storing so far.
    pub fn written(&self) -> Result<i64> {
        match self {
            Results::Table(sink) => sink.number("SELECT coalesce(max(number), 0) FROM stored", &[]),
            Results::Topic(forwarded) => {
                Ok(topics::ends(&forwarded.bootstrap, &forwarded.out)?.first().copied().unwrap_or(0) - 1)
            }
            Results::Books(booked) => booked.books.last(),
        }
    }

    /// How many were ever stored, as far as that can be told quickly: a topic's transactions count as well.
    pub fn count(&self) -> Result<usize> {
        match self {
            Results::Table(sink) => sink.count(),
            Results::Topic(_) => Ok(usize::try_from(self.written()? + 1)?),
            Results::Books(booked) => Ok(booked.books.entries()?.len()),
        }
    }

    /// For a sampler of commits.
    pub fn counter(&self) -> Result<Count> {
        match self {
            Results::Table(sink) => {
                let sink = sink.clone();
                Ok(Box::new(move |partition, offset| sink.count_below(partition, offset)))
            }
            Results::Topic(forwarded) => forwarded.counter(),
            Results::Books(booked) => {
                let books = booked.books.clone();
                Ok(Box::new(move |partition, offset| {
                    let is_below = |place: &Place| place.partition == partition && place.offset < offset;
                    let entries = books.entries()?;
                    let places: BTreeSet<Place> = entries.iter().map(|entry| entry.place).filter(is_below).collect();
                    Ok(i64::try_from(places.len())?)
                }))
            }
        }
    }
}

impl Booked {
    /// An entry has its record's id and key; the value is the source's.
    fn stored(&self) -> Result<Vec<Stored>> {
        let entries = self.books.entries()?;
        let source = topics::read(&self.bootstrap, &self.source)?;
        let values: BTreeMap<Place, Option<Vec<u8>>> =
            source.into_iter().map(|kept| (kept.place, kept.value)).collect();
        let stored = |entry: Entry| Stored {
            place: entry.place,
            written: entry.number,
            key: Some(entry.account.into_bytes()),
            value: values.get(&entry.place).cloned().flatten(),
        };
        Ok(entries.into_iter().map(stored).collect())
    }
}

impl Forwarded {
    /// What a scenario's handler forwards to a topic.
    pub fn from(scenario: &Scenario, out: &str) -> Forwarded {
        Forwarded { bootstrap: scenario.bootstrap.clone(), source: scenario.topic.clone(), out: out.to_owned() }
    }

    fn stored(&self) -> Result<Vec<Stored>> {
        let places = places(topics::read(&self.bootstrap, &self.source)?);
        Ok(topics::read(&self.bootstrap, &self.out)?.into_iter().map(|kept| stored(kept, &places)).collect())
    }

    fn counter(&self) -> Result<Count> {
        let mut source = Tail::new(&self.bootstrap, &self.source)?;
        let mut out = Tail::new(&self.bootstrap, &self.out)?;
        let mut known = BTreeMap::new();
        let mut settled: BTreeSet<Place> = BTreeSet::new();
        Ok(Box::new(move |partition, offset| {
            // What was forwarded was in the source before.
            let forwarded = out.news()?;
            known.extend(places(source.news()?));
            settled.extend(forwarded.into_iter().map(|kept| stored(kept, &known).place));
            let from = Place { partition, offset: 0 };
            Ok(i64::try_from(settled.range(from..Place { partition, offset }).count())?)
        }))
    }
}

/// Each value that a ledger's producer sent is there once: it tells its record.
fn places(kept: Vec<Kept>) -> BTreeMap<Vec<u8>, Place> {
    kept.into_iter().filter_map(|kept| Some((kept.value?, kept.place))).collect()
}

fn stored(kept: Kept, places: &BTreeMap<Vec<u8>, Place>) -> Stored {
    // What nobody sent has no place, and the judge says so.
    let nowhere = Place { partition: -1, offset: kept.place.offset };
    let place = kept.value.as_ref().and_then(|value| places.get(value)).copied().unwrap_or(nowhere);
    Stored { place, written: kept.place.offset, key: kept.key, value: kept.value }
}
