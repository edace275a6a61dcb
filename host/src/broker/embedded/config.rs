//! What the embedded log is told: where it lies, how safe a record is, and its bounds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::topics::check_name;
use crate::broker::BrokerError;
use crate::config::units::{Size, Span};

/// More partitions than this in one topic are refused: each is a table of its own.
pub(super) const PARTITIONS_MAX: i32 = 1024;

/// The embedded log's configuration. Only `path` has to be given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The log's folder; it is made when it is missing. A relative one starts at the configuration file.
    pub path: PathBuf,
    /// How many partitions a topic has that is made without saying.
    #[serde(default = "default_partitions")]
    pub partitions: i32,
    /// Whether writing to a topic that does not exist makes it.
    #[serde(default = "default_create_topics")]
    pub create_topics: bool,
    /// What an acknowledged record survives.
    #[serde(default)]
    pub sync: Sync,
    /// The largest record: key, value and headers together.
    #[serde(default = "default_record_bytes_max")]
    pub record_bytes_max: Size,
    /// How much may wait to be written; a producer then waits or is refused.
    #[serde(default = "default_queue_bytes_max")]
    pub queue_bytes_max: Size,
    /// How much a partition keeps at most: its oldest records are deleted.
    #[serde(default = "default_retention_bytes")]
    pub retention_bytes: Size,
    /// How long a record is kept after it was written, whatever its timestamp says.
    #[serde(default = "default_retention_age")]
    pub retention_age: Span,
    /// How long a member may take to give back a revoked partition before it loses it.
    #[serde(default = "default_drain_deadline")]
    pub drain_deadline: Span,
    /// How many partitions are read from the file at the same time.
    #[serde(default = "default_readers_max")]
    pub readers_max: usize,
    /// Topics to be there from the start, and what differs for them.
    #[serde(default)]
    pub topics: BTreeMap<String, TopicConfig>,
}

/// What differs for one topic. What is not set is as for all topics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicConfig {
    /// How many partitions it has. The number can't be changed later.
    pub partitions: Option<i32>,
    /// How much each partition keeps at most.
    pub retention_bytes: Option<Size>,
    /// How long a record is kept.
    pub retention_age: Option<Span>,
}

/// What an acknowledged record survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// The end of the process in any way, `kill -9` included; not a power loss, which may take the last moments.
    #[default]
    Process,
    /// A power loss too: each transaction waits for the disk.
    Full,
}

/// How much of a topic's partition is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Retention {
    pub(super) bytes: u64,
    pub(super) age: Duration,
}

impl Config {
    /// The configuration of a log in a folder, all else by default.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            partitions: default_partitions(),
            create_topics: default_create_topics(),
            sync: Sync::default(),
            record_bytes_max: default_record_bytes_max(),
            queue_bytes_max: default_queue_bytes_max(),
            retention_bytes: default_retention_bytes(),
            retention_age: default_retention_age(),
            drain_deadline: default_drain_deadline(),
            readers_max: default_readers_max(),
            topics: BTreeMap::new(),
        }
    }

    /// Refuses what can't work, naming the key.
    pub(super) fn check(&self) -> Result<(), BrokerError> {
        let declared = self
            .topics
            .iter()
            .filter_map(|(name, topic)| Some((format!("topics.{name}.partitions"), topic.partitions?)));
        for (key, partitions) in declared.chain([("partitions".to_owned(), self.partitions)]) {
            check_partitions(&key, partitions)?;
        }
        for name in self.topics.keys() {
            check_name(name)?;
        }
        let zero = [
            ("readers_max", self.readers_max),
            ("record_bytes_max", self.record_bytes_max.0),
            ("queue_bytes_max", self.queue_bytes_max.0),
            ("retention_bytes", self.retention_bytes.0),
        ];
        match zero.iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(BrokerError::Config(format!("`{key}` is 0; use at least 1, or leave it out"))),
            None => Ok(()),
        }
    }

    pub(super) fn partitions_of(&self, topic: &str) -> i32 {
        self.topics.get(topic).and_then(|topic| topic.partitions).unwrap_or(self.partitions)
    }

    pub(super) fn retention_of(&self, topic: &str) -> Retention {
        let own = self.topics.get(topic);
        let bytes = own.and_then(|topic| topic.retention_bytes).unwrap_or(self.retention_bytes);
        let age = own.and_then(|topic| topic.retention_age).unwrap_or(self.retention_age);
        Retention { bytes: bytes.0 as u64, age: age.0 }
    }
}

/// Refuses a number of partitions that no topic can have.
pub(super) fn check_partitions(key: &str, partitions: i32) -> Result<(), BrokerError> {
    if (1..=PARTITIONS_MAX).contains(&partitions) {
        return Ok(());
    }
    Err(BrokerError::Config(format!("`{key}` is {partitions}; use 1 to {PARTITIONS_MAX}")))
}

fn default_partitions() -> i32 {
    4
}

fn default_create_topics() -> bool {
    true
}

fn default_record_bytes_max() -> Size {
    Size(1 << 20)
}

fn default_queue_bytes_max() -> Size {
    Size(32 << 20)
}

fn default_retention_bytes() -> Size {
    Size(1 << 30)
}

fn default_retention_age() -> Span {
    Span(Duration::from_secs(7 * 24 * 3600))
}

fn default_drain_deadline() -> Span {
    Span(Duration::from_secs(30))
}

fn default_readers_max() -> usize {
    4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_has_to_be_given() {
        let config: Config = toml::from_str("path = 'log'").expect("it is complete");
        assert_eq!(config, Config::at("log"));
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn a_topic_differs_where_it_says_so() {
        let text = "path = 'log'\nsync = 'full'\n[topics.orders]\npartitions = 8\nretention_bytes = '1MiB'";
        let config: Config = toml::from_str(text).expect("it is complete");
        assert_eq!((config.partitions_of("orders"), config.partitions_of("other")), (8, 4));
        assert_eq!(config.retention_of("orders"), Retention { bytes: 1 << 20, age: default_retention_age().0 });
        assert_eq!(config.sync, Sync::Full);
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        assert!(toml::from_str::<Config>("path = 'log'\npartition = 3").is_err());
        let wrong = Config { partitions: 0, ..Config::at("log") };
        assert_eq!(wrong.check(), Err(BrokerError::Config("`partitions` is 0; use 1 to 1024".to_owned())));
        let wrong = Config { readers_max: 0, ..Config::at("log") };
        assert!(wrong.check().is_err_and(|error| error.to_string().contains("`readers_max`")));
    }
}
