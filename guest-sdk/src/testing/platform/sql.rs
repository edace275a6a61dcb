//! `tidemill:guest/sql` on SQLite in memory.

use std::rc::Rc;

use rusqlite::types::ValueRef;
use rusqlite::{ErrorCode, Statement};

use super::super::world;
use crate::bindings::tidemill::guest::sql::{Column, DbError, Error, RowSet, Value};

#[derive(Debug)]
pub struct Connection(Database);

/// Rolls back when it is dropped without `commit`.
#[derive(Debug)]
pub struct OwnTransaction(Database);

#[derive(Debug)]
pub struct Transaction(Database);

pub fn current() -> Result<Transaction, Error> {
    Err(Error::AccessDenied("the host in memory has no exactly-once binding".to_owned()))
}

pub fn open(name: &str) -> Result<Connection, Error> {
    let world = world::current();
    let Some(connection) = world.databases.borrow().get(name).map(Rc::clone) else {
        return Err(Error::AccessDenied(name.to_owned()));
    };
    let database = Database { name: name.to_owned(), connection };
    database.check_up()?;
    Ok(Connection(database))
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
statements!(Transaction);

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
