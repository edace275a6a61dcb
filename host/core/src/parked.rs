//! Which keys of a partition are parked: what lies in its parked topic and was not handled yet.
//!
//! The index is a fold over the parked topic's partition, in its order: [`Parked::parked`] and [`Parked::settled`] are told
//! what was acknowledged there, or what is read there when the partition is assigned, and come to the same (PARK-2).
//! While a key has records here, the source's records of it are set aside behind them (PARK-1). An operator or another
//! revision lets it be tried again: then its records are handed out in order, each once until it fails again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::offset_set::OffsetSet;
use crate::record::Offset;

/// A key; `None` is the null key, which is a key here.
pub type Key = Option<Arc<[u8]>>;

/// Where a parked record comes from: its offset in the source, and its time, which tells it from a record of a topic that was
/// made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its offset.
    pub offset: Offset,
    /// Its time in milliseconds; -1 when it has none.
    pub millis: i64,
}

/// The parked records of one partition. `W` says why a key is parked.
#[derive(Debug)]
pub struct Parked<W> {
    records_max: usize,
    keys: BTreeMap<Key, OfKey<W>>,
    /// The key of each parked record, by its offset in the parked topic. Invariant: what `keys` holds.
    places: BTreeMap<Offset, Key>,
    /// Records of keys that are tried again, which were not handed out yet. Invariant: a part of `places`.
    wanted: BTreeSet<Offset>,
    /// Keys that were tried again to their end. Invariant: they hold nothing, and are in `keys`.
    emptied: BTreeSet<Key>,
    /// Who owns what is written now, as the parked topic's last notice says.
    owner: Option<Arc<str>>,
}

/// The parked records of one key.
#[derive(Debug)]
pub struct OfKey<W> {
    /// In the order in which they are to be called. Invariant: `at` rises.
    entries: VecDeque<Entry>,
    /// Whether they are tried again.
    tried: bool,
    /// Why, as the first of them or the latest failure says.
    why: Option<W>,
}

#[derive(Debug)]
struct Entry {
    at: Offset,
    source: Source,
    owner: Arc<str>,
}

/// How much was meant by a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Keys.
    pub keys: usize,
    /// Their records.
    pub records: usize,
}

impl<W> OfKey<W> {
    /// How many records.
    pub fn records(&self) -> usize {
        self.entries.len()
    }

    /// Where the first of them comes from.
    pub fn first(&self) -> Option<Source> {
        self.entries.front().map(|entry| entry.source)
    }

    /// Whether they are tried again.
    pub fn is_tried(&self) -> bool {
        self.tried
    }

    /// Why, as the first of them or the latest failure says.
    pub fn why(&self) -> Option<&W> {
        self.why.as_ref()
    }
}

impl<W> Parked<W> {
    /// Nothing is parked; there is room for so many records.
    pub fn new(records_max: usize) -> Self {
        Self {
            records_max,
            keys: BTreeMap::new(),
            places: BTreeMap::new(),
            wanted: BTreeSet::new(),
            emptied: BTreeSet::new(),
            owner: None,
        }
    }

    /// From here on in the parked topic only this owner counts: what others write behind it is handled by this one.
    pub fn owned_by(&mut self, owner: Arc<str>) {
        self.owner = Some(owner);
    }

    /// A record lies in the parked topic. False if it does not count: somebody wrote it who was not the owner any more.
    pub fn parked(&mut self, at: Offset, key: Key, source: Source, owner: Arc<str>, why: Option<W>) -> bool {
        if self.owner.as_ref().is_some_and(|known| *known != owner) {
            return false;
        }
        let of = self.keys.entry(key.clone()).or_insert(OfKey { entries: VecDeque::new(), tried: false, why: None });
        // What this owner wrote of this record or behind it before comes again: a write was not confirmed in between.
        while let Some(last) = of.entries.back()
            && last.owner == owner
            && last.source.offset >= source.offset
        {
            self.places.remove(&last.at);
            self.wanted.remove(&last.at);
            of.entries.pop_back();
        }
        if of.entries.is_empty() && why.is_some() {
            of.why = why;
        }
        if of.tried {
            self.wanted.insert(at);
        }
        of.entries.push_back(Entry { at, source, owner });
        self.emptied.remove(&key);
        self.places.insert(at, key);
        true
    }

