//! Looks for what is going to hurt a handler, when it starts and while it runs, and says so before it does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::hazards::{self, Hazard, Kept, Reach};
use tidemill_core::record::{Offset, TopicPartition};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::topics::{self, Use};
use crate::broker::{Admin, BrokerError};
use crate::config::manifest::HandlerSpec;
use crate::consumer::Membership;
use crate::metrics::HandlerMetrics;
use crate::settle::DeadLetters;

/// How often it is looked. It costs a few requests of each topic.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How often a hazard that stays is told again.
const TELL_INTERVAL: Duration = Duration::from_secs(3600);
/// The group is given this long to settle before it is first counted.
const FIRST_LOOK_DELAY: Duration = Duration::from_secs(5);

/// Looks after one handler.
pub(super) struct Lookout {
    pub(super) spec: HandlerSpec,
    pub(super) dead_letters: DeadLetters,
    pub(super) membership: Arc<Membership>,
    pub(super) metrics: Arc<HandlerMetrics>,
    /// What was told, and when.
    pub(super) told: BTreeMap<Hazard, Instant>,
    /// Where readers of what is committed stood at the last look, in front of more that is written.
    pub(super) hidden: BTreeMap<TopicPartition, Offset>,
}

impl Lookout {
    /// Looks until `stop`: for topics that are missing once, for hazards again and again.
    pub(super) async fn run(mut self, admin: Arc<dyn Admin>, stop: CancellationToken) {
        let look = async {
            topics::missing(&*admin, &self.spec, &self.dead_letters).await;
            tokio::time::sleep(FIRST_LOOK_DELAY).await;
            let mut interval = tokio::time::interval(LOOK_INTERVAL);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                match self.look(&*admin).await {
                    Ok(found) => self.tell(found),
                    Err(error) => {
                        tracing::debug!(handler = self.spec.name, %error, "the broker can't be asked for hazards");
                    }
                }
            }
        };
        tokio::select! {
            () = look => {}
            () = stop.cancelled() => {}
        }
    }

    async fn look(&mut self, admin: &dyn Admin) -> Result<BTreeSet<Hazard>, BrokerError> {
        let mut found = BTreeSet::new();
        let (mut partitions, mut hidden) = (0, BTreeMap::new());
        for (topic, purpose) in topics::uses(&self.spec, &self.dead_letters) {
            let Ok(infos) = admin.topics(Some(&topic)).await else { continue };
            let Some(settings) = admin.settings(&topic).await? else { continue };
            let Some(info) = infos.into_iter().next() else { continue };
            let replicas_min = info.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0);
            found.extend(hazards::of_topic(&Kept {
                topic: topic.clone(),
                replicas_min,
                in_sync_min: settings.in_sync_min,
            }));
            if purpose == Use::Parks && (settings.age_max.is_some() || settings.bytes_max.is_some()) {
                found.insert(Hazard::Parked { topic: topic.clone() });
            }
            for (partition, written) in admin.written(&topic).await?.into_iter().flatten() {
                let known = info.partitions.iter().find(|known| known.partition == partition);
                if let Some(known) = known.filter(|known| known.end < written) {
                    hidden.insert(TopicPartition::new(&*topic, partition), known.end);
                }
            }
            if purpose != Use::Reads {
                continue;
            }
            partitions += info.partitions.len();
            for view in self.membership.partitions().into_iter().filter(|view| *view.from.topic == *topic) {
                let known = info.partitions.iter().find(|known| known.partition == view.from.partition);
                let Some((known, frontier)) = known.zip(view.committable) else { continue };
                found.extend(hazards::of_reach(&Reach {
                    from: view.from,
                    start: known.start,
                    end: known.end,
                    frontier,
                    age: view.oldest_ms.map(age_of),
                    age_max: settings.age_max,
                }));
            }
        }
        found.extend(hazards::of_hidden(&self.hidden, &hidden));
        self.hidden = hidden;
        let members = admin.members(&self.spec.consumer.subscription.group).await?;
        found.extend(members.and_then(|members| hazards::of_group(partitions, members)));
        Ok(found)
    }

    fn tell(&mut self, found: BTreeSet<Hazard>) {
        for kind in Hazard::KINDS {
            let count = found.iter().filter(|hazard| hazard.kind() == kind).count();
            self.metrics.hazards(kind).set(count as i64);
        }
        self.told.retain(|hazard, _| found.contains(hazard));
        let now = Instant::now();
        for hazard in found {
            let due = self.told.get(&hazard).is_none_or(|told| now >= *told + TELL_INTERVAL);
            if due {
                tracing::warn!(handler = self.spec.name, kind = hazard.kind(), "{hazard}");
                self.told.insert(hazard, now);
            }
        }
    }
}

