//! Bringing a handler's schema up to date in one write transaction, which keeps other hosts out meanwhile.

use refinery::{Migrate, Migration};
use refinery_core::traits::sync::{Query, Transaction};

use super::{
    Config, error,
    pool::{Access, Handle, Pool},
};
use crate::{
    config::units::Span,
    store::{
        SqlError,
        migrations::{MigrationError, Migrations},
    },
};

/// Applies what the history lacks and gives the files' names.
pub(super) async fn apply(config: Config, migrations: Migrations) -> Result<Vec<String>, MigrationError> {
    let limit = config.migration_timeout;
    let config = Config { busy_timeout: limit, statement_timeout: limit, connections_max: 1, ..config };
    let pool = Pool::new(config, Access::Host);
    let loan = pool.take().await.map_err(MigrationError::Database)?;
    let work = move |handle: &Handle, _: &_, _: &_| Ok(in_one_transaction(handle, &migrations));
    let (_, _, result) = loan.run(None, work).await.map_err(MigrationError::Database)?;
    result.map_err(|error| waited(error, limit)).map_err(MigrationError::Database)?
}

/// Names the setting that stopped the migrations, which is not the statements' own.
fn waited(error: SqlError, limit: Span) -> SqlError {
    match error {
        SqlError::Transient(_) => SqlError::Unavailable(format!("not done within `migration_timeout` ({limit:?})")),
        other => other,
    }
}

/// Runs under SQLite's write lock. The files before a failed one stay applied.
fn in_one_transaction(handle: &Handle, migrations: &Migrations) -> Result<Vec<String>, MigrationError> {
    let database = |error| MigrationError::Database(error::statement(error));
    handle.control("BEGIN IMMEDIATE").map_err(database)?;
    let result = run(handle, migrations);
    if !handle.connection.is_autocommit() {
        handle.control("COMMIT").map_err(database)?;
    }
    result
}

fn run(handle: &Handle, migrations: &Migrations) -> Result<Vec<String>, MigrationError> {
    let mut session = Locked(handle);
    let table = migrations.table();
    let bad_history = |error: refinery::Error| migrations.bad_history(error.to_string());
    session.assert_migrations_table(&table).map_err(bad_history)?;
    let history = session.get_applied_migrations(&table).map_err(bad_history)?;
    migrations.check(&history)?;
    let pending = migrations.pending_names(&history);
    match migrations.runner().run(&mut session) {
        Ok(_) => Ok(pending),
        Err(error) => {
            let after = session.get_applied_migrations(&table).unwrap_or(history);
            Err(migrations.failed(&after, cause(error)))
        }
    }
}

fn cause(error: refinery::Error) -> SqlError {
    let text = error.to_string();
    let driver = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<rusqlite::Error>());
    match driver {
        Some(rusqlite::Error::SqliteFailure(code, message)) => {
            error::statement(rusqlite::Error::SqliteFailure(*code, message.clone()))
        }
        Some(other) => error::rejected(None, other.to_string(), None),
        None => error::rejected(None, text, None),
    }
}

/// A connection whose transaction is open already: each file and its line in the history are a savepoint in it.
struct Locked<'a>(&'a Handle);

impl Transaction for Locked<'_> {
    type Error = rusqlite::Error;

    fn execute<'a, T: Iterator<Item = &'a str>>(&mut self, queries: T) -> Result<usize, Self::Error> {
        self.0.control("SAVEPOINT migration")?;
        let mut count = 0;
        for query in queries {
            if let Err(error) = self.0.connection.execute_batch(query) {
                self.0.control("ROLLBACK TO migration")?;
                self.0.control("RELEASE migration")?;
                return Err(error);
            }
            count += 1;
        }
        self.0.control("RELEASE migration")?;
        Ok(count)
    }
}

impl Query<Vec<Migration>> for Locked<'_> {
    fn query(&mut self, query: &str) -> Result<Vec<Migration>, Self::Error> {
        // When it was applied is nobody's question here; a fresh one lends its time.
        let mut applied = Migration::unapplied("V0__any", "").expect("a well-formed name");
        applied.set_applied();
        let applied_on = applied.applied_on().copied().expect("it has just been applied");
        let mut statement = self.0.connection.prepare(query)?;
        let rows = statement.query_map([], |row| {
            let wrong = |index, error: Box<dyn std::error::Error + Send + Sync>| {
                rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, error)
            };
            let checksum = row.get::<_, String>(3)?.parse().map_err(|error| wrong(3, Box::new(error)))?;
            Ok(Migration::applied(row.get(0)?, row.get(1)?, applied_on, checksum))
        })?;
        rows.collect()
    }
}

impl Migrate for Locked<'_> {}
