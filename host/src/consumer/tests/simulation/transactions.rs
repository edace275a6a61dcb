//! Transactional producers: fenced, given up, and sometimes without anybody knowing how a transaction ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::record::{Offset, TopicPartition};

use super::broker::{LOOK, SimBroker, SimMember, numbers};
use super::producer::{is_large, named, too_large};
use super::trace::{Answer, Sent, Source, What};
use super::world::World;
use crate::broker::{Outgoing, Remains, TransactionError, Transactions, lacking};

/// The broker aborts what is open for so long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a producer waits for the broker.
const PATIENCE: Duration = Duration::from_secs(8);

/// Who has each transactional id.
#[derive(Default)]
pub(super) struct Producers {
    by_id: BTreeMap<String, Owner>,
    last: u64,
}

#[derive(Default)]
struct Owner {
    epoch: u64,
    open: Option<Open>,
}

/// A transaction at the broker: records and offsets that nobody sees before its end.
struct Open {
    number: u64,
    host: u32,
    stored: Vec<(Source, Sent)>,
    offsets: Vec<(i32, Offset)>,
    /// Its end is decided, and on its way.
    decided: bool,
}

pub(super) struct SimTransactions {
    broker: SimBroker,
    id: String,
    epoch: u64,
    records: Vec<Outgoing>,
}

impl SimTransactions {
    pub(super) fn new(broker: SimBroker, id: &str) -> Self {
        Self { broker, id: id.to_owned(), epoch: 0, records: Vec::new() }
    }

    /// The broker is there, and hears what it is asked.
    async fn reached(&self) -> Result<(), TransactionError> {
        let SimBroker { world, life } = &self.broker;
        if !life.up_within(PATIENCE).await || world.mishap(|rates| rates.transaction) {
            return Err(TransactionError::Unavailable("no answer".to_owned()));
        }
        Ok(())
    }

    /// A mishap before anything has happened.
    fn early(&self) -> Option<TransactionError> {
        let mut state = self.broker.world.lock();
        let mishap = state.mishap(|rates| rates.transaction);
        let text = || "by chance".to_owned();
        mishap.then(|| match state.dice.u8(..5) {
            0 => TransactionError::Aborted(text()),
            1 => TransactionError::Unavailable(text()),
            2 => TransactionError::Fenced(text()),
            3 => TransactionError::Fatal(text()),
            _ => TransactionError::StaleMember(text()),
        })
    }

    /// The records and the offsets are at the broker.
    fn prepare(&self, offsets: &[(TopicPartition, Offset)], member: &SimMember) -> Result<u64, TransactionError> {
        let (records, world) = (&self.records, &self.broker.world);
        let mut refused = Vec::new();
        for (place, record) in (0..).zip(records).filter(|(_, record)| is_large(record)) {
            let (source, sent) = named(record);
            world.note(What::Answered(self.broker.life.host, source, sent, Answer::Refused));
            refused.push((place, too_large()));
        }
        if !refused.is_empty() {
            return Err(TransactionError::Refused(refused));
        }
        let mut state = world.lock();
        let partitions: Vec<TopicPartition> = offsets.iter().map(|(from, _)| from.clone()).collect();
        let partitions = numbers(&partitions);
        let holds = state
            .group
            .member(member.id)
            .is_some_and(|member| partitions.iter().all(|partition| member.held.contains(partition)));
        if !holds || !state.group.is_current(member.id) {
            return Err(TransactionError::StaleMember("a partition is not this member's".to_owned()));
        }
        let producers = &mut state.producers;
        let Some(owner) = producers.by_id.get_mut(&self.id).filter(|owner| owner.epoch == self.epoch) else {
            return Err(TransactionError::Fenced("the id has another owner".to_owned()));
        };
        producers.last += 1;
        let number = producers.last;
        let offsets = offsets.iter().map(|(from, offset)| (from.partition, *offset)).collect();
        let stored = records.iter().map(named).collect();
        owner.open = Some(Open { number, host: self.broker.life.host, stored, offsets, decided: false });
        for partition in partitions {
            state.group.undecided[partition as usize] = true;
        }
        drop(state);
        let (world, id) = (Arc::clone(world), self.id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(TIMEOUT).await;
            if !world.is_decided(&id, number) {
                world.end(&id, number, false);
            }
        });
        Ok(number)
    }

    /// The end of a transaction that is at the broker, one way or the other, sooner or later.
    fn unknown(&self, number: u64) -> TransactionError {
        let world = &self.broker.world;
        let how = world.lock().dice.u8(..3);
        match how {
            0 => {
                world.end(&self.id, number, true);
            }
            1 => {}
            _ => {
                world.decide(&self.id, number);
                let (world, id) = (Arc::clone(world), self.id.clone());
                tokio::spawn(async move {
                    world.latency(3000).await;
                    world.end(&id, number, true);
                });
            }
        }
        TransactionError::Unknown("no answer".to_owned())
    }
}

impl Transactions for SimTransactions {
    type Member = SimMember;

