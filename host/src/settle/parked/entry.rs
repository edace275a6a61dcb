//! What an entry of the parked topic says, and how it is written.
//!
//! There are three kinds, told apart by their headers: a parked record, byte for byte, with headers behind its own that say
//! where it was and why it lies there; a receipt, which names parked records that were handled; and a notice of who has the
//! partition from there on. Receipts and notices have no key and no value.

use std::sync::Arc;

use bytes::Bytes;
use tidemill_core::offset_set::OffsetSet;
use tidemill_core::parked::{Source, Written};
use tidemill_core::partition::CallRecord;
use tidemill_core::record::{ChunkBuilder, HeaderRef, Offset, Record, Timestamp, TopicPartition};

use super::ToPark;
use crate::broker::{Header, Outgoing};
use crate::settle::Stop;
use crate::settle::letter::{CODE_BYTES_MAX, MESSAGE_BYTES_MAX, Size, truncated};

/// Headers in the parked topic.
mod header {
    /// Who had the partition when it was written. It is the first of ours: what stands before it is the record's own.
    pub(super) const OWNER: &str = "tidemill.parked.owner";
    /// Where the record was: its offset, its time and by whose clock, as `42 1700000000000 create`.
    pub(super) const SOURCE: &str = "tidemill.parked.source";
    /// The record of its key that was written just before it at once with it, by its offset: where that is missing, it does
    /// not count.
    pub(super) const BEHIND: &str = "tidemill.parked.behind";
    /// Its id.
    pub(super) const ID: &str = "tidemill.parked.id";
    /// When it was parked, as RFC 3339.
    pub(super) const TIME: &str = "tidemill.parked.time";
    /// Of the record that failed: the class of the failure.
    pub(super) const CLASS: &str = "tidemill.parked.class";
    /// Of the record that failed: the guest's or the host's code.
    pub(super) const CODE: &str = "tidemill.parked.code";
    /// Of the record that failed: attempts that it cost.
    pub(super) const ATTEMPTS: &str = "tidemill.parked.attempts";
    /// Of the record that failed: on which revision.
    pub(super) const REVISION: &str = "tidemill.parked.revision";
    /// Of the record that failed: in words; may be left out.
    pub(super) const MESSAGE: &str = "tidemill.parked.message";
    /// Of a receipt: what was handled.
    pub(super) const HANDLED: &str = "tidemill.parked.handled";
}

/// What an entry of the parked topic says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A parked record.
    Parked(Written<Why>),
    /// Records that were handled.
    Receipt(OffsetSet),
    /// Who has the partition from here on.
    Notice(Arc<str>),
    /// Somebody else's record.
    Foreign,
}

/// Why a key is parked: the failure of its first record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Why {
    /// The class of the failure.
    pub class: String,
    /// For machines.
    pub code: String,
    /// For people.
    pub detail: String,
    /// The digest of the revision on which it failed.
    pub revision: Arc<str>,
    /// When, as RFC 3339.
    pub since: String,
}

impl Why {
    /// The same of a failure just now, as it is written too.
    pub(crate) fn of(stop: &Stop) -> Self {
        Self {
            class: stop.class.name().to_owned(),
            code: truncated(&stop.reason.code, CODE_BYTES_MAX),
            detail: truncated(&stop.reason.detail, MESSAGE_BYTES_MAX),
            revision: Arc::clone(&stop.revision),
            since: jiff::Timestamp::now().to_string(),
        }
    }
}

impl Entry {
    /// Reads an entry. What can't be read is somebody else's: others may write to the topic too.
    pub(crate) fn of(record: &Record) -> Self {
        let Some((_, ours)) = own_and_ours(record) else {
            let Some(handled) = record.last_header(header::HANDLED) else { return Self::Foreign };
            let mut set = OffsetSet::default();
            set.read(&String::from_utf8_lossy(handled), record.offset());
            return Self::Receipt(set);
        };
        let text = |name: &str| {
            let found = ours.iter().find(|header| header.name == name.as_bytes());
            std::str::from_utf8(found?.value?).ok()
        };
        let Some(owner) = text(header::OWNER) else { return Self::Foreign };
        let Some((source, _)) = text(header::SOURCE).and_then(read_source) else { return Self::Notice(owner.into()) };
        let said = |name: &str| text(name).unwrap_or_default().to_owned();
        let why = text(header::CLASS).map(|class| Why {
            class: class.to_owned(),
            code: said(header::CODE),
            detail: said(header::MESSAGE),
            revision: said(header::REVISION).into(),
            since: said(header::TIME),
        });
        let behind = text(header::BEHIND).and_then(|behind| behind.parse().ok());
        Self::Parked(Written { at: record.offset(), source, behind, owner: owner.into(), why })
    }
}

