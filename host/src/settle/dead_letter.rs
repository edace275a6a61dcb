//! Dead letters: the record byte for byte, with headers that say what happened.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_core::partition::CallRecord;
use tidemill_core::record::TopicPartition;

use super::Failure;
use crate::broker::{Header, Outgoing, Producer, SendError, WhenFull};
use crate::fault::Fault;
use crate::metrics::HandlerMetrics;

/// Where one handler's dead letters go.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    /// The handler's name.
    pub handler: Arc<str>,
    /// Its consumer group.
    pub group: Arc<str>,
    /// The topic; `None`: the record's topic with `.dlq` behind it.
    pub topic: Option<Arc<str>>,
}

/// Longest `tidemill.error.message` in bytes: a letter must not outgrow what its record fitted into.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Waits between attempts to write a letter that the broker does not take.
const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(5);

/// A record whose life ends in a letter, and why.
pub(super) struct Dead<'a> {
    pub(super) from: &'a TopicPartition,
    pub(super) revision: &'a Arc<str>,
    pub(super) record: &'a CallRecord,
    /// Attempts that it cost.
    pub(super) attempts: u32,
    pub(super) failure: &'a Failure,
}

impl DeadLetters {
    /// The dead-letter topic for records of a topic.
    pub fn topic_for(&self, source: &str) -> Arc<str> {
        self.topic.clone().unwrap_or_else(|| format!("{source}.dlq").into())
    }

    /// Writes a record's letter and returns once the broker has acknowledged it, however long that takes.
    ///
    /// The partition stands still meanwhile and says so; nothing is skipped because its letter can't be written.
    pub(super) async fn write(&self, producer: &dyn Producer, metrics: &HandlerMetrics, dead: &Dead<'_>) {
        let Dead { from, revision, record, attempts, failure } = *dead;
        let offset = record.record.offset();
        let class = failure.class.name();
        let letter = self.letter(dead);
        if Fault::LetterNotAwaited.is_on() {
            drop(producer.send(vec![letter], WhenFull::Wait));
            return;
        }
        let mut bare = false;
        let mut delay = DELAY_MIN;
        loop {
            let sent = if bare { without_message(letter.clone()) } else { letter.clone() };
            let error = match producer.send(vec![sent], WhenFull::Wait).await.pop() {
                Some(Ok(position)) => {
                    tracing::warn!(
                        handler = &*self.handler, %from, offset, class, code = failure.reason.code,
                        attempts, revision = crate::attempt::short(revision), letter_partition = position.partition,
                        letter_offset = position.offset, "a record went to the dead-letter topic"
                    );
                    return;
                }
                Some(Err(error)) => error,
                None => SendError::Rejected("the producer gave no answer".to_owned()),
            };
            if matches!(error, SendError::TooLarge(_)) && !bare {
                bare = true;
                continue;
            }
            metrics.dead_letter_failures.inc();
            tracing::error!(
                handler = &*self.handler, %from, offset, class, topic = &*letter.topic, %error,
                "a dead letter can't be written; its lane stands still until it can"
            );
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(DELAY_MAX);
        }
    }

    pub(super) fn letter(&self, dead: &Dead<'_>) -> Outgoing {
        let Dead { from, revision, record, attempts, failure } = *dead;
        let source = &record.record;
        let mut headers: Vec<Header> = source
            .headers()
            .map(|header| Header {
                name: Bytes::copy_from_slice(header.name),
                value: header.value.map(Bytes::copy_from_slice),
            })
            .collect();
        // A letter about a letter keeps the first origin; only the newest failure is added.
        let first = !headers.iter().any(|header| header.name == "tidemill.error.topic");
        let mut add = |name: &'static str, value: String| {
            let name = Bytes::from_static(name.as_bytes());
            headers.push(Header { name, value: Some(Bytes::from(value)) });
        };
        if first {
            add("tidemill.error.id", source.id(from));
            add("tidemill.error.topic", from.topic.to_string());
            add("tidemill.error.partition", from.partition.to_string());
            add("tidemill.error.offset", source.offset().to_string());
        }
        add("tidemill.error.handler", self.handler.to_string());
        add("tidemill.error.group", self.group.to_string());
        add("tidemill.error.revision", revision.to_string());
        add("tidemill.error.class", failure.class.name().to_owned());
        add("tidemill.error.code", truncated(&failure.reason.code, 128));
        add("tidemill.error.attempts", attempts.to_string());
        add("tidemill.error.time", jiff::Timestamp::now().to_string());
        add(MESSAGE, truncated(&failure.reason.detail, MESSAGE_BYTES_MAX));
        Outgoing {
            topic: self.topic_for(&from.topic),
            partition: None,
            timestamp_ms: source.timestamp().millis(),
            key: source.key().map(Bytes::copy_from_slice),
            value: source.value().map(Bytes::copy_from_slice),
            headers,
        }
    }
}

const MESSAGE: &str = "tidemill.error.message";

/// A letter whose record filled the broker's limit: it goes without its longest header.
pub(super) fn without_message(mut letter: Outgoing) -> Outgoing {
    letter.headers.retain(|header| header.name != MESSAGE);
    letter
}

/// Whether a letter has its message.
pub(super) fn has_message(letter: &Outgoing) -> bool {
    letter.headers.iter().any(|header| header.name == MESSAGE)
}

/// At most so many bytes of a text, cut between characters.
fn truncated(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
