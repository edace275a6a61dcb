//! SQLite: an SQL database and a key-value store in a file of the host's own machine.
//!
//! Every call crosses to a blocking thread and takes its connection along, so that a dropped future leaves nothing half
//! done: the statement is interrupted, and the connection rolls back and returns to the pool from that thread.
//! Writers queue for one permit; readers go on beside them (WAL).

mod error;
mod key_value;
mod migrate;
mod pool;
mod session;
mod statement;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde::Deserialize;

pub use self::key_value::{KeyValueConfig, SqliteKeyValue};
use self::{pool::Pool, session::SqliteConnection};
use super::{
    Connection, Sql, SqlError,
    migrations::{MigrationError, Migrations},
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
}
