//! SQLite: an SQL database and a key-value store in a file of the host's own machine.
//!
//! Every call crosses to a blocking thread and takes its connection along, so that a dropped future leaves nothing half
//! done: the statement is interrupted, and the connection rolls back and returns to the pool from that thread.
//! Writers queue for one permit; readers go on beside them (WAL).

mod error;
mod key_value;
mod migrate;
mod offsets;
mod pool;
mod session;
mod statement;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde::Deserialize;

pub use self::key_value::{KeyValueConfig, SqliteKeyValue};
use self::{
    pool::Pool,
    session::{SqliteConnection, SqliteTransaction},
};
use super::{
    Connection, Delivery, Sql, SqlError,
    migrations::{MigrationError, Migrations},
    offsets::{Place, Standing},
};
use crate::config::units::{Size, Span};

/// How an SQLite database is opened and what bounds its use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The database file; it is created when it is missing, its folder is not.
    pub file: PathBuf,
    /// What a commit waits for.
    #[serde(default)]
    pub synchronous: Synchronous,
    /// How many connections there are at most; one of them writes at a time.
    #[serde(default = "Config::connections_max")]
    pub connections_max: usize,
    /// How long a call waits for a connection, or for its turn to write.
    #[serde(default = "Config::connection_wait")]
    pub connection_wait: Span,
    /// How long a statement waits for another process that writes to the file.
    #[serde(default = "Config::busy_timeout")]
    pub busy_timeout: Span,
    /// How long one statement may run.
    #[serde(default = "Config::statement_timeout")]
    pub statement_timeout: Span,
    /// How long bringing a handler's schema up to date may take, waiting for other hosts included.
    #[serde(default = "Config::migration_timeout")]
    pub migration_timeout: Span,
    /// How many rows a query gives at most; the rest is cut off and said to be.
    #[serde(default = "Config::rows_max")]
    pub rows_max: usize,
    /// How many bytes a query's values have at most, and any single value or parameter.
    #[serde(default = "Config::bytes_max")]
    pub bytes_max: Size,
    /// How many prepared statements each connection keeps.
    #[serde(default = "Config::statements_cached_max")]
    pub statements_cached_max: usize,
}

/// What a commit waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// The system has the change: it survives the end of the host, not a power failure, which may take the last commits.
    #[default]
    Normal,
    /// The disk has the change: it survives a power failure.
    Full,
}

impl Config {
    /// The defaults for a file.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            synchronous: Synchronous::default(),
            connections_max: Self::connections_max(),
            connection_wait: Self::connection_wait(),
            busy_timeout: Self::busy_timeout(),
            statement_timeout: Self::statement_timeout(),
            migration_timeout: Self::migration_timeout(),
            rows_max: Self::rows_max(),
            bytes_max: Self::bytes_max(),
            statements_cached_max: Self::statements_cached_max(),
        }
    }

    fn connections_max() -> usize {
        4
    }

    fn connection_wait() -> Span {
        Span(Duration::from_secs(5))
    }

    fn busy_timeout() -> Span {
        Span(Duration::from_secs(5))
    }

    fn statement_timeout() -> Span {
        Span(Duration::from_secs(30))
    }

    fn migration_timeout() -> Span {
        Span(Duration::from_secs(600))
    }

    fn rows_max() -> usize {
        10_000
    }

    fn bytes_max() -> Size {
        Size(8 << 20)
    }

    fn statements_cached_max() -> usize {
        64
    }
}

/// An SQLite database.
#[derive(Debug)]
pub struct Sqlite {
    pool: Arc<Pool>,
}

impl Sqlite {
    /// Opens the file once, so that a wrong path or a foreign file is found now.
    pub async fn open(config: Config) -> Result<Self, SqlError> {
        let pool = Pool::new(config, pool::Access::Guest);
        drop(pool.clone().take().await?);
        Ok(Self { pool })
    }
}