    /// A parked record was handled, and that is noted in the parked topic. Twice is as good as once.
    pub fn settled(&mut self, at: Offset) {
        let Some(key) = self.places.remove(&at) else { return };
        self.wanted.remove(&at);
        let Some(of) = self.keys.get_mut(&key) else { return };
        if let Ok(found) = of.entries.binary_search_by_key(&at, |entry| entry.at) {
            of.entries.remove(found);
        }
        if of.entries.is_empty() {
            self.emptied.insert(key);
        }
    }

    /// The same of all that a receipt names.
    pub fn settled_all(&mut self, settled: &OffsetSet) {
        for (first, last) in settled.ranges() {
            let known: Vec<Offset> = self.places.range(first..=last).map(|(at, _)| *at).collect();
            known.into_iter().for_each(|at| self.settled(at));
        }
    }

    /// Whether this record of the source is parked already: it comes again after a crash.
    pub fn holds(&self, key: &Key, source: Source) -> bool {
        let Some(of) = self.keys.get(key) else { return false };
        let found = of.entries.binary_search_by_key(&source.offset, |entry| entry.source.offset);
        found.is_ok_and(|at| of.entries[at].source == source)
    }

    /// Where the record of the source lies in the parked topic.
    pub fn place_of(&self, offset: Offset) -> Option<Offset> {
        let mut all = self.keys.values().flat_map(|of| &of.entries);
        all.find(|entry| entry.source.offset == offset).map(|entry| entry.at)
    }

    /// Tries the chosen keys again that are not tried already.
    pub fn try_again(&mut self, mut chosen: impl FnMut(&Key, Option<&W>) -> bool) -> Count {
        let mut count = Count::default();
        for (key, of) in &mut self.keys {
            if !of.tried && !of.entries.is_empty() && chosen(key, of.why.as_ref()) {
                of.tried = true;
                self.wanted.extend(of.entries.iter().map(|entry| entry.at));
                count.keys += 1;
                count.records += of.entries.len();
            }
        }
        count
    }

    /// The first record that is to be handed out.
    pub fn next_wanted(&self) -> Option<Offset> {
        self.wanted.first().copied()
    }

    /// Hands a record out, if it is to be. Its place in the source is answered.
    pub fn hand_out(&mut self, at: Offset) -> Option<Source> {
        if !self.wanted.remove(&at) {
            return None;
        }
        let of = self.keys.get(self.places.get(&at)?)?;
        let found = of.entries.binary_search_by_key(&at, |entry| entry.at).ok()?;
        Some(of.entries[found].source)
    }

    /// Records that were to be handed out before this offset are not in the parked topic any more. How many.
    pub fn gone_before(&mut self, at: Offset) -> usize {
        let gone: Vec<Offset> = self.wanted.range(..at).copied().collect();
        gone.iter().for_each(|at| self.settled(*at));
        gone.len()
    }

    /// A key failed again: its records stay parked, those that were handed out too.
    pub fn failed_again(&mut self, key: &Key, why: W) {
        let Some(of) = self.keys.get_mut(key) else { return };
        of.tried = false;
        of.why = Some(why);
        for entry in &of.entries {
            self.wanted.remove(&entry.at);
        }
    }

    /// Forgets keys that hold nothing any more, where `release` agrees that none of their records is under way here.
    pub fn release(&mut self, mut release: impl FnMut(Option<&[u8]>) -> bool) {
        let keys = &mut self.keys;
        self.emptied.retain(|key| {
            let released = release(key.as_deref());
            if released {
                keys.remove(key);
            }
            !released
        });
    }

    /// What is parked, by key.
    pub fn keys(&self) -> impl Iterator<Item = (&Key, &OfKey<W>)> {
        self.keys.iter().filter(|(_, of)| !of.entries.is_empty())
    }

    /// How many records are parked.
    pub fn records(&self) -> usize {
        self.places.len()
    }

    /// How many more may be.
    pub fn room(&self) -> usize {
        self.records_max.saturating_sub(self.places.len())
    }
}

#[cfg(test)]
mod tests;
