//! The group: who holds which partition, and how far it is committed.
//!
//! It is as careless as a real one: whoever is a member may commit for every partition, backwards too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::Notify;

use super::world::Life;
use crate::broker::ConsumerEvent;
use crate::consumer::tests::TOPIC;

pub(super) type MemberId = u64;

pub(super) struct Coordinator {
    members: BTreeMap<MemberId, Member>,
    last: MemberId,
    /// The partitions that it knows: those that were added are found out later.
    known: usize,
    /// Who may read a partition, until it has given it back.
    owners: Vec<Option<MemberId>>,
    /// Who is to have it.
    targets: Vec<Option<MemberId>>,
    pub(super) committed: Vec<Option<Offset>>,
    /// Partitions with an offset in a transaction whose end is open.
    pub(super) undecided: Vec<bool>,
}

pub(super) struct Member {
    life: Arc<Life>,
    /// What it has not heard yet.
    events: VecDeque<ConsumerEvent>,
    pub(super) woken: Arc<Notify>,
    /// What it reads by the last event that it has answered.
    pub(super) held: BTreeSet<i32>,
    /// What it was asked to give back.
    asked: BTreeSet<i32>,
    /// What it has given back while nobody heard it.
    unheard: Vec<i32>,
    standing: Standing,
    /// Changes when it becomes another member to the group.
    pub(super) generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has asked to join, and nobody has heard it.
    Joining,
    Joined,
    /// It is a member no longer, and does not know.
    Evicted,
    /// It has heard that it has lost all.
    Lost,
}

impl Coordinator {
    /// Knows some of the partitions that there may be.
    pub(super) fn new(known: usize, partitions: usize) -> Self {
        Self {
            known,
            members: BTreeMap::new(),
            last: 0,
            owners: vec![None; partitions],
            targets: vec![None; partitions],
            committed: vec![None; partitions],
            undecided: vec![false; partitions],
        }
    }

    pub(super) fn join(&mut self, life: &Arc<Life>) -> (MemberId, Arc<Notify>) {
        self.last += 1;
        let woken = Arc::new(Notify::new());
        let member = Member {
            life: Arc::clone(life),
            events: VecDeque::new(),
            woken: Arc::clone(&woken),
            held: BTreeSet::new(),
            asked: BTreeSet::new(),
            unheard: Vec::new(),
            standing: Standing::Joining,
            generation: 0,
        };
        self.members.insert(self.last, member);
        self.heard(life);
        (self.last, woken)
    }

    pub(super) fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    pub(super) fn member_mut(&mut self, id: MemberId) -> Option<&mut Member> {
        self.members.get_mut(&id)
    }

    /// Whether it is a member, and still the one that it was.
    pub(super) fn is_member(&self, id: MemberId, generation: u64) -> bool {
        let member = self.members.get(&id);
        member.is_some_and(|member| member.standing == Standing::Joined && member.generation == generation)
    }

