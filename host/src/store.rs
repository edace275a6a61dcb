//! The stores below the guests' capabilities: what a key-value store and an SQL database promise, whoever keeps them.
//!
//! The promises are written as contract tests, which run against every implementation.
//! A future of a store may be dropped at any await: what was asked is then finished or undone, never half done, and no
//! connection goes back to its pool in the middle of an answer.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "of the databases' types, values and errors, those that matter are named"
)]

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;
use tidemill_core::record::Offset;

#[doc(hidden)]
pub mod contract;
mod limits;
pub mod memory;
pub mod migrations;
pub mod offsets;
pub mod postgres;
pub mod sqlite;

/// A key-value store. Each call is one indivisible step, except the `_many` ones, which are as many steps as keys.
pub trait KeyValue: fmt::Debug + Send + Sync {
    /// The value of `key`, if it is there and has not expired.
    fn get(&self, key: String) -> BoxFuture<'_, Result<Option<Vec<u8>>, KeyValueError>>;

    /// Writes `key`; it keeps no earlier expiry.
    fn set(&self, key: String, value: Vec<u8>) -> BoxFuture<'_, Result<(), KeyValueError>>;

    /// Writes `key`, which is gone after `ttl`.
    fn set_with_ttl(&self, key: String, value: Vec<u8>, ttl: Duration) -> BoxFuture<'_, Result<(), KeyValueError>>;

    /// Removes `key`; a missing one is fine.
    fn delete(&self, key: String) -> BoxFuture<'_, Result<(), KeyValueError>>;

    /// Whether `key` is there and has not expired.
    fn exists(&self, key: String) -> BoxFuture<'_, Result<bool, KeyValueError>>;

    /// One page of keys, in no promised order. A key that stays for the whole listing is in exactly one page.
    fn list_keys(&self, cursor: Option<u64>) -> BoxFuture<'_, Result<KeyPage, KeyValueError>>;

    /// Adds to a counter, which is decimal text, and gives the sum; a missing counter is 0. Keeps the key's expiry.
    fn increment(&self, key: String, delta: u64) -> BoxFuture<'_, Result<u64, KeyValueError>>;

    /// The values of `keys`, in their order; `None` for a missing one.
    fn get_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, KeyValueError>>;

    /// Writes all pairs; of a key that is named twice, the last value stays.
    fn set_many(&self, pairs: Vec<(String, Vec<u8>)>) -> BoxFuture<'_, Result<(), KeyValueError>>;

    /// Removes all keys; missing ones are fine.
    fn delete_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<(), KeyValueError>>;

    /// Takes `key` for a record by storing the record's id in it. False only if the key holds anything else: a retry of
    /// the same record may go on, and renews the expiry. `delete` gives the key back.
    fn claim(
        &self,
        key: String,
        record_id: String,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<bool, KeyValueError>>;
}

/// What `KeyValue::list_keys` gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPage {
    /// The keys of this page.
    pub keys: Vec<String>,
    /// Where the next page starts; `None` after the last one.
    pub cursor: Option<u64>,
}

