//! The parked topic: what lies in it, and how that is written.
//!
//! A handler has one for each of its topics, with as many partitions: a record is parked in the partition with its own
//! number. There are three kinds of entry, told apart by their headers: a parked record, byte for byte, with headers behind
//! its own that say where it was and why it lies there; a receipt, which names parked records that were handled; and a notice
//! of who has the partition from there on. Receipts and notices have no key and no value.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_core::lanes::LaneId;
use tidemill_core::offset_set::OffsetSet;
use tidemill_core::parked::Source;
use tidemill_core::partition::CallRecord;
use tidemill_core::record::{ChunkBuilder, HeaderRef, Offset, Record, Timestamp, TopicPartition};
use tokio_util::sync::CancellationToken;

use super::Stop;
use super::dead_letter::{DELAY_MAX, DELAY_MIN, STALLED_INTERVAL};
use super::letter::{CODE_BYTES_MAX, MESSAGE_BYTES_MAX, Size, truncated};
use super::told::Told;
use crate::broker::{Header, Outgoing, Position, Producer, SendError, WhenFull};

/// Headers in the parked topic.
mod header {
    /// Who had the partition when it was written. It is the first of ours: what stands before it is the record's own.
    pub(super) const OWNER: &str = "tidemill.parked.owner";
    /// Where the record was: its offset, its time and by whose clock, as `42 1700000000000 create`.
    pub(super) const SOURCE: &str = "tidemill.parked.source";
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
    Parked { owner: Arc<str>, source: Source, why: Option<Why> },
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
        let text = |name: &str| std::str::from_utf8(record.last_header(name)?).ok();
        if let Some(handled) = text(header::HANDLED) {
            let mut set = OffsetSet::default();
            set.read(handled, record.offset());
            return Self::Receipt(set);
        }
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
        Self::Parked { owner: owner.into(), source, why }
    }
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
    let text = std::str::from_utf8(parked.last_header(header::SOURCE)?).ok()?;
    let (source, timestamp) = read_source(text)?;
    let headers: Vec<HeaderRef<'_>> = parked.headers().collect();
    let own = headers.iter().rposition(|header| header.name == header::OWNER.as_bytes())?;
    let mut chunk = ChunkBuilder::with_capacity(1, parked.bytes());
    chunk.push(source.offset, timestamp, parked.key(), parked.value(), headers[..own].iter().copied());
    Arc::new(chunk.build()).records().next()
}

/// A record that is to be parked, and why, if it is the one that failed.
#[derive(Debug)]
pub(crate) struct ToPark {
    pub(crate) record: CallRecord,
    pub(crate) failure: Option<Stop>,
}

/// What was to be written was not before the partition was revoked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GivenUp;

/// Writes the parked topics of one handler.
pub struct ParkedTopics {
    handler: Arc<str>,
    producer: Arc<dyn Producer>,
    stalled: Told,
}

impl ParkedTopics {
    /// Those of a handler.
    pub fn new(handler: Arc<str>, producer: Arc<dyn Producer>) -> Self {
        Self { handler, producer, stalled: Told::default() }
    }

    /// Where a partition's records are parked.
    pub(crate) fn place_of(&self, from: &TopicPartition) -> TopicPartition {
        TopicPartition::new(topic_for(&from.topic, &self.handler), from.partition)
    }

    /// Notes who has the partition from now on. Answers where that stands: what is behind it counts only if it is this owner's.
    pub(crate) async fn claim(&self, place: &TopicPartition, owner: &Arc<str>) -> Result<Offset, SendError> {
        self.send_one(entry(place, header::OWNER, owner.to_string())).await
    }

    /// Notes that parked records were handled; returns once that is acknowledged, however long it takes.
    pub(crate) async fn note(
        &self,
        place: &TopicPartition,
        handled: &OffsetSet,
        revoked: &CancellationToken,
    ) -> Result<(), GivenUp> {
        let mut delay = DELAY_MIN;
        loop {
            match self.send_one(entry(place, header::HANDLED, handled.to_string())).await {
                Ok(_) => return Ok(()),
                Err(error) => self.tell(place, 1, &error),
            }
            wait(&mut delay, revoked).await?;
        }
    }

    async fn send_one(&self, entry: Outgoing) -> Result<Offset, SendError> {
        let silent = || Err(SendError::Unknown("the producer gave no answer".to_owned()));
        let sent = self.producer.send(vec![entry], WhenFull::Wait).await.pop().unwrap_or_else(silent);
        sent.and_then(known)
    }

