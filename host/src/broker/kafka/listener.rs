//! What librdkafka says on its own: its log lines and client-wide errors, brought to the host's log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tokio::time::Instant;

use super::ffi::Event;

/// How often the same kind of problem is told again; while brokers are away it comes several times a second.
const PROBLEM_INTERVAL: Duration = Duration::from_secs(30);

/// Hears one client.
#[derive(Debug)]
pub(super) struct Listener {
    /// Which client it is, for the log.
    client: String,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// When each kind of problem was told last. Bounded by the library's error codes.
    last: BTreeMap<i32, Instant>,
    /// The last cause that the library gave for not reaching a broker.
    cause: Option<String>,
}

impl Listener {
    pub(super) fn new(client: impl Into<String>) -> Self {
        Self { client: client.into(), told: Mutex::default() }
    }

    /// Keeps a problem's cause, and returns its text when it was not told for a while.
    pub(super) fn problem(&self, code: Code, text: &str) -> Option<String> {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if code != Code::AllBrokersDown {
            told.cause = Some(text.to_owned());
        }
        if told.last.get(&(code as i32)).is_some_and(|last| now < *last + PROBLEM_INTERVAL) {
            tracing::debug!(client = self.client, ?code, text, "kafka problem again");
            return None;
        }
        told.last.insert(code as i32, now);
        tracing::warn!(client = self.client, ?code, text, "kafka problem");
        Some(text.to_owned())
    }

    /// The text of an error, with the last cause that the library named beside it: the error alone is "timed out".
    pub(super) fn with_cause(&self, text: &str) -> String {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match &told.cause {
            Some(cause) if !text.contains(cause.as_str()) => format!("{text} (last cause: {cause})"),
            Some(_) | None => text.to_owned(),
        }
    }

    /// Writes a line of the library's log.
    pub(super) fn line(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let client = &*self.client;
        // One set of properties serves consumers and producers, so that each ignores the other's.
        let usual = facility == "CONFWARN" && text.contains("property and will be ignored");
        match level {
            _ if usual => tracing::trace!(client, facility, text, "librdkafka"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                // It is the client's to try again; `problem` tells the operator.
                tracing::warn!(client, facility, text, "librdkafka");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(client, facility, text, "librdkafka"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(client, facility, text, "librdkafka");
            }
        }
    }

    /// Takes in an event that tells something; returns a client-wide error that makes the client useless.
    pub(super) fn hear(&self, event: &Event) -> Option<String> {
        match event {
            Event::Error { code, fatal, text } => {
                let _told = self.problem(*code, text);
                fatal.then(|| text.clone())
            }
            Event::Log { level, facility, text } => {
                self.line(*level, facility, text);
                None
            }
            Event::Delivered { .. } | Event::Committed(_) | Event::Other => None,
        }
    }
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        let _told = self.problem(super::errors::code_of(&error), text);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_problem_is_told_once_in_a_while_and_its_cause_is_kept() {
        let listener = Listener::new("test");
        assert_eq!(listener.problem(Code::Authentication, "wrong password").as_deref(), Some("wrong password"));
        assert_eq!(listener.problem(Code::Authentication, "wrong password"), None);
        assert!(listener.problem(Code::AllBrokersDown, "1/1 brokers are down").is_some());
        assert_eq!(listener.with_cause("timed out"), "timed out (last cause: wrong password)");
        tokio::time::advance(PROBLEM_INTERVAL).await;
        assert!(listener.problem(Code::Authentication, "wrong password").is_some());
    }
}
