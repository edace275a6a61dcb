//! Between the host's records and the contract's: lowering borrows, lifting moves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_core::grants::{Denied, Kind};
use tidemill_core::partition::CallRecord;
use tidemill_core::record::Timestamp;
use tidemill_core::retry::Class;

use super::bindings::tidemill::guest::types::{self, HeaderParam, SourceRecord};
use super::output::cut;
use super::{CallError, Outcome, Reason};
use crate::attempt::Attempt;
use crate::broker::{Header, Outgoing};

/// The ids of a call's records, in one buffer.
pub(super) struct Ids {
    text: String,
    ends: Vec<usize>,
}

impl Ids {
    pub(super) fn new(attempt: &Attempt) -> Self {
        let mut digits = itoa::Buffer::new();
        let prefix = format!("{}/{}/", attempt.from.topic, attempt.from.partition);
        let mut text = String::with_capacity(attempt.records.len() * (prefix.len() + 28));
        let mut ends = Vec::with_capacity(attempt.records.len());
        for CallRecord { record, .. } in &attempt.records {
            if let Some(id) = record.first_id(&attempt.from.topic) {
                text.push_str(id);
            } else {
                let millis = record.timestamp().millis().unwrap_or(-1);
                text.push_str(&prefix);
                text.push_str(digits.format(record.offset()));
                text.push('/');
                text.push_str(digits.format(millis));
            }
            ends.push(text.len());
        }
        Self { text, ends }
    }

    pub(super) fn get(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[index]]
    }
}

/// The headers of all records of a call, one after another.
pub(super) fn lower_headers(records: &[CallRecord]) -> Result<Vec<HeaderParam<'_>>, CallError> {
    let mut headers = Vec::with_capacity(records.iter().map(|record| record.record.headers().len()).sum());
    for record in records {
        for header in record.record.headers() {
            let name = std::str::from_utf8(header.name).map_err(|_| CallError {
                class: Class::Malformed,
                detail: "a header's name is not UTF-8, so the record can't be shown to a guest".to_owned(),
            })?;
            headers.push(HeaderParam { name, value: header.value });
        }
    }
    Ok(headers)
}

/// The records of a call, by reference.
pub(super) fn lower_records<'a>(
    records: &'a [CallRecord],
    ids: &'a Ids,
    mut headers: &'a [HeaderParam<'a>],
) -> Vec<SourceRecord<'a>> {
    let lower = |(index, CallRecord { record, tries, .. }): (usize, &'a CallRecord)| {
        let (own, rest) = headers.split_at(record.headers().len());
        headers = rest;
        SourceRecord {
            id: ids.get(index),
            offset: record.offset(),
            timestamp: match record.timestamp() {
                Timestamp::None => types::Timestamp::None,
                Timestamp::Create(millis) => types::Timestamp::CreateTime(millis),
                Timestamp::LogAppend(millis) => types::Timestamp::LogAppendTime(millis),
            },
            key: record.key(),
            value: record.value(),
            headers: own,
            attempt: tries.saturating_add(1),
        }
    };
    records.iter().enumerate().map(lower).collect()
}

/// What a guest's answer is held against.
pub(super) struct Rules<'a> {
    /// The topics that are granted.
    pub(super) topics: &'a BTreeSet<Arc<str>>,
    /// Bytes of a reason's detail.
    pub(super) reason_bytes_max: usize,
    /// Whether a host call of this attempt said that something is away.
    pub(super) something_is_away: bool,
}

impl Rules<'_> {
    /// One outcome for each record: missing ones are filled up, surplus ones are an error.
    pub(super) fn lift(&self, given: Vec<types::Outcome>, records: usize) -> Result<Vec<Outcome>, CallError> {
        if given.len() > records {
            return Err(surplus(given.len(), records));
        }
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(records);
        outcomes.extend(given.into_iter().map(|outcome| self.outcome(outcome)));
        outcomes.resize_with(records, || Outcome::Untouched);
        Ok(outcomes)
    }

    /// The guest's reason, cut to its bound.
    pub(super) fn reason(&self, reason: types::Reason) -> Reason {
        const CODE_BYTES_MAX: usize = 100;
        Reason { code: shorten(reason.code, CODE_BYTES_MAX), detail: shorten(reason.detail, self.reason_bytes_max) }
    }

    fn outcome(&self, outcome: types::Outcome) -> Outcome {
        match outcome {
            types::Outcome::Ack(outputs) => match outputs.into_iter().map(|output| self.output(output)).collect() {
                Ok(outputs) => Outcome::Ack(outputs),
                Err(reason) => Outcome::DeadLetter(reason),
            },
            types::Outcome::Skip => Outcome::Skip,
            types::Outcome::Retry(retry) => Outcome::Retry {
                after: retry.after_ms.map(|millis| Duration::from_millis(millis.into())),
                reason: self.reason(retry.reason),
                unavailable: retry.unavailable && self.something_is_away,
            },
            types::Outcome::DeadLetter(reason) => Outcome::DeadLetter(self.reason(reason)),
            types::Outcome::Untouched => Outcome::Untouched,
        }
    }

    fn output(&self, output: types::Outgoing) -> Result<Outgoing, Reason> {
        let topic = self.topic(&output.topic, output.partition, output.timestamp_ms)?;
        Ok(lift_outgoing(topic, output))
    }

    /// The granted topic of an output that can be produced.
    pub(super) fn topic(
        &self,
        name: &str,
        partition: Option<i32>,
        timestamp_ms: Option<i64>,
    ) -> Result<Arc<str>, Reason> {
        let Some(topic) = self.topics.get(name) else {
            let denied = Denied { kind: Kind::Produce, name: cut(name, 249).to_owned() };
            return Err(Reason { code: "access-denied".to_owned(), detail: format!("topic {denied}") });
        };
        let wrong = |what: &str| Reason {
            code: "malformed-output".to_owned(),
            detail: format!("an output for `{topic}` has {what}"),
        };
        if partition.is_some_and(|partition| partition < 0) {
            return Err(wrong("a partition below 0"));
        }
        if timestamp_ms.is_some_and(|millis| millis < 0) {
            return Err(wrong("a timestamp below 0"));
        }
        Ok(Arc::clone(topic))
    }
}

/// More outcomes than records: nobody knows which is whose.
pub(super) fn surplus(given: usize, records: usize) -> CallError {
    CallError { class: Class::Malformed, detail: format!("the guest gave {given} outcomes for {records} records") }
}

/// Moves a guest's output; only its topic is exchanged for the host's own.
pub(super) fn lift_outgoing(topic: Arc<str>, output: types::Outgoing) -> Outgoing {
    let header = |header: types::HeaderResult| Header {
        name: header.name.into_bytes().into(),
        value: header.value.map(Bytes::from),
    };
    Outgoing {
        topic,
        partition: output.partition,
        timestamp_ms: output.timestamp_ms,
        key: output.key.map(Bytes::from),
        value: output.value.map(Bytes::from),
        headers: output.headers.into_iter().map(header).collect(),
    }
}

fn shorten(mut text: String, bytes_max: usize) -> String {
    text.truncate(cut(&text, bytes_max).len());
    text
}
