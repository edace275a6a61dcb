//! The contract's values, rows and errors ↔ the stores'.

use crate::guest::bindings::tidemill::guest::sql::{Column, DbError, Error, RowSet, Value};
use crate::store::{self, SqlError};

pub(super) fn lists(lists: Vec<Vec<Value>>) -> Vec<Vec<store::Value>> {
    lists.into_iter().map(values).collect()
}

pub(super) fn values(values: Vec<Value>) -> Vec<store::Value> {
    values.into_iter().map(store::Value::from).collect()
}

impl From<Value> for store::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Boolean(value) => Self::Boolean(value),
            Value::Int(value) => Self::Int(value),
            Value::Float(value) => Self::Float(value),
            Value::Text(text) => Self::Text(text),
            Value::Bytes(bytes) => Self::Bytes(bytes),
            Value::Timestamp(text) => Self::Timestamp(text),
            Value::Decimal(text) => Self::Decimal(text),
            Value::Json(text) => Self::Json(text),
            Value::Uuid(text) => Self::Uuid(text),
            Value::Other((type_name, text)) => Self::Other { type_name, text },
        }
    }
}

impl From<store::Value> for Value {
    fn from(value: store::Value) -> Self {
        match value {
            store::Value::Null => Self::Null,
            store::Value::Boolean(value) => Self::Boolean(value),
            store::Value::Int(value) => Self::Int(value),
            store::Value::Float(value) => Self::Float(value),
            store::Value::Text(text) => Self::Text(text),
            store::Value::Bytes(bytes) => Self::Bytes(bytes),
            store::Value::Timestamp(text) => Self::Timestamp(text),
            store::Value::Decimal(text) => Self::Decimal(text),
            store::Value::Json(text) => Self::Json(text),
            store::Value::Uuid(text) => Self::Uuid(text),
            store::Value::Other { type_name, text } => Self::Other((type_name, text)),
        }
    }
}

impl From<store::RowSet> for RowSet {
    fn from(rows: store::RowSet) -> Self {
        let column = |column: store::Column| Column { name: column.name, type_name: column.type_name };
        let row = |row: Vec<store::Value>| row.into_iter().map(Value::from).collect();
        Self {
            columns: rows.columns.into_iter().map(column).collect(),
            rows: rows.rows.into_iter().map(row).collect(),
            truncated: rows.truncated,
        }
    }
}

impl From<store::DbError> for DbError {
    fn from(error: store::DbError) -> Self {
        Self { sqlstate: error.sqlstate, message: error.message, constraint: error.constraint }
    }
}

impl From<SqlError> for Error {
    fn from(error: SqlError) -> Self {
        match error {
            SqlError::Transient(error) => Self::Transient(error.into()),
            SqlError::Rejected(error) => Self::Rejected(error.into()),
            SqlError::OutcomeUnknown(error) => Self::OutcomeUnknown(error.into()),
            SqlError::Unavailable(text) => Self::Unavailable(text),
            SqlError::BadParameter(text) => Self::BadParameter(text),
            SqlError::TransactionAborted => Self::TransactionAborted,
        }
    }
}
