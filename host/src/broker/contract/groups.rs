//! Promises about groups: where they begin, what they remember, and how members share partitions.

use std::collections::BTreeMap;

use super::*;
use crate::broker::contract::member::{Ending, Member, Seen};
use crate::broker::{BrokerError, ConsumerEvent, Reader};
use tidemill_core::record::{Offset, TopicPartition};

/// Without a committed offset a group reads what is there.
pub async fn a_group_starts_at_the_oldest_record<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    bench.store_numbers(&topic, 1, 10..20).await;
    let mut member = Member::run(bench.join(&bench.subscription(&[&topic], StartAt::Earliest)));
    let seen = member.until("what is there is read", |seen| seen.records.len() == 20).await;
    assert_eq!(numbers(&seen), (0..20).collect::<Vec<_>>());
    member.end(Ending::Close).await;
}

/// A group that starts at the next record reads what is written once its partitions are started, and no more.
pub async fn a_group_can_start_at_the_next_record<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    let subscription = bench.subscription(&[&topic], StartAt::Latest);
    let mut member = Member::run(bench.join(&subscription));
    member.until("both partitions are started", |seen| seen.assigned.len() == 2).await;
    bench.store_numbers(&topic, 0, 10..20).await;
    bench.store_numbers(&topic, 1, 20..30).await;
    let seen = member.until("the new records are read", |seen| seen.records.len() >= 20).await;
    assert_eq!(numbers(&seen), (10..30).collect::<Vec<_>>());
    member.end(Ending::Close).await;

    // What is written while no member runs is not skipped: the group has a place by now.
    bench.store_numbers(&topic, 0, 30..40).await;
    let mut member = Member::run(bench.join(&subscription));
    let seen = member.until("the records in between are read", |seen| seen.records.len() >= 10).await;
    assert_eq!(numbers(&seen), (30..40).collect::<Vec<_>>());
    member.end(Ending::Close).await;
}

/// A committed offset is the next one to be read, for the member after this one and for whoever asks.
pub async fn a_group_goes_on_where_it_committed<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    assert_eq!(bench.committed(&subscription, &topic).await, [(0, None), (1, None)]);

    let mut member = Member::run_with(bench.join(&subscription), |_, _| 4);
    member.until("all is read", |seen| seen.records.len() == 10).await;
    member.commit(vec![(TopicPartition::new(Arc::clone(&topic), 0), 7)]).await.expect("it is committed");
    assert_eq!(bench.committed(&subscription, &topic).await, [(0, Some(7)), (1, None)]);
    member.end(Ending::Close).await;
    assert_eq!(bench.committed(&subscription, &topic).await, [(0, Some(4)), (1, None)], "going back is allowed");

    let mut next = Member::run(bench.join(&subscription));
    let seen = next.until("the rest is read", |seen| seen.records.len() >= 6).await;
    assert_eq!(numbers(&seen), (4..10).collect::<Vec<_>>());
    next.end(Ending::Close).await;
}

/// A place that is given counts more than what the group has committed, before and behind it; the others start as ever.
pub async fn a_partition_starts_where_it_is_told<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 3).await;
    for partition in 0..3 {
        let first = partition * 10;
        bench.store_numbers(&topic, partition as i32, first..first + 10).await;
    }
    let at = |partition: i32, offset: Offset| (TopicPartition::new(Arc::clone(&topic), partition), offset);
    for start_at in [StartAt::Earliest, StartAt::Latest] {
        let subscription = bench.subscription(&[&topic], start_at);
        let mut member = Member::run_with(bench.join(&subscription), |_, _| 6);
        member.until("all are started", |seen| seen.assigned.len() == 3).await;
        member.commit(vec![at(0, 6), at(1, 6), at(2, 6)]).await.expect("it is committed");
        member.end(Ending::Close).await;

        let places = BTreeMap::from([at(0, 3), at(1, 8)]);
        let mut member = Member::run_from(bench.join(&subscription), places);
        let seen = member.until("the rest is read", |seen| seen.records.len() >= 7 + 2 + 4).await;
        let expected: Vec<u64> = (3..10).chain(18..20).chain(26..30).collect();
        assert_eq!(numbers(&seen), expected, "{start_at:?}");
        member.end(Ending::Close).await;
    }
}

