//! A key-value store in an SQLite file, durable and shared by the processes of one machine.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Deserialize;

use super::{
    Config, Synchronous,
    pool::{Access, Handle, Pool},
};
use crate::{
    config::units::{Size, Span},
    store::{
        KeyPage, KeyValue, KeyValueError, SqlError,
        limits::{self, Now},
    },
};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS tidemill_kv(
        place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value BLOB NOT NULL, expires_ms INTEGER);
    CREATE INDEX IF NOT EXISTS tidemill_kv_expires_ms ON tidemill_kv(expires_ms) WHERE expires_ms IS NOT NULL;";

/// A key keeps its place when it is written again, so that a listing meets it once.
const PUT: &str = "INSERT INTO tidemill_kv(key, value, expires_ms) VALUES (?1, ?2, ?3)
    ON CONFLICT(key) DO UPDATE SET value = excluded.value, expires_ms = excluded.expires_ms";

/// Where a key-value store's file is, and its bounds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyValueConfig {
    /// The file; it is created when it is missing, its folder is not.
    pub file: PathBuf,
    /// What a write waits for.
    #[serde(default)]
    pub synchronous: Synchronous,
    /// How many connections there are at most; one of them writes at a time.
    #[serde(default = "KeyValueConfig::connections_max")]
    pub connections_max: usize,
    /// How long a call waits for a connection, or for its turn to write.
    #[serde(default = "KeyValueConfig::wait")]
    pub connection_wait: Span,
    /// How long a call waits for another process that writes to the file.
    #[serde(default = "KeyValueConfig::wait")]
    pub busy_timeout: Span,
    /// How long one call may work.
    #[serde(default = "KeyValueConfig::wait")]
    pub call_timeout: Span,
    /// How many bytes the file has at most.
    #[serde(default = "KeyValueConfig::bytes_max")]
    pub bytes_max: Size,
    /// How many bytes one value has at most.
    #[serde(default = "KeyValueConfig::value_bytes_max")]
    pub value_bytes_max: Size,
}

impl KeyValueConfig {
    /// The defaults for a file.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            synchronous: Synchronous::default(),
            connections_max: Self::connections_max(),
            connection_wait: Self::wait(),
            busy_timeout: Self::wait(),
            call_timeout: Self::wait(),
            bytes_max: Self::bytes_max(),
            value_bytes_max: Self::value_bytes_max(),
        }
    }

    fn connections_max() -> usize {
        2
    }

    fn wait() -> Span {
        Span(Duration::from_secs(5))
    }

    fn bytes_max() -> Size {
        Size(1 << 30)
    }

    fn value_bytes_max() -> Size {
        Size(1 << 20)
    }

    fn pool(&self) -> Config {
        Config {
            synchronous: self.synchronous,
            connections_max: self.connections_max,
            connection_wait: self.connection_wait,
            busy_timeout: self.busy_timeout,
            statement_timeout: self.call_timeout,
            ..Config::new(&self.file)
        }
    }
}

/// A key-value store in an SQLite file.
pub struct SqliteKeyValue {
    pool: Arc<Pool>,
    limits: Arc<KeyValueConfig>,
    now: Now,
}

/// A value and when it expires, in milliseconds since the Unix epoch.
type Kept = (Vec<u8>, Option<i64>);

/// What one call works with.
struct Keys<'a> {
    connection: &'a Connection,
    limits: &'a KeyValueConfig,
    now_ms: i64,
}

impl SqliteKeyValue {
    /// Opens the file and makes its table if need be.
    pub async fn open(config: KeyValueConfig) -> Result<Self, KeyValueError> {
        Self::with_clock(config, limits::system_clock()).await
    }