/// The headers of what is parked, and ours behind them, whatever the record's own are called; `None` if there are none of ours.
fn own_and_ours(record: &Record) -> Option<(Vec<HeaderRef<'_>>, Vec<HeaderRef<'_>>)> {
    let mut own: Vec<HeaderRef<'_>> = record.headers().collect();
    let at = own.iter().rposition(|header| header.name == header::OWNER.as_bytes())?;
    let ours = own.split_off(at);
    Some((own, ours))
}

fn read_source(text: &str) -> Option<(Source, Timestamp)> {
    let mut parts = text.split(' ');
    let (offset, millis) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let timestamp = match parts.next()? {
        "create" => Timestamp::Create(millis),
        "append" => Timestamp::LogAppend(millis),
        _ => Timestamp::None,
    };
    Some((Source { offset, millis }, timestamp))
}

/// Where a record stands in its source.
pub(crate) fn source_of(record: &Record) -> Source {
    Source { offset: record.offset(), millis: record.timestamp().millis().unwrap_or(-1) }
}

/// The record as it was in its source: with its own offset, time and headers, and so with its id.
pub(crate) fn restored(parked: &Record) -> Option<Record> {
    let (own, ours) = own_and_ours(parked)?;
    let source = ours.iter().find(|header| header.name == header::SOURCE.as_bytes())?;
    let (source, timestamp) = read_source(std::str::from_utf8(source.value?).ok()?)?;
    let mut chunk = ChunkBuilder::with_capacity(1, parked.bytes());
    chunk.push(source.offset, timestamp, parked.key(), parked.value(), own);
    Arc::new(chunk.build()).records().next()
}

/// Notes who has the partition from there on.
pub(super) fn notice(place: &TopicPartition, owner: &Arc<str>) -> Outgoing {
    without_record(place, header::OWNER, owner.to_string())
}

/// Notes what was handled.
pub(super) fn receipt(place: &TopicPartition, handled: &OffsetSet) -> Outgoing {
    without_record(place, header::HANDLED, handled.to_string())
}

fn without_record(place: &TopicPartition, name: &'static str, value: String) -> Outgoing {
    Outgoing {
        topic: Arc::clone(&place.topic),
        partition: Some(place.partition),
        timestamp_ms: None,
        key: None,
        value: None,
        headers: vec![header(name, value)],
    }
}

fn header(name: &'static str, value: String) -> Header {
    Header { name: Bytes::from_static(name.as_bytes()), value: Some(value.into()) }
}

/// Who parks, from where to where.
pub(super) struct Way<'a> {
    pub(super) from: &'a TopicPartition,
    pub(super) place: &'a TopicPartition,
    pub(super) owner: &'a Arc<str>,
}

