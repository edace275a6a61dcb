//! Writing dead letters: acknowledged before their records are settled, for as long as that takes.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::letter::{Dead, HeaderStyle, Size};
use super::told::Told;
use crate::broker::{Position, Producer, SendError, WhenFull};
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
    /// Whose headers a letter has beside our own.
    pub headers: HeaderStyle,
}

/// Waits between attempts to write what the broker does not take.
pub(super) const DELAY_MIN: Duration = Duration::from_millis(100);
pub(super) const DELAY_MAX: Duration = Duration::from_secs(5);
/// How often it is told that something can't be written.
pub(super) const STALLED_INTERVAL: Duration = Duration::from_secs(30);

/// A letter on its way.
struct Open<'a> {
    /// Its place among all that are to be written.
    index: usize,
    dead: &'a Dead<'a>,
    size: Size,
}

impl DeadLetters {
    /// The dead-letter topic for records of a topic.
    pub fn topic_for(&self, source: &str) -> Arc<str> {
        self.topic.clone().unwrap_or_else(|| format!("{source}.dlq").into())
    }

    /// Writes letters and returns once the broker has acknowledged each, however long that takes. Answers which were written.
    ///
    /// Their records wait meanwhile, and that is said; nothing is skipped because its letter can't be written. Once the
    /// partition is revoked a letter that can't be written is given up: whoever gets the partition next fails on the record
    /// again. `stalled` is the handler's memory of when it was said.
    pub(super) async fn write(
        &self,
        producer: &dyn Producer,
        metrics: &HandlerMetrics,
        stalled: &Told,
        revoked: &CancellationToken,
        dead: &[Dead<'_>],
    ) -> Vec<bool> {
        let mut written = vec![false; dead.len()];
        let all = dead.iter().enumerate();
        let mut open: Vec<Open<'_>> = all.map(|(index, dead)| Open { index, dead, size: Size::Whole }).collect();
        if Fault::LetterNotAwaited.is_on() {
            let letters = open.iter().map(|open| open.dead.letter(self, open.size)).collect();
            drop(producer.send(letters, WhenFull::Wait));
            return vec![true; dead.len()];
        }
        let mut delay = DELAY_MIN;
        let mut waiting = None;
        loop {
            let letters = open.iter().map(|open| open.dead.letter(self, open.size)).collect();
            let results = producer.send(letters, WhenFull::Wait).await.into_iter();
            let silent = || Err(SendError::Rejected("the producer gave no answer".to_owned()));
            let mut failure = None;
            let mut left = Vec::new();
            for (open, result) in open.into_iter().zip(results.chain(std::iter::repeat_with(silent))) {
                match result {
                    Ok(position) => {
                        written[open.index] = true;
                        self.written(metrics, open.dead, position);
                    }
                    Err(SendError::TooLarge(_)) if open.size == Size::Whole => {
                        left.push(Open { size: Size::Bare, ..open });
                    }
                    Err(error) => {
                        failure = Some((open.dead, error));
                        left.push(open);
                    }
                }
            }
            open = left;
            if open.is_empty() {
                if waiting.is_some() && stalled.is_over() {
                    tracing::info!(handler = &*self.handler, "dead letters can be written again");
                }
                return written;
            }
            let Some((dead, error)) = failure else { continue };
            metrics.dead_letter_failures.inc_by(open.len() as u64);
            // The earlier number is taken back first.
            drop(waiting.take());
            waiting = Some(Waiting::new(metrics, open.len()));
            if stalled.is_due(STALLED_INTERVAL) {
                self.tell(metrics, dead, &error);
            }
            tokio::select! {
                biased;
                () = revoked.cancelled() => return written,
                () = tokio::time::sleep(delay) => delay = (delay * 2).min(DELAY_MAX),
            }
        }
    }

    fn written(&self, metrics: &HandlerMetrics, dead: &Dead<'_>, position: Position) {
        metrics.dead_letters(dead.failure.class).inc();
        tracing::warn!(
            handler = &*self.handler, from = %dead.from, offset = dead.record.record.offset(),
            class = dead.failure.class.name(), code = dead.failure.reason.code, attempts = dead.attempts,
            revision = crate::attempt::short(dead.revision), letter_partition = position.partition,
            letter_offset = position.offset, "a record went to the dead-letter topic"
        );
    }

    fn tell(&self, metrics: &HandlerMetrics, dead: &Dead<'_>, error: &SendError) {
        let topic = self.topic_for(&dead.from.topic);
        tracing::error!(
            handler = &*self.handler, from = %dead.from, offset = dead.record.record.offset(),
            class = dead.failure.class.name(), topic = &*topic, letters = metrics.dead_letters_waiting.get(), %error,
            mend = cure(error, &topic), "dead letters can't be written; their records wait, and nothing is skipped"
        );
    }
}

/// What an operator can do about a letter that can't be written.
fn cure(error: &SendError, topic: &str) -> String {
    match error {
        SendError::NoSuchTopic(_) => format!("make it: tidemill topic create {topic} --partitions N"),
        SendError::Denied(_) => format!(
            "allow it: kafka-acls.sh --bootstrap-server HOST:PORT --add --allow-principal User:NAME \
             --operation Write --operation Describe --topic {topic}"
        ),
        SendError::TooLarge(_) => format!(
            "let the topic take it: kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics \
             --entity-name {topic} --add-config max.message.bytes=BYTES; on the embedded log raise `record_bytes_max`"
        ),
        SendError::Rejected(_) => {
            format!(
                "do what the broker's words ask for at topic `{topic}`, or name another one in `dead_letters.topic`"
            )
        }
        SendError::QueueFull | SendError::Unavailable(_) | SendError::Unknown(_) => {
            "nothing: it goes on by itself once the broker answers".to_owned()
        }
    }
}

/// Letters that wait to be written, counted until they are or nobody waits any more.
struct Waiting<'a> {
    metrics: &'a HandlerMetrics,
    letters: i64,
}

impl<'a> Waiting<'a> {
    fn new(metrics: &'a HandlerMetrics, letters: usize) -> Self {
        let letters = letters as i64;
        metrics.dead_letters_waiting.inc_by(letters);
        Self { metrics, letters }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.metrics.dead_letters_waiting.dec_by(self.letters);
    }
}
