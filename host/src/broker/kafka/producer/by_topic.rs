//! One producer to its callers, and behind it one client for each kind of acknowledgement that topics are set to.
//!
//! librdkafka has acknowledgements of a client and not of a record, and with idempotence no weaker ones. A topic's records all
//! go through the same client, so that they keep their order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};

use super::KafkaProducer;
use crate::broker::{Outgoing, Position, Producer, SendError, WhenFull};

/// Sends each record by its topic's client.
pub(in crate::broker::kafka) struct ByTopic {
    /// The first is for topics that nothing is said of.
    producers: Vec<KafkaProducer>,
    /// Invariant: positions in `producers`.
    of_topic: BTreeMap<Arc<str>, usize>,
}

impl ByTopic {
    /// With the usual producer, and the others by topic.
    pub(in crate::broker::kafka) fn new(usual: KafkaProducer, others: Vec<(KafkaProducer, Vec<Arc<str>>)>) -> Self {
        let (mut producers, mut of_topic) = (vec![usual], BTreeMap::new());
        for (producer, topics) in others {
            of_topic.extend(topics.into_iter().map(|topic| (topic, producers.len())));
            producers.push(producer);
        }
        Self { producers, of_topic }
    }

    fn of(&self, topic: &str) -> usize {
        self.of_topic.get(topic).copied().unwrap_or(0)
    }
}

impl Producer for ByTopic {
    fn send(
        &self,
        records: Vec<Outgoing>,
        when_full: WhenFull,
    ) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        let of_record: Vec<usize> = records.iter().map(|record| self.of(&record.topic)).collect();
        let mut parts: Vec<Vec<Outgoing>> = self.producers.iter().map(|_| Vec::new()).collect();
        for (record, producer) in records.into_iter().zip(&of_record) {
            parts[*producer].push(record);
        }
        let sends = self.producers.iter().zip(parts).map(|(producer, part)| producer.send(part, when_full));
        let sends = join_all(sends.collect::<Vec<_>>());
        async move {
            let mut results: Vec<_> = sends.await.into_iter().map(Vec::into_iter).collect();
            let result = |producer: usize| results[producer].next().expect("a producer answers each of its records");
            of_record.into_iter().map(result).collect()
        }
        .boxed()
    }

    fn ready(&self) -> bool {
        self.producers.iter().all(Producer::ready)
    }

    fn warm<'a>(&'a self, topics: &'a [Arc<str>], deadline: Duration) -> BoxFuture<'a, Result<(), SendError>> {
        let of = |at: usize| topics.iter().filter(|topic| self.of(topic) == at).cloned().collect::<Vec<_>>();
        let parts: Vec<Vec<Arc<str>>> = (0..self.producers.len()).map(of).collect();
        async move {
            let warming = self.producers.iter().zip(&parts).map(|(producer, topics)| producer.warm(topics, deadline));
            join_all(warming).await.into_iter().collect()
        }
        .boxed()
    }

    fn flush(&self, deadline: Duration) -> BoxFuture<'_, usize> {
        let flushing = join_all(self.producers.iter().map(|producer| producer.flush(deadline)));
        flushing.map(|left| left.into_iter().sum()).boxed()
    }
}
