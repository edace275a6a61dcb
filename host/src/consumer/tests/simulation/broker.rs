//! The broker as one host sees it: its membership of the group and its readers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use tidemill_core::record::{Chunk, ChunkBuilder, Offset, Timestamp, TopicPartition};
use tokio::sync::Notify;

use super::coordinator::MemberId;
use super::producer::SimProducer;
use super::trace::{Ending, What};
use super::transactions::SimTransactions;
use super::world::{Life, Link, State, World};
use crate::broker::{
    Admin, Broker, BrokerError, CommitError, Committed, Consumer, ConsumerEvent, PartitionInfo, Producer, Reader,
    Subscription, TopicInfo,
};
use crate::consumer::tests::TOPIC;

/// How long a commit may go unanswered.
const COMMIT_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked whether a transaction has ended.
pub(super) const LOOK: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub(super) struct SimBroker {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
}

impl Broker for SimBroker {
    type Consumer = SimConsumer;
    type Transactions = SimTransactions;

    fn consumer(&self, _subscription: &Subscription) -> Result<SimConsumer, BrokerError> {
        let (id, woken) = self.world.lock().group.join(&self.life);
        Ok(SimConsumer { member: SimMember { broker: self.clone(), id }, woken, failed: false })
    }

    async fn readers(
        &self,
        _places: &BTreeMap<TopicPartition, Offset>,
        _properties: &BTreeMap<String, String>,
    ) -> Result<Vec<(TopicPartition, SimReader)>, BrokerError> {
        unasked().await
    }

    fn check(&self, _subscription: &Subscription) -> Result<(), BrokerError> {
        Ok(())
    }

    fn producer(&self, _properties: &BTreeMap<String, String>) -> Result<Arc<dyn Producer>, BrokerError> {
        Ok(Arc::new(SimProducer::new(self.clone())))
    }

    fn transactions(&self, id: &str, _: &BTreeMap<String, String>) -> Result<SimTransactions, BrokerError> {
        Ok(SimTransactions::new(self.clone(), id))
    }

    fn admin(&self) -> Result<Arc<dyn Admin>, BrokerError> {
        Ok(Arc::new(SimAdmin(self.clone())))
    }
}

/// A member as its transactions name it.
#[derive(Clone)]
pub(super) struct SimMember {
    pub(super) broker: SimBroker,
    pub(super) id: MemberId,
}

pub(super) struct SimConsumer {
    member: SimMember,
    woken: Arc<Notify>,
    /// It was told that it can't go on.
    failed: bool,
}

impl SimConsumer {
    fn parts(&self) -> (&Arc<World>, &Arc<Life>) {
        (&self.member.broker.world, &self.member.broker.life)
    }

    /// Notes that partitions are not read any more.
    fn end(&self, partitions: &[i32], ending: Ending) {
        let (world, life) = self.parts();
        partitions.iter().for_each(|partition| world.note(What::Released(life.host, *partition, ending)));
    }
}

impl Consumer for SimConsumer {
    type Reader = SimReader;
    type Member = SimMember;

    async fn next_event(&mut self) -> ConsumerEvent {
        loop {
            let (world, life) = self.parts();
            if life.alive().await {
                // What happened meanwhile is not heard at once.
                world.latency(300).await;
                life.alive().await;
            }
            let event = {
                let mut state = world.lock();
                let by_itself = state.dice.bool();
                state.group.next_event(self.member.id, by_itself)
            };
            if let Some(event) = event {
                let (told, partitions) = match &event {
                    ConsumerEvent::Assigned(partitions) => ("assigned", numbers(partitions)),
                    ConsumerEvent::Revoked(partitions) => ("revoked", numbers(partitions)),
                    ConsumerEvent::Lost(partitions) => ("lost", numbers(partitions)),
                    ConsumerEvent::Problem(_) => ("problem", Vec::new()),
                    ConsumerEvent::Fatal(_) => ("fatal", Vec::new()),
                };
                world.note(What::Told(life.host, told, partitions.clone()));
                if told == "lost" {
                    self.end(&partitions, Ending::Violent);
                }
                self.failed |= told == "fatal";
                return event;
            }
            self.woken.notified().await;
        }
    }