/// Why a key-value store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyValueError {
    /// The guest's move: send less. The store is as it was.
    #[error("{what} has {given}, the store takes {max} ({limit})")]
    TooLarge {
        /// What is too large: the key, the value or the list of keys.
        what: &'static str,
        /// Its size, in bytes or keys.
        given: u64,
        /// The most that the store takes.
        max: u64,
        /// The setting that says so.
        limit: &'static str,
    },
    /// The guest's move: this key is not a counter.
    #[error("the value of `{key}` is not a decimal number that fits 64 bits")]
    NotANumber {
        /// The key that was to be incremented.
        key: String,
    },
    /// The guest's move: the counter would pass 2^64 - 1.
    #[error("the counter `{key}` would overflow")]
    Overflow {
        /// The key that was to be incremented.
        key: String,
    },
    /// The operator's move: the store has reached `limit`. No record is to blame; deleting and expiring keys help too.
    #[error("the store is full: `{limit}` is {max}")]
    Full {
        /// The setting that is used up.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// Nobody's move here: the store is away. No record is to blame; trying again later can help.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}

/// An SQL database of the operator's: a bounded pool of connections.
///
/// Parameters are `$1` to `$n` in every database.
pub trait Sql: fmt::Debug + Send + Sync {
    /// A connection of the pool, waiting for one no longer than its configuration says.
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, SqlError>>;

    /// Applies what is missing of `migrations`, one host at a time. Called by `migrations::migrate`.
    fn apply(
        &self,
        migrations: migrations::Migrations,
    ) -> BoxFuture<'_, Result<Vec<String>, migrations::MigrationError>>;

    /// Takes over the row in which a partition's offset is kept; it is made when it is missing. When this returns, every
    /// delivery of an earlier owner has been committed, and is in the answer, or never will be (FENCE-1).
    fn own(&self, place: offsets::Place) -> BoxFuture<'_, Result<offsets::Standing, SqlError>>;

    /// What the row says once nobody is amid changing it; `None` if there is none.
    fn standing(&self, place: offsets::Place) -> BoxFuture<'_, Result<Option<offsets::Standing>, SqlError>>;

    /// Opens a delivery's transaction. A host that says nothing in it for longer than `silence_max`, because it is frozen
    /// or cut off, loses it, where the database is a server: it must not lock others out.
    fn deliver(&self, silence_max: Duration) -> BoxFuture<'_, Result<Box<dyn Delivery>, SqlError>>;
}

/// What connections and transactions have in common.
///
/// Statements that open, end or leave a transaction, change the session or reach beyond the database are rejected.
pub trait Statements: Send {
    /// The rows of one statement, up to the database's `rows_max` and `bytes_max`.
    fn query(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<RowSet, SqlError>>;

    /// How many rows one statement changed.
    fn execute(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<u64, SqlError>>;

    /// Runs a statement once for each list of parameters, all or none, and sums up the rows that they changed.
    fn execute_many(&mut self, statement: String, params: Vec<Vec<Value>>) -> BoxFuture<'_, Result<u64, SqlError>>;
}

/// A connection: each statement commits on its own. Dropped, it goes back to its pool.
pub trait Connection: Statements {
    /// Opens a transaction on this connection, which has it until the transaction ends.
    fn begin(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Transaction>, SqlError>>;
}

/// An open transaction. Dropped without `commit`, it is rolled back.
///
/// After a statement failed, every later call is `TransactionAborted`, in every database.
pub trait Transaction: Statements {
    /// Makes the transaction's changes last and gives the connection back.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Connection>, SqlError>>;

    /// Undoes the transaction's changes, waiting for it, and gives the connection back.
    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Connection>, SqlError>>;
}

/// A delivery's transaction: what the guest writes in it and the offset become lasting together, or not at all. Dropped
/// without `commit`, it is rolled back.
///
/// After a statement failed, every later call is `TransactionAborted`, in every database.
pub trait Delivery: Statements {
    /// Stores an offset behind the fence and commits; false if the fence does not hold, with everything rolled back.
    fn commit(self: Box<Self>, fence: offsets::Fence, next: Offset) -> BoxFuture<'static, Result<bool, SqlError>>;

    /// Undoes what the guest wrote, and waits for that.
    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), SqlError>>;
}

/// A parameter or a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// A truth value.
    Boolean(bool),
    /// A whole number.
    Int(i64),
    /// A binary floating-point number.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A point in time, as RFC 3339; read ones are in UTC.
    Timestamp(String),
    /// A number in base 10, exact.
    Decimal(String),
    /// A JSON document, as text.
    Json(String),
    /// A UUID, with hyphens; read ones are in lower case.
    Uuid(String),
    /// A type that is not listed.
    Other {
        /// The type's name in its database.
        type_name: String,
        /// The value as text.
        text: String,
    },
}

impl Value {
    /// What the value holds outside itself, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Null | Self::Boolean(_) | Self::Int(_) | Self::Float(_) => 0,
            Self::Bytes(bytes) => bytes.len(),
            Self::Text(text) | Self::Timestamp(text) | Self::Decimal(text) | Self::Json(text) | Self::Uuid(text) => {
                text.len()
            }
            Self::Other { type_name, text } => type_name.len() + text.len(),
        }
    }
}

/// A column of a `RowSet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The column's name.
    pub name: String,
    /// The type's name in its database; empty for an expression of SQLite.
    pub type_name: String,
}

/// What a query gives.
#[derive(Debug, Clone, PartialEq)]
pub struct RowSet {
    /// The columns, also when there are no rows.
    pub columns: Vec<Column>,
    /// The rows; each has as many values as there are columns.
    pub rows: Vec<Vec<Value>>,
    /// Whether rows were left out, because `rows_max` or `bytes_max` was reached.
    pub truncated: bool,
}

/// What a database said about a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbError {
    /// The five-character code. SQLite has none of its own: its broken constraints are given PostgreSQL's codes.
    pub sqlstate: Option<String>,
    /// The database's words.
    pub message: String,
    /// The broken constraint: its name, or in SQLite the columns where only those are known.
    pub constraint: Option<String>,
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(sqlstate) = &self.sqlstate {
            write!(f, " (SQLSTATE {sqlstate})")?;
        }
        Ok(())
    }
}

/// Why a database did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// Nobody's move: a deadlock, a serialisation failure or a time-out. Trying again can help.
    #[error("the database asks to try again: {0}")]
    Transient(DbError),
    /// The guest's move: the statement or its data is wrong.
    #[error("the database rejected the statement: {0}")]
    Rejected(DbError),
    /// The connection was lost while a change was being committed: it may or may not have happened.
    #[error("the connection was lost while committing, the outcome is unknown: {0}")]
    OutcomeUnknown(DbError),
    /// The operator's move: the database is away, or every connection is taken. No record is to blame, nothing was changed.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The guest's move: a parameter does not fit its place in the statement.
    #[error("bad parameter: {0}")]
    BadParameter(String),
    /// The guest's move: an earlier statement failed, the transaction is dead.
    #[error("the transaction is dead because an earlier statement of it failed")]
    TransactionAborted,
}

impl SqlError {
    /// Whether two transactions met, and this one had to give way: a deadlock, a serialisation failure, a locked file. It is
    /// nobody's fault, unlike a statement that takes too long.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Transient(error) => error.sqlstate.as_ref().is_none_or(|code| code.starts_with("40")),
            Self::Rejected(_)
            | Self::OutcomeUnknown(_)
            | Self::Unavailable(_)
            | Self::BadParameter(_)
            | Self::TransactionAborted => false,
        }
    }
}
