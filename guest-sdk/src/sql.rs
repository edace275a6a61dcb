//! SQL on a database that the operator granted by name.
//!
//! Parameters are written `$1`, `$2`, … on every database. A record may come again, so write what may be written again:
//!
//! ```no_run
//! use tidemill_guest::{params, sql};
//!
//! # fn add(id: &str, customer: &str, amount: i64) -> Result<(), sql::Error> {
//! let tx = sql::open("main")?.begin()?;
//! if tx.execute("INSERT INTO orders (id, amount) VALUES ($1, $2) ON CONFLICT DO NOTHING", params![id, amount])? == 1 {
//!     tx.execute("UPDATE totals SET amount = amount + $2 WHERE customer = $1", params![customer, amount])?;
//! }
//! tx.commit()
//! # }
//! ```

mod row;
mod value;

pub use crate::bindings::tidemill::guest::sql::{Column, DbError, Error, Value};
pub use row::{ColumnError, ColumnName, Row, Rows};
pub use value::{FromValue, ToValue};

use crate::{Error as Ending, platform};

/// Makes the parameters of a statement: `params![order.id, 7, None::<String>]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$($crate::sql::ToValue::to_value(&$value)),*] as &[$crate::sql::Value]
    };
}

/// A connection of the operator's pool. Each statement stands on its own unless [`Connection::begin`] is called.
#[derive(Debug)]
pub struct Connection(platform::sql::Connection);

/// A transaction of the handler's own. Dropped without [`Transaction::commit`] it rolls back.
#[derive(Debug)]
pub struct Transaction(platform::sql::OwnTransaction);

/// The delivery's own transaction: it commits together with the offset when every record of the call ends well.
///
/// A statement that fails ends it, and with it the call: nothing of the call is kept, and its records come again.
#[derive(Debug)]
pub struct Delivery(platform::sql::Transaction);

/// Takes a connection to the database of this name.
pub fn open(name: &str) -> Result<Connection, Error> {
    platform::sql::open(name).map(Connection)
}

/// The delivery's own transaction, if the operator chose exactly once on a database; `access-denied` otherwise. All the records of a call
/// share it, and so do all handles. What is written in it happens exactly once, so it need not be safe to repeat:
///
/// ```no_run
/// use tidemill_guest::{params, sql};
///
/// # fn add(customer: &str) -> Result<(), sql::Error> {
/// sql::current()?.execute("UPDATE totals SET orders = orders + 1 WHERE customer = $1", params![customer])?;
/// # Ok(())
/// # }
/// ```
///
/// A handler that relies on it says so before it goes live: [`Setup::require`](crate::Setup::require).
pub fn current() -> Result<Delivery, Error> {
    platform::sql::current().map(Delivery)
}

macro_rules! statements {
    ($on:ty) => {
        impl $on {
            /// Runs a statement that gives rows.
            pub fn query(&self, statement: &str, params: &[Value]) -> Result<Rows, Error> {
                self.0.query(statement, params).map(Rows::new)
            }

            /// Runs a statement and says how many rows it changed.
            pub fn execute(&self, statement: &str, params: &[Value]) -> Result<u64, Error> {
                self.0.execute(statement, params)
            }

            /// Runs a statement once for each list of parameters and says how many rows they changed in all.
            pub fn execute_many(&self, statement: &str, params: &[Vec<Value>]) -> Result<u64, Error> {
                self.0.execute_many(statement, params)
            }
        }
    };
}
statements!(Connection);
statements!(Transaction);
statements!(Delivery);

impl Connection {
    /// Starts a transaction.
    pub fn begin(&self) -> Result<Transaction, Error> {
        self.0.begin().map(Transaction)
    }
}

impl Transaction {
    /// Makes what the transaction did last.
    pub fn commit(self) -> Result<(), Error> {
        self.0.commit()
    }
}

/// What the error means for the record if the author does not say otherwise.
///
/// Only what the record's own data caused is a dead letter; a missing table or grant is the operator's move.
pub(crate) fn ending(error: &Error) -> Ending {
    match error {
        Error::AccessDenied(detail) => Ending::retry("sql-access-denied", detail),
        Error::NoSuchDatabase(name) => Ending::retry("sql-no-such-database", format!("there is no database `{name}`")),
        Error::BadParameter(detail) => Ending::dead_letter("sql-bad-parameter", detail),
        Error::Transient(error) => Ending::unavailable("sql-transient", text(error)),
        Error::Rejected(error) if is_bad_data(error) => Ending::dead_letter("sql-rejected", text(error)),
        Error::Rejected(error) => Ending::retry("sql-rejected", text(error)),
        Error::OutcomeUnknown(error) => Ending::unavailable("sql-outcome-unknown", text(error)),
        Error::Unavailable(detail) => Ending::unavailable("sql-unavailable", detail),
        Error::TransactionAborted => {
            Ending::retry("sql-transaction-aborted", "a statement before this one ended the transaction")
        }
    }
}

/// SQLSTATE classes 22 (data) and 23 (constraints); a database without SQLSTATE says so by naming the constraint.
fn is_bad_data(error: &DbError) -> bool {
    match &error.sqlstate {
        Some(state) => state.starts_with("22") || state.starts_with("23"),
        None => error.constraint.is_some(),
    }
}

fn text(error: &DbError) -> String {
    match &error.sqlstate {
        Some(state) => format!("{state}: {}", error.message),
        None => error.message.clone(),
    }
}