    async fn start(
        &mut self,
        partitions: &[TopicPartition],
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, SimReader)>, BrokerError> {
        let (world, life) = self.parts();
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        world.latency(10).await;
        life.up().await;
        // What was committed is known once all transactions on it have ended.
        while partitions.iter().any(|from| world.lock().group.undecided[from.partition as usize]) {
            tokio::time::sleep(LOOK).await;
        }
        let mut state = world.lock();
        let mut readers = Vec::new();
        for from in partitions {
            let committed = state.group.committed[from.partition as usize];
            let start = places.get(from).copied().or(committed).unwrap_or(0);
            if let Some(member) = state.group.member_mut(self.member.id) {
                member.held.insert(from.partition);
            }
            world.note_in(&mut state, What::Assigned(life.host, from.partition, start));
            let end = state.end(from.partition);
            let broker = self.member.broker.clone();
            let reader = SimReader { broker, from: from.clone(), next: start, end, skipped: None };
            readers.push((from.clone(), reader));
        }
        Ok(readers)
    }

    async fn seek(
        &mut self,
        _places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, SimReader)>, BrokerError> {
        unasked().await
    }

    async fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), BrokerError> {
        let (world, life) = self.parts();
        life.alive().await;
        let partitions = numbers(partitions);
        let held = |partition: &i32| {
            let state = world.lock();
            state.group.member(self.member.id).is_some_and(|member| member.held.contains(partition))
        };
        let given_back: Vec<i32> = partitions.iter().copied().filter(held).collect();
        let current = world.lock().group.is_current(self.member.id);
        self.end(&given_back, if current { Ending::Orderly } else { Ending::Violent });
        world.lock().group.release(self.member.id, &partitions);
        Ok(())
    }

    fn commit(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + 'static {
        let (world, life, id) = (Arc::clone(self.parts().0), Arc::clone(self.parts().1), self.member.id);
        let generation = world.lock().group.member(id).map_or(0, |member| member.generation);
        async move {
            let result = commit(&world, &life, id, generation, &offsets).await;
            if let Err(error) = &result {
                let how = if matches!(error, CommitError::Fenced(_)) { "fenced" } else { "failed" };
                world.note(What::CommitFailed(life.host, how));
            }
            result
        }
    }

    fn member(&self) -> SimMember {
        self.member.clone()
    }

    async fn close(self) {
        let (world, life) = self.parts();
        life.alive().await;
        let held = world.lock().group.member(self.member.id).map(|member| member.held.clone()).unwrap_or_default();
        let orderly = !self.failed && life.is_stopping() && world.lock().group.is_current(self.member.id);
        let ending = if orderly { Ending::Orderly } else { Ending::Violent };
        self.end(&held.into_iter().collect::<Vec<_>>(), ending);
        if life.up_within(Duration::from_secs(1)).await {
            world.lock().group.leave(self.member.id);
        }
    }
}

async fn commit(
    world: &Arc<World>,
    life: &Arc<Life>,
    id: MemberId,
    generation: u64,
    offsets: &[(TopicPartition, Offset)],
) -> Result<(), CommitError> {
    let retriable = |what: &str| Err(CommitError::Retriable(what.to_owned()));
    if !life.up_within(COMMIT_DEADLINE).await {
        return retriable("no answer");
    }
    world.latency(10).await;
    if !life.is_up() || world.mishap(|rates| rates.commit) {
        life.alive().await;
        return retriable("the coordinator moves");
    }
    {
        let mut state = world.lock();
        if !state.group.is_member(id, generation) {
            return Err(CommitError::Fenced("another generation".to_owned()));
        }
        for (from, offset) in offsets {
            state.group.committed[from.partition as usize] = Some(*offset);
            world.note_in(&mut state, What::Committed(life.host, from.partition, *offset));
        }
    }
    world.latency(10).await;
    life.alive().await;
    if !life.is_up() || world.mishap(|rates| rates.commit) {
        return retriable("the answer is lost");
    }
    Ok(())
}

pub(super) struct SimReader {
    broker: SimBroker,
    from: TopicPartition,
    next: Offset,
    /// The end of the log as far as it was fetched.
    end: Offset,
    /// What was deleted before it was read.
    skipped: Option<Range<Offset>>,
}

impl Reader for SimReader {
    async fn next(&mut self, records_max: usize, bytes_max: usize) -> Result<Arc<Chunk>, BrokerError> {
        loop {
            let SimBroker { world, life } = self.broker.clone();
            let mut grown = pin!(world.grown(self.from.partition).notified());
            grown.as_mut().enable();
            life.alive().await;
            if let Some(taken) = self.take(records_max, bytes_max) {
                return taken;
            }
            if life.link() == Link::Cut {
                life.up().await;
            } else {
                grown.await;
            }
        }
    }

    fn skipped(&mut self) -> Option<Range<Offset>> {
        let skipped = self.skipped.take()?;
        let SimBroker { world, life } = &self.broker;
        world.note(What::Skipped(life.host, self.from.partition, skipped.clone()));
        Some(skipped)
    }

    fn end_offset(&self) -> Option<Offset> {
        Some(self.end)
    }

