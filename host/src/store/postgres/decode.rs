//! A field in PostgreSQL's binary form → a guest's value, exactly or not at all.

use jiff::{Timestamp, civil};
use tokio_postgres::{
    Row,
    types::{FromSql, Kind, Type},
};
use uuid::Uuid;

use super::{error, numeric};
use crate::store::{Column, SqlError, Value};

/// A field as the server sent it.
struct Raw<'a>(Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// The columns that a statement gives.
pub(super) fn columns(columns: &[tokio_postgres::Column]) -> Vec<Column> {
    let column = |column: &tokio_postgres::Column| Column {
        name: column.name().to_owned(),
        type_name: column.type_().name().to_owned(),
    };
    columns.iter().map(column).collect()
}

/// A row and its size in bytes.
pub(super) fn row(row: &Row) -> Result<(Vec<Value>, usize), SqlError> {
    let (mut values, mut bytes) = (Vec::with_capacity(row.len()), 0);
    for (index, column) in row.columns().iter().enumerate() {
        let raw: Raw<'_> = row.try_get(index).map_err(|error| error::statement(&error, false))?;
        let value = match raw.0 {
            None => Value::Null,
            Some(raw) => field(raw, column.type_()).ok_or_else(|| unreadable(column))?,
        };
        bytes += size_of::<Value>() + value.bytes();
        values.push(value);
    }
    Ok((values, bytes))
}

fn unreadable(column: &tokio_postgres::Column) -> SqlError {
    let (name, type_name) = (column.name(), column.type_().name());
    let message = format!("column `{name}` of type {type_name} can't be given exactly; write `{name}::text`");
    error::rejected("0A000", message)
}

fn field(raw: &[u8], found: &Type) -> Option<Value> {
    if let Kind::Domain(inner) = found.kind() {
        return field(raw, inner);
    }
    Some(match *found {
        Type::BOOL => Value::Boolean(get(raw, found)?),
        Type::INT2 => Value::Int(get::<i16>(raw, found)?.into()),
        Type::INT4 => Value::Int(get::<i32>(raw, found)?.into()),
        Type::INT8 => Value::Int(get(raw, found)?),
        Type::OID => Value::Int(get::<u32>(raw, found)?.into()),
        Type::FLOAT4 => Value::Float(get::<f32>(raw, found)?.into()),
        Type::FLOAT8 => Value::Float(get(raw, found)?),
        Type::NUMERIC => match numeric::decode(raw)? {
            numeric::Text::Number(text) => Value::Decimal(text),
            numeric::Text::Word(word) => other(found, word.to_owned()),
        },
        Type::BYTEA => Value::Bytes(raw.to_vec()),
        Type::JSON => Value::Json(text(raw)?),
        Type::JSONB => Value::Json(text(raw.strip_prefix(&[1])?)?),
        Type::UUID => Value::Uuid(get::<Uuid>(raw, found)?.to_string()),
        Type::TIMESTAMPTZ => match get::<Timestamp>(raw, found) {
            Some(instant) => Value::Timestamp(instant.to_string()),
            None => other(found, infinity(raw)?),
        },
        Type::TIMESTAMP => match get::<civil::DateTime>(raw, found) {
            Some(time) => other(found, time.to_string()),
            None => other(found, infinity(raw)?),
        },
        Type::DATE => match get::<civil::Date>(raw, found) {
            Some(date) => other(found, date.to_string()),
            None => other(found, infinity(raw)?),
        },
        Type::TIME => other(found, get::<civil::Time>(raw, found)?.to_string()),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN => Value::Text(text(raw)?),
        _ if found.name() == "citext" => Value::Text(text(raw)?),
        _ if matches!(found.kind(), Kind::Enum(_)) => other(found, text(raw)?),
        Type::VOID => Value::Null,
        _ => return None,
    })
}

fn get<'a, T: FromSql<'a>>(raw: &'a [u8], found: &Type) -> Option<T> {
    T::from_sql(found, raw).ok()
}

fn text(raw: &[u8]) -> Option<String> {
    std::str::from_utf8(raw).ok().map(str::to_owned)
}

/// The two times that are no times: the largest and the smallest number.
fn infinity(raw: &[u8]) -> Option<String> {
    let (first, rest) = raw.split_first()?;
    match (first, rest.iter().all(|byte| *byte == 0xFF), rest.iter().all(|byte| *byte == 0)) {
        (0x7F, true, _) => Some("infinity".to_owned()),
        (0x80, _, true) => Some("-infinity".to_owned()),
        _ => None,
    }
}

fn other(found: &Type, text: String) -> Value {
    Value::Other { type_name: found.name().to_owned(), text }
}
