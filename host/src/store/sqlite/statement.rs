//! One statement: its parameters by position, its rows within bounds, and both ways between values and storage classes.
//!
//! SQLite has no types but storage classes: a field becomes the kind of value that its column was declared as. Decimals
//! are exact up to 15 digits in a column declared `NUMERIC` or `DECIMAL`, and always in one declared `DECIMAL_TEXT`.

use jiff::Timestamp;
use rusqlite::{
    CachedStatement, Row,
    types::{ToSqlOutput, ValueRef},
};
use uuid::Uuid;

use super::{
    Config,
    error::{self, rejected},
    pool::{Abandoned, Handle},
};
use crate::store::{Column, RowSet, SqlError, Value};

/// Runs a statement for its rows. `None`: it would write, and `may_write` is false.
pub(super) fn query(
    handle: &Handle,
    config: &Config,
    may_write: bool,
    statement: &str,
    params: &[Value],
) -> Result<Option<RowSet>, SqlError> {
    let mut prepared = prepare(handle, statement)?;
    if !may_write && !prepared.readonly() {
        return Ok(None);
    }
    bind(&mut prepared, params)?;
    let columns = columns(&prepared);
    let (mut rows, mut bytes, mut truncated) = (Vec::new(), 0, false);
    let mut found = prepared.raw_query();
    while let Some(row) = found.next().map_err(error::statement)? {
        if !truncated {
            let (values, size) = read_row(row, &columns)?;
            bytes += size;
            truncated = rows.len() == config.rows_max || bytes > config.bytes_max.0;
            if !truncated {
                rows.push(values);
                continue;
            }
        }
        if !may_write {
            break; // A statement that writes is stepped to its end: SQLite writes while it gives rows.
        }
    }
    Ok(Some(RowSet { columns, rows, truncated }))
}

/// Runs a statement for each list of parameters.
pub(super) fn execute(
    handle: &Handle,
    abandoned: &Abandoned,
    statement: &str,
    params: &[Vec<Value>],
) -> Result<u64, SqlError> {
    let mut prepared = prepare(handle, statement)?;
    let mut changed = 0;
    for params in params {
        abandoned.check()?;
        bind(&mut prepared, params)?;
        changed += execute_once(handle, &mut prepared)?;
    }
    Ok(changed)
}

/// Runs to the end a statement that may also give rows, which are dropped.
fn execute_once(handle: &Handle, prepared: &mut CachedStatement<'_>) -> Result<u64, SqlError> {
    let before = handle.connection.total_changes();
    let readonly = prepared.readonly();
    let mut rows = prepared.raw_query();
    while rows.next().map_err(error::statement)?.is_some() {}
    drop(rows);
    if readonly || handle.connection.total_changes() == before {
        return Ok(0);
    }
    Ok(handle.connection.changes())
}

fn prepare<'a>(handle: &'a Handle, statement: &str) -> Result<CachedStatement<'a>, SqlError> {
    handle.connection.prepare_cached(statement).map_err(error::statement)
}

/// Binds by the number in the name: for SQLite `$1` is a name, and names get their index in the order in which they appear.
fn bind(prepared: &mut CachedStatement<'_>, params: &[Value]) -> Result<(), SqlError> {
    let mut wanted = 0;
    for index in 1..=prepared.parameter_count() {
        let name = prepared.parameter_name(index);
        let position = position(name)?;
        wanted = wanted.max(position);
        if let Some(value) = params.get(position - 1) {
            prepared.raw_bind_parameter(index, parameter(position, value)?).map_err(error::statement)?;
        }
    }
    if wanted != params.len() {
        let given = params.len();
        return Err(SqlError::BadParameter(format!("the statement takes {wanted} parameters, {given} were given")));
    }
    Ok(())
}

