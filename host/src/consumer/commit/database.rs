//! Exactly once on a database: whoever is assigned a partition takes its row over, and starts from what that says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::record::{Offset, TopicPartition};

use crate::attempt::{Committed, Ownership};
use crate::broker::{Broker, PartitionInfo};
use crate::store::offsets::{Place, TABLE};
use crate::store::{Sql, SqlError};

/// How long taking partitions over may take, before the host leaves them to others that can reach the database.
const TAKE_OVER_DEADLINE: Duration = Duration::from_secs(30);
/// Waits before a row that could not be taken over is asked for again.
const AGAIN_DELAY: Duration = Duration::from_millis(200);
/// A partition whose row was taken over by another host should be lost by now; one that is not is taken over again.
const FENCED_GRACE: Duration = Duration::from_secs(5);

/// The database in which a handler's offsets are kept.
#[derive(Debug, Clone)]
pub struct OffsetStore {
    /// The name by which the handler is granted it.
    pub database: Arc<str>,
    /// The database.
    pub sql: Arc<dyn Sql>,
    /// How long a partition may be this host's by the group and another one's by the database, before it is taken over again.
    pub fenced_grace: Duration,
}

/// Partitions that were taken over, and where those begin that have a place.
#[derive(Default)]
pub(in crate::consumer) struct TakenOver {
    pub(in crate::consumer) owners: BTreeMap<TopicPartition, Arc<Ownership>>,
    pub(in crate::consumer) places: BTreeMap<TopicPartition, Offset>,
}

impl OffsetStore {
    /// The database of this name.
    pub fn new(database: &str, sql: Arc<dyn Sql>) -> Self {
        Self { database: database.into(), sql, fenced_grace: FENCED_GRACE }
    }

    /// Takes the rows of assigned partitions over, and checks what they say against what the log holds.
    pub(in crate::consumer) async fn take_over<B: Broker>(
        &self,
        broker: &B,
        group: &str,
        partitions: &[TopicPartition],
        call_deadline: Duration,
    ) -> Result<TakenOver, String> {
        let work = async {
            let mut owners = BTreeMap::new();
            for from in partitions {
                let owned = self.own(group, from, call_deadline).await;
                let failed =
                    |error| format!("the offsets in database `{}` can't be taken over: {error}", self.database);
                owners.insert(from.clone(), owned.map_err(failed)?);
            }
            let places = places(broker, group, &owners).await?;
            Ok(TakenOver { owners, places })
        };
        match tokio::time::timeout(TAKE_OVER_DEADLINE, work).await {
            Ok(done) => done,
            Err(_) => Err(format!(
                "the offsets in database `{}` were not taken over within {TAKE_OVER_DEADLINE:?}; the partitions are left to hosts that reach it",
                self.database
            )),
        }
    }

    /// Takes the rows of partitions over and stores where these begin from now on, whatever they said: by the rows' latest
    /// owner, on top of what they say (FENCE-1).
    pub async fn begin_at(
        &self,
        group: &str,
        places: &BTreeMap<TopicPartition, Offset>,
        call_deadline: Duration,
    ) -> Result<BTreeMap<TopicPartition, Arc<Ownership>>, String> {
        let work = async {
            let mut owners = BTreeMap::new();
            for (of, place) in places {
                let failed =
                    |error| format!("the offset of {of} in database `{}` was not moved: {error}", self.database);
                let owner = self.own(group, of, call_deadline).await.map_err(failed)?;
                match owner.commit(None, *place).await.map_err(failed)? {
                    Committed::Stored => drop(owners.insert(of.clone(), owner)),
                    Committed::Fenced => return Err(format!("somebody else took the offset of {of} over meanwhile")),
                }
            }
            Ok(owners)
        };
        let late = |_| Err(format!("the offsets in database `{}` were not moved in time", self.database));
        tokio::time::timeout(TAKE_OVER_DEADLINE, work).await.unwrap_or_else(late)
    }

