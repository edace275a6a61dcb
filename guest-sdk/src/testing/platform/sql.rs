//! `tidemill:guest/sql` on SQLite in memory.

use std::rc::Rc;

use rusqlite::types::ValueRef;
use rusqlite::{ErrorCode, Statement};

use super::super::world::{self, State};
use crate::bindings::tidemill::guest::sql::{Column, DbError, Error, RowSet, Value};

#[derive(Debug)]
pub struct Connection(Database);

/// Rolls back when it is dropped without `commit`.
#[derive(Debug)]
pub struct OwnTransaction(Database);

/// The delivery's own.
#[derive(Debug)]
pub struct Transaction {
    database: Database,
    call: u64,
}

pub fn current() -> Result<Transaction, Error> {
    let world = world::current();
    let mut delivery = world.delivery.borrow_mut();
    let Some(delivery) = delivery.as_mut().filter(|delivery| delivery.state != State::None) else {
        let text = "the delivery has no transaction of a database; give it one with `Host::exactly_once`";
        return Err(Error::AccessDenied(text.to_owned()));
    };
    let database = database(&delivery.database)?;
    if delivery.state == State::Unasked {
        database.execute("BEGIN IMMEDIATE", &[])?;
        delivery.state = State::Open;
    }
    Ok(Transaction { database, call: delivery.call })
}

/// A call begins.
pub(crate) fn begin_delivery() {
    if let Some(delivery) = world::current().delivery.borrow_mut().as_mut() {
        delivery.call += 1;
        delivery.state = State::Unasked;
    }
}

/// A call ended, well or not.
pub(crate) fn end_delivery(well: bool) {
    let world = world::current();
    let mut delivery = world.delivery.borrow_mut();
    let Some(delivery) = delivery.as_mut() else { return };
    let state = std::mem::replace(&mut delivery.state, State::None);
    if matches!(state, State::Open | State::Aborted) {
        let end = if well && state == State::Open { "COMMIT" } else { "ROLLBACK" };
        let database = Rc::clone(&world.databases.borrow()[&delivery.database]);
        database.execute_batch(end).expect("SQLite ends an open transaction");
    }
}

pub fn open(name: &str) -> Result<Connection, Error> {
    let in_delivery = |delivery: &world::Delivery| delivery.state != State::None && delivery.database == name;
    if world::current().delivery.borrow().as_ref().is_some_and(in_delivery) {
        let text = format!("`{name}` is the database of the delivery's transaction; use `current` instead of `open`");
        return Err(Error::AccessDenied(text));
    }
    database(name).map(Connection)
}

fn database(name: &str) -> Result<Database, Error> {
    let world = world::current();
    let Some(connection) = world.databases.borrow().get(name).map(Rc::clone) else {
        return Err(Error::AccessDenied(format!("`{name}` is not granted; add it to `sql` under `[grants]`")));
    };
    let database = Database { name: name.to_owned(), connection };
    database.check_up()?;
    Ok(database)
}

macro_rules! statements {
    ($on:ty) => {
        impl $on {
            pub fn query(&self, statement: &str, params: &[Value]) -> Result<RowSet, Error> {
                self.0.query(statement, params)
            }

            pub fn execute(&self, statement: &str, params: &[Value]) -> Result<u64, Error> {
                self.0.execute(statement, params)
            }

            pub fn execute_many(&self, statement: &str, params: &[Vec<Value>]) -> Result<u64, Error> {
                params.iter().try_fold(0, |sum, params| Ok(sum + self.0.execute(statement, params)?))
            }
        }
    };
}
statements!(Connection);
statements!(OwnTransaction);

impl Connection {
    pub fn begin(&self) -> Result<OwnTransaction, Error> {
        self.0.execute("BEGIN IMMEDIATE", &[])?;
        Ok(OwnTransaction(self.0.clone()))
    }
}

impl OwnTransaction {
    pub fn commit(&self) -> Result<(), Error> {
        self.0.execute("COMMIT", &[]).map(|_| ())
    }
}

impl Transaction {
    pub fn query(&self, statement: &str, params: &[Value]) -> Result<RowSet, Error> {
        self.run(|database| database.query(statement, params))
    }

    pub fn execute(&self, statement: &str, params: &[Value]) -> Result<u64, Error> {
        self.run(|database| database.execute(statement, params))
    }

