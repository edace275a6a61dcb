//! Which keys of a partition are parked: what lies in its parked topic and was not handled yet.
//!
//! The index is a fold over the parked topic's partition, in its order: [`Parked::parked`] and [`Parked::settled`] are told
//! what was acknowledged there, or what is read there when the partition is assigned, and come to the same (PARK-2).
//! While a key has records here, the source's records of it are set aside behind them (PARK-1). An operator or another
//! revision lets it be tried again: then its records are handed out in order, each once until it fails again.
//!
//! What the source delivers once more is not parked twice, unless something that came before it is parked behind it: then
//! the key's records are handled as they lie, and once more from there on, in order both times.

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
    /// Where each record lies, the last place if there are several, by its offset in the source. Invariant: a part of `places`.
    by_source: BTreeMap<Offset, Offset>,
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
    /// From there on in the parked topic their offsets in the source rise: before, the source was read from a later place.
    rises_from: Offset,
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

/// What was written of a record to the parked topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<W> {
    /// Where it lies there.
    pub at: Offset,
    /// Where it comes from.
    pub source: Source,
    /// The record of its key that was written just before it at once with it, by its offset in the source.
    pub behind: Option<Offset>,
    /// Who wrote it.
    pub owner: Arc<str>,
    /// Why, if it is the one that failed.
    pub why: Option<W>,
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
            by_source: BTreeMap::new(),
            wanted: BTreeSet::new(),
            emptied: BTreeSet::new(),
            owner: None,
        }
    }

    /// From here on in the parked topic only this owner counts: what others write behind it is handled by this one.
    pub fn owned_by(&mut self, owner: Arc<str>) {
        self.owner = Some(owner);
    }

    /// Whose writing counts now; `None` while there was no notice: then everybody's does.
    pub fn owner(&self) -> Option<&Arc<str>> {
        self.owner.as_ref()
    }

    /// A record lies in the parked topic. False if it does not count: somebody wrote it who was not the owner any more, or what
    /// was to lie before it does not.
    pub fn parked(&mut self, key: Key, written: Written<W>) -> bool {
        if !self.counts(&key, &written) {
            return false;
        }
        let Written { at, source, owner, why, .. } = written;
        self.take_back(&key, source, &owner);
        let new = || OfKey { entries: VecDeque::new(), rises_from: at, tried: false, why: None };
        let of = self.keys.entry(key.clone()).or_insert_with(new);
        if of.entries.is_empty() && why.is_some() {
            of.why = why;
        }
        if of.entries.back().is_some_and(|last| last.source.offset >= source.offset) {
            of.rises_from = at;
        }
        if of.tried {
            self.wanted.insert(at);
        }
        of.entries.push_back(Entry { at, source, owner });
        self.emptied.remove(&key);
        self.places.insert(at, key);
        self.by_source.insert(source.offset, at);
        true
    }

    fn counts(&self, key: &Key, written: &Written<W>) -> bool {
        let Written { behind, owner, .. } = written;
        let is_last = |behind: Offset| {
            let last = self.last(key);
            last.is_some_and(|last| last.source.offset == behind && last.owner == *owner)
        };
        self.owner.as_ref().is_none_or(|known| known == owner) && behind.is_none_or(is_last)
    }

    /// Takes out what this owner wrote before of this record or behind it: a write was not confirmed in between.
    fn take_back(&mut self, key: &Key, source: Source, owner: &Arc<str>) {
        let comes_again = |last: &&Entry| last.owner == *owner && last.source.offset >= source.offset;
        while let Some(at) = self.last(key).filter(comes_again).map(|last| last.at) {
            self.take_out(at);
        }
    }

    fn last(&self, key: &Key) -> Option<&Entry> {
        self.keys.get(key)?.entries.back()
    }

    fn entry(&self, at: Offset) -> Option<&Entry> {
        let of = self.keys.get(self.places.get(&at)?)?;
        let found = of.entries.binary_search_by_key(&at, |entry| entry.at).ok()?;
        Some(&of.entries[found])
    }

    /// Takes a record out of the index. Its key stays.
    fn take_out(&mut self, at: Offset) -> Option<Key> {
        let key = self.places.remove(&at)?;
        self.wanted.remove(&at);
        let of = self.keys.get_mut(&key)?;
        let found = of.entries.binary_search_by_key(&at, |entry| entry.at).ok()?;
        let source = of.entries.remove(found)?.source;
        if self.by_source.get(&source.offset) == Some(&at) {
            self.by_source.remove(&source.offset);
        }
        Some(key)
    }

    /// A parked record was handled, and that is noted in the parked topic. Twice is as good as once.
    pub fn settled(&mut self, at: Offset) {
        let Some(key) = self.take_out(at) else { return };
        if self.last(&key).is_none() {
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

    /// Whether this record of the source is parked already, and nothing that came before it is parked behind it: it comes again
    /// after a crash.
    pub fn holds(&self, key: &Key, source: Source) -> bool {
        let Some(of) = self.keys.get(key) else { return false };
        let place = self.place_of(source.offset).filter(|at| *at >= of.rises_from);
        let found = place.and_then(|at| of.entries.binary_search_by_key(&at, |entry| entry.at).ok());
        found.is_some_and(|found| of.entries[found].source == source)
    }

    /// Where the record of the source lies in the parked topic.
    pub fn place_of(&self, offset: Offset) -> Option<Offset> {
        self.by_source.get(&offset).copied()
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
        self.entry(at).map(|entry| entry.source)
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
