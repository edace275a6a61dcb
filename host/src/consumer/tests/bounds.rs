//! What is received before it is settled is bounded, and nothing is lost at the bound.

use super::*;

#[tokio::test]
async fn no_more_records_are_received_than_may_be_unsettled() {
    let bounds = Bounds { records_max: 6, call_records_max: 2, ..config().bounds };
    let world = World::with(&keys(40)).await;
    let mut member = world.join(Config { bounds, ..one_by_one() });
    let mut settled = 0;
    while settled < 40 {
        let call = member.call().await;
        assert_eq!(call.offsets()[0], settled, "none is left out");
        let received = member.metrics.received_records.get() as Offset;
        assert!(received <= settled + 6, "{received} are received and {settled} settled");
        settled += call.offsets().len() as Offset;
        call.ack();
    }
    world.committed(0, 40).await;
    member.stop().await;
}

/// A bound that is smaller than a call holds back more than it, and not everything.
#[tokio::test]
async fn all_records_come_through_a_small_bound() {
    let bounds = config().bounds;
    let small = [Bounds { records_max: 3, ..bounds.clone() }, Bounds { span_max: 3, ..bounds }];
    for bounds in small.map(|small| Bounds { call_records_max: 100, ..small }) {
        let world = World::with(&keys(10)).await;
        let mut member = world.join(Config { bounds, ..one_by_one() });
        let mut settled = 0;
        while settled < 10 {
            let call = member.call().await;
            settled += call.offsets().len();
            call.ack();
        }
        world.committed(0, 10).await;
        member.stop().await;
    }
}

#[tokio::test]
async fn no_more_bytes_are_received_than_may_be_unsettled() {
    const BYTES_MAX: usize = 10_000;
    let bounds = Bounds { bytes_max: BYTES_MAX, ..config().bounds };
    let world = World::new(1).await;
    world.store(0, &keys(40), 1000).await;
    let mut member = world.join(Config { bounds, ..one_by_one() });
    let mut settled = 0;
    for offset in 0..40 {
        let call = member.call_of(&[offset]).await;
        let received = member.metrics.received_bytes.get() as usize;
        // A record that does not fit into what is left comes alone.
        assert!(received <= settled + BYTES_MAX + call.bytes(), "{received} are received and {settled} settled");
        settled += call.bytes();
        call.ack();
    }
    world.committed(0, 40).await;
    member.stop().await;
}

/// The host's bound holds over all partitions, and each comes to its turn.
#[tokio::test]
async fn no_more_bytes_are_held_by_the_host_than_it_may_and_no_partition_starves() {
    const BYTES_MAX: usize = 5_000;
    let mut world = World::new(3).await;
    world.bytes_max = BYTES_MAX;
    for partition in 0..3 {
        world.store(partition, &keys(30), 1000).await;
    }
    // The floor of each partition is a call's.
    let bounds = Bounds { call_bytes_max: 1000, ..config().bounds };
    let mut member = world.join(Config { bounds, ..one_by_one() });
    let mut settled = 0;
    for _ in 0..90 {
        let call = member.call().await;
        let held = member.metrics.received_bytes.get() as usize - settled;
        assert!(held <= BYTES_MAX + 3 * 2_100, "{held} bytes are held");
        settled += call.bytes();
        call.ack();
    }
    for partition in 0..3 {
        world.committed(partition, 30).await;
    }
    member.stop().await;
}

#[tokio::test]
async fn a_partition_that_holds_all_the_host_may_does_not_keep_others_from_their_first_records() {
    let mut world = World::new(2).await;
    world.bytes_max = 3_100;
    world.store(0, &keys(10), 1000).await;
    let bounds = Bounds { call_bytes_max: 1000, ..config().bounds };
    let mut member = world.join(Config { bounds, ..config() });
    let held: Vec<Open> = [member.call().await, member.call().await, member.call().await].into();
    world.store(1, &keys(3), 1000).await;
    for offset in 0..3 {
        let call = member.call_of(&[offset]).await;
        assert_eq!(call.call.from.partition, 1);
        call.ack();
    }
    world.committed(1, 3).await;
    drop(held);
    member.stop.cancel();
}

/// What a crash repeats is bounded, also while one record waits for a long time.
#[tokio::test]
async fn a_record_that_waits_lets_so_many_pass_and_no_more() {
    let bounds = Bounds { span_max: 10, ..config().bounds };
    let world = World::new(2).await;
    world.store(0, &keys(40), 1).await;
    let mut member = world.join(Config { bounds, ..one_by_one() });
    member.call_of(&[0]).await.retry(FOR_EVER);
    for offset in 1..10 {
        member.call_of(&[offset]).await.ack();
    }
    // The other partition is not held, and nothing more comes of this one.
    world.store(1, "a b c", 1).await;
    for offset in 0..3 {
        let call = member.call_of(&[offset]).await;
        assert_eq!(call.call.from.partition, 1);
        call.ack();
    }
    world.committed(1, 3).await;
    assert_eq!(member.metrics.received_records.get(), 13);
    member.stop().await;
    assert_eq!(world.commits(0), NONE);
}

/// So many keys, each another.
fn keys(count: usize) -> String {
    (0..count).map(|key| format!("{key} ")).collect()
}