    /// Whether nothing has happened to its membership that ends it.
    pub(super) fn is_current(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|member| member.standing == Standing::Joined)
    }

    /// The broker hears what a host's members have to say, if it can.
    pub(super) fn heard(&mut self, life: &Arc<Life>) {
        if !life.is_up() {
            return;
        }
        let mut changed = false;
        let mut given_back = Vec::new();
        for (id, member) in self.members.iter_mut().filter(|(_, member)| Arc::ptr_eq(&member.life, life)) {
            if member.standing == Standing::Joined {
                given_back.extend(member.unheard.drain(..).map(|partition| (*id, partition)));
            }
            let rejoins = member.standing == Standing::Lost && member.held.is_empty();
            if member.standing == Standing::Joining || rejoins {
                member.standing = Standing::Joined;
                member.generation += 1;
                member.unheard.clear();
                member.asked.clear();
                member.events.push_back(ConsumerEvent::Assigned(Vec::new()));
                changed = true;
            }
            member.woken.notify_one();
        }
        for (id, partition) in given_back {
            self.free(id, partition);
        }
        if changed {
            self.balance(None);
        }
    }

    /// Whether it has not found out yet that there are so many partitions.
    pub(super) fn is_behind(&self, partitions: i32) -> bool {
        self.known < partitions as usize
    }

    /// It finds out that there are more partitions.
    pub(super) fn grow(&mut self, partitions: usize) {
        if self.known < partitions {
            self.known = partitions;
            self.balance(None);
        }
    }

    /// A host's members are not waited for any more. Answers whether there were any.
    pub(super) fn evict(&mut self, life: &Arc<Life>) -> bool {
        let mine = self.members.iter_mut().filter(|(_, member)| Arc::ptr_eq(&member.life, life));
        let mut evicted = Vec::new();
        for (id, member) in mine.filter(|(_, member)| member.standing == Standing::Joined) {
            member.standing = Standing::Evicted;
            member.events.clear();
            member.unheard.clear();
            member.woken.notify_one();
            evicted.push(*id);
        }
        evicted.iter().for_each(|id| self.bereave(*id));
        !evicted.is_empty()
    }

    /// A member goes of its own will.
    pub(super) fn leave(&mut self, id: MemberId) {
        if self.members.remove(&id).is_some() {
            self.bereave(id);
        }
    }

    fn bereave(&mut self, id: MemberId) {
        for owner in &mut self.owners {
            if *owner == Some(id) {
                *owner = None;
            }
        }
        self.balance(None);
    }

    /// What a member hears next. It hears that it has lost everything when it reaches the broker, or by its own clock.
    pub(super) fn next_event(&mut self, id: MemberId, by_itself: bool) -> Option<ConsumerEvent> {
        let member = self.members.get_mut(&id)?;
        if member.standing == Standing::Evicted && (member.life.is_up() || by_itself) {
            member.standing = Standing::Lost;
            let lost: Vec<TopicPartition> = member.held.iter().copied().map(named).collect();
            if !lost.is_empty() {
                return Some(ConsumerEvent::Lost(lost));
            }
            let life = Arc::clone(&member.life);
            self.heard(&life);
            return self.next_event(id, by_itself);
        }
        if member.life.is_up() { member.events.pop_front() } else { None }
    }

    /// A member gives partitions back.
    pub(super) fn release(&mut self, id: MemberId, partitions: &[i32]) {
        let Some(member) = self.members.get_mut(&id) else { return };
        for partition in partitions {
            member.held.remove(partition);
            member.asked.remove(partition);
        }
        if member.standing == Standing::Joined {
            member.unheard.extend(partitions);
        }
        let life = Arc::clone(&member.life);
        self.heard(&life);
    }

    fn free(&mut self, id: MemberId, partition: i32) {
        let owner = &mut self.owners[partition as usize];
        if *owner == Some(id) {
            *owner = None;
            self.hand_out();
        }
    }

    /// Tells a host's members something beside what the group does.
    pub(super) fn tell(&mut self, life: &Arc<Life>, event: impl Fn() -> ConsumerEvent) {
        for member in self.members.values_mut().filter(|member| Arc::ptr_eq(&member.life, life)) {
            member.events.push_back(event());
            member.woken.notify_one();
        }
    }

    /// Decides anew who is to have what: as it is, as far as that is fair, or by dice.
    pub(super) fn balance(&mut self, dice: Option<&mut fastrand::Rng>) {
        let joined = self.members.iter().filter(|(_, member)| member.standing == Standing::Joined);
        let mut members: Vec<MemberId> = joined.map(|(id, _)| *id).collect();
        if members.is_empty() {
            self.targets.fill(None);
            return;
        }
        let mut partitions: Vec<usize> = (0..self.known).collect();
        let keeps = dice.is_none();
        if let Some(dice) = dice {
            dice.shuffle(&mut members);
            dice.shuffle(&mut partitions);
        }
        let (least, mut more) = (partitions.len() / members.len(), partitions.len() % members.len());
        let mut room: BTreeMap<MemberId, usize> = BTreeMap::new();
        for id in &members {
            room.insert(*id, least + usize::from(more > 0));
            more = more.saturating_sub(1);
        }
        let mut homeless = Vec::new();
        for partition in partitions {
            let owner = self.owners[partition].filter(|_| keeps).and_then(|id| Some((id, room.get_mut(&id)?)));
            match owner {
                Some((id, room)) if *room > 0 => {
                    *room -= 1;
                    self.targets[partition] = Some(id);
                }
                Some(_) | None => homeless.push(partition),
            }
        }
        for partition in homeless {
            let free = members.iter().copied().find(|id| room[id] > 0);
            free.and_then(|id| room.get_mut(&id)).into_iter().for_each(|room| *room -= 1);
            self.targets[partition] = free;
        }
        self.ask_back();
        self.hand_out();
    }

    fn ask_back(&mut self) {
        for (id, member) in &mut self.members {
            let owned = (0..).zip(self.owners.iter().zip(&self.targets));
            let goes = owned.filter(|(_, (owner, target))| **owner == Some(*id) && **target != Some(*id));
            let goes: Vec<i32> = goes.map(|(partition, _)| partition).filter(|it| member.asked.insert(*it)).collect();
            if !goes.is_empty() {
                member.events.push_back(ConsumerEvent::Revoked(goes.into_iter().map(named).collect()));
                member.woken.notify_one();
            }
        }
    }

    fn hand_out(&mut self) {
        let mut given: BTreeMap<MemberId, Vec<TopicPartition>> = BTreeMap::new();
        for (partition, (owner, target)) in (0..).zip(self.owners.iter_mut().zip(&self.targets)) {
            if let (None, Some(id)) = (&owner, target) {
                *owner = Some(*id);
                given.entry(*id).or_default().push(named(partition));
            }
        }
        for (id, partitions) in given {
            if let Some(member) = self.members.get_mut(&id) {
                member.events.push_back(ConsumerEvent::Assigned(partitions));
                member.woken.notify_one();
            }
        }
    }
}

pub(super) fn named(partition: i32) -> TopicPartition {
    TopicPartition::new(TOPIC, partition)
}
