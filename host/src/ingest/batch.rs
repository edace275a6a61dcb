//! A body → records: every line is checked before any record is produced.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::answer::Refusal;
use super::head::{BodyKind, Head, IDEMPOTENCY_KEY, LineForm, RESERVED};
use super::json::{self, Member};
use crate::broker::{Header, Outgoing};

/// What one request may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Records of a batch.
    pub(super) records_max: usize,
    /// Key, value and headers of one record.
    pub(super) record_bytes_max: usize,
}

/// The records of a request, each with its size and the line that it came from.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) records: Vec<Outgoing>,
    /// One for each record.
    pub(super) sizes: Vec<u64>,
    /// One for each record, from 1; `None`: the request was for a single record.
    pub(super) lines: Option<Vec<usize>>,
}

/// A line that is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidLine {
    /// Not text.
    #[error("is not UTF-8")]
    NotText,
    /// Not JSON.
    #[error("is no JSON: {0}")]
    NotJson(String),
    /// Another kind of value than is needed.
    #[error("is no JSON object; it has to be one, because of {0}")]
    NotAnObject(&'static str),
    /// The key's field is missing.
    #[error("has no field `{0}` to take the key from")]
    NoKey(String),
    /// The key's field can't be a key.
    #[error("has a field `{0}` that can't be a key; it has to be a text, a number or a boolean")]
    NotAKey(String),
    /// A name that is there more than once where it has to be clear.
    #[error("has `{0}` more than once")]
    Repeated(String),
    /// A member that an envelope does not have.
    #[error(
        "has `{0}`, which is no part of an envelope; there are key, key_base64, value, value_base64, headers, partition, timestamp_ms and idempotency_key"
    )]
    UnknownMember(String),
    /// A member that does not fit.
    #[error("has a `{name}` that is not {expected}")]
    Member {
        /// The member.
        name: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
    /// A record header that only the host writes: by some of them records are known again.
    #[error("has a header `{0}`; names that begin with `tidemill.` are the host's, choose another")]
    Reserved(String),
    /// An envelope without a value.
    #[error("has no `value`; write null for a tombstone")]
    NoValue,
    /// Two members that exclude each other.
    #[error("has both `{0}` and `{1}`; write one of them")]
    Both(&'static str, &'static str),
}

impl Batch {
    /// Reads a body as its head says.
    pub(super) fn read(topic: &Arc<str>, head: Head, body: &Bytes, bounds: Bounds) -> Result<Self, Refusal> {
        match head.body {
            BodyKind::Record { ref key, null_value } => {
                if null_value && !body.is_empty() {
                    return Err(Refusal::NullValueWithBody);
                }
                let key = key.clone();
                let record = finish(
                    topic,
                    &head,
                    None,
                    Parts { key, value: (!null_value).then(|| body.clone()), ..Parts::default() },
                );
                let size = sized(&record, None, bounds)?;
                Ok(Self { records: vec![record], sizes: vec![size], lines: None })
            }
            BodyKind::Lines(ref form) => Self::read_lines(topic, &head, form, body, bounds),
        }
    }

