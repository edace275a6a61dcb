//! What runs at once, and what waits for what.

use super::*;

#[tokio::test]
async fn a_record_that_waits_holds_its_lane_and_nothing_else() {
    let world = World::with("a a b").await;
    let mut member = world.join(one_by_one());
    member.call_of(&[0]).await.retry(FOR_EVER);
    member.call_of(&[2]).await.ack();
    world.store(0, "a b", 1).await;
    member.call_of(&[4]).await.ack();
    member.stop().await;
    assert_eq!(world.commits(0), NONE, "OFF-1: the record that waits is not settled");
    let mut next = world.join(one_by_one());
    next.call_of(&[0]).await;
}

#[tokio::test]
async fn a_record_that_is_tried_again_comes_before_what_follows_in_its_lane() {
    let world = World::with("a a").await;
    let mut member = world.join(config());
    for _ in 0..3 {
        member.call_of(&[0]).await.retry(Duration::ZERO);
    }
    member.call_of(&[0]).await.ack();
    member.call_of(&[1]).await.ack();
    world.committed(0, 2).await;
    member.stop().await;
}

/// LANE-1, with as many calls at once as there may be.
#[tokio::test]
async fn records_of_a_key_run_one_after_another_while_other_keys_run() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let keys: Vec<&str> = (0..60).map(|_| ["a", "b", "c", "d", "e", "f"][dice.usize(..6)]).collect();
    let world = World::with(&keys.join(" ")).await;
    let mut left: BTreeMap<String, Vec<Offset>> = BTreeMap::new();
    for (offset, key) in keys.iter().enumerate().rev() {
        left.entry((*key).to_owned()).or_default().push(offset as Offset);
    }
    let mut member = world.join(config());
    let mut open: BTreeMap<String, Open> = BTreeMap::new();
    while !left.is_empty() {
        // As many calls run as there are keys that have a record, up to the bound.
        while open.len() < left.len().min(4) {
            let call = member.call().await;
            let key = call.key();
            let next = left.get(&key).and_then(|offsets| offsets.last()).copied();
            assert_eq!(call.offsets().first().copied(), next, "LANE-1: `{key}` is out of order");
            assert!(open.insert(key.clone(), call).is_none(), "LANE-1: `{key}` runs twice");
        }
        let key = open.keys().nth(dice.usize(..open.len())).cloned().expect("one is open");
        open.remove(&key).expect("it is open").ack();
        let offsets = left.get_mut(&key).expect("it was left");
        offsets.pop();
        if offsets.is_empty() {
            left.remove(&key);
        }
    }
    world.committed(0, 60).await;
    assert_eq!(member.guest.open_max.load(Ordering::SeqCst), 4);
    member.stop().await;
}

/// SPREAD-1: a call has room for all of them, and they are received at once.
#[tokio::test]
async fn a_slow_record_does_not_hold_up_those_that_came_with_it_while_there_are_calls_to_spare() {
    let bounds = Bounds { call_records_max: 100, ..config().bounds };
    let world = World::with("slow a b c").await;
    let mut member = world.join(Config { bounds, ..config() });
    let slow = member.call_of(&[0]).await;
    for offset in 1..4 {
        member.call_of(&[offset]).await.ack();
    }
    slow.ack();
    world.committed(0, 4).await;
    member.stop().await;
}

#[tokio::test]
async fn by_partition_a_partition_has_one_call_and_goes_in_the_order_of_its_records() {
    let world = World::new(2).await;
    world.store(0, "a b c", 1).await;
    world.store(1, "a b c", 1).await;
    let mut member = world.join(Config { order: Order::Partition, ..config() });
    for offset in 0..3 {
        let (one, other) = (member.call_of(&[offset]).await, member.call_of(&[offset]).await);
        assert_ne!(one.call.from, other.call.from, "both partitions run at once");
        one.retry(Duration::ZERO);
        member.call_of(&[offset]).await.ack();
        other.ack();
    }
    world.committed(0, 3).await;
    world.committed(1, 3).await;
    assert_eq!(member.guest.open_max.load(Ordering::SeqCst), 2);
    member.stop().await;
}

#[tokio::test]
async fn unordered_a_record_waits_for_no_other() {
    let world = World::with("a a a a").await;
    let mut member = world.join(Config { order: Order::Unordered, concurrency: 2, ..config() });
    let (first, second) = (member.call_of(&[0]).await, member.call_of(&[1]).await);
    second.retry(FOR_EVER);
    member.call_of(&[2]).await.ack();
    member.call_of(&[3]).await.ack();
    first.ack();
    world.committed(0, 1).await;
    member.stop().await;
    assert_eq!(world.commits(0), [1], "OFF-1: the record that waits is not settled");
}

#[tokio::test]
async fn concurrency_bounds_the_calls_over_all_partitions() {
    let world = World::new(3).await;
    for partition in 0..3 {
        world.store(partition, "a b c d e f", 1).await;
    }
    let mut member = world.join(Config { concurrency: 2, ..config() });
    let mut before = member.call().await;
    for _ in 1..18 {
        let call = member.call().await;
        std::mem::replace(&mut before, call).ack();
    }
    before.ack();
    for partition in 0..3 {
        world.committed(partition, 6).await;
    }
    assert_eq!(member.guest.open_max.load(Ordering::SeqCst), 2);
    member.stop().await;
}
