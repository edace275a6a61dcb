//! A place in a topic as people name it: `earliest`, `latest`, an offset or a time.

use std::fmt;
use std::str::FromStr;

use tidemill_core::record::{Offset, TopicPartition};

use super::{Admin, BrokerError, PartitionInfo, TopicInfo};

/// Where in each partition of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// At the oldest record that is kept.
    Earliest,
    /// Behind the last record.
    Latest,
    /// At an offset of each partition.
    Offset(Offset),
    /// At the first record at or after a time, in milliseconds since the Unix epoch.
    Time(i64),
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" | "end" => Ok(Self::Latest),
            _ => {
                let offset = text.parse().ok().filter(|offset| *offset >= 0).map(Self::Offset);
                let time = || text.parse::<jiff::Timestamp>().ok().map(|time| Self::Time(time.as_millisecond()));
                offset.or_else(time).ok_or_else(|| {
                    "write earliest, latest, an offset such as 42, or a time such as 2026-11-21T09:00:00Z".to_owned()
                })
            }
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Offset(offset) => write!(f, "{offset}"),
            Self::Time(millis) => match jiff::Timestamp::from_millisecond(*millis) {
                Ok(time) => write!(f, "{time}"),
                Err(_) => write!(f, "{millis} ms"),
            },
        }
    }
}

impl Point {
    /// The offset in each of these partitions of a topic. One that was named as an offset may lie outside of what is kept.
    pub async fn find(
        self,
        admin: &dyn Admin,
        topic: &str,
        partitions: &[PartitionInfo],
    ) -> Result<Vec<Offset>, BrokerError> {
        let at_time = match self {
            Self::Time(millis) => admin.offsets_for_time(topic, millis).await?,
            Self::Earliest | Self::Latest | Self::Offset(_) => Vec::new(),
        };
        let offset = |of: &PartitionInfo| match self {
            Self::Earliest => of.start,
            Self::Latest => of.end,
            Self::Offset(offset) => offset,
            Self::Time(_) => {
                at_time.iter().find(|(partition, _)| *partition == of.partition).map_or(of.end, |(_, offset)| *offset)
            }
        };
        Ok(partitions.iter().map(offset).collect())
    }
}

/// Which partitions of a handler's topics are meant: all that fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only this topic.
    pub topic: Option<String>,
    /// Only this partition of each.
    pub partition: Option<i32>,
}

/// Why partitions were not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// It is another's topic.
    #[error("the handler does not read topic `{topic}`, only `{}`", .topics.join("`, `"))]
    Topic {
        /// What was asked for.
        topic: String,
        /// Those that it reads.
        topics: Vec<String>,
    },
    /// No topic has it.
    #[error("there is no partition {partition} of `{}`", .topics.join("`, `"))]
    Partition {
        /// What was asked for.
        partition: i32,
        /// Where.
        topics: Vec<String>,
    },
    /// The broker said so.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl Selection {
    /// Whether this partition is meant.
    pub fn means(&self, of: &TopicPartition) -> bool {
        self.topic.as_ref().is_none_or(|topic| **topic == *of.topic)
            && self.partition.is_none_or(|partition| partition == of.partition)
    }

    /// Of these topics, those with partitions that are meant, and these partitions.
    pub async fn find(&self, admin: &dyn Admin, topics: &[String]) -> Result<Vec<TopicInfo>, NotFound> {
        let meant = |topic: &&String| self.topic.as_ref().is_none_or(|wanted| wanted == *topic);
        let names: Vec<String> = topics.iter().filter(meant).cloned().collect();
        if let (Some(topic), true) = (&self.topic, names.is_empty()) {
            return Err(NotFound::Topic { topic: topic.clone(), topics: topics.to_vec() });
        }
        let mut found = Vec::new();
        for name in &names {
            found.extend(admin.topics(Some(name)).await?);
        }
        for topic in &mut found {
            topic.partitions.retain(|of| self.partition.is_none_or(|wanted| wanted == of.partition));
        }
        found.retain(|topic| !topic.partitions.is_empty());
        match self.partition {
            Some(partition) if found.is_empty() => Err(NotFound::Partition { partition, topics: names }),
            Some(_) | None => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_read_as_it_is_written() {
        for (text, point) in [
            ("earliest", Point::Earliest),
            ("latest", Point::Latest),
            ("42", Point::Offset(42)),
            ("2026-11-21T09:00:00Z", Point::Time(1_795_251_600_000)),
        ] {
            assert_eq!(text.parse(), Ok(point));
            assert_eq!(point.to_string(), text);
        }
        assert_eq!("end".parse(), Ok(Point::Latest));
        for wrong in ["", "-1", "yesterday", "9.5"] {
            assert!(wrong.parse::<Point>().expect_err("no point").starts_with("write earliest"));
        }
    }
}
