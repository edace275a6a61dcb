//! A dead letter: the record byte for byte, with headers behind its own that say what happened.

use bytes::Bytes;
use serde::Deserialize;
use tidemill_core::partition::CallRecord;
use tidemill_core::record::{Record, Timestamp, TopicPartition};

use super::{DeadLetters, Failure};
use crate::broker::{Header, Outgoing};

/// Headers of every letter. What a record had before the first of them is its own.
pub mod header {
    /// What all of them begin with.
    pub const PREFIX: &str = "tidemill.error.";
    /// The record's id.
    pub const ID: &str = "tidemill.error.id";
    /// Where it was.
    pub const TOPIC: &str = "tidemill.error.topic";
    /// Where it was.
    pub const PARTITION: &str = "tidemill.error.partition";
    /// Where it was.
    pub const OFFSET: &str = "tidemill.error.offset";
    /// Which handler failed.
    pub const HANDLER: &str = "tidemill.error.handler";
    /// Its consumer group.
    pub const GROUP: &str = "tidemill.error.group";
    /// On which revision, by the whole digest.
    pub const REVISION: &str = "tidemill.error.revision";
    /// The class of the failure.
    pub const CLASS: &str = "tidemill.error.class";
    /// The guest's or the host's code.
    pub const CODE: &str = "tidemill.error.code";
    /// Attempts that it cost.
    pub const ATTEMPTS: &str = "tidemill.error.attempts";
    /// When, as RFC 3339.
    pub const TIME: &str = "tidemill.error.time";
    /// In words; may be left out.
    pub const MESSAGE: &str = "tidemill.error.message";
}

/// Longest message in bytes: a letter must not outgrow what its record fitted into.
pub(super) const MESSAGE_BYTES_MAX: usize = 1024;
/// Longest code in bytes.
pub(super) const CODE_BYTES_MAX: usize = 128;

/// Whose names for headers a letter has beside our own, for tools that read those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderStyle {
    /// Nobody's.
    #[default]
    Native,
    /// Kafka Connect's: `__connect.errors.*`, all texts.
    Connect,
    /// Spring for Apache Kafka's: `kafka_dlt-*`, numbers in big-endian binary.
    Spring,
}

/// A record whose life ends in a letter, and why.
#[derive(Debug)]
pub(super) struct Dead<'a> {
    pub(super) from: &'a TopicPartition,
    pub(super) revision: &'a str,
    pub(super) record: &'a CallRecord,
    /// Attempts that it cost.
    pub(super) attempts: u32,
    pub(super) failure: Failure,
}

/// How much of a letter is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Whole,
    /// Without the message and without others' names: its record filled what the broker takes.
    Bare,
}

