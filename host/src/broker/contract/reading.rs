//! Promises about a reader: its bounds, its wake-ups, and that a record is taken once.

use std::collections::BTreeMap;

use super::*;
use crate::broker::{ConsumerEvent, Ranged, Reader, Transactions};
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

/// Without a group a partition is read from the place that is told, along with what is written meanwhile, and no group
/// hears of it.
pub async fn partitions_are_read_outside_of_groups_from_where_they_are_told<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    bench.store_numbers(&topic, 1, 10..20).await;
    let at = |partition: i32, offset| (TopicPartition::new(Arc::clone(&topic), partition), offset);
    let places = BTreeMap::from([at(0, 3), at(1, 10)]);
    let mut readers = within(broker.readers(&places, &BTreeMap::new())).await.expect("they can be read");
    readers.sort_by(|(one, _), (other, _)| one.cmp(other));
    let positions: Vec<_> = readers.iter().map(|(of, reader)| (of.partition, reader.position())).collect();
    assert_eq!(positions, [(0, Some(3)), (1, Some(10))]);
    assert_eq!(read_count(&mut readers[0].1, 7).await, (3..10).collect::<Vec<_>>());
    bench.store_numbers(&topic, 1, 20..25).await;
    assert_eq!(read_count(&mut readers[1].1, 5).await, (20..25).collect::<Vec<_>>());
    assert!(!readers[0].1.ended() && !readers[1].1.ended(), "nobody said where to end");
    drop(readers);
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    assert_eq!(bench.committed(&subscription, &topic).await, [(0, None), (1, None)]);
}

/// A transaction's end takes an offset of Kafka's logs. A reader outside of groups gets behind it, though no record comes.
pub async fn what_holds_no_record_is_passed_outside_of_groups<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let consumer = bench.join(&bench.subscription(&[&topic], StartAt::Earliest));
    let mut transactions = broker.transactions(&format!("{name}-id"), &BTreeMap::new()).expect("a producer is made");
    within(transactions.init()).await.expect("it takes its id over");
    let outputs: Vec<Outgoing> = (0..3).map(|number| numbered(&topic, 0, number)).collect();
    within(transactions.send(Arc::new(outputs))).await.expect("queued");
    within(transactions.commit(&[], &consumer.member())).await.expect("committed");

    let places = BTreeMap::from([(TopicPartition::new(Arc::clone(&topic), 0), 0)]);
    let mut readers = within(broker.readers(&places, &BTreeMap::new())).await.expect("they can be read");
    let reader = &mut readers[0].1;
    let mut read = read_count(reader, 3).await;
    // Whoever sees the records sees the transaction's end.
    let end = within(bench.admin.topics(Some(&topic))).await.expect("it is there")[0].partitions[0].end;
    while reader.position().is_none_or(|position| position < end) {
        read.extend(numbers_of(&within(reader.next(100, 1 << 20)).await.expect("it can be read")));
    }
    assert_eq!((read, reader.position()), (vec![0, 1, 2], Some(end)));
    drop(readers);
    within(consumer.close()).await;
}

/// Ranges are assigned like the partitions of a group, and read to their ends. What is committed of them is nobody else's.
pub async fn a_range_is_read_to_its_end_and_no_further<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 3).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    bench.store_numbers(&topic, 1, 10..20).await;
    let of = |partition| TopicPartition::new(Arc::clone(&topic), partition);
    let ranged = Ranged::new(broker.clone(), BTreeMap::from([(of(0), 2..7), (of(1), 0..10), (of(2), 0..0)]), None);
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    let mut consumer = ranged.consumer(&subscription).expect("a consumer");
    let ConsumerEvent::Assigned(assigned) = within(consumer.next_event()).await else { panic!("all is assigned") };
    assert!(consumer.next_event().now_or_never().is_none(), "and nothing else happens");
    let mut readers = within(consumer.start(&assigned, &BTreeMap::new())).await.expect("they can be read");
    readers.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert!(readers[2].1.ended(), "nothing is to be read of it");
    for (reader, numbers) in readers.iter_mut().zip([2..7, 10..20]) {
        let reader = &mut reader.1;
        let mut read = Vec::new();
        while !reader.ended() {
            read.extend(numbers_of(&within(reader.next(3, 1 << 20)).await.expect("it can be read")));
        }
        assert_eq!(read, numbers.collect::<Vec<_>>());
        assert_eq!(reader.position(), reader.end_offset());
        assert!(reader.next(3, 1 << 20).now_or_never().is_none(), "nothing comes behind the end");
    }
    within(consumer.commit(vec![(of(0), 5)])).await.expect("it is noted");
    assert_eq!((ranged.reached(&of(0)), ranged.reached(&of(1))), (Some(5), None));
    assert_eq!(bench.committed(&subscription, &topic).await, [(0, None), (1, None), (2, None)]);
    drop(readers);

    // Whoever begins again goes on there.
    let mut again = ranged.consumer(&subscription).expect("a consumer");
    let mut readers = within(again.start(&[of(0)], &BTreeMap::new())).await.expect("it can be read");
    assert_eq!(read_count(&mut readers[0].1, 2).await, [5, 6]);
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