    async fn init(&mut self) -> Result<(), TransactionError> {
        self.reached().await?;
        let SimBroker { world, life } = &self.broker;
        world.latency(10).await;
        life.alive().await;
        self.epoch = {
            let mut state = world.lock();
            let owner = state.producers.by_id.entry(self.id.clone()).or_default();
            owner.epoch += 1;
            owner.epoch
        };
        loop {
            let open = {
                let state = world.lock();
                let open = state.producers.by_id.get(&self.id).and_then(|owner| owner.open.as_ref());
                open.map(|open| (open.number, open.decided))
            };
            match open {
                None => return Ok(()),
                Some((number, false)) => {
                    world.end(&self.id, number, false);
                }
                Some((_, true)) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn send(&mut self, records: Arc<Vec<Outgoing>>) -> Result<(), TransactionError> {
        self.broker.life.alive().await;
        self.records.extend_from_slice(&records);
        Ok(())
    }

    async fn commit(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &SimMember,
    ) -> Result<(), TransactionError> {
        let SimBroker { world, life } = &self.broker;
        if !life.up_within(PATIENCE).await {
            return Err(TransactionError::Unavailable("no answer".to_owned()));
        }
        world.latency(10).await;
        life.alive().await;
        if let Some(error) = self.early() {
            return Err(error);
        }
        let number = self.prepare(offsets, member)?;
        self.records.clear();
        world.latency(10).await;
        if !life.up_within(PATIENCE).await || world.mishap(|rates| rates.transaction) {
            return Err(self.unknown(number));
        }
        let SimBroker { world, life } = &self.broker;
        if !world.end(&self.id, number, true) {
            return Err(TransactionError::Fenced("the broker has given the transaction up".to_owned()));
        }
        world.latency(10).await;
        life.alive().await;
        Ok(())
    }

    async fn abort(&mut self) -> Result<(), TransactionError> {
        let SimBroker { world, life } = &self.broker;
        self.records.clear();
        if !life.up_within(PATIENCE).await || world.mishap(|rates| rates.transaction) {
            return Err(TransactionError::Fatal("no answer".to_owned()));
        }
        world.latency(10).await;
        Ok(())
    }

    async fn give_up(&mut self) -> Remains {
        self.records.clear();
        Remains { possible: true, known: BTreeMap::new() }
    }

    /// There is nothing to end once more: this broker forgets no partition.
    async fn sweep(
        &mut self,
        _samples: &[Outgoing],
        _offsets: &[(TopicPartition, Offset)],
        _member: &SimMember,
    ) -> Result<bool, TransactionError> {
        self.reached().await?;
        self.broker.world.latency(10).await;
        Ok(true)
    }

    /// Nothing is lacking, for the same reason.
    async fn restore(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        _member: &SimMember,
    ) -> Result<bool, TransactionError> {
        self.reached().await?;
        let state = self.broker.world.lock();
        let kept: Vec<Option<Offset>> =
            offsets.iter().map(|(from, _)| state.group.committed[from.partition as usize]).collect();
        assert_eq!(lacking(offsets, &kept), [], "what was committed is there");
        Ok(true)
    }

    async fn committed(
        &mut self,
        partitions: &[TopicPartition],
        _member: &SimMember,
    ) -> Result<Vec<Option<Offset>>, TransactionError> {
        self.reached().await?;
        let SimBroker { world, life } = &self.broker;
        let partitions = numbers(partitions);
        let undecided = || partitions.iter().any(|partition| world.lock().group.undecided[*partition as usize]);
        while undecided() {
            tokio::time::sleep(LOOK).await;
        }
        life.alive().await;
        let state = world.lock();
        Ok(partitions.iter().map(|partition| state.group.committed[*partition as usize]).collect())
    }
}

impl World {
    fn is_decided(&self, id: &str, number: u64) -> bool {
        let state = self.lock();
        let open = state.producers.by_id.get(id).and_then(|owner| owner.open.as_ref());
        open.is_none_or(|open| open.number != number || open.decided)
    }

    fn decide(&self, id: &str, number: u64) {
        let mut state = self.lock();
        let open = state.producers.by_id.get_mut(id).and_then(|owner| owner.open.as_mut());
        if let Some(open) = open.filter(|open| open.number == number) {
            open.decided = true;
        }
    }

    /// Ends a transaction, unless it has ended. Answers whether this was its end.
    fn end(&self, id: &str, number: u64, committed: bool) -> bool {
        let mut state = self.lock();
        let Some(owner) = state.producers.by_id.get_mut(id) else { return false };
        let Some(Open { host, stored, offsets, .. }) = owner.open.take_if(|open| open.number == number) else {
            return false;
        };
        for (partition, _) in &offsets {
            state.group.undecided[*partition as usize] = false;
        }
        if committed {
            for (partition, offset) in &offsets {
                state.group.committed[*partition as usize] = Some(*offset);
            }
            self.note_in(&mut state, What::Transaction { host, stored, offsets });
        }
        true
    }
}
