//! The table `seen`, in which the guest `store` keeps what it was given, as a reader beside the host sees it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rusqlite::OpenFlags;
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;

use crate::checker::Stored;
use crate::ledger::Place;

/// The handler's migration for SQLite.
pub const SQLITE_SCHEMA: &str =
    "CREATE TABLE seen (place INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB, value BLOB, id TEXT NOT NULL)";
/// The handler's migration for PostgreSQL.
pub const POSTGRES_SCHEMA: &str = "CREATE TABLE seen (place BIGSERIAL PRIMARY KEY, key BYTEA, value BYTEA, id TEXT NOT NULL)";

/// Where the rows are.
#[derive(Debug, Clone)]
pub enum Sink {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// The URL of a PostgreSQL database.
    Postgres(String),
}

/// A row of `seen`, with the number that grows in the order of storing.
#[derive(Debug, Clone)]
pub struct Row {
    /// The row's number.
    pub number: i64,
    /// What it holds.
    pub stored: Stored,
}

impl Sink {
    /// The rows with a higher number than this, in order; none while there is no table yet.
    pub fn rows_after(&self, number: i64) -> Result<Vec<Row>> {
        const QUERY: &str = "SELECT place, key, value, id FROM seen WHERE place > $1 ORDER BY place";
        match self {
            Sink::Sqlite(path) => sqlite_rows(path, QUERY, number),
            Sink::Postgres(url) => runtime()?.block_on(postgres_rows(url, QUERY, number)),
        }
    }

    /// Everything, in the order in which it was stored.
    pub fn stored(&self) -> Result<Vec<Stored>> {
        Ok(self.rows_after(0)?.into_iter().map(|row| row.stored).collect())
    }

    /// How many rows there are.
    pub fn count(&self) -> Result<usize> {
        Ok(usize::try_from(self.number("SELECT count(*) FROM seen")?)?)
    }

    /// The answer to a query for one whole number; 0 while there is no table yet.
    pub fn number(&self, query: &str) -> Result<i64> {
        match self {
            Sink::Sqlite(path) => {
                let Some(connection) = sqlite(path)? else { return Ok(0) };
                let answer = connection.query_row(query, [], |row| row.get(0));
                Ok(answer.or_else(none_without_table(0))?)
            }
            Sink::Postgres(url) => runtime()?.block_on(async {
                let client = postgres(url).await?;
                match client.query_one(query, &[]).await {
                    Ok(row) => Ok(row.get(0)),
                    Err(error) if is_missing_table(&error) => Ok(0),
                    Err(error) => Err(error.into()),
                }
            }),
        }
    }
}

fn sqlite_rows(path: &Path, query: &str, number: i64) -> Result<Vec<Row>> {
    let Some(connection) = sqlite(path)? else { return Ok(Vec::new()) };
    let mut statement = match connection.prepare(query) {
        Ok(statement) => statement,
        Err(error) => return Ok(none_without_table(Vec::new())(error)?),
    };
    let mut rows = statement.query([number])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(3)?;
        let stored = Stored { place: Place::of_id(&id)?, key: row.get(1)?, value: row.get(2)? };
        found.push(Row { number: row.get(0)?, stored });
    }
    Ok(found)
}

async fn postgres_rows(url: &str, query: &str, number: i64) -> Result<Vec<Row>> {
    let client = postgres(url).await?;
    let rows = match client.query(query, &[&number]).await {
        Ok(rows) => rows,
        Err(error) if is_missing_table(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let row = |row: tokio_postgres::Row| {
        let stored = Stored { place: Place::of_id(row.get(3))?, key: row.get(1), value: row.get(2) };
        Ok(Row { number: row.get(0), stored })
    };
    rows.into_iter().map(row).collect()
}

/// A connection for the caller's task; it ends with the runtime.
pub async fn postgres(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // Its end is the client's next error, which is where somebody looks.
    tokio::spawn(async { drop(connection.await) });
    Ok(client)
}

/// A runtime for one question.
pub fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn sqlite(path: &Path) -> Result<Option<rusqlite::Connection>> {
    if !path.exists() {
        return Ok(None);
    }
    let connection = rusqlite::Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(Some(connection))
}

fn none_without_table<T>(none: T) -> impl FnOnce(rusqlite::Error) -> rusqlite::Result<T> {
    |error| if error.to_string().contains("no such table") { Ok(none) } else { Err(error) }
}

fn is_missing_table(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE)
}