fn age_of(made_ms: i64) -> Duration {
    let age = jiff::Timestamp::now().as_millisecond().saturating_sub(made_ms);
    Duration::from_millis(u64::try_from(age).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tidemill_core::record::Chunk;

    use super::*;
    use crate::broker::{Committed, PartitionInfo, TopicInfo, TopicSettings, Written};
    use crate::metrics::Metrics;
    use crate::settle::letter::HeaderStyle;

    #[tokio::test(start_paused = true)]
    async fn a_hazard_is_told_when_it_comes_and_counted_until_it_is_mended() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().join("h");
        std::fs::create_dir(&home).expect("a folder");
        for (file, text) in [("handler.toml", "topics = [\"in\"]"), ("h.wasm", "")] {
            std::fs::write(home.join(file), text).expect("it can be written");
        }
        let mut lookout = Lookout {
            spec: HandlerSpec::read(&home).expect("the manifest is right"),
            dead_letters: DeadLetters {
                handler: "h".into(),
                group: "h".into(),
                topic: None,
                headers: HeaderStyle::Native,
            },
            membership: Arc::default(),
            metrics: Metrics::new().handler("h"),
            told: BTreeMap::new(),
            hidden: BTreeMap::new(),
        };
        let counts = |lookout: &Lookout| Hazard::KINDS.map(|kind| lookout.metrics.hazards(kind).get());

        let found = lookout.look(&Cluster { replicas: 1, members: 2 }).await.expect("it can be asked");
        lookout.tell(found);
        assert_eq!(
            counts(&lookout),
            [2, 2, 0, 1, 0, 0],
            "the topic and its dead letters; three partitions and two members"
        );
        let mended = lookout.look(&Cluster { replicas: 3, members: 3 }).await.expect("it can be asked");
        lookout.tell(mended);
        assert_eq!(counts(&lookout), [0, 0, 0, 0, 6, 0], "each partition has a transaction open, as it had before");
        lookout.tell(BTreeSet::new());
        assert_eq!((counts(&lookout), lookout.told.len()), ([0; 6], 0));
    }

    /// Topics of three partitions, each with so many copies, and a group of so many members.
    struct Cluster {
        replicas: usize,
        members: usize,
    }

    impl Admin for Cluster {
        fn topics(&self, name: Option<&str>) -> BoxFuture<'_, Result<Vec<TopicInfo>, BrokerError>> {
            let info = |partition| PartitionInfo { partition, start: 0, end: 10, replicas: self.replicas };
            let name = name.expect("it is asked by name").to_owned();
            std::future::ready(Ok(vec![TopicInfo { name, partitions: (0..3).map(info).collect() }])).boxed()
        }

        fn settings<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<TopicSettings>, BrokerError>> {
            let settings = TopicSettings { in_sync_min: Some(self.replicas.min(2)), ..TopicSettings::default() };
            std::future::ready(Ok(Some(settings))).boxed()
        }

        fn members<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<usize>, BrokerError>> {
            std::future::ready(Ok(Some(self.members))).boxed()
        }

        fn written<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Written>, BrokerError>> {
            std::future::ready(Ok(Some((0..3).map(|partition| (partition, 11)).collect()))).boxed()
        }

        fn create_topic(&self, _: &str, _: i32, _: Option<i32>) -> BoxFuture<'_, Result<(), BrokerError>> {
            unreachable!("nothing is made")
        }

        fn offsets_for_time(&self, _: &str, _: i64) -> BoxFuture<'_, Result<Vec<(i32, Offset)>, BrokerError>> {
            unreachable!("no times are looked for")
        }

        fn committed(&self, _: &str, _: &str) -> BoxFuture<'_, Result<Committed, BrokerError>> {
            unreachable!("the members know")
        }

        fn commit(&self, _: &str, _: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, Result<(), BrokerError>> {
            unreachable!("nothing is moved")
        }

        fn read(&self, _: &str, _: i32, _: Offset, _: usize) -> BoxFuture<'_, Result<Arc<Chunk>, BrokerError>> {
            unreachable!("nothing is read")
        }
    }
}