    fn position(&self) -> Option<Offset> {
        Some(self.next)
    }
}

impl SimReader {
    /// What was fetched, if anything.
    fn take(&mut self, records_max: usize, bytes_max: usize) -> Option<Result<Arc<Chunk>, BrokerError>> {
        let mut state = self.broker.world.lock();
        if self.broker.life.is_up() {
            self.end = state.end(self.from.partition);
        }
        if self.next >= self.end {
            return None;
        }
        if state.mishap(|rates| rates.read) {
            return Some(Err(BrokerError::Unavailable("a fetch failed".to_owned())));
        }
        let kept_from = state.starts[self.from.partition as usize];
        if self.next < kept_from && self.broker.life.is_up() {
            self.skipped = Some(self.next..kept_from);
            self.next = kept_from;
        }
        let most = state.dice.usize(1..=records_max);
        let mut chunk = ChunkBuilder::default();
        for (offset, key) in state.input[self.from.partition as usize].range(self.next..self.end).take(most) {
            if !chunk.is_empty() && chunk.bytes() + 2 > bytes_max {
                break;
            }
            let key = key.to_string();
            chunk.push(*offset, Timestamp::None, (key != "0").then_some(key.as_bytes()), Some(b"v"), []);
            self.next = offset + 1;
        }
        Some(Ok(Arc::new(chunk.build())))
    }
}

/// Knows the ends of the input, and reads what is parked.
struct SimAdmin(SimBroker);

impl Admin for SimAdmin {
    fn topics(&self, name: Option<&str>) -> BoxFuture<'_, Result<Vec<TopicInfo>, BrokerError>> {
        let name = name.unwrap_or(TOPIC).to_owned();
        async move {
            let state = self.asked().await?;
            let partitions = if name == TOPIC { state.partitions } else { state.parked.partitions() };
            if partitions == 0 {
                return Err(BrokerError::NoSuchTopic(name));
            }
            let info = |partition| {
                let (start, end) = if name == TOPIC {
                    (state.starts[partition as usize], state.end(partition))
                } else {
                    (0, state.parked.end(partition))
                };
                PartitionInfo { partition, start, end, replicas: 1 }
            };
            let partitions = (0..partitions).map(info).collect();
            Ok(vec![TopicInfo { name, partitions }])
        }
        .boxed()
    }

    fn takes_records<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<bool, BrokerError>> {
        async move { Ok(self.asked().await?.parked.takes_records()) }.boxed()
    }

    fn create_topic(&self, name: &str, partitions: i32, _: Option<i32>) -> BoxFuture<'_, Result<(), BrokerError>> {
        let name = name.to_owned();
        async move {
            let mut state = self.asked().await?;
            if state.parked.partitions() > 0 {
                return Err(BrokerError::TopicExists(name));
            }
            state.parked.make(partitions);
            Ok(())
        }
        .boxed()
    }

    fn offsets_for_time(&self, _: &str, _: i64) -> BoxFuture<'_, Result<Vec<(i32, Offset)>, BrokerError>> {
        unasked()
    }

    fn committed(&self, _: &str, _: &str) -> BoxFuture<'_, Result<Committed, BrokerError>> {
        unasked()
    }

    fn commit(&self, _: &str, _: Vec<(TopicPartition, Offset)>) -> BoxFuture<'_, Result<(), BrokerError>> {
        unasked()
    }

    fn read(
        &self,
        _: &str,
        partition: i32,
        from: Offset,
        most: usize,
    ) -> BoxFuture<'_, Result<Arc<Chunk>, BrokerError>> {
        async move {
            let mut state = self.asked().await?;
            let most = state.dice.usize(1..=most.max(1));
            Ok(Arc::new(state.parked.read(partition, from, most)))
        }
        .boxed()
    }
}

impl SimAdmin {
    /// The broker, once it is reached.
    async fn asked(&self) -> Result<MutexGuard<'_, State>, BrokerError> {
        let SimBroker { world, life } = &self.0;
        life.up().await;
        world.latency(10).await;
        life.up().await;
        let mut state = world.lock();
        if state.mishap(|rates| rates.read) {
            return Err(BrokerError::Unavailable("it did not answer".to_owned()));
        }
        Ok(state)
    }
}

/// What the rooms of a record's path do not ask.
fn unasked<T: Send + 'static>() -> BoxFuture<'static, Result<T, BrokerError>> {
    std::future::ready(Err(BrokerError::Rejected("nobody asks that".to_owned()))).boxed()
}

pub(super) fn numbers(partitions: &[TopicPartition]) -> Vec<i32> {
    partitions.iter().map(|from| from.partition).collect()
}