    /// Parks records; returns where each lies, once that is acknowledged. While they can't be written they wait, and that is
    /// said. Once the partition is revoked what can't be written is given up: `None`, and so is all of a lane behind it.
    ///
    /// The records of a lane stand in order: what was written while one before it failed does not count, which is noted, and is
    /// written again behind that one.
    pub(crate) async fn park(
        &self,
        from: &TopicPartition,
        owner: &Arc<str>,
        records: &[ToPark],
        revoked: &CancellationToken,
    ) -> Vec<Option<Offset>> {
        let place = self.place_of(from);
        let mut places = vec![None; records.len()];
        let mut open: Vec<(usize, Size)> = (0..records.len()).map(|index| (index, Size::Whole)).collect();
        let mut delay = DELAY_MIN;
        loop {
            let entries =
                open.iter().map(|(index, size)| parked(&place, from, owner, &records[*index], *size)).collect();
            let results = self.producer.send(entries, WhenFull::Wait).await.into_iter();
            let silent = || Err(SendError::Unknown("the producer gave no answer".to_owned()));
            let mut failed_lanes: Vec<LaneId> = Vec::new();
            let mut failure = None;
            let mut left = Vec::new();
            let mut ahead = OffsetSet::default();
            for ((index, size), result) in open.into_iter().zip(results.chain(std::iter::repeat_with(silent))) {
                let lane = records[index].record.lane;
                match result.and_then(known) {
                    Ok(at) if !failed_lanes.contains(&lane) => places[index] = Some(at),
                    Ok(at) => {
                        ahead.insert(at, at);
                        left.push((index, size));
                    }
                    Err(error) => {
                        failed_lanes.push(lane);
                        let shorter = matches!(error, SendError::TooLarge(_)) && size == Size::Whole;
                        left.push((index, if shorter { Size::Bare } else { size }));
                        failure = failure.or((!shorter).then_some(error));
                    }
                }
            }
            open = left;
            if ahead.ranges().next().is_some()
                && let Err(error) = self.send_one(entry(&place, header::HANDLED, ahead.to_string())).await
            {
                tracing::debug!(topic = &*place.topic, %error, "what was parked ahead of its turn is not noted");
            }
            if open.is_empty() {
                if self.stalled.is_over() {
                    tracing::info!(handler = &*self.handler, topic = &*place.topic, "records can be parked again");
                }
                return places;
            }
            let Some(error) = failure else { continue };
            self.tell(&place, open.len(), &error);
            if wait(&mut delay, revoked).await.is_err() {
                return places;
            }
        }
    }

    fn tell(&self, place: &TopicPartition, entries: usize, error: &SendError) {
        if self.stalled.is_due(STALLED_INTERVAL) {
            tracing::error!(
                handler = &*self.handler, topic = &*place.topic, partition = place.partition, entries, %error,
                mend = cure(error, place), "the parked topic can't be written; the keys wait, and nothing is skipped"
            );
        }
    }
}

/// The topic in which a handler's records of a topic are parked.
pub fn topic_for(source: &str, handler: &str) -> String {
    format!("{source}.{handler}.parked")
}

/// An acknowledgement without an offset is none: where the record lies is not known.
fn known(position: Position) -> Result<Offset, SendError> {
    if position.offset == Position::UNKNOWN {
        let cure = "the producer does not wait for acknowledgements of the parked topic; leave it out of its `acks`";
        return Err(SendError::Rejected(cure.to_owned()));
    }
    Ok(position.offset)
}

async fn wait(delay: &mut Duration, revoked: &CancellationToken) -> Result<(), GivenUp> {
    tokio::select! {
        biased;
        () = tokio::time::sleep(*delay) => {
            *delay = (*delay * 2).min(DELAY_MAX);
            Ok(())
        }
        () = revoked.cancelled() => Err(GivenUp),
    }
}

/// What an operator can do about a parked topic that can't be written.
fn cure(error: &SendError, place: &TopicPartition) -> String {
    let TopicPartition { topic, partition } = place;
    match error {
        SendError::NoSuchTopic(_) => format!(
            "make it with as many partitions as the source, at least {}: tidemill topic create {topic} --partitions N; \
             and keep it for ever: kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics \
             --entity-name {topic} --add-config retention.ms=-1,retention.bytes=-1",
            partition + 1
        ),
        SendError::Denied(_) => format!(
            "allow it: kafka-acls.sh --bootstrap-server HOST:PORT --add --allow-principal User:NAME \
             --operation Write --operation Read --operation Describe --topic {topic}"
        ),
        SendError::TooLarge(_) => format!(
            "let the topic take it: kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics \
             --entity-name {topic} --add-config max.message.bytes=BYTES; on the embedded log raise `record_bytes_max`"
        ),
        SendError::Rejected(_) => format!("do what the words ask for at topic `{topic}`"),
        SendError::QueueFull | SendError::Unavailable(_) | SendError::Unknown(_) => {
            "nothing: it goes on by itself once the broker answers".to_owned()
        }
    }
}