/// A started partition is read on from wherever the member wants, back and forth, and stays the member's.
pub async fn a_started_partition_begins_anew_elsewhere<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..1000).await;
    bench.store_numbers(&topic, 1, 1000..1010).await;
    let of = |partition| TopicPartition::new(Arc::clone(&topic), partition);
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    let mut consumer = bench.join(&subscription);
    let assigned = loop {
        match within(consumer.next_event()).await {
            ConsumerEvent::Assigned(assigned) => break assigned,
            ConsumerEvent::Problem(_) => {}
            event @ (ConsumerEvent::Revoked(_) | ConsumerEvent::Lost(_) | ConsumerEvent::Fatal(_)) => {
                panic!("the first event is an assignment, not {event:?}")
            }
        }
    };
    let mut readers: BTreeMap<_, _> =
        within(consumer.start(&assigned, &BTreeMap::new())).await.expect("they can be read").into_iter().collect();
    for place in [500, 3, 998] {
        // Some of what was fetched is left unread.
        assert!(!within(readers.get_mut(&of(0)).expect("a reader").next(10, 1 << 20)).await.expect("read").is_empty());
        drop(readers.remove(&of(0)));
        let mut sought =
            within(consumer.seek(&BTreeMap::from([(of(0), place), (of(7), 0)]))).await.expect("it begins there");
        assert_eq!(sought.len(), 1, "what is not this member's is left out");
        let (found, mut reader) = sought.remove(0);
        assert_eq!((found, reader.position()), (of(0), Some(place)));
        let chunk = within(reader.next(2, 1 << 20)).await.expect("it can be read");
        assert_eq!(numbers_of(&chunk)[0], u64::try_from(place).expect("not negative"));
        readers.insert(of(0), reader);
    }
    within(consumer.commit(vec![(of(0), 999)])).await.expect("it is still this member's");
    assert_eq!(bench.committed(&subscription, &topic).await, [(0, Some(999)), (1, None)]);
    let mut read = Vec::new();
    while read.len() < 10 {
        let chunk = within(readers.get_mut(&of(1)).expect("a reader").next(10, 1 << 20)).await.expect("read");
        read.extend(numbers_of(&chunk));
    }
    assert_eq!(read, (1000..1010).collect::<Vec<_>>(), "the others are read on");
    drop(readers);
    within(consumer.close()).await;
}

/// Offsets are committed from outside only while nobody is in the group: its members would not hear of it.
pub async fn a_group_without_members_is_moved_and_one_with_members_is_not<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    let at = |offset| vec![(TopicPartition::new(Arc::clone(&topic), 0), offset)];
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    let group = &subscription.group;
    within(bench.admin.commit(group, at(4))).await.expect("nobody is in it");
    assert_eq!(bench.committed(&subscription, &topic).await, [(0, Some(4)), (1, None)]);

    let mut member = Member::run(bench.join(&subscription));
    let seen = member.until("the rest is read", |seen| seen.records.len() >= 6).await;
    assert_eq!(numbers(&seen), (4..10).collect::<Vec<_>>());
    let refused = within(bench.admin.commit(group, at(0))).await.expect_err("somebody is");
    assert!(matches!(&refused, BrokerError::Rejected(text) if text.contains("has members")), "{refused}");
    member.end(Ending::Close).await;
    within(bench.admin.commit(group, at(0))).await.expect("nobody is in it again");
    assert_eq!(bench.committed(&subscription, &topic).await[0], (0, Some(0)));
}

/// Each group reads everything, and one group's commits are not another's.
pub async fn groups_do_not_disturb_each_other<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    let one = bench.subscription(&[&topic], StartAt::Earliest);
    let two = Subscription { group: format!("{}-two", one.group), ..one.clone() };
    let mut first = Member::run(bench.join(&one));
    first.until("the first group reads all", |seen| seen.records.len() == 10).await;
    let mut second = Member::run(bench.join(&two));
    second.until("the second group reads all", |seen| seen.records.len() == 10).await;
    first.end(Ending::Close).await;
    assert_eq!(bench.committed(&one, &topic).await, [(0, Some(10))]);
    assert_eq!(bench.committed(&two, &topic).await, [(0, None)]);
    second.end(Ending::Close).await;
}

/// A topic that is made after the subscription is assigned and read from its first record.
pub async fn a_topic_may_be_made_after_the_subscription<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let early = bench.topic("early", 1).await;
    let late = bench.topic_name("late");
    let mut member = Member::run(bench.join(&bench.subscription(&[&early, &late], StartAt::Earliest)));
    member.until("the early topic is assigned", |seen| seen.assigned.len() == 1).await;
    bench.topic("late", 1).await;
    bench.store_numbers(&late, 0, 0..5).await;
    let seen = member.until("the late topic is read", |seen| seen.records.len() == 5).await;
    assert_eq!(numbers(&seen), (0..5).collect::<Vec<_>>());
    member.end(Ending::Close).await;
}

