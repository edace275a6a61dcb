//! PostgreSQL: a pool of connections, the guests' statements on them, and exact values both ways.
//!
//! A future that is dropped in the middle of an answer takes its connection out of the pool, and the server is asked to
//! stop. What the server says decides whose move it is (`error`); what it can no longer say after a commit is
//! `OutcomeUnknown`.

mod decode;
mod encode;
mod error;
mod lease;
mod migrate;
mod numeric;
mod offsets;
mod session;

use std::{fmt, path::Path, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolConfig, RecyclingMethod, Runtime, Timeouts};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio_postgres::{NoTls, config::SslMode};

use self::{
    lease::Lease,
    session::{PostgresConnection, PostgresTransaction},
};
use super::{
    Connection, Delivery, Sql, SqlError,
    migrations::{MigrationError, Migrations},
    offsets::{Place, Standing},
};
use crate::config::units::{InvalidSecret, SecretRef, Size, Span};

/// Which PostgreSQL database, and what bounds its use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `postgres://user:password@host:port/database`; never printed.
    pub url: SecretRef,
    /// How many connections this host holds at most.
    #[serde(default = "Config::connections_max")]
    pub connections_max: usize,
    /// How long a call waits for a connection of the pool.
    #[serde(default = "Config::connection_wait")]
    pub connection_wait: Span,
    /// How long making a connection may take.
    #[serde(default = "Config::connect_timeout")]
    pub connect_timeout: Span,
    /// How long cleaning a used connection for its next user may take.
    #[serde(default = "Config::recycle_timeout")]
    pub recycle_timeout: Span,
    /// How long the server works on one statement.
    #[serde(default = "Config::statement_timeout")]
    pub statement_timeout: Span,
    /// How much longer than that the host waits for the server's answer, before it gives the connection up.
    #[serde(default = "Config::answer_grace")]
    pub answer_grace: Span,
    /// How long bringing a handler's schema up to date may take, waiting for other hosts included.
    #[serde(default = "Config::migration_timeout")]
    pub migration_timeout: Span,
    /// How many rows a query gives at most; the rest is cut off and said to be.
    #[serde(default = "Config::rows_max")]
    pub rows_max: usize,
    /// How many bytes a query's values have at most.
    #[serde(default = "Config::bytes_max")]
    pub bytes_max: Size,
    /// How many prepared statements each connection keeps; with one more it starts again.
    #[serde(default = "Config::statements_cached_max")]
    pub statements_cached_max: usize,
}

impl Config {
    /// The defaults for a database.
    pub fn new(url: SecretRef) -> Self {
        Self {
            url,
            connections_max: Self::connections_max(),
            connection_wait: Self::connection_wait(),
            connect_timeout: Self::connect_timeout(),
            recycle_timeout: Self::recycle_timeout(),
            statement_timeout: Self::statement_timeout(),
            answer_grace: Self::answer_grace(),
            migration_timeout: Self::migration_timeout(),
            rows_max: Self::rows_max(),
            bytes_max: Self::bytes_max(),
            statements_cached_max: Self::statements_cached_max(),
        }
    }

    fn connections_max() -> usize {
        8
    }

    fn connection_wait() -> Span {
        Span(Duration::from_secs(5))
    }

    fn connect_timeout() -> Span {
        Span(Duration::from_secs(5))
    }

    fn recycle_timeout() -> Span {
        Span(Duration::from_secs(2))
    }

    fn statement_timeout() -> Span {
        Span(Duration::from_secs(30))
    }

    fn answer_grace() -> Span {
        Span(Duration::from_secs(5))
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
        256
    }
}

/// Why a configuration names no database. Never says the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// The URL is a secret that could not be read.
    #[error("`url`: {0}")]
    Secret(#[from] InvalidSecret),
    /// The URL is not one.
    #[error("`url` is not of PostgreSQL; write it like \"postgres://user:${{PASSWORD}}@host:5432/database\"")]
    Url,
    /// The URL asks for what is not there yet.
    #[error(
        "`url` asks for TLS (`sslmode=require`), which is not there yet; use `sslmode=prefer` or `disable` on a network that you trust"
    )]
    Tls,
}

