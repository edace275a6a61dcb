//! Rust values to SQL values and back.

use super::Value;

/// A Rust value that may be a parameter of a statement.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a parameter of a statement",
    note = "use integers up to `i64`, `f64`, `bool`, text, bytes, `serde_json::Value`, `Option` of one of these, or a `sql::Value`"
)]
pub trait ToValue {
    /// The value as the database gets it.
    fn to_value(&self) -> Value;
}

/// A Rust value that may be read from a row.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a row",
    note = "use `i64`, `i32`, `u32`, `f64`, `bool`, `String`, `Vec<u8>`, `serde_json::Value`, `Option` of one of these, or a `sql::Value`"
)]
pub trait FromValue: Sized {
    /// The value, or `None` if the database's value is of another kind.
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! to_value {
    ($($from:ty: $self:ident => $value:expr;)*) => {
        $(impl ToValue for $from {
            fn to_value(&$self) -> Value {
                $value
            }
        })*
    };
}

to_value! {
    i64: self => Value::Int(*self);
    i32: self => Value::Int((*self).into());
    i16: self => Value::Int((*self).into());
    u32: self => Value::Int((*self).into());
    u16: self => Value::Int((*self).into());
    u8: self => Value::Int((*self).into());
    f64: self => Value::Float(*self);
    f32: self => Value::Float((*self).into());
    bool: self => Value::Boolean(*self);
    str: self => Value::Text(self.to_owned());
    String: self => Value::Text(self.clone());
    [u8]: self => Value::Bytes(self.to_owned());
    Vec<u8>: self => Value::Bytes(self.clone());
    bytes::Bytes: self => Value::Bytes(self.to_vec());
    serde_json::Value: self => Value::Json(self.to_string());
    Value: self => self.clone();
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value {
        (**self).to_value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_value)
    }
}

impl FromValue for Value {
    fn from_value(value: &Value) -> Option<Self> {
        Some(value.clone())
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        if *value == Value::Null { Some(None) } else { T::from_value(value).map(Some) }
    }
}

impl FromValue for i64 {
    /// Also of a decimal without a fraction: PostgreSQL's `SUM` of integers is one.
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Int(int) = value {
            return Some(*int);
        }
        if let Value::Decimal(text) = value { text.parse().ok() } else { None }
    }
}

impl FromValue for i32 {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value)?.try_into().ok()
    }
}

impl FromValue for u32 {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value)?.try_into().ok()
    }
}

impl FromValue for f64 {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Float(float) = value {
            return Some(*float);
        }
        if let Value::Decimal(text) = value {
            return text.parse().ok();
        }
        #[allow(clippy::cast_precision_loss, reason = "who asks for a float takes its precision")]
        i64::from_value(value).map(|int| int as f64)
    }
}

impl FromValue for bool {
    /// Also of 0 and 1: SQLite has no booleans.
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Boolean(boolean) = value {
            return Some(*boolean);
        }
        if let Value::Int(int @ (0 | 1)) = value { Some(*int == 1) } else { None }
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text)
            | Value::Timestamp(text)
            | Value::Decimal(text)
            | Value::Json(text)
            | Value::Uuid(text)
            | Value::Other((_, text)) => Some(text.clone()),
            Value::Null | Value::Boolean(_) | Value::Int(_) | Value::Float(_) | Value::Bytes(_) => None,
        }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bytes(bytes) = value { Some(bytes.clone()) } else { None }
    }
}

impl FromValue for serde_json::Value {
    fn from_value(value: &Value) -> Option<Self> {
        serde_json::from_str(&String::from_value(value)?).ok()
    }
}
