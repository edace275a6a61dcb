//! A handler's parked keys, of the partitions that this host reaches, and whose the others are.

use std::collections::BTreeSet;
use std::time::Duration;

use tidemill_core::parked::Count;
use tidemill_core::record::TopicPartition;

use super::Running;
use super::offsets::{Elsewhere, whose};
use crate::broker::{NotFound, Selection};
use crate::consumer::{Answer, Choice, ParkedKeys};

/// How long the broker may take to say which partitions there are, and whose. Without it the keys are shown all the same.
const BROKER_DEADLINE: Duration = Duration::from_secs(5);

/// What the partitions of this host answer, and what was not reached.
#[derive(Debug)]
pub struct Reached<T> {
    /// The answers of the partitions of this host.
    pub answers: Vec<Answer<T>>,
    /// Partitions that are meant too; `None` while the broker does not say.
    pub elsewhere: Option<Elsewhere>,
}

/// The parked keys.
pub async fn parked(running: &Running) -> Result<Reached<ParkedKeys>, NotFound> {
    let meant = meant(running, &Selection::default()).await?;
    let answers = running.membership.parked(|_| true).await;
    Ok(reached(running, meant, answers).await)
}

/// Tries parked keys again, or counts them.
pub async fn unpark(running: &Running, which: &Selection, choice: &Choice) -> Result<Reached<Count>, NotFound> {
    let meant = meant(running, which).await?;
    let answers = running.membership.unpark(|of| which.means(of), choice).await;
    Ok(reached(running, meant, answers).await)
}

/// The partitions that are meant, whoever has them; `None` while the broker does not say.
async fn meant(running: &Running, which: &Selection) -> Result<Option<BTreeSet<TopicPartition>>, NotFound> {
    let Some(admin) = running.admin.as_deref() else { return Ok(None) };
    let found = which.find(admin, &running.spec.consumer.subscription.topics);
    match tokio::time::timeout(BROKER_DEADLINE, found).await {
        Ok(Ok(topics)) => {
            let of = |topic: &str, partition| TopicPartition::new(topic, partition);
            let each = topics.iter().flat_map(|info| info.partitions.iter().map(|it| of(&info.name, it.partition)));
            Ok(Some(each.collect()))
        }
        Ok(Err(NotFound::Broker(error))) => {
            tracing::debug!(handler = running.spec.name, %error, "it is not known which partitions there are");
            Ok(None)
        }
        Ok(Err(error)) => Err(error),
        Err(_late) => Ok(None),
    }
}

async fn reached<T>(running: &Running, meant: Option<BTreeSet<TopicPartition>>, answers: Vec<Answer<T>>) -> Reached<T> {
    let Some((mut left, admin)) = meant.zip(running.admin.as_deref()) else {
        return Reached { answers, elsewhere: None };
    };
    for (of, _) in &answers {
        left.remove(of);
    }
    let left: Vec<TopicPartition> = left.into_iter().collect();
    let unnamed = left.iter().map(|of| (of.clone(), None)).collect();
    let asked = whose(admin, &running.spec.consumer.subscription.group, left);
    let elsewhere = tokio::time::timeout(BROKER_DEADLINE, asked).await.unwrap_or(unnamed);
    Reached { answers, elsewhere: Some(elsewhere) }
}
