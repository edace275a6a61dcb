//! A guest's value → the binary form of the type that the statement wants in its place.
//!
//! The server infers each parameter's type from the statement. A value is converted where nothing is lost; text is read
//! as what the place wants, as PostgreSQL's own clients do. Everything else is `BadParameter`.

use bytes::{BufMut, BytesMut};
use jiff::{Timestamp, civil, tz::TimeZone};
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};
use uuid::Uuid;

use super::numeric;
use crate::store::{SqlError, Value};

/// The first byte of a JSONB value.
const JSONB_VERSION: u8 = 1;

/// A parameter in the form that its place wants.
#[derive(Debug)]
pub(super) struct Wire(Option<BytesMut>);

impl ToSql for Wire {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match &self.0 {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                out.put_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true // `parameters` has made the form for this very place.
    }

    to_sql_checked!();
}

/// Puts all parameters of a statement into form.
pub(super) fn parameters(types: &[Type], values: &[Value]) -> Result<Vec<Wire>, SqlError> {
    if types.len() != values.len() {
        let (wanted, given) = (types.len(), values.len());
        return Err(SqlError::BadParameter(format!("the statement takes {wanted} parameters, {given} were given")));
    }
    let each = values.iter().zip(types).enumerate();
    each.map(|(index, (value, wanted))| parameter(index + 1, value, wanted)).collect()
}

fn parameter(position: usize, value: &Value, wanted: &Type) -> Result<Wire, SqlError> {
    if *value == Value::Null {
        return Ok(Wire(None));
    }
    let bad = |why: &str| {
        let (given, wanted) = (name(value), wanted.name());
        SqlError::BadParameter(format!("`${position}` wants {wanted}, given {given}{why}"))
    };
    let wire = match base(wanted).kind() {
        Kind::Enum(_) => text_of(value).and_then(|text| put(text, &Type::TEXT)),
        _ => scalar(value, base(wanted)),
    };
    match wire {
        Some(bytes) => Ok(Wire(Some(bytes))),
        None if known(base(wanted)) => Err(bad("")),
        None => Err(bad(&format!("; send text and write `${position}::text::{}`", wanted.name()))),
    }
}

fn base(wanted: &Type) -> &Type {
    match wanted.kind() {
        Kind::Domain(inner) => base(inner),
        _ => wanted,
    }
}

/// The binary form, if the value fits the type without loss.
fn scalar(value: &Value, wanted: &Type) -> Option<BytesMut> {
    match *wanted {
        Type::BOOL => match value {
            Value::Boolean(value) => put(*value, wanted),
            _ => None,
        },
        Type::INT2 => put(i16::try_from(int(value)?).ok()?, wanted),
        Type::INT4 => put(i32::try_from(int(value)?).ok()?, wanted),
        Type::INT8 => put(int(value)?, wanted),
        Type::OID => put(u32::try_from(int(value)?).ok()?, wanted),
        Type::FLOAT4 => {
            let value = float(value)?;
            let single = value as f32;
            (single.is_finite() || !value.is_finite()).then(|| put(single, wanted))?
        }
        Type::FLOAT8 => put(float(value)?, wanted),
        Type::NUMERIC => numeric::encode(&decimal(value)?).map(|bytes| BytesMut::from(&bytes[..])),
        Type::BYTEA => match value {
            Value::Bytes(bytes) => put(bytes.as_slice(), wanted),
            _ => None,
        },
        Type::JSON => put_text(json(value)?, None),
        Type::JSONB => put_text(json(value)?, Some(JSONB_VERSION)),
        Type::TIMESTAMPTZ => put(instant(value)?, wanted),
        Type::TIMESTAMP => put(civil_time(value)?, wanted),
        Type::DATE => put(text_of(value)?.parse::<civil::Date>().ok()?, wanted),
        Type::TIME => put(text_of(value)?.parse::<civil::Time>().ok()?, wanted),
        Type::UUID => put(text_of(value)?.parse::<Uuid>().ok()?, wanted),
        _ if textual(wanted) => put_text(text_of(value)?, None),
        _ => None,
    }
}

fn textual(wanted: &Type) -> bool {
    [Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME, Type::UNKNOWN].contains(wanted) || wanted.name() == "citext"
}

fn known(wanted: &Type) -> bool {
    let others = [
        Type::BOOL,
        Type::INT2,
        Type::INT4,
        Type::INT8,
        Type::OID,
        Type::FLOAT4,
        Type::FLOAT8,
        Type::NUMERIC,
        Type::BYTEA,
        Type::JSON,
        Type::JSONB,
        Type::TIMESTAMPTZ,
        Type::TIMESTAMP,
        Type::DATE,
        Type::TIME,
        Type::UUID,
    ];
    textual(wanted) || others.contains(wanted) || matches!(wanted.kind(), Kind::Enum(_))
}

fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(value) => Some(*value),
        _ => None,
    }
}

/// A float, or a whole number that a float holds exactly.
fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Float(value) => Some(*value),
        Value::Int(value) if value.unsigned_abs() <= 1 << f64::MANTISSA_DIGITS => Some(*value as f64),
        _ => None,
    }
}

fn decimal(value: &Value) -> Option<String> {
    match value {
        Value::Decimal(text) | Value::Text(text) | Value::Other { text, .. } => Some(text.clone()),
        Value::Int(value) => Some(value.to_string()),
        Value::Float(value) if value.is_finite() => Some(value.to_string()),
        _ => None,
    }
}

fn json(value: &Value) -> Option<&str> {
    match value {
        Value::Json(text) | Value::Text(text) => Some(text),
        _ => None,
    }
}

fn instant(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Timestamp(text) | Value::Text(text) => text.parse().ok(),
        _ => None,
    }
}

/// A time without a zone; a point in time is written as it is in UTC.
fn civil_time(value: &Value) -> Option<civil::DateTime> {
    match instant(value) {
        Some(instant) => Some(instant.to_zoned(TimeZone::UTC).datetime()),
        None => text_of(value)?.parse().ok(),
    }
}

/// The text of everything that is one.
fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text)
        | Value::Timestamp(text)
        | Value::Decimal(text)
        | Value::Json(text)
        | Value::Uuid(text)
        | Value::Other { text, .. } => Some(text),
        Value::Null | Value::Boolean(_) | Value::Int(_) | Value::Float(_) | Value::Bytes(_) => None,
    }
}

fn name(value: &Value) -> &str {
    match value {
        Value::Null => "null",
        Value::Boolean(_) => "boolean",
        Value::Int(_) => "int",
        Value::Float(_) => "float",
        Value::Text(_) => "text",
        Value::Bytes(_) => "bytes",
        Value::Timestamp(_) => "timestamp",
        Value::Decimal(_) => "decimal",
        Value::Json(_) => "json",
        Value::Uuid(_) => "uuid",
        Value::Other { type_name, .. } => type_name,
    }
}

fn put(value: impl ToSql, wanted: &Type) -> Option<BytesMut> {
    let mut bytes = BytesMut::new();
    value.to_sql(wanted, &mut bytes).ok().map(|_| bytes)
}

/// Text without a zero byte, which PostgreSQL does not take.
fn put_text(text: &str, version: Option<u8>) -> Option<BytesMut> {
    if text.contains('\0') {
        return None;
    }
    let mut bytes = BytesMut::with_capacity(text.len() + 1);
    bytes.extend(version);
    bytes.put_slice(text.as_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_does_not_fit_names_its_place_and_both_types() {
        let check = |value: Value, wanted: Type| match parameters(&[Type::BOOL, wanted], &[Value::Null, value]) {
            Err(SqlError::BadParameter(text)) => text,
            other => format!("{other:?}"),
        };
        assert_eq!(check(Value::Text("1".to_owned()), Type::INT4), "`$2` wants int4, given text");
        assert_eq!(check(Value::Int(1 << 40), Type::INT4), "`$2` wants int4, given int");
        assert_eq!(check(Value::Int(40_000), Type::INT2), "`$2` wants int2, given int");
        assert_eq!(check(Value::Int((1 << 53) + 1), Type::FLOAT8), "`$2` wants float8, given int");
        assert_eq!(check(Value::Float(1e300), Type::FLOAT4), "`$2` wants float4, given float");
        assert_eq!(check(Value::Decimal("1e3".to_owned()), Type::NUMERIC), "`$2` wants numeric, given decimal");
        assert_eq!(check(Value::Text("soon".to_owned()), Type::TIMESTAMPTZ), "`$2` wants timestamptz, given text");
        assert_eq!(check(Value::Text("a\0b".to_owned()), Type::TEXT), "`$2` wants text, given text");
        let advice = "`$2` wants inet, given text; send text and write `$2::text::inet`";
        assert_eq!(check(Value::Text("::1".to_owned()), Type::INET), advice);
    }

    #[test]
    fn the_number_of_parameters_must_be_right() {
        let error = parameters(&[Type::INT4], &[]).expect_err("one is missing");
        assert_eq!(error.to_string(), "bad parameter: the statement takes 1 parameters, 0 were given");
    }
}
