//! Where a handler's group stands, and its way to another place while it runs.

use std::collections::BTreeMap;

use tidemill_core::record::{Offset, TopicPartition};

use super::Running;
use crate::broker::{Admin, BrokerError, NotFound, Point, Selection, TopicInfo};
use crate::consumer::{MoveError, Moved};

/// What is to begin where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// Where.
    pub to: Point,
    /// Which partitions.
    pub which: Selection,
    /// Says what would be done, and does nothing.
    pub dry_run: bool,
}

/// What a reset came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Where {
    /// The partitions that begin elsewhere.
    pub moved: Vec<Moved>,
    /// Those that are another member's, and whose, as far as that is known.
    pub elsewhere: Elsewhere,
}

/// Why nothing was reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// There is nobody to be asked where that is.
    #[error("the broker can't be asked for offsets; try again once it is there")]
    NoAdmin,
    /// No such partitions.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The handler could not.
    #[error(transparent)]
    Move(#[from] MoveError),
}

impl Reset {
    /// The place in each partition of the topics that were found, within what is kept of it.
    pub async fn places(
        &self,
        admin: &dyn Admin,
        found: &[TopicInfo],
    ) -> Result<BTreeMap<TopicPartition, Offset>, BrokerError> {
        let mut places = BTreeMap::new();
        for topic in found {
            let offsets = self.to.find(admin, &topic.name, &topic.partitions).await?;
            for (info, offset) in topic.partitions.iter().zip(offsets) {
                let of = TopicPartition::new(topic.name.as_str(), info.partition);
                places.insert(of, offset.clamp(info.start, info.end));
            }
        }
        Ok(places)
    }
}

/// Lets partitions of a running handler begin elsewhere.
pub async fn reset(running: &Running, reset: &Reset) -> Result<Where, ResetError> {
    let admin = running.admin.as_deref().ok_or(ResetError::NoAdmin)?;
    let subscription = &running.spec.consumer.subscription;
    let found = reset.which.find(admin, &subscription.topics).await?;
    let places = reset.places(admin, &found).await.map_err(NotFound::from)?;
    let moved = if reset.dry_run {
        let here = running.membership.partitions();
        let stands = here.iter().filter_map(|view| Some((view, *places.get(&view.from)?)));
        stands.map(|(view, to)| Moved { of: view.from.clone(), from: view.committable, to }).collect()
    } else {
        running.membership.move_to(places.clone()).await?
    };
    let left = places.into_keys().filter(|of| !moved.iter().any(|moved| moved.of == *of));
    let left: Vec<TopicPartition> = left.collect();
    Ok(Where { moved, elsewhere: whose(admin, &subscription.group, left).await })
}

/// Partitions that others hold, and whose they are, as far as that is known.
pub type Elsewhere = Vec<(TopicPartition, Option<String>)>;

/// Whose these partitions are.
pub(super) async fn whose(admin: &dyn Admin, group: &str, left: Vec<TopicPartition>) -> Elsewhere {
    // Only for words: whoever can't say it leaves it open.
    let mut owners = match left[..] {
        [] => BTreeMap::new(),
        _ => admin.owners(group).await.unwrap_or_default(),
    };
    left.into_iter().map(|of| (of.clone(), owners.remove(&of))).collect()
}