/// A parked record. `behind` is the offset of the one of its key that is written at once with it and before it.
pub(super) fn parked(way: &Way<'_>, to_park: &ToPark, behind: Option<Offset>, size: Size) -> Outgoing {
    let Way { from, place, owner } = way;
    let ToPark { record: CallRecord { record, .. }, failure } = to_park;
    let copied = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    let own = record.headers().map(|header| Header { name: copied(header.name), value: header.value.map(copied) });
    let mut headers: Vec<Header> = own.collect();
    let mut add = |name: &'static str, value: String| headers.push(header(name, value));
    let (millis, clock) = match record.timestamp() {
        Timestamp::None => (-1, "none"),
        Timestamp::Create(millis) => (millis, "create"),
        Timestamp::LogAppend(millis) => (millis, "append"),
    };
    add(header::OWNER, owner.to_string());
    add(header::SOURCE, format!("{} {millis} {clock}", record.offset()));
    if let Some(behind) = behind {
        add(header::BEHIND, behind.to_string());
    }
    if size == Size::Whole {
        add(header::ID, record.id(from));
    }
    if let Some(stop) = failure {
        let Why { class, code, detail, revision, since } = Why::of(stop);
        add(header::TIME, since);
        add(header::CLASS, class);
        add(header::CODE, code);
        add(header::ATTEMPTS, stop.attempts.to_string());
        add(header::REVISION, revision.to_string());
        if size == Size::Whole {
            add(header::MESSAGE, detail);
        }
    }
    Outgoing {
        topic: Arc::clone(&place.topic),
        partition: Some(place.partition),
        timestamp_ms: record.timestamp().millis(),
        key: record.shared_key(),
        value: record.shared_value(),
        headers,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use tidemill_core::retry::Class;

    use super::*;
    use crate::guest::Reason;

    pub(in crate::settle::parked) fn in_the_log(outgoing: &Outgoing) -> Record {
        let mut chunk = ChunkBuilder::default();
        let headers = outgoing.headers.iter();
        let headers = headers.map(|header| HeaderRef { name: &header.name, value: header.value.as_deref() });
        chunk.push(70, Timestamp::Create(1), outgoing.key.as_deref(), outgoing.value.as_deref(), headers);
        Arc::new(chunk.build()).records().next().expect("one record")
    }

    fn source() -> Record {
        let mut chunk = ChunkBuilder::default();
        let own = [
            HeaderRef { name: b"a", value: None },
            HeaderRef { name: b"\xff", value: Some(b"1") },
            // It was read from another handler's parked topic.
            HeaderRef { name: header::OWNER.as_bytes(), value: Some(b"another") },
            HeaderRef { name: header::SOURCE.as_bytes(), value: Some(b"1 2 create") },
            HeaderRef { name: header::BEHIND.as_bytes(), value: Some(b"0") },
            HeaderRef { name: header::CLASS.as_bytes(), value: Some(b"none") },
            HeaderRef { name: header::HANDLED.as_bytes(), value: Some(b"0-100") },
        ];
        chunk.push(42, Timestamp::LogAppend(1700), None, Some(b""), own);
        Arc::new(chunk.build()).records().next().expect("one record")
    }

    #[test]
    fn a_parked_record_comes_back_as_it_was_whatever_its_own_headers_say() {
        let (from, place) = (TopicPartition::new("orders", 3), TopicPartition::new("orders.h.parked", 3));
        let record = CallRecord { record: source(), lane: 0, tries: 5, charged: 5, age: Duration::ZERO };
        let reason = Reason { code: "bad".to_owned(), detail: "it is".to_owned() };
        let stop = Stop { offset: 42, class: Class::Trap, reason, revision: "cafe".into(), attempts: 5 };
        let to_park = ToPark { record, failure: Some(stop) };
        for size in [Size::Whole, Size::Bare] {
            let way = Way { from: &from, place: &place, owner: &"me".into() };
            let lies = in_the_log(&parked(&way, &to_park, Some(40), size));
            let Entry::Parked(Written { at, source: found, behind, owner, why: Some(why) }) = Entry::of(&lies) else {
                panic!("it is parked")
            };
            assert_eq!((at, found, behind), (70, Source { offset: 42, millis: 1700 }, Some(40)));
            assert_eq!((&*owner, why.class.as_str(), why.code.as_str(), &*why.revision), ("me", "trap", "bad", "cafe"));
            let (before, after) = (source(), restored(&lies).expect("it is parked"));
            assert_eq!(
                (before.offset(), before.timestamp(), before.id(&from)),
                (after.offset(), after.timestamp(), after.id(&from))
            );
            assert_eq!((before.key(), before.value()), (after.key(), after.value()));
            assert_eq!(before.headers().collect::<Vec<_>>(), after.headers().collect::<Vec<_>>());
        }
    }

    #[test]
    fn receipts_and_notices_are_told_from_records() {
        let place = TopicPartition::new("p", 0);
        let read = |outgoing: Outgoing| Entry::of(&in_the_log(&outgoing));
        assert_eq!(read(notice(&place, &"me".into())), Entry::Notice("me".into()));
        let handled = OffsetSet::from_iter([1, 2, 3, 9]);
        assert_eq!(read(receipt(&place, &handled)), Entry::Receipt(handled));
        assert_eq!(read(without_record(&place, "other", String::new())), Entry::Foreign);
    }
}
