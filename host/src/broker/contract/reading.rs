//! Promises about a reader: its bounds, its wake-ups, and that a record is taken once.

use std::collections::BTreeMap;

use super::*;
use crate::broker::{ConsumerEvent, Reader};
use futures_util::FutureExt;
use tidemill_core::record::TopicPartition;

/// A chunk has at most as many records and bytes as asked for; a record that is larger comes alone.
pub async fn chunks_keep_their_bounds<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let sizes = [100, 100, 50_000, 100, 100, 100, 100, 100, 100, 100, 30_000, 30_000, 100];
    let value = |size: &usize| outgoing(&topic, Some(0), None, Some(&vec![b'x'; *size]));
    bench.store(sizes.iter().map(value).collect()).await;

    let (consumer, mut readers) = started(&bench, &topic, 1).await;
    let reader = &mut readers[0].1;
    let mut read = Vec::new();
    while read.len() < sizes.len() {
        let chunk = within(reader.next(3, 1000)).await.expect("the partition can be read");
        assert!((1..=3).contains(&chunk.len()), "{} records", chunk.len());
        assert!(chunk.bytes() <= 1000 || chunk.len() == 1, "{} bytes in {} records", chunk.bytes(), chunk.len());
        read.extend(chunk.records().map(|record| record.bytes()));
    }
    assert_eq!(read, sizes);
    drop(readers);
    within(consumer.close()).await;
}

/// A `next` that is dropped while it waits has taken nothing, however often.
pub async fn a_cancelled_next_takes_nothing<B: Broker>(broker: &B, name: &str) {
    const COUNT: u64 = 2000;
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let (consumer, mut readers) = started(&bench, &topic, 1).await;
    let producing = async {
        for first in (0..COUNT).step_by(20) {
            bench.store_numbers(&topic, 0, first..first + 20).await;
        }
    };
    let reading = async {
        let mut read = Vec::new();
        while read.len() < COUNT as usize {
            // Polled once and dropped, now and then waited for.
            let polled = readers[0].1.next(7, 1 << 20).now_or_never();
            let chunk = match polled {
                Some(chunk) => chunk,
                None => {
                    tokio::task::yield_now().await;
                    within(readers[0].1.next(7, 1 << 20)).await
                }
            };
            read.extend(numbers_of(&chunk.expect("the partition can be read")));
        }
        read
    };
    let ((), read) = within(futures_util::future::join(producing, reading)).await;
    assert_eq!(read, (0..COUNT).collect::<Vec<_>>());
    drop(readers);
    within(consumer.close()).await;
}

/// A reader that waits is woken for each record; none is left lying until the next one comes.
pub async fn a_reader_wakes_for_each_record<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let (consumer, mut readers) = started(&bench, &topic, 1).await;
    for number in 0..300 {
        let (chunk, ()) = within(futures_util::future::join(
            readers[0].1.next(10, 1 << 20),
            bench.store_numbers(&topic, 0, number..number + 1),
        ))
        .await;
        assert_eq!(numbers_of(&chunk.expect("the partition can be read")), [number]);
    }
    drop(readers);
    within(consumer.close()).await;
}

/// Leaving one partition unread does not keep another from flowing, and the unread one is whole afterwards.
pub async fn an_unread_partition_holds_up_nobody<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..5000).await;
    let (consumer, mut readers) = started(&bench, &topic, 2).await;
    readers.sort_by_key(|(from, _)| from.partition);
    let [(_, unread), (_, read)] = &mut readers[..] else { panic!("two partitions have two readers") };
    for first in (0..2000).step_by(100) {
        bench.store_numbers(&topic, 1, first..first + 100).await;
        assert_eq!(read_count(read, 100).await, (first..first + 100).collect::<Vec<_>>());
    }
    assert_eq!(read_count(unread, 5000).await, (0..5000).collect::<Vec<_>>());
    drop(readers);
    within(consumer.close()).await;
}

/// Lag needs the end of a partition, known once something was read, and where the group stands.
pub async fn an_end_is_known_after_reading<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    bench.store_numbers(&topic, 0, 0..50).await;
    let (consumer, mut readers) = started(&bench, &topic, 1).await;
    let chunk = within(readers[0].1.next(10, 1 << 20)).await.expect("the partition can be read");
    assert!(chunk.len() <= 10);
    assert_eq!(readers[0].1.end_offset(), Some(50));
    assert_eq!(readers[0].1.position(), Some(chunk.len() as i64));
    within(consumer.commit(vec![(readers[0].0.clone(), 10)])).await.expect("it is committed");
    drop(readers);
    within(consumer.close()).await;

    let (consumer, readers) = started(&bench, &topic, 1).await;
    assert_eq!(readers[0].1.position(), Some(10), "where the group stands is known before anything is read");
    drop(readers);
    within(consumer.close()).await;
}

type Started<C> = (C, Vec<(TopicPartition, <C as Consumer>::Reader)>);

/// Joins and starts a topic's partitions, all of them.
async fn started<B: Broker>(bench: &Bench<'_, B>, topic: &Arc<str>, partitions: usize) -> Started<B::Consumer> {
    let mut consumer = bench.join(&bench.subscription(&[topic], StartAt::Earliest));
    loop {
        match within(consumer.next_event()).await {
            ConsumerEvent::Assigned(assigned) => {
                assert_eq!(assigned.len(), partitions, "the only member has all");
                let readers =
                    within(consumer.start(&assigned, &BTreeMap::new())).await.expect("assigned partitions can be read");
                return (consumer, readers);
            }
            ConsumerEvent::Problem(text) => tracing::warn!(%text, "the member has a problem"),
            event @ (ConsumerEvent::Revoked(_) | ConsumerEvent::Lost(_) | ConsumerEvent::Fatal(_)) => {
                panic!("the first event is an assignment, not {event:?}")
            }
        }
    }
}

async fn read_count<R: Reader>(reader: &mut R, count: usize) -> Vec<u64> {
    let mut read = Vec::new();
    while read.len() < count {
        let chunk = within(reader.next(count - read.len(), 1 << 20)).await.expect("the partition can be read");
        read.extend(numbers_of(&chunk));
    }
    read
}
