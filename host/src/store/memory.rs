//! A key-value store in memory: gone when the host ends, bounded in bytes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, ready},
};
use serde::Deserialize;

use super::{
    KeyPage, KeyValue, KeyValueError,
    limits::{self, Now},
};
use crate::config::units::Size;

/// What an entry costs beside its key and its value, in bytes.
const ENTRY_BYTES: usize = 128;

/// The bounds of a store in memory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many bytes all keys and values have at most.
    pub bytes_max: Size,
    /// How many bytes one value has at most.
    pub value_bytes_max: Size,
}

impl Default for Config {
    fn default() -> Self {
        Self { bytes_max: Size(64 << 20), value_bytes_max: Size(1 << 20) }
    }
}

/// A key-value store in memory.
pub struct MemoryKeyValue {
    config: Config,
    now: Now,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<String, Entry>,
    /// The order of the listing. Invariant: holds each key of `by_key` once, under its entry's place.
    by_place: BTreeMap<u64, String>,
    /// When keys are gone. Invariant: holds the expiry and place of each entry that has one.
    by_expiry: BTreeSet<(i64, u64)>,
    next_place: u64,
    bytes: usize,
}

struct Entry {
    value: Vec<u8>,
    place: u64,
    expires_ms: Option<i64>,
}

impl MemoryKeyValue {
    /// An empty store.
    pub fn new(config: Config) -> Self {
        Self::with_clock(config, limits::system_clock())
    }

    pub(super) fn with_clock(config: Config, now: Now) -> Self {
        Self { config, now, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        limits::check_key(key)?;
        Ok(self.lock().live(key, (self.now)()).map(|entry| entry.value.clone()))
    }

    fn write(&self, key: String, value: Vec<u8>, ttl: Option<Duration>) -> Result<(), KeyValueError> {
        limits::check_key(&key)?;
        limits::check_value(&value, self.config.value_bytes_max.0)?;
        let now = (self.now)();
        let expires_ms = ttl.map(|ttl| limits::expiry(now, ttl));
        self.lock().put(key, value, expires_ms, now, self.config.bytes_max.0)
    }

    fn remove(&self, key: &str) -> Result<(), KeyValueError> {
        limits::check_key(key)?;
        self.lock().remove(key);
        Ok(())
    }

    fn page(&self, cursor: Option<u64>) -> KeyPage {
        let now = (self.now)();
        let entries = self.lock();
        let after = cursor.map_or(0, |place| place.saturating_add(1));
        let mut places = entries.by_place.range(after..).peekable();
        let (mut keys, mut last) = (Vec::new(), None);
        for (place, key) in places.by_ref().take(limits::PAGE_KEYS_MAX) {
            last = Some(*place);
            if entries.live(key, now).is_some() {
                keys.push(key.clone());
            }
        }
        KeyPage { keys, cursor: last.filter(|_| places.peek().is_some()) }
    }

    fn add(&self, key: String, delta: u64) -> Result<u64, KeyValueError> {
        limits::check_key(&key)?;
        let now = (self.now)();
        let mut entries = self.lock();
        let entry = entries.live(&key, now);
        let expires_ms = entry.and_then(|entry| entry.expires_ms);
        let sum = limits::added(&key, entry.map(|entry| entry.value.as_slice()), delta)?;
        entries.put(key, sum.to_string().into_bytes(), expires_ms, now, self.config.bytes_max.0)?;
        Ok(sum)
    }

    fn take(&self, key: String, record_id: String, ttl: Option<Duration>) -> Result<bool, KeyValueError> {
        limits::check_key(&key)?;
        limits::check_value(record_id.as_bytes(), self.config.value_bytes_max.0)?;
        let now = (self.now)();
        let mut entries = self.lock();
        if entries.live(&key, now).is_some_and(|entry| entry.value != record_id.as_bytes()) {
            return Ok(false);
        }
        let expires_ms = ttl.map(|ttl| limits::expiry(now, ttl));
        entries.put(key, record_id.into_bytes(), expires_ms, now, self.config.bytes_max.0)?;
        Ok(true)
    }

    fn read_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, KeyValueError> {
        limits::check_batch(keys.len())?;
        let (mut values, mut bytes) = (Vec::with_capacity(keys.len()), 0);
        for key in keys {
            let value = self.read(key)?;
            bytes += value.as_ref().map_or(0, Vec::len);
            limits::check_batch_bytes(bytes)?;
            values.push(value);
        }
        Ok(values)
    }

    fn write_many(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), KeyValueError> {
        limits::check_batch(pairs.len())?;
        limits::check_batch_bytes(pairs.iter().map(|(_, value)| value.len()).sum())?;
        pairs.into_iter().try_for_each(|(key, value)| self.write(key, value, None))
    }

    fn remove_many(&self, keys: &[String]) -> Result<(), KeyValueError> {
        limits::check_batch(keys.len())?;
        keys.iter().try_for_each(|key| self.remove(key))
    }
}

impl Entries {
    fn live(&self, key: &str, now: i64) -> Option<&Entry> {
        self.by_key.get(key).filter(|entry| entry.expires_ms.is_none_or(|expires| now < expires))
    }

