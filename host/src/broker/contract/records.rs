//! Promises about records that are produced.

use super::*;
use crate::broker::contract::member::{Ending, Member};
use futures_util::future::maybe_done;
use futures_util::poll;
use tidemill_core::murmur2::partition_for_key;

fn header(name: &'static [u8], value: Option<&'static [u8]>) -> Header {
    Header { name: Bytes::from_static(name), value: value.map(Bytes::from_static) }
}

/// Null is not empty, headers keep their order, their repeats and their bytes, and time is the producer's.
pub async fn records_come_back_as_they_were_sent<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let values: [Option<&[u8]>; 4] = [None, Some(b""), Some(b"\x00\xff text"), Some("ä".as_bytes())];
    let headers = vec![
        header(b"a", Some(b"1")),
        header(b"a", Some(b"")),
        header(b"b", None),
        header(b"a", Some(b"\xff\x00")),
        header(b"\xff\xfe", Some(b"the name is not UTF-8")),
        header(b"", Some(b"the name is empty")),
    ];
    let mut sent = Vec::new();
    for key in values {
        for value in values {
            sent.push(outgoing(&topic, Some(0), key, value));
        }
    }
    sent.push(Outgoing { headers, ..outgoing(&topic, Some(0), Some(b"k"), None) });
    for (index, record) in sent.iter_mut().enumerate() {
        record.timestamp_ms = Some(1_700_000_000_000 + index as i64);
    }
    let count = sent.len();
    let positions = bench.store(sent.clone()).await;
    assert!(positions.iter().all(|position| position.partition == 0));

    let mut member = Member::run(bench.join(&bench.subscription(&[&topic], StartAt::Earliest)));
    let seen = member.until("all records are read", |seen| seen.records.len() == count).await;
    let read: Vec<Plain> = seen.records.iter().map(|(_, record)| plain_read(record)).collect();
    assert_eq!(read, sent.iter().map(plain_sent).collect::<Vec<_>>());
    let offsets: Vec<i64> = seen.records.iter().map(|(_, record)| record.offset()).collect();
    assert_eq!(offsets, positions.iter().map(|position| position.offset).collect::<Vec<_>>());
    let malformed: Vec<bool> = seen.records.iter().map(|(_, record)| record.malformed()).collect();
    assert_eq!(malformed.iter().position(|malformed| *malformed), Some(count - 1), "only a bad name is malformed");
    member.end(Ending::Close).await;
}

/// Records of one caller keep their order per partition, within a call and over calls that do not wait for each other.
pub async fn a_partition_keeps_its_order<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    let send = |call: u64| {
        let records = (0..40).map(|index| numbered(&topic, (index % 2) as i32, call * 40 + index)).collect();
        Box::pin(maybe_done(bench.producer.send(records, WhenFull::Wait)))
    };
    let mut calls: Vec<_> = (0..50).map(send).collect();
    for call in &mut calls {
        // The first poll queues the records; the answers are waited for later.
        let _polled = poll!(call);
    }
    for mut call in calls {
        within(&mut call).await;
        let results = call.as_mut().take_output().expect("it is done");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
    let mut member = Member::run(bench.join(&bench.subscription(&[&topic], StartAt::Earliest)));
    let seen = member.until("all records are read", |seen| seen.records.len() == 2000).await;
    for partition in 0..2 {
        let numbers: Vec<u64> = seen.of(partition).iter().map(number_of).collect();
        assert_eq!(numbers, (0..2000).filter(|number| number % 2 == partition as u64).collect::<Vec<_>>());
    }
    member.end(Ending::Close).await;
}

/// A key goes to the partition that Java's clients choose, so that co-partitioned topics stay so.
pub async fn a_key_meets_its_partition_as_in_java<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 7).await;
    let keys: Vec<Vec<u8>> = (0..100_u32).map(|number| format!("key-{number}").into_bytes()).collect();
    let records = keys.iter().map(|key| outgoing(&topic, None, Some(key), Some(b"x"))).collect();
    let chosen: Vec<i32> = bench.store(records).await.iter().map(|position| position.partition).collect();
    assert_eq!(chosen, keys.iter().map(|key| partition_for_key(key, 7)).collect::<Vec<_>>());
}

/// A record without a key goes somewhere in the topic.
pub async fn a_record_without_a_key_finds_a_partition<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 3).await;
    let records = (0..30).map(|_| outgoing(&topic, None, None, Some(b"x"))).collect();
    let positions = bench.store(records).await;
    assert!(positions.iter().all(|position| (0..3).contains(&position.partition)));
    let topics = within(bench.admin.topics(Some(&topic))).await.expect("the topic is known");
    let stored: i64 = topics[0].partitions.iter().map(|partition| partition.end - partition.start).sum();
    assert_eq!(stored, 30);
}

/// A record that the broker can't take is refused as such, and its neighbours are stored.
pub async fn a_record_that_is_too_large_is_refused_alone<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let large = vec![b'x'; TOO_LARGE_BYTES];
    let records = vec![numbered(&topic, 0, 1), outgoing(&topic, Some(0), None, Some(&large)), numbered(&topic, 0, 2)];
    let results = bench.send(records).await;
    assert_eq!(results[0], Ok(Position { partition: 0, offset: 0 }));
    assert!(matches!(results[1], Err(SendError::TooLarge(_))), "{:?}", results[1]);
    assert_eq!(results[2], Ok(Position { partition: 0, offset: 1 }));
}

/// A topic or partition that does not exist is named, and nothing is made by writing to it.
pub async fn a_send_to_nowhere_names_it<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let missing = bench.topic_name("missing");
    let results = bench.send(vec![numbered(&missing, 0, 1), numbered(&topic, 5, 2), numbered(&topic, 0, 3)]).await;
    assert!(matches!(&results[0], Err(SendError::NoSuchTopic(name)) if name.contains(&*missing)), "{results:?}");
    assert_eq!(results[1], Err(SendError::NoSuchTopic(format!("{topic}/5"))));
    assert!(results[2].is_ok(), "{results:?}");
    let all = within(bench.admin.topics(None)).await.expect("topics are listed");
    assert!(all.iter().all(|listed| listed.name != *missing));
}

/// `flush` waits for what is in flight, and the producer says that it is ready.
pub async fn nothing_is_in_flight_after_a_flush<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let mut send = bench.producer.send((0..1000).map(|n| numbered(&topic, 0, n)).collect(), WhenFull::Wait);
    let first = poll!(&mut send);
    assert_eq!(within(bench.producer.flush(PATIENCE)).await, 0);
    if first.is_pending() {
        drop(send);
    }
    let topics = within(bench.admin.topics(Some(&topic))).await.expect("the topic is known");
    assert_eq!(topics[0].partitions[0].end, 1000, "a dropped send does not unsend");
    assert!(bench.producer.ready());
}