    pub(in crate::store) async fn with_clock(config: KeyValueConfig, now: Now) -> Result<Self, KeyValueError> {
        let pool = Pool::new(config.pool(), Access::Host);
        let store = Self { pool, limits: Arc::new(config), now };
        store.write(|keys| keys.connection.execute_batch(SCHEMA).map_err(|error| keys.failed(&error))).await?;
        Ok(store)
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Keys<'_>) -> Result<T, KeyValueError> + Send + 'static,
    ) -> Result<T, KeyValueError> {
        self.run(false, work).await
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Keys<'_>) -> Result<T, KeyValueError> + Send + 'static,
    ) -> Result<T, KeyValueError> {
        self.run(true, work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        writes: bool,
        work: impl FnOnce(&Keys<'_>) -> Result<T, KeyValueError> + Send + 'static,
    ) -> Result<T, KeyValueError> {
        let loan = self.pool.clone().take().await.map_err(unavailable)?;
        let permit = if writes { Some(loan.writer().await.map_err(unavailable)?) } else { None };
        let (limits, now_ms) = (self.limits.clone(), (self.now)());
        let call = move |handle: &Handle, _: &Config, _: &_| {
            let keys = Keys { connection: &handle.connection, limits: &limits, now_ms };
            Ok(if writes { keys.in_transaction(handle, work) } else { work(&keys) })
        };
        let (_, _, result) = loan.run(permit, call).await.map_err(unavailable)?;
        result.map_err(unavailable)?
    }
}

impl Keys<'_> {
    fn in_transaction<T>(
        &self,
        handle: &Handle,
        work: impl FnOnce(&Self) -> Result<T, KeyValueError>,
    ) -> Result<T, KeyValueError> {
        let control = |statement| handle.control(statement).map_err(|error| self.failed(&error));
        self.limit_file()?;
        control("BEGIN IMMEDIATE")?;
        let result = work(self).and_then(|value| control("COMMIT").map(|()| value));
        if result.is_err() && !self.connection.is_autocommit() {
            control("ROLLBACK")?;
        }
        result
    }

    /// Bounds the file, in each connection, since SQLite does not keep it in the file.
    fn limit_file(&self) -> Result<(), KeyValueError> {
        let limit = || {
            let page: i64 = self.connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
            let pages = (i64::try_from(self.limits.bytes_max.0).unwrap_or(i64::MAX) / page).max(1);
            self.connection.pragma_update(None, "max_page_count", pages)
        };
        limit().map_err(|error| self.failed(&error))
    }

    fn get(&self, key: &str) -> Result<Option<Kept>, KeyValueError> {
        let sql =
            "SELECT value, expires_ms FROM tidemill_kv WHERE key = ?1 AND (expires_ms IS NULL OR expires_ms > ?2)";
        let get = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_row(params![key, self.now_ms], |row| Ok((row.get(0)?, row.get(1)?))).optional()
        };
        get().map_err(|error| self.failed(&error))
    }

    fn put(&self, key: &str, value: &[u8], expires_ms: Option<i64>) -> Result<(), KeyValueError> {
        let put = || {
            self.clear_expired()?;
            self.connection.prepare_cached(PUT)?.execute(params![key, value, expires_ms])
        };
        put().map(drop).map_err(|error| self.failed(&error))
    }

    fn clear_expired(&self) -> rusqlite::Result<()> {
        let sql = "DELETE FROM tidemill_kv WHERE place IN
            (SELECT place FROM tidemill_kv WHERE expires_ms IS NOT NULL AND expires_ms <= ?1 LIMIT ?2)";
        self.connection.prepare_cached(sql)?.execute(params![self.now_ms, limits::EXPIRED_CLEARED_MAX as i64])?;
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        let delete = || self.connection.prepare_cached("DELETE FROM tidemill_kv WHERE key = ?1")?.execute([key]);
        delete().map(drop).map_err(|error| self.failed(&error))
    }

    fn page(&self, cursor: Option<u64>) -> Result<KeyPage, KeyValueError> {
        let sql = "SELECT place, key FROM tidemill_kv
            WHERE place > ?1 AND (expires_ms IS NULL OR expires_ms > ?2) ORDER BY place LIMIT ?3";
        let after = cursor.map_or(0, |place| i64::try_from(place).unwrap_or(i64::MAX));
        let rows = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![after, self.now_ms, limits::PAGE_KEYS_MAX as i64], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = rows().map_err(|error| self.failed(&error))?;
        let full = rows.len() == limits::PAGE_KEYS_MAX;
        let last = rows.last().and_then(|(place, _)| u64::try_from(*place).ok());
        Ok(KeyPage { keys: rows.into_iter().map(|(_, key)| key).collect(), cursor: last.filter(|_| full) })
    }

    fn increment(&self, key: &str, delta: u64) -> Result<u64, KeyValueError> {
        let entry = self.get(key)?;
        let sum = limits::added(key, entry.as_ref().map(|(value, _)| value.as_slice()), delta)?;
        self.put(key, sum.to_string().as_bytes(), entry.and_then(|(_, expires_ms)| expires_ms))?;
        Ok(sum)
    }

    fn claim(&self, key: &str, record_id: &str, ttl: Option<Duration>) -> Result<bool, KeyValueError> {
        if self.get(key)?.is_some_and(|(value, _)| value != record_id.as_bytes()) {
            return Ok(false);
        }
        self.put(key, record_id.as_bytes(), ttl.map(|ttl| limits::expiry(self.now_ms, ttl)))?;
        Ok(true)
    }

    fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, KeyValueError> {
        let (mut values, mut bytes) = (Vec::with_capacity(keys.len()), 0);
        for key in keys {
            let value = self.get(key)?.map(|(value, _)| value);
            bytes += value.as_ref().map_or(0, Vec::len);
            limits::check_batch_bytes(bytes)?;
            values.push(value);
        }
        Ok(values)
    }