/// A group that starts at the next record starts there as of its joining: a topic that is made later is read whole.
pub async fn who_has_joined_misses_nothing_of_a_topic_that_is_made_later<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let early = bench.topic("early", 1).await;
    let late = bench.topic_name("late");
    let subscription = bench.subscription(&[&early, &late], StartAt::Latest);
    let mut busy = Member::run(bench.join(&subscription));
    busy.until("the early topic is assigned", |seen| seen.assigned.len() == 1).await;
    let mut idle = Member::run(bench.join(&subscription));
    idle.until("it has joined, with nothing to read", |seen| seen.joined).await;
    bench.topic("late", 1).await;
    bench.store_numbers(&late, 0, 0..5).await;
    let seen = idle.until("the late topic is read", |seen| seen.records.len() == 5).await;
    assert_eq!(numbers(&seen), (0..5).collect::<Vec<_>>());
    idle.end(Ending::Close).await;
    busy.end(Ending::Close).await;
}

/// A member for which no partition is left is told so: it waits to take over.
pub async fn a_member_with_nothing_to_read_hears_that_it_has_joined<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 1).await;
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    let mut first = Member::run(bench.join(&subscription));
    first.until("the only partition is assigned", |seen| seen.assigned.len() == 1).await;
    let mut second = Member::run(bench.join(&subscription));
    second.until("the second has joined", |seen| seen.joined).await;
    first.end(Ending::Close).await;
    second.until("the second takes over", |seen| seen.assigned.len() == 1).await;
    second.end(Ending::Close).await;
}

/// Two members share the partitions; a record is read by one of them; when one leaves the other takes over.
pub async fn members_share_the_partitions_and_take_over<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 4).await;
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    let store = async |from: u64| {
        for partition in 0..4 {
            let first = from + partition * 10;
            bench.store_numbers(&topic, partition as i32, first..first + 10).await;
        }
    };
    store(0).await;
    let mut first = Member::run(bench.join(&subscription));
    first.until("one member has all", |seen| seen.assigned.len() == 4 && seen.records.len() == 40).await;

    let mut second = Member::run(bench.join(&subscription));
    second.until("the second has its share", |seen| seen.assigned.len() == 2).await;
    first.until("the first gave it", |seen| seen.assigned.len() == 2).await;
    assert!(first.seen().assigned.is_disjoint(&second.seen().assigned));
    store(40).await;
    second.until("the second reads its share", |seen| seen.records.len() == 20).await;
    let left = first.until("the first reads its share", |seen| seen.records.len() == 60).await;

    let left_behind = first.end(Ending::Close).await;
    assert_eq!(left.records.len(), left_behind.records.len());
    second.until("the second takes over", |seen| seen.assigned.len() == 4).await;
    store(80).await;
    let seen = second.until("the second reads all", |seen| seen.records.len() >= 60).await;
    let mut all = numbers(&left_behind);
    all.extend(numbers(&seen));
    all.sort_unstable();
    assert_eq!(all, (0..120).collect::<Vec<_>>(), "each record is read once");
    second.end(Ending::Close).await;
}

/// Whoever gets a revoked partition reads on at exactly the committed offset.
pub async fn a_revoked_partition_goes_on_at_its_committed_offset<B: Broker>(broker: &B, name: &str) {
    const COMMITTED: Offset = 6;
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    bench.store_numbers(&topic, 1, 0..10).await;
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    let mut first = Member::run_with(bench.join(&subscription), |_, _| COMMITTED);
    first.until("all is read", |seen| seen.records.len() == 20).await;
    let mut second = Member::run(bench.join(&subscription));
    let seen = second.until("the rest of one is read", |seen| seen.records.len() >= 4).await;
    let (from, record) = &seen.records[0];
    assert_eq!((seen.assigned.len(), record.offset()), (1, COMMITTED));
    assert_eq!(first.until("one is left", |seen| seen.assigned.len() == 1).await.records.len(), 20);
    assert!(!first.seen().assigned.contains(from), "it is the other's now");
    second.end(Ending::Close).await;
    first.end(Ending::Close).await;
}

/// A member that is dropped leaves the group, and what it did not commit is read again.
pub async fn a_dropped_member_leaves_too<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let topic = bench.topic("records", 2).await;
    bench.store_numbers(&topic, 0, 0..10).await;
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    let mut first = Member::run(bench.join(&subscription));
    first.until("all is read", |seen| seen.assigned.len() == 2 && seen.records.len() == 10).await;
    first.end(Ending::Drop).await;
    let mut second = Member::run(bench.join(&subscription));
    second.until("the next has all", |seen| seen.assigned.len() == 2 && seen.records.len() == 10).await;
    second.end(Ending::Close).await;
}

/// All numbers that a member read, in order.
fn numbers(seen: &Seen) -> Vec<u64> {
    let mut numbers: Vec<u64> = seen.records.iter().map(|(_, record)| number_of(record)).collect();
    numbers.sort_unstable();
    numbers
}