    /// Takes one row over, and tries again while the database is away.
    async fn own(
        &self,
        group: &str,
        from: &TopicPartition,
        call_deadline: Duration,
    ) -> Result<Arc<Ownership>, SqlError> {
        loop {
            let place = Place { group: group.to_owned(), topic: from.topic.to_string(), partition: from.partition };
            match Ownership::take(Arc::clone(&self.sql), Arc::clone(&self.database), place, call_deadline).await {
                Ok(owner) => return Ok(Arc::new(owner)),
                Err(error @ (SqlError::Rejected(_) | SqlError::BadParameter(_) | SqlError::TransactionAborted)) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(%from, database = &*self.database, %error, "the partition's offset can't be taken over yet");
                    tokio::time::sleep(AGAIN_DELAY).await;
                }
            }
        }
    }
}

/// Where partitions begin that have a place in the database.
async fn places<B: Broker>(
    broker: &B,
    group: &str,
    owners: &BTreeMap<TopicPartition, Arc<Ownership>>,
) -> Result<BTreeMap<TopicPartition, Offset>, String> {
    let stored = || owners.iter().filter_map(|(from, owner)| Some((from, owner.next()?)));
    let topics: BTreeSet<&str> = stored().map(|(from, _)| &*from.topic).collect();
    if topics.is_empty() {
        return Ok(BTreeMap::new());
    }
    let admin = broker.admin().map_err(|error| error.to_string())?;
    let mut known = BTreeMap::new();
    for topic in topics {
        let found = admin.topics(Some(topic)).await.map_err(|error| error.to_string())?;
        let partitions = found.into_iter().flat_map(|found| found.partitions);
        known.extend(partitions.map(|info| ((topic, info.partition), info)));
    }
    let mut places = BTreeMap::new();
    for (from, next) in stored() {
        let info = known.get(&(&*from.topic, from.partition)).ok_or_else(|| format!("{from} is not there"))?;
        places.insert(from.clone(), place(group, from, next, info)?);
    }
    Ok(places)
}

/// Where to begin, given what the database and the log say.
///
/// A place behind the end is one of another log: of a topic that was made anew, or that has lost records. Beginning at the
/// front might repeat what was done, and waiting might skip what is new: only the operator knows.
fn place(group: &str, from: &TopicPartition, next: Offset, info: &PartitionInfo) -> Result<Offset, String> {
    let PartitionInfo { start, end, .. } = *info;
    if next > end {
        return Err(format!(
            "the database says that {from} is handled up to {next}, but it ends at {end}: the topic was made anew, or it has lost records; \
             nothing of it is read until its row agrees. To begin anew: DELETE FROM {TABLE} WHERE consumer_group = '{group}' AND topic = '{}'",
            from.topic
        ));
    }
    if next < start {
        tracing::error!(%from, group, next, start, records_max = start - next, "records were deleted before this group read them");
    }
    Ok(next.max(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(next: Offset, start: Offset, end: Offset) -> Result<Offset, String> {
        let info = PartitionInfo { partition: 3, start, end, replicas: 1 };
        place("g", &TopicPartition::new("orders", 3), next, &info)
    }

    #[test]
    fn a_partition_begins_where_its_row_says() {
        assert_eq!(check(500, 0, 500), Ok(500));
        assert_eq!(check(0, 0, 500), Ok(0));
        assert_eq!(check(7, 100, 500), Ok(100), "what was deleted can't be read any more");
    }

    #[test]
    fn a_row_that_is_ahead_of_its_partition_is_said_with_the_way_out() {
        let error = check(500, 0, 10).expect_err("another log");
        assert!(error.contains("orders/3 is handled up to 500, but it ends at 10"), "{error}");
        assert!(
            error.ends_with("DELETE FROM tidemill_offsets WHERE consumer_group = 'g' AND topic = 'orders'"),
            "{error}"
        );
    }
}
