//! Tells every field of a record, as JSON, under the record's key. Bytes are in hexadecimal, what is missing is null.
//!
//! Config: `to`, the topic it tells it to (default `echo.out`).

use serde::Serialize;
use tidemill_guest::{Context, Output, Record, Result, Timestamp, config, handler};

#[derive(Serialize)]
struct Told<'a> {
    id: String,
    topic: &'a str,
    partition: i32,
    offset: i64,
    timestamp_type: &'a str,
    timestamp_ms: Option<i64>,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(&'a str, Option<String>)>,
    attempt: u32,
}

#[handler]
fn handle(record: Record, ctx: &mut Context) -> Result<()> {
    let to = config::parse_or("to", "echo.out".to_owned())?;
    let (timestamp_type, timestamp_ms) = match record.timestamp {
        Timestamp::None => ("none", None),
        Timestamp::CreateTime(ms) => ("create-time", Some(ms)),
        Timestamp::LogAppendTime(ms) => ("log-append-time", Some(ms)),
    };
    let told = Told {
        id: record.id(),
        topic: ctx.topic(),
        partition: ctx.partition(),
        offset: record.offset,
        timestamp_type,
        timestamp_ms,
        key: record.key.as_deref().map(hex),
        value: record.value.as_deref().map(hex),
        headers: record.headers.iter().map(|header| (&*header.name, header.value.as_deref().map(hex))).collect(),
        attempt: record.attempt,
    };
    let output = Output::json(to, &told)?;
    ctx.emit(Output { key: record.key, ..output });
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests;