    fn read_lines(
        topic: &Arc<str>,
        head: &Head,
        form: &LineForm,
        body: &Bytes,
        bounds: Bounds,
    ) -> Result<Self, Refusal> {
        let (mut records, mut sizes, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for (number, line) in lines(body) {
            if records.len() == bounds.records_max {
                return Err(Refusal::TooManyRecords { max: bounds.records_max });
            }
            let parts = parts(form, &line).map_err(|cause| Refusal::Line { line: number, cause })?;
            let record = finish(topic, head, Some(number), parts);
            sizes.push(sized(&record, Some(number), bounds)?);
            records.push(record);
            numbers.push(number);
        }
        if records.is_empty() {
            return Err(Refusal::NoRecords);
        }
        Ok(Self { records, sizes, lines: Some(numbers) })
    }
}

/// The lines that are not blank, with their numbers from 1, as slices of the body.
fn lines(body: &Bytes) -> impl Iterator<Item = (usize, Bytes)> {
    let lines = body.split(|byte| *byte == b'\n').map(|line| line.trim_ascii());
    lines.enumerate().filter(|(_, line)| !line.is_empty()).map(|(index, line)| (index + 1, body.slice_ref(line)))
}

/// What a line says about its record.
#[derive(Debug, Default)]
struct Parts {
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<Header>,
    partition: Option<i32>,
    timestamp_ms: Option<i64>,
    idempotency_key: Option<Bytes>,
}

fn parts(form: &LineForm, line: &Bytes) -> Result<Parts, InvalidLine> {
    let text = std::str::from_utf8(line).map_err(|_| InvalidLine::NotText)?;
    json::check(text).map_err(InvalidLine::NotJson)?;
    match form {
        LineForm::Value => Ok(Parts { value: Some(line.clone()), ..Parts::default() }),
        LineForm::Keyed(field) => {
            let members = object(text, "the key's field")?;
            Ok(Parts { key: Some(key(field, &members, text)?), value: Some(line.clone()), ..Parts::default() })
        }
        LineForm::Envelope => envelope(line, text),
    }
}

fn object(text: &str, because_of: &'static str) -> Result<Vec<Member>, InvalidLine> {
    json::members(text).ok_or(InvalidLine::NotAnObject(because_of))?.map_err(InvalidLine::NotJson)
}

/// The key is the field's text, or how its number or boolean is written.
fn key(field: &str, members: &[Member], text: &str) -> Result<Bytes, InvalidLine> {
    let mut values = members.iter().filter(|member| member.name == field).map(|member| &text[member.value.clone()]);
    let value = values.next().ok_or_else(|| InvalidLine::NoKey(field.to_owned()))?;
    if values.next().is_some() {
        return Err(InvalidLine::Repeated(field.to_owned()));
    }
    match value.as_bytes() {
        [b'"', ..] => json::string(value).map(Bytes::from).ok_or_else(|| InvalidLine::NotAKey(field.to_owned())),
        [b'{' | b'[' | b'n', ..] | [] => Err(InvalidLine::NotAKey(field.to_owned())),
        written => Ok(Bytes::copy_from_slice(written)),
    }
}

fn envelope(line: &Bytes, text: &str) -> Result<Parts, InvalidLine> {
    let members = object(text, "`envelope=true`")?;
    let mut found = Parts::default();
    let mut seen: Vec<&str> = Vec::new();
    for member in &members {
        let value = &text[member.value.clone()];
        let is_null = value == "null";
        match member.name.as_str() {
            "key" => found.key = (!is_null).then(|| string("key", value)).transpose()?,
            "key_base64" => found.key = Some(base64("key_base64", value)?),
            "value" => found.value = (!is_null).then(|| line.slice_ref(value.as_bytes())),
            "value_base64" => found.value = Some(base64("value_base64", value)?),
            "headers" => found.headers = headers(value)?,
            "partition" if is_null => {}
            "partition" => found.partition = Some(number("partition", "a partition's number, from 0", value)?),
            "timestamp_ms" if is_null => {}
            "timestamp_ms" => {
                found.timestamp_ms = Some(number("timestamp_ms", "milliseconds since the Unix epoch", value)?)
            }
            "idempotency_key" => {
                found.idempotency_key = (!is_null).then(|| string("idempotency_key", value)).transpose()?
            }
            _ => return Err(InvalidLine::UnknownMember(member.name.clone())),
        }
        if seen.contains(&member.name.as_str()) {
            return Err(InvalidLine::Repeated(member.name.clone()));
        }
        seen.push(&member.name);
    }
    for (one, other) in [("key", "key_base64"), ("value", "value_base64")] {
        if seen.contains(&one) && seen.contains(&other) {
            return Err(InvalidLine::Both(one, other));
        }
    }
    if !seen.contains(&"value") && !seen.contains(&"value_base64") {
        return Err(InvalidLine::NoValue);
    }
    Ok(found)
}

fn string(name: &'static str, value: &str) -> Result<Bytes, InvalidLine> {
    json::string(value).map(Bytes::from).ok_or(InvalidLine::Member { name, expected: "a text" })
}

fn base64(name: &'static str, value: &str) -> Result<Bytes, InvalidLine> {
    let decoded = json::string(value).and_then(|text| STANDARD.decode(text).ok());
    decoded.map(Bytes::from).ok_or(InvalidLine::Member { name, expected: "a text in base64, with padding" })
}

fn number<T>(name: &'static str, expected: &'static str, value: &str) -> Result<T, InvalidLine>
where
    T: std::str::FromStr + Default + PartialOrd,
{
    let number = value.parse().ok().filter(|number| *number >= T::default());
    number.ok_or(InvalidLine::Member { name, expected })
}

/// `{"name": "text", "repeated": ["one", "two"], "null": null}`, in order.
fn headers(value: &str) -> Result<Vec<Header>, InvalidLine> {
    let wrong = InvalidLine::Member { name: "headers", expected: "an object of texts, lists of texts and nulls" };
    let members = json::members(value).ok_or_else(|| wrong.clone())?.map_err(InvalidLine::NotJson)?;
    let mut headers = Vec::with_capacity(members.len());
    for member in members {
        let text = &value[member.value];
        let values = if text.starts_with('[') {
            serde_json::from_str::<Vec<Option<String>>>(text).map_err(|_| wrong.clone())?
        } else {
            vec![serde_json::from_str(text).map_err(|_| wrong.clone())?]
        };
        if member.name.starts_with(RESERVED) {
            return Err(InvalidLine::Reserved(member.name));
        }
        let name = Bytes::from(member.name);
        headers.extend(values.into_iter().map(|value| Header { name: name.clone(), value: value.map(Bytes::from) }));
    }
    Ok(headers)
}

/// What the line says goes before what the head says for all lines; headers of both are sent, the head's first.
fn finish(topic: &Arc<str>, head: &Head, line: Option<usize>, parts: Parts) -> Outgoing {
    let mut headers = head.headers.clone();
    headers.extend(parts.headers);
    if let Some(key) = parts.idempotency_key.or_else(|| idempotency_key(head, line)) {
        headers.push(Header { name: Bytes::from_static(IDEMPOTENCY_KEY.as_bytes()), value: Some(key) });
    }
    Outgoing {
        topic: Arc::clone(topic),
        partition: parts.partition.or(head.partition),
        timestamp_ms: parts.timestamp_ms.or(head.timestamp_ms),
        key: parts.key,
        value: parts.value,
        headers,
    }
}

/// Records of a batch must not look like repetitions of each other: each has the request's key and its line.
fn idempotency_key(head: &Head, line: Option<usize>) -> Option<Bytes> {
    let key = head.idempotency_key.as_ref()?;
    Some(match line {
        None => key.clone(),
        Some(line) => [key, format!(":{line}").as_bytes()].concat().into(),
    })
}

fn sized(record: &Outgoing, line: Option<usize>, bounds: Bounds) -> Result<u64, Refusal> {
    let bytes = record.bytes();
    if bytes > bounds.record_bytes_max {
        return Err(Refusal::RecordTooLarge { line, bytes, max: bounds.record_bytes_max });
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests;
