//! A group member that a promise drives from outside: it starts what it is given and gives back what it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{pending, select_all};
use tidemill_core::record::{Chunk, Offset, Record, TopicPartition};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{PATIENCE, within};
use crate::broker::{BrokerError, CommitError, Consumer, ConsumerEvent, Reader};

const RECORDS_MAX: usize = 100;
const BYTES_MAX: usize = 1 << 20;

/// What a member has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Whether it was assigned anything yet, be it nothing.
    pub(super) joined: bool,
    /// What it holds and reads.
    pub(super) assigned: BTreeSet<TopicPartition>,
    /// What it read, in order, with what it read again after losing and getting back a partition.
    pub(super) records: Vec<(TopicPartition, Record)>,
}

impl Seen {
    /// The records of one partition, in the order in which they came.
    pub(super) fn of(&self, partition: i32) -> Vec<Record> {
        let mine = self.records.iter().filter(|(from, _)| from.partition == partition);
        mine.map(|(_, record)| record.clone()).collect()
    }
}

/// How a member ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It commits what it read, drops its readers and closes.
    Close,
    /// It is dropped as it is; nothing is committed.
    Drop,
}

enum Command {
    Commit(Vec<(TopicPartition, Offset)>, oneshot::Sender<Result<(), CommitError>>),
    End(Ending),
}

/// A running member.
pub(super) struct Member {
    commands: mpsc::UnboundedSender<Command>,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Member {
    /// Runs a member that commits what it read of a partition when that is revoked.
    pub(super) fn run<C: Consumer>(consumer: C) -> Self {
        Self::run_with(consumer, |_, position| position)
    }

    /// Runs a member whose partitions start at these places.
    pub(super) fn run_from<C: Consumer>(consumer: C, places: BTreeMap<TopicPartition, Offset>) -> Self {
        Self::run_body(consumer, |_, position| position, places)
    }

    /// Runs a member that commits, of a revoked partition, what `chooses` says of the position that it reached.
    pub(super) fn run_with<C: Consumer>(consumer: C, chooses: fn(&TopicPartition, Offset) -> Offset) -> Self {
        Self::run_body(consumer, chooses, BTreeMap::new())
    }

    fn run_body<C: Consumer>(
        consumer: C,
        chooses: fn(&TopicPartition, Offset) -> Offset,
        places: BTreeMap<TopicPartition, Offset>,
    ) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (publish, seen) = watch::channel(Seen::default());
        let body = Body { consumer, places, readers: BTreeMap::new(), positions: BTreeMap::new(), chooses, publish };
        Self { commands, seen, task: tokio::spawn(body.run(inbox)) }
    }

    /// Waits until the member has seen what the condition asks for.
    pub(super) async fn until(&mut self, what: &str, condition: impl FnMut(&Seen) -> bool) -> Seen {
        let waited = timeout(PATIENCE, async { self.seen.wait_for(condition).await.map(|seen| seen.clone()) }).await;
        match waited {
            Ok(Ok(seen)) => seen,
            Ok(Err(_)) => panic!("the member ended before {what}"),
            Err(_) => panic!("not in time: {what}; seen {:?}", self.seen()),
        }
    }

    /// What the member has seen by now.
    pub(super) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    pub(super) async fn commit(&self, offsets: Vec<(TopicPartition, Offset)>) -> Result<(), CommitError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Commit(offsets, answer)).expect("the member runs");
        within(answered).await.expect("the member answers")
    }

    pub(super) async fn end(self, ending: Ending) -> Seen {
        self.commands.send(Command::End(ending)).expect("the member runs");
        within(self.task).await.expect("the member did not panic");
        self.seen.borrow().clone()
    }
}

struct Body<C: Consumer> {
    consumer: C,
    places: BTreeMap<TopicPartition, Offset>,
    readers: BTreeMap<TopicPartition, C::Reader>,
    positions: BTreeMap<TopicPartition, Offset>,
    chooses: fn(&TopicPartition, Offset) -> Offset,
    publish: watch::Sender<Seen>,
}