impl Sql for Sqlite {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, SqlError>> {
        Box::pin(async move {
            let loan = self.pool.clone().take().await?;
            Ok(Box::new(SqliteConnection::new(loan)) as Box<dyn Connection>)
        })
    }

    fn apply(&self, migrations: Migrations) -> BoxFuture<'_, Result<Vec<String>, MigrationError>> {
        Box::pin(migrate::apply(self.pool.config().clone(), migrations))
    }

    fn own(&self, place: Place) -> BoxFuture<'_, Result<Standing, SqlError>> {
        Box::pin(async move { offsets::own(self.pool.clone().take().await?, place).await })
    }

    fn standing(&self, place: Place) -> BoxFuture<'_, Result<Option<Standing>, SqlError>> {
        Box::pin(async move { offsets::standing(self.pool.clone().take().await?, place).await })
    }

    /// A frozen host is no other host's concern: the file is on one machine, and so are all that use it.
    fn deliver(&self, _silence_max: Duration) -> BoxFuture<'_, Result<Box<dyn Delivery>, SqlError>> {
        Box::pin(async move {
            let loan = self.pool.clone().take().await?;
            Ok(Box::new(SqliteTransaction::begin(loan).await?) as Box<dyn Delivery>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Value,
        contract::sql::{self, Dialect, Opened},
    };

    crate::store_contract!(sql, open);

    fn config(folder: &tempfile::TempDir) -> Config {
        Config {
            connections_max: sql::CONNECTIONS_MAX,
            connection_wait: Span(sql::CONNECTION_WAIT),
            statement_timeout: Span(sql::STATEMENT_TIMEOUT),
            rows_max: sql::ROWS_MAX,
            bytes_max: Size(sql::BYTES_MAX),
            ..Config::new(folder.path().join("test.db"))
        }
    }

    async fn open() -> Opened<tempfile::TempDir> {
        let folder = tempfile::tempdir().expect("a folder");
        let sql = Arc::new(Sqlite::open(config(&folder)).await.expect("a database"));
        Opened { sql, dialect: Dialect::SQLITE, folder }
    }

    #[tokio::test]
    async fn what_is_no_database_is_found_at_once_and_named() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("test.db"), "x".repeat(5000)).expect("a file");
        let foreign = Sqlite::open(config(&folder)).await.expect_err("no database");
        assert!(matches!(&foreign, SqlError::Unavailable(text) if text.contains("test.db")), "{foreign}");
        let missing = Sqlite::open(Config::new("/nowhere/at/all.db")).await.expect_err("no folder");
        assert!(matches!(&missing, SqlError::Unavailable(text) if text.contains("/nowhere/at/all.db")), "{missing}");
    }

    #[tokio::test]
    async fn another_process_that_writes_is_waited_for_and_then_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config { busy_timeout: Span(Duration::from_millis(100)), ..config(&folder) };
        let sqlite = Sqlite::open(config.clone()).await.expect("a database");
        let other = rusqlite::Connection::open(&config.file).expect("another process");
        other.execute_batch("BEGIN IMMEDIATE").expect("it writes");
        let mut connection = sqlite.connect().await.expect("a connection");
        let busy = connection.execute("CREATE TABLE t(a)".to_owned(), vec![]).await.expect_err("locked");
        assert!(matches!(busy, SqlError::Transient(_)), "{busy}");
        other.execute_batch("COMMIT").expect("it is done");
        connection.execute("CREATE TABLE t(a)".to_owned(), vec![]).await.expect("free");
    }

    #[tokio::test]
    async fn a_cast_of_postgresql_is_answered_with_sqlite_s() {
        let opened = open().await;
        let mut connection = opened.sql.connect().await.expect("a connection");
        let error = connection.query("SELECT $1::text".to_owned(), vec![Value::Int(1)]).await.expect_err("no cast");
        assert!(error.to_string().contains("CAST($1 AS TEXT)"), "{error}");
        let error = connection.query("SELECT ?".to_owned(), vec![Value::Int(1)]).await.expect_err("no number");
        assert!(error.to_string().contains("write `$1`"), "{error}");
    }
}
