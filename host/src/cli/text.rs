//! Records as text, the same in every command: for people in one line, for programs as JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tidemill_core::record::Record;

/// When a record was made, as RFC 3339.
pub(super) fn time_of(record: &Record) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(record.timestamp().millis()?).ok()?;
    Some(format!("{time:.3}"))
}

/// Bytes for programs: text, or an object with base64 where they are no UTF-8.
pub(crate) fn value_of(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => Value::Null,
        Some((Ok(text), _)) => text.into(),
        Some((Err(_), bytes)) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

/// Bytes for people: text as it is, but in one line.
pub(super) fn shown(bytes: Option<&[u8]>) -> String {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => "null".to_owned(),
        Some((Ok(""), _)) => "\"\"".to_owned(),
        Some((Ok(text), _)) => {
            text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
        }
        Some((Err(_), bytes)) => format!("base64:{}", STANDARD.encode(bytes)),
    }
}
