//! The books that the guest `ledger` keeps: one entry a record and a sum an account, with nothing in them that would stop a
//! record from being booked twice.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ledger::Place;
use crate::sink::Sink;
use crate::sqlite;

const ACCOUNTS: &str = "CREATE TABLE accounts (account TEXT NOT NULL PRIMARY KEY, entries BIGINT NOT NULL);\n";
const ENTRIES: &str = "SELECT number, record_id, account FROM entries ORDER BY number";
const LAST: &str = "SELECT coalesce(max(number), 0) FROM entries";

/// Where they are.
#[derive(Debug, Clone)]
pub enum Books {
    /// In a database of PostgreSQL.
    Postgres(Sink),
    /// In a file of SQLite.
    Sqlite(PathBuf),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What is booked later has a higher one.
    pub number: i64,
    /// The record.
    pub place: Place,
    /// The record's key.
    pub account: String,
}

/// The migration for PostgreSQL, with entries that take this long, and commits that take this long for each entry.
pub fn schema(entry: Duration, commit: Duration) -> String {
    let nap = |name: &str, delay: Duration, trigger: &str| {
        if delay.is_zero() {
            return String::new();
        }
        format!(
            "CREATE FUNCTION {name}() RETURNS TRIGGER LANGUAGE plpgsql AS $$\n\
             BEGIN PERFORM pg_sleep({}); RETURN NEW; END $$;\n{trigger} FOR EACH ROW EXECUTE FUNCTION {name}();\n",
            delay.as_secs_f64()
        )
    };
    let slow_entry = nap("slow_entry", entry, "CREATE TRIGGER slow_entry BEFORE INSERT ON entries");
    let deferred = "CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON entries DEFERRABLE INITIALLY DEFERRED";
    let slow_commit = nap("slow_commit", commit, deferred);
    format!("{}{ACCOUNTS}{slow_entry}{slow_commit}", entries("BIGSERIAL PRIMARY KEY"))
}

/// The migration for SQLite, with entries that take about a millisecond: it has no other way to wait than to count.
pub fn schema_for_sqlite() -> String {
    format!(
        "{}{ACCOUNTS}CREATE TRIGGER slow_entry AFTER INSERT ON entries BEGIN\n\
         SELECT count(*) FROM (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 5000) SELECT n FROM c);\nEND;\n",
        entries("INTEGER PRIMARY KEY AUTOINCREMENT")
    )
}

fn entries(number: &str) -> String {
    format!("CREATE TABLE entries (number {number}, record_id TEXT NOT NULL, account TEXT NOT NULL);\n")
}

impl Books {
    /// All entries, repeated ones too, in the order of their numbers; none while there is no table yet.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        match self {
            Books::Postgres(sink) => {
                let rows = sink.query(ENTRIES, &[])?;
                rows.iter().map(|row| entry(row.get(0), row.get(1), row.get(2))).collect()
            }
            Books::Sqlite(file) => in_sqlite(file),
        }
    }

    /// The highest number so far.
    pub fn last(&self) -> Result<i64> {
        match self {
            Books::Postgres(sink) => sink.number(LAST, &[]),
            Books::Sqlite(file) => Ok(in_sqlite(file)?.last().map_or(0, |entry| entry.number)),
        }
    }
}

fn entry(number: i64, record: &str, account: &str) -> Result<Entry> {
    Ok(Entry { number, place: Place::of_id(record)?, account: account.to_owned() })
}

fn in_sqlite(file: &Path) -> Result<Vec<Entry>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let connection = sqlite::open(file)?;
    if !connection.table_exists(None, "entries")? {
        return Ok(Vec::new());
    }
    let mut select = connection.prepare(ENTRIES)?;
    let rows =
        select.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?)))?;
    rows.map(|row| {
        row.map_err(anyhow::Error::from).and_then(|(number, record, account)| entry(number, &record, &account))
    })
    .collect::<Result<_>>()
    .with_context(|| format!("read the books in `{}`", file.display()))
}
