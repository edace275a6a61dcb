//! Promises about topics, and about reading them without a group.

use super::*;
use crate::broker::BrokerError;

/// Topics are listed by name, with the oldest and the next offset of each partition.
pub async fn topics_are_listed_with_their_ends<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let two = bench.topic("b", 2).await;
    let one = bench.topic("a", 1).await;
    bench.store_numbers(&two, 1, 0..7).await;
    let all = within(bench.admin.topics(None)).await.expect("topics are listed");
    let mine: Vec<&str> = all.iter().map(|topic| &*topic.name).filter(|topic| topic.starts_with(name)).collect();
    assert_eq!(mine, [&*one, &*two]);
    let listed = within(bench.admin.topics(Some(&two))).await.expect("the topic is known");
    let ends: Vec<_> = listed[0].partitions.iter().map(|p| (p.partition, p.start, p.end, p.replicas)).collect();
    assert_eq!((listed.len(), ends), (1, vec![(0, 0, 0, 1), (1, 0, 7, 1)]));
}

/// Making a topic that exists is refused and changes nothing.
pub async fn a_topic_is_made_once<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    let again = within(bench.admin.create_topic(&topic, 5, None)).await;
    assert_eq!(again, Err(BrokerError::TopicExists(topic.to_string())));
    let listed = within(bench.admin.topics(Some(&topic))).await.expect("the topic is known");
    assert_eq!(listed[0].partitions.len(), 2);
}

/// Asking about a topic that does not exist names it.
pub async fn an_unknown_topic_is_named<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let missing = bench.topic_name("missing");
    let expected = BrokerError::NoSuchTopic(missing.to_string());
    assert_eq!(within(bench.admin.topics(Some(&missing))).await, Err(expected.clone()));
    assert_eq!(within(bench.admin.offsets_for_time(&missing, 0)).await, Err(expected.clone()));
    assert_eq!(within(bench.admin.committed("any-group", &missing)).await, Err(expected.clone()));
    assert_eq!(within(bench.admin.read(&missing, 0, 0, 1)).await.map(|_| ()), Err(expected));
}

/// The first record at or after a time is found; where none is later, the end.
pub async fn offsets_are_found_by_time<B: Broker>(broker: &B, name: &str) {
    const BASE: i64 = 1_700_000_000_000;
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    let timed =
        |number: u64| Outgoing { timestamp_ms: Some(BASE + number as i64 * 1000), ..numbered(&topic, 0, number) };
    bench.store((0..10).map(timed).collect()).await;
    for (millis, expected) in [(0, 0), (BASE, 0), (BASE + 1, 1), (BASE + 5000, 5), (BASE + 9000, 9), (BASE + 9001, 10)]
    {
        let found = within(bench.admin.offsets_for_time(&topic, millis)).await.expect("offsets are known");
        assert_eq!(found, [(0, expected), (1, 0)], "at {millis}");
    }
}

/// Records can be read from any offset without a group; at the end there are none.
pub async fn records_are_read_outside_of_groups<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 1, 0..20).await;
    let mut next = 5;
    let mut read = Vec::new();
    while next < 20 {
        let chunk = within(bench.admin.read(&topic, 1, next, 6)).await.expect("the partition can be read");
        assert!((1..=6).contains(&chunk.len()), "{} records", chunk.len());
        next = chunk.records().last().expect("it is not empty").offset() + 1;
        read.extend(numbers_of(&chunk));
    }
    assert_eq!(read, (5..20).collect::<Vec<_>>());
    assert!(within(bench.admin.read(&topic, 1, 20, 6)).await.expect("the end can be read").is_empty());
    assert!(within(bench.admin.read(&topic, 0, 0, 6)).await.expect("an empty one can be read").is_empty());
}
