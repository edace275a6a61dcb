//! A broker of which nothing but ranges of offsets is read, outside of any group: what a replay consumes from.
//!
//! To whoever consumes it is a group of one member that is assigned all partitions at once. What it commits is noted here
//! and nowhere else.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::pending;
use tidemill_core::rate::Rate;
use tidemill_core::record::{Chunk, ChunkBuilder, Offset, TopicPartition};
use tokio::time::Instant;

use super::{
    Admin, Broker, BrokerError, CommitError, Consumer, ConsumerEvent, Outgoing, Producer, Reader, ReaderOf, Remains,
    Subscription, TransactionError, Transactions,
};

/// Ranges of a broker's partitions.
pub struct Ranged<B: Broker> {
    broker: B,
    shared: Arc<Shared>,
}

impl<B: Broker> Clone for Ranged<B> {
    fn clone(&self) -> Self {
        Self { broker: self.broker.clone(), shared: Arc::clone(&self.shared) }
    }
}

struct Shared {
    ranges: BTreeMap<TopicPartition, Range<Offset>>,
    /// What was committed of each.
    reached: Mutex<BTreeMap<TopicPartition, Offset>>,
    /// The bound of all readers together.
    rate: Option<Mutex<Rate>>,
    /// The rate's clock counts from here.
    origin: Instant,
}

impl Shared {
    fn reached(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Offset>> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of the wanted records may be read; waits until it is one at least. Cancel-safe.
    async fn room(&self, wanted: usize) -> usize {
        let Some(rate) = &self.rate else { return wanted };
        loop {
            let room = rate.lock().unwrap_or_else(PoisonError::into_inner).room(self.origin.elapsed());
            match room {
                Ok(room) => return room.min(wanted),
                Err(at) => tokio::time::sleep_until(self.origin + at).await,
            }
        }
    }

    fn took(&self, records: usize) {
        if let Some(rate) = &self.rate {
            rate.lock().unwrap_or_else(PoisonError::into_inner).took(self.origin.elapsed(), records);
        }
    }
}

impl<B: Broker> Ranged<B> {
    /// These ranges, whose first offsets are kept, and of which no more records are read than the rate allows.
    pub fn new(broker: B, ranges: BTreeMap<TopicPartition, Range<Offset>>, rate: Option<Rate>) -> Self {
        let shared = Shared { ranges, reached: Mutex::default(), rate: rate.map(Mutex::new), origin: Instant::now() };
        Self { broker, shared: Arc::new(shared) }
    }

    /// What was committed of a partition.
    pub fn reached(&self, of: &TopicPartition) -> Option<Offset> {
        self.shared.reached().get(of).copied()
    }
}

impl<B: Broker> Broker for Ranged<B> {
    type Consumer = RangedConsumer<B>;
    type Transactions = NoTransactions;

    fn consumer(&self, subscription: &Subscription) -> Result<RangedConsumer<B>, BrokerError> {
        let (all, properties) = (self.clone(), subscription.properties.clone());
        Ok(RangedConsumer { all, properties, told: false })
    }

    fn readers(
        &self,
        places: &BTreeMap<TopicPartition, Offset>,
        properties: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<Vec<(TopicPartition, ReaderOf<Self>)>, BrokerError>> + Send {
        let shared = &self.shared;
        let readers = self.broker.readers(places, properties);
        async move {
            let bounded = |(of, reader): (TopicPartition, ReaderOf<B>)| {
                let end = shared.ranges.get(&of).map_or(0, |range| range.end);
                (of, Bounded { reader, end, shared: Arc::clone(shared) })
            };
            Ok(readers.await?.into_iter().map(bounded).collect())
        }
    }

    fn check(&self, subscription: &Subscription) -> Result<(), BrokerError> {
        self.broker.check(subscription)
    }

    fn producer(&self, properties: &BTreeMap<String, String>) -> Result<Arc<dyn Producer>, BrokerError> {
        self.broker.producer(properties)
    }

    fn transactions(&self, _: &str, _: &BTreeMap<String, String>) -> Result<NoTransactions, BrokerError> {
        Err(BrokerError::Config("ranges of a log have no group whose offsets a transaction could hold".to_owned()))
    }

    fn admin(&self) -> Result<Arc<dyn Admin>, BrokerError> {
        self.broker.admin()
    }
}

/// Whoever reads all ranges.
pub struct RangedConsumer<B: Broker> {
    all: Ranged<B>,
    properties: BTreeMap<String, String>,
    told: bool,
}

impl<B: Broker> Consumer for RangedConsumer<B> {
    type Reader = Bounded<ReaderOf<B>>;
    type Member = ();