    /// Writes an entry, which keeps its place in the listing if it is there. Nothing is changed when the store is full.
    fn put(
        &mut self,
        key: String,
        value: Vec<u8>,
        expires_ms: Option<i64>,
        now: i64,
        bytes_max: usize,
    ) -> Result<(), KeyValueError> {
        self.clear_expired(now);
        let old = self.by_key.get(&key);
        let freed = old.map_or(0, |entry| cost(&key, &entry.value));
        let bytes = self.bytes - freed + cost(&key, &value);
        if bytes > bytes_max {
            return Err(KeyValueError::Full { limit: "bytes_max", max: bytes_max as u64 });
        }
        let place = match old {
            Some(entry) => {
                self.by_expiry.remove(&(entry.expires_ms.unwrap_or(0), entry.place));
                entry.place
            }
            None => self.new_place(&key),
        };
        self.by_expiry.extend(expires_ms.map(|expires| (expires, place)));
        self.bytes = bytes;
        self.by_key.insert(key, Entry { value, place, expires_ms });
        Ok(())
    }

    fn new_place(&mut self, key: &str) -> u64 {
        let place = self.next_place;
        self.next_place += 1;
        self.by_place.insert(place, key.to_owned());
        place
    }

    fn remove(&mut self, key: &str) {
        let Some(entry) = self.by_key.remove(key) else { return };
        self.by_place.remove(&entry.place);
        if let Some(expires) = entry.expires_ms {
            self.by_expiry.remove(&(expires, entry.place));
        }
        self.bytes -= cost(key, &entry.value);
    }

    fn clear_expired(&mut self, now: i64) {
        for _ in 0..limits::EXPIRED_CLEARED_MAX {
            let Some((expires, place)) = self.by_expiry.first().copied() else { return };
            if now < expires {
                return;
            }
            let key = self.by_place.get(&place).cloned().expect("an entry with an expiry has a place");
            self.remove(&key);
        }
    }
}

fn cost(key: &str, value: &[u8]) -> usize {
    2 * key.len() + value.len() + ENTRY_BYTES
}

impl fmt::Debug for MemoryKeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKeyValue").field("config", &self.config).finish_non_exhaustive()
    }
}

impl KeyValue for MemoryKeyValue {
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Vec<u8>>, KeyValueError>> {
        ready(self.read(&key)).boxed()
    }

    fn set(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        ready(self.write(key, value, None)).boxed()
    }

    fn set_with_ttl(&self, key: String, value: Vec<u8>, ttl: Duration) -> BoxFuture<'_, Result<(), KeyValueError>> {
        ready(self.write(key, value, Some(ttl))).boxed()
    }

    fn delete(&self, key: String) -> BoxFuture<'_, Result<(), KeyValueError>> {
        ready(self.remove(&key)).boxed()
    }

    fn exists(&self, key: String) -> BoxFuture<'_, Result<bool, KeyValueError>> {
        ready(limits::check_key(&key).map(|()| self.lock().live(&key, (self.now)()).is_some())).boxed()
    }

    fn list_keys(&self, cursor: Option<u64>) -> BoxFuture<'_, Result<KeyPage, KeyValueError>> {
        ready(Ok(self.page(cursor))).boxed()
    }

    fn increment(&self, key: String, delta: u64) -> BoxFuture<'_, Result<u64, KeyValueError>> {
        ready(self.add(key, delta)).boxed()
    }

    fn get_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, KeyValueError>> {
        ready(self.read_many(&keys)).boxed()
    }

    fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        ready(self.write_many(pairs)).boxed()
    }

    fn delete_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        ready(self.remove_many(&keys)).boxed()
    }

    fn claim(
        &self,
        key: String,
        record_id: String,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<bool, KeyValueError>> {
        ready(self.take(key, record_id, ttl)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::contract::key_value::{BYTES_MAX, Clock, Opened, VALUE_BYTES_MAX};

    crate::store_contract!(key_value, open);

    async fn open() -> Opened {
        let clock = Clock::default();
        let config = Config { bytes_max: Size(BYTES_MAX), value_bytes_max: Size(VALUE_BYTES_MAX) };
        let store = Arc::new(MemoryKeyValue::with_clock(config, clock.now()));
        Opened { store, clock, _keep: None }
    }
}
