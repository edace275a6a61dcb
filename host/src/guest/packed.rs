//! A batch and its outcomes in one buffer each, as `packed-handler` in `wit/` says.
//!
//! Outputs are slices: of the guest's answer, or of the delivered records where the guest passes their bytes on. Nothing is copied and
//! nothing allocated for each of them.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use tidemill_core::partition::CallRecord;
use tidemill_core::record::Timestamp;
use tidemill_core::retry::Class;

use super::bindings::tidemill::guest::types;
use super::convert::{Rules, surplus};
use super::{CallError, Outcome, Reason};
use crate::broker::{Header, Outgoing};

/// The length of what is `none`.
const NONE: u32 = u32::MAX;
/// The length of what is a part of the buffer of records.
const PART: u32 = u32::MAX - 1;

/// The records of a call as the guest gets them; kept for its memory.
#[derive(Debug, Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
    /// Where each record's key and value are in `bytes`, for those that it has; an absent one is where the next field is.
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    key: usize,
    value: usize,
}

impl Records {
    /// Writes the records of a call, which are of this topic, over what was there.
    pub(super) fn write(&mut self, topic: &str, records: &[CallRecord]) -> Result<(), CallError> {
        self.bytes.clear();
        self.places.clear();
        put(&mut self.bytes, records.len())?;
        for record in records {
            let place = put_record(&mut self.bytes, topic, record)?;
            self.places.push(place);
        }
        // Positions in the buffer are 32 bits wide.
        length(self.bytes.len()).map(drop)
    }

    /// The buffer.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A part of the buffer, of these records; `None` when it is not within. A part of one key or value shares its memory.
    fn part(&self, records: &[CallRecord], range: Range<usize>) -> Option<Bytes> {
        let bytes = self.bytes.get(range.clone())?;
        let after = self.places.partition_point(|place| place.key <= range.start);
        let shared = after.checked_sub(1).and_then(|index| {
            let (place, record) = (self.places[index], &records[index].record);
            let (start, whole) = match range.start.checked_sub(place.value) {
                Some(start) => (start, record.shared_value()?),
                None => (range.start - place.key, record.shared_key()?),
            };
            let end = start + range.len();
            (end <= whole.len()).then(|| whole.slice(start..end))
        });
        Some(shared.unwrap_or_else(|| Bytes::copy_from_slice(bytes)))
    }
}

fn put_record(
    buffer: &mut Vec<u8>,
    topic: &str,
    CallRecord { record, tries, .. }: &CallRecord,
) -> Result<Place, CallError> {
    // The usual id is left out.
    put_maybe(buffer, record.first_id(topic).map(str::as_bytes))?;
    buffer.extend_from_slice(&record.offset().to_le_bytes());
    let (kind, millis) = match record.timestamp() {
        Timestamp::None => (0, 0),
        Timestamp::Create(millis) => (1, millis),
        Timestamp::LogAppend(millis) => (2, millis),
    };
    buffer.push(kind);
    buffer.extend_from_slice(&millis.to_le_bytes());
    buffer.extend_from_slice(&tries.saturating_add(1).to_le_bytes());
    let key = put_maybe(buffer, record.key())?;
    let value = put_maybe(buffer, record.value())?;
    let headers = record.headers();
    put(buffer, headers.len())?;
    for header in headers {
        put_maybe(buffer, Some(header.name))?;
        put_maybe(buffer, header.value)?;
    }
    Ok(Place { key, value })
}

fn put(buffer: &mut Vec<u8>, number: usize) -> Result<(), CallError> {
    buffer.extend_from_slice(&length(number)?.to_le_bytes());
    Ok(())
}

/// Says where the bytes begin.
fn put_maybe(buffer: &mut Vec<u8>, bytes: Option<&[u8]>) -> Result<usize, CallError> {
    match bytes {
        Some(bytes) => {
            put(buffer, bytes.len())?;
            buffer.extend_from_slice(bytes);
            Ok(buffer.len() - bytes.len())
        }
        None => {
            buffer.extend_from_slice(&NONE.to_le_bytes());
            Ok(buffer.len())
        }
    }
}

fn length(number: usize) -> Result<u32, CallError> {
    let length = u32::try_from(number).ok().filter(|length| *length < PART);
    length.ok_or_else(|| CallError { class: Class::Memory, detail: "the batch is larger than a guest's memory".into() })
}