    fn failed(&self, error: &rusqlite::Error) -> KeyValueError {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => {
                KeyValueError::Full { limit: "bytes_max (or the disk)", max: self.limits.bytes_max.0 as u64 }
            }
            _ => KeyValueError::Unavailable(error.to_string()),
        }
    }
}

fn unavailable(error: SqlError) -> KeyValueError {
    match error {
        SqlError::Unavailable(text) => KeyValueError::Unavailable(text),
        other => KeyValueError::Unavailable(other.to_string()),
    }
}

impl fmt::Debug for SqliteKeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteKeyValue").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl KeyValue for SqliteKeyValue {
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Vec<u8>>, KeyValueError>> {
        Box::pin(async move {
            limits::check_key(&key)?;
            self.read(move |keys| Ok(keys.get(&key)?.map(|(value, _)| value))).await
        })
    }

    fn set(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        self.set_many(vec![(key, value)])
    }

    fn set_with_ttl(&self, key: String, value: Vec<u8>, ttl: Duration) -> BoxFuture<'_, Result<(), KeyValueError>> {
        Box::pin(async move {
            limits::check_key(&key)?;
            limits::check_value(&value, self.limits.value_bytes_max.0)?;
            self.write(move |keys| keys.put(&key, &value, Some(limits::expiry(keys.now_ms, ttl)))).await
        })
    }

    fn delete(&self, key: String) -> BoxFuture<'_, Result<(), KeyValueError>> {
        self.delete_many(vec![key])
    }

    fn exists(&self, key: String) -> BoxFuture<'_, Result<bool, KeyValueError>> {
        Box::pin(async move {
            limits::check_key(&key)?;
            self.read(move |keys| Ok(keys.get(&key)?.is_some())).await
        })
    }

    fn list_keys(&self, cursor: Option<u64>) -> BoxFuture<'_, Result<KeyPage, KeyValueError>> {
        Box::pin(self.read(move |keys| keys.page(cursor)))
    }

    fn increment(&self, key: String, delta: u64) -> BoxFuture<'_, Result<u64, KeyValueError>> {
        Box::pin(async move {
            limits::check_key(&key)?;
            self.write(move |keys| keys.increment(&key, delta)).await
        })
    }

    fn get_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, KeyValueError>> {
        Box::pin(async move {
            limits::check_batch(keys.len())?;
            keys.iter().try_for_each(|key| limits::check_key(key))?;
            self.read(move |store| store.get_many(&keys)).await
        })
    }

    fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        Box::pin(async move {
            limits::check_batch(pairs.len())?;
            limits::check_batch_bytes(pairs.iter().map(|(_, value)| value.len()).sum())?;
            for (key, value) in &pairs {
                limits::check_key(key)?;
                limits::check_value(value, self.limits.value_bytes_max.0)?;
            }
            self.write(move |keys| pairs.iter().try_for_each(|(key, value)| keys.put(key, value, None))).await
        })
    }

    fn delete_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        Box::pin(async move {
            limits::check_batch(keys.len())?;
            keys.iter().try_for_each(|key| limits::check_key(key))?;
            self.write(move |store| keys.iter().try_for_each(|key| store.delete(key))).await
        })
    }

    fn claim(
        &self,
        key: String,
        record_id: String,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<bool, KeyValueError>> {
        Box::pin(async move {
            limits::check_key(&key)?;
            limits::check_value(record_id.as_bytes(), self.limits.value_bytes_max.0)?;
            self.write(move |keys| keys.claim(&key, &record_id, ttl)).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::key_value::{BYTES_MAX, Clock, Opened, VALUE_BYTES_MAX};

    crate::store_contract!(key_value, open);

    async fn open() -> Opened {
        let (clock, folder) = (Clock::default(), tempfile::tempdir().expect("a folder"));
        let config = KeyValueConfig {
            bytes_max: Size(BYTES_MAX),
            value_bytes_max: Size(VALUE_BYTES_MAX),
            ..KeyValueConfig::new(folder.path().join("keys.db"))
        };
        let store = SqliteKeyValue::with_clock(config, clock.now()).await.expect("a store");
        Opened { store: Arc::new(store), clock, _keep: Some(folder) }
    }

    #[tokio::test]
    async fn keys_outlive_the_store_and_processes_share_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = KeyValueConfig::new(folder.path().join("keys.db"));
        let (one, other) =
            (SqliteKeyValue::open(config.clone()).await.expect("one"), SqliteKeyValue::open(config.clone()));
        let other = other.await.expect("the other");
        one.set("a".to_owned(), vec![1]).await.expect("set");
        assert_eq!(other.get("a".to_owned()).await, Ok(Some(vec![1])));
        drop((one, other));
        let again = SqliteKeyValue::open(config).await.expect("again");
        assert_eq!(again.get("a".to_owned()).await, Ok(Some(vec![1])));
    }
}
