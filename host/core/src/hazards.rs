//! What is going to hurt: said before it does.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::record::{Offset, TopicPartition};

/// A handler that has this share of a record's time to live behind it is about to lose the record.
const AGE_SHARE: f64 = 0.8;
/// A frontier within this share of what is kept, from its oldest record on, is about to be passed by deletion.
const KEPT_SHARE: f64 = 0.1;

/// A topic, as its broker keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub topic: String,
    /// Copies of the partition that has the fewest.
    pub replicas_min: usize,
    /// Copies that have to have a record before it counts as stored, if known.
    pub in_sync_min: Option<usize>,
}

/// How far a partition's reader is from what is deleted next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The partition.
    pub from: TopicPartition,
    /// The oldest kept offset.
    pub start: Offset,
    /// The next to be written.
    pub end: Offset,
    /// The next to be settled.
    pub frontier: Offset,
    /// How old about the oldest unsettled record is, if known.
    pub age: Option<Duration>,
    /// How long records are kept, if there is a bound.
    pub age_max: Option<Duration>,
}

/// Something to be mended before it hurts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hazard {
    /// One copy: its disk is the topic.
    Replication {
        /// The topic.
        topic: String,
        /// Its copies.
        replicas: usize,
    },
    /// A record counts as stored with one copy.
    InSync {
        /// The topic.
        topic: String,
        /// Its `min.insync.replicas`.
        replicas: usize,
    },
    /// Records may be deleted before they are read.
    Retention {
        /// The partition.
        from: TopicPartition,
    },
    /// Parked records may be deleted before they are handled.
    Parked {
        /// The parked topic.
        topic: String,
    },
    /// Whoever reads what is committed stands still in front of a transaction that stays open.
    Hidden {
        /// The partition.
        from: TopicPartition,
        /// The transaction's first offset.
        offset: Offset,
    },
    /// Some members have more to do than others.
    Uneven {
        /// Partitions of all topics of the handler.
        partitions: usize,
        /// Members of its group.
        members: usize,
    },
}

impl Hazard {
    /// Every kind's name, as it is in metrics.
    pub const KINDS: [&'static str; 6] =
        ["replication", "min-insync", "retention", "uneven", "hidden", "parked-retention"];

    /// Its kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Replication { .. } => Self::KINDS[0],
            Self::InSync { .. } => Self::KINDS[1],
            Self::Retention { .. } => Self::KINDS[2],
            Self::Uneven { .. } => Self::KINDS[3],
            Self::Hidden { .. } => Self::KINDS[4],
            Self::Parked { .. } => Self::KINDS[5],
        }
    }
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replication { topic, replicas } => write!(
                f,
                "topic `{topic}` has {replicas} replica of a partition: with its broker's disk its records are gone; use 3"
            ),
            Self::InSync { topic, replicas } => write!(
                f,
                "topic `{topic}` has min.insync.replicas={replicas}: a record may count as stored while one broker has it; \
                 use 2"
            ),
            Self::Retention { from } => write!(
                f,
                "{from} is about to be deleted faster than it is read: keep its records longer, or make the handler faster"
            ),
            Self::Parked { topic } => write!(
                f,
                "topic `{topic}` does not keep its records for ever: parked records that get too old are lost; set \
                 retention.ms=-1 and retention.bytes=-1, and cleanup.policy=delete"
            ),
            Self::Hidden { from, offset } => write!(
                f,
                "whoever reads what is committed sees nothing of {from} from offset {offset} on: a transaction has been open \
                 for a minute or more; when nobody ends it, Kafka's `kafka-transactions.sh find-hanging` and `abort` do"
            ),
            Self::Uneven { partitions, members } => write!(
                f,
                "{partitions} partitions among {members} members: {}; use a number of partitions that the members divide",
                if members > partitions { "some have nothing to do" } else { "some have more to do than others" }
            ),
        }
    }
}

/// What is wrong with how a topic is kept.
pub fn of_topic(kept: &Kept) -> Vec<Hazard> {
    let mut found = Vec::new();
    let topic = || kept.topic.clone();
    if kept.replicas_min < 2 {
        found.push(Hazard::Replication { topic: topic(), replicas: kept.replicas_min });
    }
    if let Some(replicas) = kept.in_sync_min.filter(|replicas| *replicas < 2) {
        found.push(Hazard::InSync { topic: topic(), replicas });
    }
    found
}

