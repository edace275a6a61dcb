//! What an operator may say about ingest.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use tidemill_core::record::is_topic_name;

use crate::config::units::{SecretRef, Size, Span};
use crate::http::{InvalidToken, Token};

/// The section `[ingest]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen; default `127.0.0.1:8080`, so that nobody else on the network can write.
    pub listen: SocketAddr,
    /// The topics that take records; there is no default.
    pub topics: Vec<String>,
    /// The token that requests must carry; default: none.
    pub token: Option<SecretRef>,
    /// Bytes of one request's body; default 8 MiB.
    pub body_bytes_max: Size,
    /// Bytes of one record with its key and headers; default 1 MiB, as brokers have it.
    pub record_bytes_max: Size,
    /// Records of one batch; default 10,000.
    pub batch_records_max: usize,
    /// Requests in hand at once; default 1024. Further ones are answered with 503.
    pub requests_max: usize,
    /// Bytes of all bodies in hand; default 256 MiB. Further ones are answered with 503.
    pub bodies_bytes_max: Size,
    /// Open connections; default 4096. Further ones wait.
    pub connections_max: usize,
    /// How long a connection may take to send a request's head, or stay idle; default 30 s.
    pub head_timeout: Span,
    /// How long a body may take; default 30 s.
    pub body_timeout: Span,
    /// How long the broker may take to confirm; default 30 s. Later it is 504, stored: unknown.
    pub send_timeout: Span,
    /// What a 503 tells clients to wait; default 1 s.
    pub retry_after: Span,
    /// After SIGTERM, how long requests in hand may take; default 20 s.
    pub drain_deadline: Span,
}

impl Default for Config {
    fn default() -> Self {
        let seconds = |seconds| Span(Duration::from_secs(seconds));
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            topics: Vec::new(),
            token: None,
            body_bytes_max: Size(8 << 20),
            record_bytes_max: Size(1 << 20),
            batch_records_max: 10_000,
            requests_max: 1024,
            bodies_bytes_max: Size(256 << 20),
            connections_max: 4096,
            head_timeout: seconds(30),
            body_timeout: seconds(30),
            send_timeout: seconds(30),
            retry_after: seconds(1),
            drain_deadline: seconds(20),
        }
    }
}

/// A section `[ingest]` that can't work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// Nothing is offered.
    #[error("`ingest.topics` is empty; name the topics that take records, or leave the section `[ingest]` out")]
    NoTopics,
    /// A name that Kafka would not take.
    #[error("`ingest.topics` has `{0}`, which is no topic's name; take up to 249 letters, digits, `.`, `_` and `-`")]
    TopicName(String),
    /// A bound of nothing.
    #[error("`ingest.{0}` is 0; nothing could be taken in, choose a larger one")]
    Zero(&'static str),
    /// Two bounds that contradict each other.
    #[error("`ingest.{small}` is larger than `ingest.{large}`; it could never be used up, swap or change them")]
    Reversed {
        /// What should be the smaller one.
        small: &'static str,
        /// What should be the larger one.
        large: &'static str,
    },
    /// The token.
    #[error("`ingest.token`: {0}")]
    Token(#[from] InvalidToken),
}

impl Config {
    /// Checks the section, without binding anything, and reads the token.
    pub fn check(&self, folder: &Path) -> Result<Option<Token>, InvalidConfig> {
        if self.topics.is_empty() {
            return Err(InvalidConfig::NoTopics);
        }
        if let Some(wrong) = self.topics.iter().find(|topic| !is_topic_name(topic)) {
            return Err(InvalidConfig::TopicName(wrong.clone()));
        }
        let bounds = [
            ("body_bytes_max", self.body_bytes_max.0),
            ("record_bytes_max", self.record_bytes_max.0),
            ("batch_records_max", self.batch_records_max),
            ("requests_max", self.requests_max),
            ("connections_max", self.connections_max),
            ("head_timeout", usize::from(!self.head_timeout.0.is_zero())),
            ("body_timeout", usize::from(!self.body_timeout.0.is_zero())),
            ("send_timeout", usize::from(!self.send_timeout.0.is_zero())),
        ];
        if let Some((name, _)) = bounds.iter().find(|(_, bound)| *bound == 0) {
            return Err(InvalidConfig::Zero(name));
        }
        if self.record_bytes_max > self.body_bytes_max {
            return Err(InvalidConfig::Reversed { small: "record_bytes_max", large: "body_bytes_max" });
        }
        if self.body_bytes_max > self.bodies_bytes_max {
            return Err(InvalidConfig::Reversed { small: "body_bytes_max", large: "bodies_bytes_max" });
        }
        Ok(self.token.as_ref().map(|token| Token::read(token, folder)).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(section: &str) -> String {
        let config: Result<Config, _> = toml::from_str(section);
        let checked = config.map_err(|error| error.to_string());
        checked
            .and_then(|it| it.check(Path::new(".")).map(drop).map_err(|error| error.to_string()))
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn a_section_of_one_line_is_enough_and_stays_on_loopback() {
        assert_eq!(check(r#"topics = ["orders"]"#), "");
        assert!(Config::default().listen.ip().is_loopback());
    }

    #[test]
    fn the_guide_lists_each_key_with_its_default() {
        let Config {
            listen,
            topics: _,
            token: _,
            body_bytes_max,
            record_bytes_max,
            batch_records_max,
            requests_max,
            bodies_bytes_max,
            connections_max,
            head_timeout,
            body_timeout,
            send_timeout,
            retry_after,
            drain_deadline,
        } = Config::default();
        let size = |Size(bytes)| format!("{}MiB", bytes >> 20);
        let span = |Span(span)| format!("{}s", span.as_secs());
        let keys = [
            ("listen", listen.to_string()),
            ("body_bytes_max", size(body_bytes_max)),
            ("record_bytes_max", size(record_bytes_max)),
            ("batch_records_max", batch_records_max.to_string()),
            ("requests_max", requests_max.to_string()),
            ("bodies_bytes_max", size(bodies_bytes_max)),
            ("connections_max", connections_max.to_string()),
            ("head_timeout", span(head_timeout)),
            ("body_timeout", span(body_timeout)),
            ("send_timeout", span(send_timeout)),
            ("retry_after", span(retry_after)),
            ("drain_deadline", span(drain_deadline)),
        ];
        let guide = include_str!("../../../docs/ingest.md");
        for (key, default) in keys {
            let row = format!("| `{key}` | `{default}` |");
            assert!(guide.contains(&row), "the guide has no {row}");
        }
    }

    #[test]
    fn a_wrong_section_is_told_what_to_write() {
        let cases = [
            ("", "`ingest.topics` is empty; name the topics"),
            (r#"topics = ["a b"]"#, "`a b`, which is no topic's name"),
            ("topics = [\"a\"]\nrequests_max = 0", "`ingest.requests_max` is 0"),
            ("topics = [\"a\"]\nsend_timeout = \"0s\"", "`ingest.send_timeout` is 0"),
            ("topics = [\"a\"]\nrecord_bytes_max = \"9MiB\"", "`ingest.record_bytes_max` is larger"),
            ("topics = [\"a\"]\nbodies_bytes_max = \"1MiB\"", "`ingest.body_bytes_max` is larger"),
            ("topics = [\"a\"]\ntoken = \"plain\"", "`ingest.token`: this secret stands in the file itself"),
            ("topics = [\"a\"]\nbody_max = 1", "unknown field `body_max`"),
        ];
        for (section, expected) in cases {
            let text = check(section);
            assert!(text.contains(expected), "{section}: {text}");
        }
    }
}