impl<C: Consumer> Body<C> {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        loop {
            tokio::select! {
                biased;
                command = inbox.recv() => match command {
                    Some(Command::Commit(offsets, answer)) => {
                        let result = self.consumer.commit(offsets).await;
                        answer.send(result).expect("the test waits for its commit");
                    }
                    Some(Command::End(ending)) => return self.end(ending).await,
                    None => return,
                },
                event = self.consumer.next_event() => self.answer(event).await,
                (from, chunk) = next_chunk(&mut self.readers) => self.keep(from, chunk),
            }
        }
    }

    async fn answer(&mut self, event: ConsumerEvent) {
        match event {
            ConsumerEvent::Assigned(partitions) => {
                self.start(&partitions).await;
                self.publish.send_modify(|seen| seen.joined = true);
            }
            ConsumerEvent::Revoked(partitions) => {
                self.commit_read(&partitions).await;
                self.give_back(&partitions).await;
            }
            ConsumerEvent::Lost(partitions) => self.give_back(&partitions).await,
            ConsumerEvent::Problem(text) => tracing::warn!(%text, "the member has a problem"),
            ConsumerEvent::Fatal(text) => panic!("the member can't go on: {text}"),
        }
    }

    async fn start(&mut self, partitions: &[TopicPartition]) {
        let started = self.consumer.start(partitions, &self.places).await.expect("assigned partitions can be read");
        assert_eq!(started.len(), partitions.len(), "each assigned partition gets a reader");
        for (partition, reader) in started {
            assert!(self.readers.insert(partition, reader).is_none(), "a partition is assigned once");
        }
        self.publish_assigned();
    }

    async fn commit_read(&mut self, partitions: &[TopicPartition]) {
        let read = partitions.iter().filter_map(|partition| Some((partition, *self.positions.get(partition)?)));
        let offsets: Vec<_> = read.map(|(from, position)| (from.clone(), (self.chooses)(from, position))).collect();
        if !offsets.is_empty() {
            self.consumer.commit(offsets).await.expect("what is still ours can be committed");
        }
    }

    async fn give_back(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.readers.remove(partition);
            self.positions.remove(partition);
        }
        self.publish_assigned();
        self.consumer.release(partitions).await.expect("partitions can be given back");
    }

    fn publish_assigned(&self) {
        self.publish.send_modify(|seen| seen.assigned = self.readers.keys().cloned().collect());
    }

    fn keep(&mut self, from: TopicPartition, chunk: Result<Arc<Chunk>, BrokerError>) {
        let chunk = chunk.expect("an assigned partition can be read");
        assert!(!chunk.is_empty() && chunk.len() <= RECORDS_MAX, "a chunk has records, up to the bound");
        let last = chunk.records().last().expect("it is not empty").offset();
        self.positions.insert(from.clone(), last + 1);
        self.publish.send_modify(|seen| seen.records.extend(chunk.records().map(|record| (from.clone(), record))));
    }

    async fn end(mut self, ending: Ending) {
        if ending == Ending::Close {
            let all: Vec<_> = self.readers.keys().cloned().collect();
            self.commit_read(&all).await;
            self.readers.clear();
            self.consumer.close().await;
        }
    }
}

/// The next chunk of any reader. Cancel-safe, because each reader's `next` is.
async fn next_chunk<R: Reader>(
    readers: &mut BTreeMap<TopicPartition, R>,
) -> (TopicPartition, Result<Arc<Chunk>, BrokerError>) {
    if readers.is_empty() {
        return pending().await;
    }
    let calls = readers
        .iter_mut()
        .map(|(from, reader)| async move { (from.clone(), reader.next(RECORDS_MAX, BYTES_MAX).await) }.boxed());
    select_all(calls).await.0
}
