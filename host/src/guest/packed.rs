//! A batch and its outcomes in one buffer each, as `packed-handler` in `wit/` says.
//!
//! Outputs are slices of the guest's answer: nothing is copied and nothing allocated for each of them.

use std::time::Duration;

use bytes::Bytes;
use tidemill_core::partition::CallRecord;
use tidemill_core::record::{Timestamp, TopicPartition};
use tidemill_core::retry::Class;

use super::bindings::tidemill::guest::types;
use super::convert::{Rules, surplus};
use super::{CallError, Outcome, Reason};
use crate::broker::{Header, Outgoing};

/// The length of what is `none`.
const NONE: u32 = u32::MAX;

/// Writes the records of a call into `buffer`, over what was there.
pub(super) fn records(from: &TopicPartition, records: &[CallRecord], buffer: &mut Vec<u8>) -> Result<(), CallError> {
    let mut digits = itoa::Buffer::new();
    let source = format!("{from}/");
    buffer.clear();
    put(buffer, records.len())?;
    for CallRecord { record, tries, .. } in records {
        let at = buffer.len();
        put(buffer, 0)?;
        if let Some(id) = record.first_id(&from.topic) {
            buffer.extend_from_slice(id.as_bytes());
        } else {
            let millis = record.timestamp().millis().unwrap_or(-1);
            buffer.extend_from_slice(source.as_bytes());
            buffer.extend_from_slice(digits.format(record.offset()).as_bytes());
            buffer.push(b'/');
            buffer.extend_from_slice(digits.format(millis).as_bytes());
        }
        let id = length(buffer.len() - at - size_of::<u32>())?;
        buffer[at..at + size_of::<u32>()].copy_from_slice(&id.to_le_bytes());

        buffer.extend_from_slice(&record.offset().to_le_bytes());
        let (kind, millis) = match record.timestamp() {
            Timestamp::None => (0, 0),
            Timestamp::Create(millis) => (1, millis),
            Timestamp::LogAppend(millis) => (2, millis),
        };
        buffer.push(kind);
        buffer.extend_from_slice(&millis.to_le_bytes());
        buffer.extend_from_slice(&tries.saturating_add(1).to_le_bytes());
        put_maybe(buffer, record.key())?;
        put_maybe(buffer, record.value())?;
        let headers = record.headers();
        put(buffer, headers.len())?;
        for header in headers {
            put_maybe(buffer, Some(header.name))?;
            put_maybe(buffer, header.value)?;
        }
    }
    Ok(())
}

fn put(buffer: &mut Vec<u8>, number: usize) -> Result<(), CallError> {
    buffer.extend_from_slice(&length(number)?.to_le_bytes());
    Ok(())
}

fn put_maybe(buffer: &mut Vec<u8>, bytes: Option<&[u8]>) -> Result<(), CallError> {
    match bytes {
        Some(bytes) => {
            put(buffer, bytes.len())?;
            buffer.extend_from_slice(bytes);
        }
        None => buffer.extend_from_slice(&NONE.to_le_bytes()),
    }
    Ok(())
}

fn length(number: usize) -> Result<u32, CallError> {
    let length = u32::try_from(number).ok().filter(|length| *length != NONE);
    length.ok_or_else(|| CallError { class: Class::Memory, detail: "the batch is larger than a guest's memory".into() })
}

/// One outcome for each record from a guest's answer: missing ones are filled up, surplus ones are an error.
pub(super) fn outcomes(rules: &Rules<'_>, given: Vec<u8>, records: usize) -> Result<Vec<Outcome>, CallError> {
    let mut from = Reader { buffer: Bytes::from(given), at: 0 };
    let mut outcomes = Vec::with_capacity(records);
    while !from.is_at_end() {
        if outcomes.len() == records {
            return Err(surplus(records + 1, records));
        }
        let outcome = from.outcome(rules).ok_or_else(|| CallError {
            class: Class::Malformed,
            detail: format!("the guest's buffer of outcomes is not what the contract says, from byte {} on", from.at),
        })?;
        outcomes.push(outcome);
    }
    outcomes.resize_with(records, || Outcome::Untouched);
    Ok(outcomes)
}

/// Reads on from a place; `None` when the buffer does not hold what should come.
struct Reader {
    buffer: Bytes,
    at: usize,
}

impl Reader {
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