fn position(name: Option<&str>) -> Result<usize, SqlError> {
    let wrong = |name: &str| SqlError::BadParameter(format!("`{name}` is no parameter; write `$1`, `$2` and so on"));
    let name = name.ok_or_else(|| wrong("?"))?;
    if let Some((parameter, _)) = name.split_once("::") {
        let text = format!("`{name}`: SQLite has no `::`; write `CAST({parameter} AS TEXT)`");
        return Err(SqlError::BadParameter(text));
    }
    let digits = name.strip_prefix('$').filter(|digits| !digits.starts_with('0')).ok_or_else(|| wrong(name))?;
    digits.parse().map_err(|_| wrong(name))
}

fn parameter(position: usize, value: &Value) -> Result<ToSqlOutput<'_>, SqlError> {
    let value = match value {
        Value::Null => ValueRef::Null,
        Value::Boolean(value) => ValueRef::Integer(i64::from(*value)),
        Value::Int(value) => ValueRef::Integer(*value),
        Value::Float(value) if value.is_nan() => {
            return Err(SqlError::BadParameter(format!(
                "`${position}` is not a number, which SQLite would store as null"
            )));
        }
        Value::Float(value) => ValueRef::Real(*value),
        Value::Bytes(bytes) => ValueRef::Blob(bytes),
        Value::Text(text)
        | Value::Timestamp(text)
        | Value::Decimal(text)
        | Value::Json(text)
        | Value::Uuid(text)
        | Value::Other { text, .. } => ValueRef::Text(text.as_bytes()),
    };
    Ok(ToSqlOutput::Borrowed(value))
}

fn columns(prepared: &CachedStatement<'_>) -> Vec<Column> {
    let column = |column: rusqlite::Column<'_>| Column {
        name: column.name().to_owned(),
        type_name: column.decl_type().unwrap_or_default().to_ascii_lowercase(),
    };
    prepared.columns().map(column).collect()
}

/// A row and its size in bytes.
fn read_row(row: &Row<'_>, columns: &[Column]) -> Result<(Vec<Value>, usize), SqlError> {
    let (mut values, mut bytes) = (Vec::with_capacity(columns.len()), 0);
    for (index, column) in columns.iter().enumerate() {
        let value = field(row.get_ref(index).map_err(error::statement)?, column)?;
        bytes += size_of::<Value>() + value.bytes();
        values.push(value);
    }
    Ok((values, bytes))
}

fn field(value: ValueRef<'_>, column: &Column) -> Result<Value, SqlError> {
    let declared = |prefixes: &[&str]| prefixes.iter().any(|prefix| column.type_name.starts_with(prefix));
    let decimal = || declared(&["numeric", "decimal"]);
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value @ (0 | 1)) if declared(&["bool"]) => Value::Boolean(value == 1),
        ValueRef::Integer(value) if decimal() => Value::Decimal(value.to_string()),
        ValueRef::Integer(value) if declared(&["json"]) => Value::Json(value.to_string()),
        ValueRef::Integer(value) => Value::Int(value),
        ValueRef::Real(value) if decimal() => Value::Decimal(value.to_string()),
        ValueRef::Real(value) if declared(&["json"]) => Value::Json(value.to_string()),
        ValueRef::Real(value) => Value::Float(value),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
        ValueRef::Text(bytes) => {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| rejected(None, format!("the text in column `{}` is not UTF-8", column.name), None))?;
            text_field(text, declared, decimal)
        }
    })
}

fn text_field(text: &str, declared: impl Fn(&[&str]) -> bool, decimal: impl Fn() -> bool) -> Value {
    if declared(&["timestamp", "datetime"]) {
        if let Ok(instant) = text.parse::<Timestamp>() {
            return Value::Timestamp(instant.to_string());
        }
    } else if declared(&["uuid"]) {
        if let Ok(uuid) = text.parse::<Uuid>() {
            return Value::Uuid(uuid.to_string());
        }
    } else if declared(&["json"]) {
        return Value::Json(text.to_owned());
    } else if decimal() {
        return Value::Decimal(text.to_owned());
    }
    Value::Text(text.to_owned())
}