    pub fn execute_many(&self, statement: &str, params: &[Vec<Value>]) -> Result<u64, Error> {
        self.run(|database| params.iter().try_fold(0, |sum, params| Ok(sum + database.execute(statement, params)?)))
    }

    /// Runs a statement; its failure is the transaction's end.
    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        let world = world::current();
        let stands = |delivery: &world::Delivery| delivery.call == self.call && delivery.state == State::Open;
        if !world.delivery.borrow().as_ref().is_some_and(stands) {
            return Err(Error::TransactionAborted);
        }
        let done = work(&self.database);
        if let (Err(_), Some(delivery)) = (&done, world.delivery.borrow_mut().as_mut()) {
            delivery.state = State::Aborted;
        }
        done
    }
}

impl Drop for OwnTransaction {
    fn drop(&mut self) {
        if !self.0.connection.is_autocommit() {
            self.0.connection.execute_batch("ROLLBACK").expect("SQLite rolls back an open transaction");
        }
    }
}

#[derive(Debug, Clone)]
struct Database {
    name: String,
    connection: Rc<rusqlite::Connection>,
}

impl Database {
    fn check_up(&self) -> Result<(), Error> {
        if world::current().is_down(&self.name) {
            return Err(Error::Unavailable("set down by the test".to_owned()));
        }
        Ok(())
    }

    fn query(&self, statement: &str, params: &[Value]) -> Result<RowSet, Error> {
        self.check_up()?;
        let mut prepared = self.connection.prepare_cached(statement).map_err(of_sqlite)?;
        bind(&mut prepared, params)?;
        let column = |name: &str| Column { name: name.to_owned(), type_name: String::new() };
        let columns: Vec<Column> = prepared.column_names().map(column).collect();
        let mut rows = Vec::new();
        let mut found = prepared.raw_query();
        while let Some(row) = found.next().map_err(of_sqlite)? {
            let values = (0..columns.len()).map(|index| row.get_ref(index).map(from_sqlite).map_err(of_sqlite));
            rows.push(values.collect::<Result<_, _>>()?);
        }
        Ok(RowSet { columns, rows, truncated: false })
    }

    fn execute(&self, statement: &str, params: &[Value]) -> Result<u64, Error> {
        self.check_up()?;
        let mut prepared = self.connection.prepare_cached(statement).map_err(of_sqlite)?;
        bind(&mut prepared, params)?;
        let changed = prepared.raw_execute().map_err(of_sqlite)?;
        Ok(changed as u64)
    }
}

/// Binds `$1`, `$2`, … by their numbers: to SQLite they are names.
fn bind(statement: &mut Statement<'_>, params: &[Value]) -> Result<(), Error> {
    for place in 1..=statement.parameter_count() {
        let name = statement.parameter_name(place).unwrap_or_default().to_owned();
        let number = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        let value = number.and_then(|number| params.get(number.checked_sub(1)?)).ok_or_else(|| {
            Error::BadParameter(format!("`{name}` is none of the {} parameters; write `$1`, `$2`, …", params.len()))
        })?;
        statement.raw_bind_parameter(place, to_sqlite(value)).map_err(of_sqlite)?;
    }
    Ok(())
}

fn to_sqlite(value: &Value) -> rusqlite::types::Value {
    use rusqlite::types::Value as Sqlite;
    match value {
        Value::Null => Sqlite::Null,
        Value::Boolean(boolean) => Sqlite::Integer((*boolean).into()),
        Value::Int(int) => Sqlite::Integer(*int),
        Value::Float(float) => Sqlite::Real(*float),
        Value::Bytes(bytes) => Sqlite::Blob(bytes.clone()),
        Value::Text(text)
        | Value::Timestamp(text)
        | Value::Decimal(text)
        | Value::Json(text)
        | Value::Uuid(text)
        | Value::Other((_, text)) => Sqlite::Text(text.clone()),
    }
}

fn from_sqlite(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(int) => Value::Int(int),
        ValueRef::Real(float) => Value::Float(float),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_owned()),
    }
}

fn of_sqlite(error: rusqlite::Error) -> Error {
    let message = error.to_string();
    let constraint = match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => Some(message.clone()),
        _ => None,
    };
    Error::Rejected(DbError { sqlstate: None, message, constraint })
}