/// One outcome for each record from a guest's answer: missing ones are filled up, surplus ones are an error. `written` is what the
/// guest got of the records.
pub(super) fn outcomes(
    rules: &Rules<'_>,
    given: Vec<u8>,
    records: &[CallRecord],
    written: &Records,
) -> Result<Vec<Outcome>, CallError> {
    let mut from = Reader { buffer: Bytes::from(given), at: 0, records, written };
    let mut outcomes = Vec::with_capacity(records.len());
    while !from.is_at_end() {
        if outcomes.len() == records.len() {
            return Err(surplus(records.len() + 1, records.len()));
        }
        let outcome = from.outcome(rules).ok_or_else(|| CallError {
            class: Class::Malformed,
            detail: format!("the guest's buffer of outcomes is not what the contract says, from byte {} on", from.at),
        })?;
        outcomes.push(outcome);
    }
    outcomes.resize_with(records.len(), || Outcome::Untouched);
    Ok(outcomes)
}

/// Reads on from a place; `None` when the buffer does not hold what should come.
struct Reader<'a> {
    buffer: Bytes,
    at: usize,
    records: &'a [CallRecord],
    written: &'a Records,
}

impl Reader<'_> {
    fn is_at_end(&self) -> bool {
        self.at == self.buffer.len()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.buffer.get(self.at..)?.first_chunk()?;
        self.at += N;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn range(&mut self, length: u32) -> Option<std::ops::Range<usize>> {
        let end = self.at.checked_add(length as usize).filter(|end| *end <= self.buffer.len())?;
        let range = self.at..end;
        self.at = end;
        Some(range)
    }

    fn text(&mut self) -> Option<&str> {
        let length = self.u32()?;
        let range = self.range(length)?;
        std::str::from_utf8(&self.buffer[range]).ok()
    }

    fn maybe(&mut self) -> Option<Option<Bytes>> {
        match self.u32()? {
            NONE => Some(None),
            PART => {
                let (start, length) = (self.u32()? as usize, self.u32()? as usize);
                self.written.part(self.records, start..start.checked_add(length)?).map(Some)
            }
            length => {
                let range = self.range(length)?;
                Some(Some(self.buffer.slice(range)))
            }
        }
    }

    fn outcome(&mut self, rules: &Rules<'_>) -> Option<Outcome> {
        Some(match self.byte()? {
            0 => match self.outputs(rules)? {
                Ok(outputs) => Outcome::Ack(outputs),
                Err(reason) => Outcome::DeadLetter(reason),
            },
            1 => Outcome::Skip,
            2 => {
                let flags = self.byte().filter(|flags| *flags < 4)?;
                let after = if flags & 1 == 0 { None } else { Some(Duration::from_millis(self.u32()?.into())) };
                let unavailable = flags & 2 != 0 && rules.something_is_away;
                Outcome::Retry { after, reason: self.reason(rules)?, unavailable }
            }
            3 => Outcome::DeadLetter(self.reason(rules)?),
            4 => Outcome::Untouched,
            _ => return None,
        })
    }

    fn reason(&mut self, rules: &Rules<'_>) -> Option<Reason> {
        let code = self.text()?.to_owned();
        let detail = self.text()?.to_owned();
        Some(rules.reason(types::Reason { code, detail }))
    }

    /// The outputs of one record, all read, or why one of them can't be produced.
    fn outputs(&mut self, rules: &Rules<'_>) -> Option<Result<Vec<Outgoing>, Reason>> {
        let count = self.u32()?;
        // Nobody's count is believed before the outputs are seen.
        let mut outputs = Vec::with_capacity((count as usize).min(4));
        let mut refused = None;
        for _ in 0..count {
            match self.output(rules)? {
                Ok(output) => outputs.push(output),
                Err(reason) => refused = refused.or(Some(reason)),
            }
        }
        Some(refused.map_or(Ok(outputs), Err))
    }

    fn output(&mut self, rules: &Rules<'_>) -> Option<Result<Outgoing, Reason>> {
        let length = self.u32()?;
        let topic = self.range(length)?;
        let flags = self.byte().filter(|flags| *flags < 4)?;
        let partition = if flags & 1 == 0 { None } else { Some(i32::from_le_bytes(self.array()?)) };
        let timestamp_ms = if flags & 2 == 0 { None } else { Some(i64::from_le_bytes(self.array()?)) };
        let topic = rules.topic(std::str::from_utf8(&self.buffer[topic]).ok()?, partition, timestamp_ms);
        let (key, value, headers) = (self.maybe()?, self.maybe()?, self.headers()?);
        Some(topic.map(|topic| Outgoing { topic, partition, timestamp_ms, key, value, headers }))
    }

    fn headers(&mut self) -> Option<Vec<Header>> {
        let count = self.u32()?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let length = self.u32()?;
            let name = self.range(length)?;
            std::str::from_utf8(&self.buffer[name.clone()]).ok()?;
            let name = self.buffer.slice(name);
            headers.push(Header { name, value: self.maybe()? });
        }
        Some(headers)
    }
}

#[cfg(test)]
mod tests;