/// A receipt or a notice.
fn entry(place: &TopicPartition, name: &'static str, value: String) -> Outgoing {
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

/// A parked record.
fn parked(place: &TopicPartition, from: &TopicPartition, owner: &Arc<str>, to_park: &ToPark, size: Size) -> Outgoing {
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
    if size == Size::Whole {
        add(header::ID, record.id(from));
    }
    if let Some(Stop { class, reason, revision, attempts, .. }) = failure {
        add(header::TIME, jiff::Timestamp::now().to_string());
        add(header::CLASS, class.name().to_owned());
        add(header::CODE, truncated(&reason.code, CODE_BYTES_MAX));
        add(header::ATTEMPTS, attempts.to_string());
        add(header::REVISION, revision.to_string());
        if size == Size::Whole {
            add(header::MESSAGE, truncated(&reason.detail, MESSAGE_BYTES_MAX));
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
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tidemill_core::retry::Class;

    use super::*;
    use crate::guest::Reason;

    fn in_the_log(outgoing: &Outgoing) -> Record {
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
            let lies = in_the_log(&parked(&place, &from, &"me".into(), &to_park, size));
            let Entry::Parked { owner, source: found, why: Some(why) } = Entry::of(&lies) else {
                panic!("it is parked")
            };
            assert_eq!((&*owner, found), ("me", Source { offset: 42, millis: 1700 }));
            assert_eq!((why.class.as_str(), why.code.as_str(), &*why.revision), ("trap", "bad", "cafe"));
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
        assert_eq!(read(entry(&place, header::OWNER, "me".to_owned())), Entry::Notice("me".into()));
        let handled = OffsetSet::from_iter([1, 2, 3, 9]);
        assert_eq!(read(entry(&place, header::HANDLED, handled.to_string())), Entry::Receipt(handled));
        assert_eq!(read(entry(&place, "other", String::new())), Entry::Foreign);
    }

    /// Answers as it is told, and keeps what it was sent.
    struct Scripted {
        answers: Mutex<VecDeque<Vec<Result<i64, SendError>>>>,
        sent: Mutex<Vec<Vec<Outgoing>>>,
    }

    impl Producer for Scripted {
        fn send(&self, records: Vec<Outgoing>, _: WhenFull) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
            self.sent.lock().expect("not poisoned").push(records);
            let answers = self.answers.lock().expect("not poisoned").pop_front().expect("an answer is left");
            let position = |answer: Result<i64, _>| answer.map(|offset| Position { partition: 0, offset });
            std::future::ready(answers.into_iter().map(position).collect()).boxed()
        }

        fn ready(&self) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_parked_ahead_of_its_turn_is_taken_back_and_parked_again_in_order() {
        let away = || Err(SendError::Unavailable("away".to_owned()));
        let answers = [vec![away(), Ok(10), Ok(11)], vec![Ok(12)], vec![Ok(20), Ok(21)]];
        let producer = Arc::new(Scripted { answers: Mutex::new(answers.into()), sent: Mutex::default() });
        let topics = ParkedTopics::new("h".into(), Arc::clone(&producer) as Arc<dyn Producer>);
        let to_park = |(offset, lane): (Offset, LaneId)| ToPark {
            record: CallRecord {
                record: Record::single(offset, Some(b"k"), None),
                lane,
                tries: 0,
                charged: 0,
                age: Duration::ZERO,
            },
            failure: None,
        };
        let records: Vec<ToPark> = [(5, 0), (6, 0), (7, 1)].into_iter().map(to_park).collect();
        let from = TopicPartition::new("orders", 0);
        let places = topics.park(&from, &"me".into(), &records, &CancellationToken::new()).await;
        assert_eq!(places, [Some(20), Some(21), Some(11)]);
        let sent = producer.sent.lock().expect("not poisoned");
        let read = |records: &Vec<Outgoing>| records.iter().map(|it| Entry::of(&in_the_log(it))).collect::<Vec<_>>();
        assert_eq!(read(&sent[1]), [Entry::Receipt(OffsetSet::from_iter([10]))]);
        let offsets = |records: &Vec<Outgoing>| {
            let source = |entry| if let Entry::Parked { source, .. } = entry { source.offset } else { -1 };
            read(records).into_iter().map(source).collect::<Vec<_>>()
        };
        assert_eq!((offsets(&sent[0]), offsets(&sent[2])), (vec![5, 6, 7], vec![5, 6]));
    }
}
