//! A consumer group: which member holds which partition, and how one goes from hand to hand. No task and no clock.
//!
//! Cooperative: only partitions that move are revoked. A partition has one holder at a time: the next one is offered it
//! once the last one gave it back, left, or did not do so before the deadline and lost it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

use super::assign::{MemberId, assign};
use super::topics::Topics;
use crate::broker::{ConsumerEvent, StartAt};

/// A group with at least one member.
#[derive(Debug)]
pub(super) struct Group {
    start_at: StartAt,
    drain_deadline: Duration,
    members: BTreeMap<MemberId, Member>,
    /// Who should hold each partition.
    wanted: BTreeMap<TopicPartition, MemberId>,
    /// Who holds each partition. Invariant: each holder is a member.
    held: BTreeMap<TopicPartition, Hold>,
    /// The end of each partition when the group first saw it: where it begins when it starts at the next record.
    first_seen: BTreeMap<TopicPartition, Offset>,
}

#[derive(Debug)]
struct Member {
    topics: BTreeSet<Arc<str>>,
    wake: Arc<Notify>,
    /// Taken away and not yet given back. Invariant: none of them is held by this member.
    lost: BTreeMap<TopicPartition, Told>,
    /// Whether it was told anything: its first news may be that it holds nothing.
    greeted: bool,
}

#[derive(Debug)]
struct Hold {
    member: MemberId,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The member will be told of it.
    Offered,
    /// The member was told.
    Held,
    /// The group takes it back.
    Revoked { told: Told, until: Instant },
}

/// Whether the member's next event will say so, or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Yes,
    No,
}

impl Group {
    pub(super) fn new(start_at: StartAt, drain_deadline: Duration) -> Self {
        Self {
            start_at,
            drain_deadline,
            members: BTreeMap::new(),
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            first_seen: BTreeMap::new(),
        }
    }

    /// Whether nobody is left.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes a member in; `wake` tells it to ask for its next event.
    pub(super) fn join(&mut self, member: MemberId, topics: BTreeSet<Arc<str>>, wake: Arc<Notify>) {
        self.members.insert(member, Member { topics, wake, lost: BTreeMap::new(), greeted: false });
    }

    /// Takes a member out with all that it holds.
    pub(super) fn leave(&mut self, member: MemberId) {
        self.members.remove(&member);
        self.held.retain(|_, hold| hold.member != member);
    }

    /// Brings what is held towards what is wanted, and wakes those who have something to be told.
    ///
    /// To be called after every change of members, holdings or topics.
    pub(super) fn settle(&mut self, topics: &Topics, now: Instant) {
        let partitions = self.partitions(topics);
        let members = self.members.iter().map(|(id, member)| (*id, &member.topics)).collect();
        self.wanted = assign(&self.wanted, &members, &partitions);
        for (partition, wanted) in &self.wanted {
            match self.held.get_mut(partition) {
                Some(hold) => turn(hold, *wanted, now + self.drain_deadline),
                None if self.members.get(wanted).is_some_and(|member| member.lost.contains_key(partition)) => {}
                None => drop(self.held.insert(partition.clone(), Hold { member: *wanted, state: State::Offered })),
            }
        }
        for (id, member) in &self.members {
            if self.has_news(*id, member) {
                member.wake.notify_one();
            }
        }
    }

    /// What a member is to be told next: what it lost, then what it has to give back, then what is new.
    pub(super) fn next_event(&mut self, id: MemberId) -> Option<ConsumerEvent> {
        let member = self.members.get_mut(&id)?;
        let first = !std::mem::replace(&mut member.greeted, true);
        let lost = tell(member.lost.iter_mut());
        if !lost.is_empty() {
            return Some(ConsumerEvent::Lost(lost));
        }
        let mine = || self.held.iter().filter(|(_, hold)| hold.member == id);
        let named = |told: fn(State) -> bool| -> Vec<TopicPartition> {
            mine().filter(|(_, hold)| told(hold.state)).map(|(partition, _)| partition.clone()).collect()
        };
        let revoked = named(|state| matches!(state, State::Revoked { told: Told::No, .. }));
        let offered = named(|state| state == State::Offered);
        for partition in revoked.iter().chain(offered.iter().filter(|_| revoked.is_empty())) {
            let Some(hold) = self.held.get_mut(partition) else { continue };
            hold.state = match hold.state {
                State::Revoked { until, .. } => State::Revoked { told: Told::Yes, until },
                State::Offered | State::Held => State::Held,
            };
        }
        match (revoked.is_empty(), offered.is_empty()) {
            (false, _) => Some(ConsumerEvent::Revoked(revoked)),
            (true, false) => Some(ConsumerEvent::Assigned(offered)),
            (true, true) => first.then(|| ConsumerEvent::Assigned(Vec::new())),
        }
    }

