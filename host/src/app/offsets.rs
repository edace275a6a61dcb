//! Where a handler's group stands, and its way to another place where no host runs it: on the configured log and database.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_core::record::{Offset, TopicPartition};

use super::replay::handler;
use super::view::move_view;
use super::{databases, embedded_log, refused};
use crate::admin::MoveView;
use crate::broker::kafka::Kafka;
use crate::broker::{Admin, Broker, BrokerError, Selection, TopicInfo};
use crate::cli::Failure;
use crate::cli::offsets::Stands;
use crate::config::manifest::HandlerSpec;
use crate::config::{self, Config};
use crate::consumer::{Moved, OffsetStore};
use crate::fleet::{Reset, Where};
use crate::store::Sql;
use crate::store::offsets::Place;

/// Where a handler's group stands in each partition of its topics.
pub(crate) async fn stands(config: &Config, name: &str) -> Result<Vec<Stands>, Failure> {
    let spec = handler(config, name)?;
    let database = database(config, &spec).await?;
    let admin = admin(config, true)?;
    let found = Selection::default().find(&*admin, &spec.consumer.subscription.topics).await?;
    of_group(&*admin, database.as_deref(), &spec, &found).await
}

/// Lets a group that has no members begin elsewhere.
pub(crate) async fn move_group(config: &Config, name: &str, reset: &Reset) -> Result<MoveView, Failure> {
    let spec = handler(config, name)?;
    let admin = admin(config, reset.dry_run)?;
    let sql = database(config, &spec).await?;
    let subscription = &spec.consumer.subscription;
    let found = reset.which.find(&*admin, &subscription.topics).await?;
    let stood = of_group(&*admin, sql.as_deref(), &spec, &found).await?;
    let places = reset.places(&*admin, &found).await?;
    if !reset.dry_run {
        // First the group: that it has members, nobody else would say.
        let offsets = places.iter().map(|(of, to)| (of.clone(), *to)).collect();
        if let Err(error) = admin.commit(&subscription.group, offsets).await {
            return Err(not_moved(&*admin, &subscription.group, error).await);
        }
        if let Some((name, sql)) = spec.database.as_deref().zip(sql) {
            let store = OffsetStore::new(name, sql);
            let moved = store.begin_at(&subscription.group, &places, spec.consumer.call_deadline).await;
            moved.map_err(|error| {
                let (name, group) = (&spec.name, &subscription.group);
                let text = format!("{error}; group `{group}` is moved, and the database, which counts more for `{name}`, is not: try again");
                Failure::Failed(anyhow::anyhow!(text))
            })?;
        }
    }
    let from = |of: &TopicPartition| stood.iter().find(|stands| stands.of == *of).and_then(Stands::next);
    let moved = places.into_iter().map(|(of, to)| Moved { from: from(&of), of, to }).collect();
    Ok(move_view(name, reset.dry_run, Where { moved, elsewhere: Vec::new() }))
}

/// Why a group's offsets were not written, and who has to be asked instead.
async fn not_moved(admin: &dyn Admin, group: &str, error: BrokerError) -> Failure {
    let mut hosts: Vec<String> = admin.owners(group).await.unwrap_or_default().into_values().collect();
    hosts.sort();
    hosts.dedup();
    if hosts.is_empty() {
        let text = "stop its hosts, or ask them one after another with --admin URL";
        return Failure::Failed(anyhow::anyhow!("nothing is moved: {error}; if it has members, {text}"));
    }
    let hosts = hosts.join(", ");
    Failure::Failed(anyhow::anyhow!(
        "nothing is moved: group `{group}` is in use by {hosts}; ask each of these hosts with --admin URL"
    ))
}

fn admin(config: &Config, only_reads: bool) -> Result<Arc<dyn Admin>, Failure> {
    let admin = match &config.broker {
        config::Broker::Embedded(embedded) => {
            embedded_log(embedded, &config.folder, only_reads).and_then(|log| log.admin())
        }
        config::Broker::Kafka(kafka) => Kafka::new(kafka.clone()).and_then(|kafka| kafka.admin()),
    };
    admin.map_err(|error| refused(&config.path, "broker", error))
}

/// The database in which the handler keeps its offsets, if it does.
async fn database(config: &Config, spec: &HandlerSpec) -> Result<Option<Arc<dyn Sql>>, Failure> {
    let Some(name) = &spec.database else { return Ok(None) };
    let mut found = databases(config, |configured| configured == name).await?;
    Ok(found.remove(name))
}

async fn of_group(
    admin: &dyn Admin,
    database: Option<&dyn Sql>,
    spec: &HandlerSpec,
    found: &[TopicInfo],
) -> Result<Vec<Stands>, Failure> {
    let subscription = &spec.consumer.subscription;
    // Only for words: a user that may not ask for it sees the rest.
    let mut owners = admin.owners(&subscription.group).await.unwrap_or_default();
    let mut all = Vec::new();
    for topic in found {
        let committed: BTreeMap<i32, Option<Offset>> =
            admin.committed(&subscription.group, &topic.name).await?.into_iter().collect();
        for info in &topic.partitions {
            let of = TopicPartition::new(topic.name.as_str(), info.partition);
            let row = match database {
                Some(sql) => row(sql, &subscription.group, &of).await?,
                None => None,
            };
            let committed = committed.get(&info.partition).copied().flatten();
            let owner = owners.remove(&of);
            all.push(Stands { of, start: info.start, end: info.end, committed, row, owner });
        }
    }
    Ok(all)
}

pub(super) async fn row(sql: &dyn Sql, group: &str, of: &TopicPartition) -> Result<Option<Offset>, Failure> {
    let place = Place { group: group.to_owned(), topic: of.topic.to_string(), partition: of.partition };
    Ok(sql.standing(place).await?.and_then(|standing| standing.next))
}
