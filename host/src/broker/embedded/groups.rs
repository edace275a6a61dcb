//! The groups of this process, by name: who is in them, and who waits to be told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::assign::MemberId;
use super::group::Group;
use super::topics::Topics;
use crate::broker::{ConsumerEvent, Subscription};

/// All groups that have members.
#[derive(Debug)]
pub(super) struct Groups {
    topics: Arc<Topics>,
    drain_deadline: Duration,
    next_member: AtomicU64,
    /// Held for moments only, never across a wait.
    by_name: Mutex<BTreeMap<String, Group>>,
}

/// A place in a group.
#[derive(Debug)]
pub struct Membership {
    groups: Arc<Groups>,
    pub(super) group: String,
    member: MemberId,
    wake: Arc<Notify>,
}

impl Groups {
    pub(super) fn new(topics: Arc<Topics>, drain_deadline: Duration) -> Self {
        Self { topics, drain_deadline, next_member: AtomicU64::new(1), by_name: Mutex::default() }
    }

    /// Joins a group, which is there with its first member.
    pub(super) fn join(self: &Arc<Self>, subscription: &Subscription) -> Membership {
        let member = self.next_member.fetch_add(1, Ordering::Relaxed);
        let wake = Arc::new(Notify::new());
        let topics = subscription.topics.iter().map(|topic| Arc::from(topic.as_str())).collect();
        let mut groups = self.lock();
        let group = groups
            .entry(subscription.group.clone())
            .or_insert_with(|| Group::new(subscription.start_at, self.drain_deadline));
        group.join(member, topics, Arc::clone(&wake));
        group.settle(&self.topics, Instant::now());
        Membership { groups: Arc::clone(self), group: subscription.group.clone(), member, wake }
    }

    /// Whether anybody is in a group.
    pub(super) fn has_members(&self, group: &str) -> bool {
        self.lock().contains_key(group)
    }

    /// A topic is new: whoever waits for it gets it.
    pub(super) fn topic_made(&self) {
        for group in self.lock().values_mut() {
            group.settle(&self.topics, Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Group>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// Waits for what this member is to be told. Cancel-safe: it is told when this returns.
    pub(super) async fn next_event(&self) -> ConsumerEvent {
        loop {
            let news = self.with(|group, topics| {
                if group.expire(Instant::now()) {
                    group.settle(topics, Instant::now());
                }
                (group.next_event(self.member), group.deadline())
            });
            let deadline = match news {
                Some((Some(event), _)) => return event,
                Some((None, deadline)) => deadline,
                None => None,
            };
            let expiry = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = expiry => {}
            }
        }
    }

    /// Gives partitions back.
    pub(super) fn release(&self, partitions: &[TopicPartition]) {
        self.with(|group, topics| {
            group.release(self.member, partitions);
            group.settle(topics, Instant::now());
        });
    }

    /// Whether this member holds a partition now, and where a group begins it that never committed.
    pub(super) fn holding(&self, partition: &TopicPartition) -> Option<Option<Offset>> {
        self.with(|group, _| group.holds(self.member, partition).then(|| group.begin(partition))).flatten()
    }

    /// Does something while all these partitions are certainly held; `None` when one is not.
    pub(super) fn while_holding<T>(
        &self,
        partitions: &[(TopicPartition, Offset)],
        act: impl FnOnce() -> T,
    ) -> Option<T> {
        self.with(|group, _| {
            let all = partitions.iter().all(|(partition, _)| group.holds(self.member, partition));
            all.then(act)
        })
        .flatten()
    }

    /// Leaves the group. Commits that are made after it are fenced.
    pub(super) fn leave(&self) {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(&self.group) else { return };
        group.leave(self.member);
        if group.is_empty() {
            groups.remove(&self.group);
        } else {
            group.settle(&self.groups.topics, Instant::now());
        }
    }

    /// Acts on the group; `None` if it ended with its last member.
    fn with<T>(&self, act: impl FnOnce(&mut Group, &Topics) -> T) -> Option<T> {
        self.groups.lock().get_mut(&self.group).map(|group| act(group, &self.groups.topics))
    }
}