    /// A member gives partitions back.
    pub(super) fn release(&mut self, id: MemberId, partitions: &[TopicPartition]) {
        for partition in partitions {
            if let Some(member) = self.members.get_mut(&id) {
                member.lost.remove(partition);
            }
            if self.held.get(partition).is_some_and(|hold| hold.member == id) {
                self.held.remove(partition);
            }
        }
    }

    /// Takes away what was not given back in time. Returns whether there was any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let late = |hold: &Hold| matches!(hold.state, State::Revoked { until, .. } if until <= now);
        let expired: Vec<_> = self
            .held
            .iter()
            .filter(|(_, hold)| late(hold))
            .map(|(partition, hold)| (partition.clone(), hold.member))
            .collect();
        for (partition, id) in &expired {
            self.held.remove(partition);
            if let Some(member) = self.members.get_mut(id) {
                member.lost.insert(partition.clone(), Told::No);
            }
            tracing::warn!(%partition, deadline = ?self.drain_deadline, "a revoked partition was not given back in time; its work is void");
        }
        !expired.is_empty()
    }

    /// When [`Group::expire`] has something to do next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let untils = self.held.values().filter_map(|hold| match hold.state {
            State::Revoked { until, .. } => Some(until),
            State::Offered | State::Held => None,
        });
        untils.min()
    }

    /// Whether a member holds a partition, so that it may read and commit it.
    pub(super) fn holds(&self, id: MemberId, partition: &TopicPartition) -> bool {
        self.held.get(partition).is_some_and(|hold| hold.member == id)
    }

    /// Where to begin a partition that has no committed offset, when that is not its oldest record.
    pub(super) fn begin(&self, partition: &TopicPartition) -> Option<Offset> {
        match self.start_at {
            StartAt::Earliest => None,
            StartAt::Latest => self.first_seen.get(partition).copied(),
        }
    }

    /// All partitions of the members' topics that exist, in order.
    fn partitions(&mut self, topics: &Topics) -> Vec<TopicPartition> {
        let names: BTreeSet<&Arc<str>> = self.members.values().flat_map(|member| &member.topics).collect();
        let mut all = Vec::new();
        for topic in names.into_iter().filter_map(|name| topics.get(name)) {
            for (number, partition) in topic.partitions.iter().enumerate() {
                let name = TopicPartition::new(Arc::clone(&topic.name), number as i32);
                self.first_seen.entry(name.clone()).or_insert_with(|| partition.end());
                all.push(name);
            }
        }
        all
    }

    fn has_news(&self, id: MemberId, member: &Member) -> bool {
        member.lost.values().any(|told| *told == Told::No)
            || self.held.values().any(|hold| {
                hold.member == id && matches!(hold.state, State::Offered | State::Revoked { told: Told::No, .. })
            })
    }
}

/// Turns a holding towards the member that should have it.
fn turn(hold: &mut Hold, wanted: MemberId, until: Instant) {
    let stays = hold.member == wanted;
    hold.state = match hold.state {
        State::Offered => {
            // Nobody was told yet: it can be offered to another at once.
            hold.member = wanted;
            State::Offered
        }
        State::Held if !stays => State::Revoked { told: Told::No, until },
        State::Revoked { told: Told::No, .. } if stays => State::Held,
        state @ (State::Held | State::Revoked { .. }) => state,
    };
}

/// Names what was not told yet, and marks it as told.
fn tell<'a>(items: impl Iterator<Item = (&'a TopicPartition, &'a mut Told)>) -> Vec<TopicPartition> {
    let mut untold = Vec::new();
    for (partition, told) in items {
        if *told == Told::No {
            *told = Told::Yes;
            untold.push(partition.clone());
        }
    }
    untold
}

#[cfg(test)]
mod tests;