/// A PostgreSQL database.
pub struct Postgres {
    pool: Pool,
    config: Config,
}

impl Postgres {
    /// Prepares the pool; connects to nothing, so that a host also starts while the database is away.
    pub fn new(config: Config, folder: &Path) -> Result<Self, InvalidConfig> {
        let url = config.url.read(folder)?;
        let mut database: tokio_postgres::Config = url.expose().parse().map_err(|_| InvalidConfig::Url)?;
        if !matches!(database.get_ssl_mode(), SslMode::Disable | SslMode::Prefer) {
            return Err(InvalidConfig::Tls);
        }
        if database.get_hosts().is_empty() {
            return Err(InvalidConfig::Url);
        }
        let options = database.get_options().unwrap_or_default();
        let statement_timeout = format!("{options} -c statement_timeout={}", config.statement_timeout.0.as_millis());
        database.options(statement_timeout.trim_start());
        database.connect_timeout(config.connect_timeout.0);
        if database.get_application_name().is_none() {
            database.application_name("tidemill");
        }
        let manager = Manager::from_config(database, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Clean });
        let mut bounds = PoolConfig::new(config.connections_max.max(1));
        bounds.timeouts = Timeouts {
            wait: Some(config.connection_wait.0),
            create: Some(config.connect_timeout.0),
            recycle: Some(config.recycle_timeout.0),
        };
        let pool = Pool::builder(manager).config(bounds).runtime(Runtime::Tokio1).build();
        Ok(Self { pool: pool.expect("a pool with time-outs is given its runtime"), config })
    }

    async fn lease(&self) -> Result<Lease, SqlError> {
        let client = self.pool.get().await.map_err(|error| error::pool(&error, &self.config))?;
        Ok(Lease::new(client, &self.config))
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("connections", &self.pool.status()).finish_non_exhaustive()
    }
}

impl Sql for Postgres {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, SqlError>> {
        Box::pin(async move { Ok(Box::new(PostgresConnection::new(self.lease().await?)) as Box<dyn Connection>) })
    }

    fn apply(&self, migrations: Migrations) -> BoxFuture<'_, Result<Vec<String>, MigrationError>> {
        Box::pin(async move {
            let lease = self.lease().await.map_err(MigrationError::Database)?;
            migrate::apply(lease, self.config.migration_timeout, migrations).await
        })
    }

    fn own(&self, place: Place) -> BoxFuture<'_, Result<Standing, SqlError>> {
        Box::pin(async move { offsets::own(self.lease().await?, &place).await })
    }

    fn standing(&self, place: Place) -> BoxFuture<'_, Result<Option<Standing>, SqlError>> {
        Box::pin(async move { offsets::standing(self.lease().await?, &place).await })
    }

    fn deliver(&self, silence_max: Duration) -> BoxFuture<'_, Result<Box<dyn Delivery>, SqlError>> {
        Box::pin(async move {
            let mut lease = self.lease().await?;
            lease.begin_within(silence_max).await?;
            Ok(Box::new(PostgresTransaction::new(lease)) as Box<dyn Delivery>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str) -> Result<(), InvalidConfig> {
        let config = Config::new(SecretRef::Text(url.to_owned()));
        Postgres::new(config, Path::new(".")).map(drop)
    }

    #[test]
    fn a_url_is_checked_before_anything_connects_and_never_shown() {
        assert_eq!(check("postgres://app:hunter2@db.invalid/app"), Ok(()));
        assert_eq!(check("postgres://app:hunter2@db.invalid:port/app"), Err(InvalidConfig::Url));
        assert_eq!(check("mysql://app:hunter2@db.invalid"), Err(InvalidConfig::Url));
        assert_eq!(check("postgres://app:hunter2@db.invalid/app?sslmode=require"), Err(InvalidConfig::Tls));
        let config = Config::new(SecretRef::Text("postgres://app:hunter2@db.invalid/app".to_owned()));
        let database = Postgres::new(config, Path::new(".")).expect("valid");
        assert!(!format!("{database:?}").contains("hunter2"));
    }
}