    async fn next_event(&mut self) -> ConsumerEvent {
        if std::mem::replace(&mut self.told, true) {
            return pending().await;
        }
        ConsumerEvent::Assigned(self.all.shared.ranges.keys().cloned().collect())
    }

    async fn start(
        &mut self,
        partitions: &[TopicPartition],
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, Self::Reader)>, BrokerError> {
        let from = |of: &TopicPartition| {
            let begin = self.all.shared.ranges.get(of)?.start;
            let reached = self.all.reached(of);
            Some((of.clone(), places.get(of).copied().or(reached).unwrap_or(begin)))
        };
        let places: BTreeMap<TopicPartition, Offset> = partitions.iter().filter_map(from).collect();
        self.all.readers(&places, &self.properties).await
    }

    async fn seek(
        &mut self,
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, Self::Reader)>, BrokerError> {
        self.all.readers(places, &self.properties).await
    }

    async fn release(&mut self, _: &[TopicPartition]) -> Result<(), BrokerError> {
        Ok(())
    }

    fn commit(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + 'static {
        self.all.shared.reached().extend(offsets);
        std::future::ready(Ok(()))
    }

    fn member(&self) {}

    async fn close(self) {}
}

/// Reads up to an offset, no faster than all readers together may.
pub struct Bounded<R> {
    reader: R,
    /// The first offset that is not read.
    end: Offset,
    shared: Arc<Shared>,
}

impl<R: Reader> Reader for Bounded<R> {
    async fn next(&mut self, records_max: usize, bytes_max: usize) -> Result<Arc<Chunk>, BrokerError> {
        if self.ended() {
            return pending().await;
        }
        let records_max = self.shared.room(records_max).await;
        let chunk = within(self.reader.next(records_max, bytes_max).await?, self.end);
        self.shared.took(chunk.len());
        Ok(chunk)
    }

    fn skipped(&mut self) -> Option<Range<Offset>> {
        let gone = self.reader.skipped()?;
        let gone = gone.start..gone.end.min(self.end);
        (!gone.is_empty()).then_some(gone)
    }

    fn end_offset(&self) -> Option<Offset> {
        Some(self.end)
    }

    fn position(&self) -> Option<Offset> {
        self.reader.position().map(|position| position.min(self.end))
    }

    fn ended(&self) -> bool {
        self.reader.position().is_some_and(|position| position >= self.end)
    }
}

/// The records of a chunk that lie below an offset.
fn within(chunk: Arc<Chunk>, end: Offset) -> Arc<Chunk> {
    if chunk.records().next_back().is_none_or(|last| last.offset() < end) {
        return chunk;
    }
    let mut below = ChunkBuilder::default();
    for record in chunk.records().take_while(|record| record.offset() < end) {
        below.push(record.offset(), record.timestamp(), record.key(), record.value(), record.headers());
    }
    Arc::new(below.build())
}

/// There are none.
pub enum NoTransactions {}

impl Transactions for NoTransactions {
    type Member = ();

    async fn init(&mut self) -> Result<(), TransactionError> {
        match *self {}
    }

    async fn send(&mut self, _: Arc<Vec<Outgoing>>) -> Result<(), TransactionError> {
        match *self {}
    }

    async fn commit(&mut self, _: &[(TopicPartition, Offset)], (): &()) -> Result<(), TransactionError> {
        match *self {}
    }

    async fn abort(&mut self) -> Result<(), TransactionError> {
        match *self {}
    }

    async fn give_up(&mut self) -> Remains {
        match *self {}
    }

    async fn sweep(
        &mut self,
        _: &[Outgoing],
        _: &[(TopicPartition, Offset)],
        (): &(),
    ) -> Result<bool, TransactionError> {
        match *self {}
    }

    async fn restore(&mut self, _: &[(TopicPartition, Offset)], (): &()) -> Result<bool, TransactionError> {
        match *self {}
    }

    async fn committed(&mut self, _: &[TopicPartition], (): &()) -> Result<Vec<Option<Offset>>, TransactionError> {
        match *self {}
    }
}