/// Whether deletion is about to pass a reader: by the age of what it has not settled, or because it stands where deletion,
/// which has begun, comes next.
pub fn of_reach(reach: &Reach) -> Option<Hazard> {
    let behind = reach.frontier < reach.end;
    let old = reach.age.zip(reach.age_max).is_some_and(|(age, max)| age >= max.mul_f64(AGE_SHARE));
    let kept = (reach.end - reach.start) as f64;
    let near = reach.start > 0 && ((reach.frontier - reach.start) as f64) < kept * KEPT_SHARE;
    (behind && (old || near)).then(|| Hazard::Retention { from: reach.from.clone() })
}

/// Whether members of a group have unlike shares.
pub fn of_group(partitions: usize, members: usize) -> Option<Hazard> {
    let uneven = members > 1 && partitions > 0 && !partitions.is_multiple_of(members);
    uneven.then_some(Hazard::Uneven { partitions, members })
}

/// Readers of what is committed that stand where they stood at an earlier look, in front of more that is written: by
/// partition, the offset at which they stand. Partitions in which all that is written can be read are left out.
pub fn of_hidden(before: &BTreeMap<TopicPartition, Offset>, now: &BTreeMap<TopicPartition, Offset>) -> Vec<Hazard> {
    let stand = now.iter().filter(|(from, offset)| before.get(from) == Some(offset));
    stand.map(|(from, offset)| Hazard::Hidden { from: from.clone(), offset: *offset }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_of_one_copy_is_named_and_one_of_three_is_not() {
        let kept = |replicas_min, in_sync_min| Kept { topic: "t".into(), replicas_min, in_sync_min };
        let kinds = |kept: Kept| of_topic(&kept).iter().map(Hazard::kind).collect::<Vec<_>>();
        assert_eq!(kinds(kept(1, Some(1))), ["replication", "min-insync"]);
        assert_eq!(kinds(kept(3, Some(1))), ["min-insync"]);
        assert_eq!(kinds(kept(3, Some(2))), [""; 0]);
        assert_eq!(kinds(kept(2, None)), [""; 0], "what is not known is no hazard");
    }

    #[test]
    fn retention_is_near_by_age_or_by_place_and_only_for_who_is_behind() {
        let reach = Reach {
            from: TopicPartition::new("t", 0),
            start: 0,
            end: 1000,
            frontier: 0,
            age: None,
            age_max: Some(Duration::from_secs(100)),
        };
        let near = |reach: Reach| of_reach(&reach).is_some();
        assert!(!near(reach.clone()), "nothing was deleted yet");
        assert!(near(Reach { age: Some(Duration::from_secs(80)), ..reach.clone() }));
        assert!(!near(Reach { age: Some(Duration::from_secs(79)), ..reach.clone() }));
        assert!(!near(Reach { age: Some(Duration::from_secs(99)), age_max: None, ..reach.clone() }));
        assert!(near(Reach { start: 500, frontier: 549, ..reach.clone() }));
        assert!(!near(Reach { start: 500, frontier: 550, ..reach.clone() }));
        assert!(!near(Reach { start: 1000, frontier: 1000, ..reach }), "who is at the end loses nothing");
    }

    #[test]
    fn readers_that_stand_in_front_of_the_same_transaction_at_two_looks_are_named() {
        let at = |offset| BTreeMap::from([(TopicPartition::new("t", 0), offset)]);
        assert_eq!(of_hidden(&BTreeMap::new(), &at(7)), [], "it may just have begun");
        assert_eq!(of_hidden(&at(7), &at(9)), [], "another one");
        assert_eq!(of_hidden(&at(7), &BTreeMap::new()), []);
        let hidden = Hazard::Hidden { from: TopicPartition::new("t", 0), offset: 7 };
        assert_eq!(of_hidden(&at(7), &at(7)), [hidden]);
    }

    #[test]
    fn shares_are_uneven_when_a_remainder_is_left() {
        let uneven = |partitions, members| of_group(partitions, members).is_some();
        assert_eq!(
            [uneven(8, 1), uneven(8, 2), uneven(8, 3), uneven(2, 3), uneven(0, 3)],
            [false, false, true, true, false]
        );
    }
}
