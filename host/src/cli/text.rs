//! Text, the same in every command: records for people in one line and for programs as JSON, and tables.

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

/// Rows as aligned columns, a line each.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}