impl Dead<'_> {
    /// The letter to be sent.
    pub(super) fn letter(&self, to: &DeadLetters, size: Size) -> Outgoing {
        let record = &self.record.record;
        let copied = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        let own = record.headers().map(|header| Header { name: copied(header.name), value: header.value.map(copied) });
        let mut headers = Headers(own.collect());
        self.native(to, size, &mut headers);
        match to.headers {
            _ if size == Size::Bare => {}
            HeaderStyle::Native => {}
            HeaderStyle::Connect => self.connect(to, &mut headers),
            HeaderStyle::Spring => self.spring(to, &mut headers),
        }
        Outgoing {
            topic: to.topic_for(&self.from.topic),
            partition: None,
            timestamp_ms: record.timestamp().millis(),
            key: record.shared_key(),
            value: record.shared_value(),
            headers: headers.0,
        }
    }

    fn native(&self, to: &DeadLetters, size: Size, headers: &mut Headers) {
        let record = &self.record.record;
        // A letter about a letter keeps the first origin; only the newest failure is added.
        if !headers.has(header::TOPIC) {
            headers.text(header::ID, record.id(self.from));
            headers.text(header::TOPIC, self.from.topic.to_string());
            headers.text(header::PARTITION, self.from.partition.to_string());
            headers.text(header::OFFSET, record.offset().to_string());
        }
        headers.text(header::HANDLER, to.handler.to_string());
        headers.text(header::GROUP, to.group.to_string());
        headers.text(header::REVISION, self.revision.to_owned());
        headers.text(header::CLASS, self.failure.class.name().to_owned());
        headers.text(header::CODE, truncated(&self.failure.reason.code, CODE_BYTES_MAX));
        headers.text(header::ATTEMPTS, self.attempts.to_string());
        headers.text(header::TIME, jiff::Timestamp::now().to_string());
        if size == Size::Whole {
            headers.text(header::MESSAGE, truncated(&self.failure.reason.detail, MESSAGE_BYTES_MAX));
        }
    }

    /// As `DeadLetterQueueReporter` of Kafka Connect writes them. There is no stack trace.
    fn connect(&self, to: &DeadLetters, headers: &mut Headers) {
        if !headers.has("__connect.errors.topic") {
            headers.text("__connect.errors.topic", self.from.topic.to_string());
            headers.text("__connect.errors.partition", self.from.partition.to_string());
            headers.text("__connect.errors.offset", self.record.record.offset().to_string());
        }
        headers.text("__connect.errors.connector.name", to.handler.to_string());
        headers.text("__connect.errors.task.id", self.from.partition.to_string());
        headers.text("__connect.errors.stage", "TASK_PUT".to_owned());
        headers.text("__connect.errors.class.name", format!("tidemill.{}", to.handler));
        headers.text("__connect.errors.exception.class.name", self.exception());
        headers.text("__connect.errors.exception.message", self.message());
    }

    /// As `DeadLetterPublishingRecoverer` of Spring for Apache Kafka writes them. There is no stack trace.
    fn spring(&self, to: &DeadLetters, headers: &mut Headers) {
        let record = &self.record.record;
        if !headers.has("kafka_dlt-original-topic") {
            let (kind, millis) = match record.timestamp() {
                Timestamp::None => ("NoTimestampType", -1),
                Timestamp::Create(millis) => ("CreateTime", millis),
                Timestamp::LogAppend(millis) => ("LogAppendTime", millis),
            };
            headers.text("kafka_dlt-original-topic", self.from.topic.to_string());
            headers.bytes("kafka_dlt-original-partition", &self.from.partition.to_be_bytes());
            headers.bytes("kafka_dlt-original-offset", &record.offset().to_be_bytes());
            headers.bytes("kafka_dlt-original-timestamp", &millis.to_be_bytes());
            headers.text("kafka_dlt-original-timestamp-type", kind.to_owned());
            headers.text("kafka_dlt-original-consumer-group", to.group.to_string());
        }
        headers.text("kafka_dlt-exception-fqcn", self.exception());
        headers.text("kafka_dlt-exception-message", self.message());
    }

    /// What others call the class of an exception.
    fn exception(&self) -> String {
        format!("tidemill.{}", self.failure.class.name())
    }

    fn message(&self) -> String {
        let super::Reason { code, detail } = &self.failure.reason;
        truncated(&format!("{code}: {detail}"), MESSAGE_BYTES_MAX)
    }
}

struct Headers(Vec<Header>);

impl Headers {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|header| header.name == name)
    }

    fn text(&mut self, name: &'static str, value: String) {
        self.0.push(Header { name: Bytes::from_static(name.as_bytes()), value: Some(value.into()) });
    }

    fn bytes(&mut self, name: &'static str, value: &[u8]) {
        self.0.push(Header { name: Bytes::from_static(name.as_bytes()), value: Some(Bytes::copy_from_slice(value)) });
    }
}

/// What a letter's headers say. What is missing or can't be read is left out: others may write to the topic too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// The record's id.
    pub id: Option<String>,
    /// Where it was.
    pub topic: Option<String>,
    /// Where it was.
    pub partition: Option<i32>,
    /// Where it was.
    pub offset: Option<i64>,
    /// Which handler failed.
    pub handler: Option<String>,
    /// Its consumer group.
    pub group: Option<String>,
    /// On which revision.
    pub revision: Option<String>,
    /// The class of the failure.
    pub class: Option<String>,
    /// The code.
    pub code: Option<String>,
    /// Attempts that it cost.
    pub attempts: Option<u32>,
    /// When it failed.
    pub time: Option<jiff::Timestamp>,
    /// In words.
    pub message: Option<String>,
}

impl Account {
    /// Reads a letter; `None` if the record is none.
    pub fn of(record: &Record) -> Option<Self> {
        let text = |name: &str| Some(std::str::from_utf8(record.last_header(name)?).ok()?.to_owned());
        let told = Self {
            id: text(header::ID),
            topic: text(header::TOPIC),
            partition: text(header::PARTITION).and_then(|text| text.parse().ok()),
            offset: text(header::OFFSET).and_then(|text| text.parse().ok()),
            handler: text(header::HANDLER),
            group: text(header::GROUP),
            revision: text(header::REVISION),
            class: text(header::CLASS),
            code: text(header::CODE),
            attempts: text(header::ATTEMPTS).and_then(|text| text.parse().ok()),
            time: text(header::TIME).and_then(|text| text.parse().ok()),
            message: text(header::MESSAGE),
        };
        (told != Self::default()).then_some(told)
    }
}

/// At most so many bytes of a text, cut between characters.
pub(super) fn truncated(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
