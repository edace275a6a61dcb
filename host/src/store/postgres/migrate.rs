//! Bringing a handler's schema up to date under an advisory lock, which other hosts wait for.

use std::panic::AssertUnwindSafe;

use deadpool_postgres::ClientWrapper;
use futures_util::FutureExt;
use refinery::{AsyncMigrate, Migration};

use super::{error, lease::Lease};
use crate::{
    config::units::Span,
    store::{
        SqlError,
        migrations::{MigrationError, Migrations},
    },
};

/// Applies what the history lacks and gives the files' names.
pub(super) async fn apply(lease: Lease, limit: Span, migrations: Migrations) -> Result<Vec<String>, MigrationError> {
    let mut client = lease.detach();
    let work = async {
        lock(&client, limit, &migrations.table()).await.map_err(|error| database(&error))?;
        run(&mut client, &migrations).await
    };
    match tokio::time::timeout(limit.0, work).await {
        Ok(result) => result,
        Err(_) => Err(MigrationError::Database(SqlError::Unavailable(format!(
            "not done within `migration_timeout` ({limit:?}); is another host at it?"
        )))),
    }
    // The connection closes here, and with it the session's lock.
}

async fn lock(client: &ClientWrapper, limit: Span, table: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("SET statement_timeout = {}", limit.0.as_millis())).await?;
    client.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", &[&table]).await.map(drop)
}

async fn run(client: &mut ClientWrapper, migrations: &Migrations) -> Result<Vec<String>, MigrationError> {
    let history = history(client, migrations).await?;
    migrations.check(&history)?;
    let pending = migrations.pending_names(&history);
    if pending.is_empty() {
        return Ok(pending);
    }
    let runner = migrations.runner();
    match runner.run_async(&mut **client).await {
        Ok(_) => Ok(pending),
        Err(error) => {
            let after = runner.get_applied_migrations_async(&mut **client).await.unwrap_or(history);
            Err(migrations.failed(&after, cause(&error)))
        }
    }
}

/// What has been applied. A history that somebody else wrote into makes refinery panic; the host must not.
async fn history(client: &mut ClientWrapper, migrations: &Migrations) -> Result<Vec<Migration>, MigrationError> {
    let table = migrations.table();
    let exists =
        client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await.map_err(|error| database(&error))?;
    if !exists.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let reading = AsyncMigrate::get_applied_migrations(&mut **client, &table);
    match AssertUnwindSafe(reading).catch_unwind().await {
        Ok(history) => history.map_err(|error| migrations.bad_history(error.to_string())),
        Err(_) => Err(migrations.bad_history("a line of it is unreadable".to_owned())),
    }
}

fn database(failure: &tokio_postgres::Error) -> MigrationError {
    MigrationError::Database(error::statement(failure, false))
}

fn cause(error: &refinery::Error) -> SqlError {
    let driver = std::error::Error::source(error).and_then(|source| source.downcast_ref::<tokio_postgres::Error>());
    match driver {
        Some(driver) => error::statement(driver, false),
        None => error::rejected("XX000", error.to_string()),
    }
}
