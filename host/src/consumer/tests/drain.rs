//! A partition goes from hand to hand, and a member ends.

use super::*;
use crate::broker::ConsumerEvent;

#[tokio::test]
async fn a_revoked_partition_is_drained_and_the_next_member_repeats_nothing() {
    let world = World::new(2).await;
    for partition in 0..2 {
        world.store(partition, "a b c d e f g h", 1).await;
    }
    let bounds = Bounds { calls_max: 1, ..config().bounds };
    let mut first = world.join(Config { bounds: bounds.clone(), ..config() });
    let in_hand = [first.call().await, first.call().await];
    let mut second = world.join(Config { bounds, ..config() });
    world.broker.revoked(1).await;
    assert!(second.calls.is_empty(), "it is not given while a call of it runs");
    in_hand.into_iter().for_each(Open::ack);
    let mut seconds = 0;
    // The ledger takes each record once.
    while world.ledger.settled() < 16 {
        tokio::select! {
            call = first.call() => call.ack(),
            call = second.call() => {
                seconds += 1;
                call.ack();
            }
        }
    }
    assert!((6..=7).contains(&seconds), "the second has handled {seconds} records of its partition");
    first.stop().await;
    second.stop().await;
    for partition in 0..2 {
        assert_eq!(world.commits(partition).last(), Some(&8));
    }
}

#[tokio::test]
async fn a_stop_waits_for_the_calls_in_hand_and_commits_them() {
    let world = World::with("a b c d").await;
    let mut member = world.join(config());
    let in_hand = [member.call().await, member.call().await, member.call().await, member.call().await];
    member.stop.cancel();
    let mut stopping = tokio::spawn(member.stop());
    assert!(futures_util::poll!(&mut stopping).is_pending());
    in_hand.into_iter().for_each(Open::ack);
    stopping.await.expect("it ends");
    assert_eq!(world.commits(0).last(), Some(&4));
}

#[tokio::test]
async fn a_call_that_outlasts_the_drain_deadline_is_stopped_and_its_records_come_again() {
    let world = World::with("a b c").await;
    let mut member = world.join(Config { drain_deadline: Duration::from_millis(50), ..config() });
    let first = member.call_of(&[0]).await;
    let second = member.call_of(&[1]).await;
    member.call_of(&[2]).await.ack();
    first.ack();
    world.committed(0, 1).await;
    let metrics = Arc::clone(&member.metrics);
    member.stop().await;
    second.stopped().await;
    assert_eq!(world.commits(0).last(), Some(&1));
    assert_eq!(metrics.in_flight.get(), 0, "nothing is in flight any more");
    let mut next = world.join(config());
    next.call_of(&[1]).await;
    next.call_of(&[2]).await;
}

#[tokio::test]
async fn what_was_not_committed_of_a_lost_partition_is_never_committed_and_comes_again() {
    let world = World::with("a b c").await;
    world.broker.fail_commits(usize::MAX);
    let mut member = world.join(one_by_one());
    for offset in 0..2 {
        // Not in the ledger: the partition is another member's by the time that this could be committed.
        let call = member.call_of(&[offset]).await;
        call.answer(Answer::Outcomes(vec![Outcome::Skip]));
    }
    let in_hand = member.call_of(&[2]).await;
    world.broker.tell(ConsumerEvent::Lost(vec![TopicPartition::new(TOPIC, 0)]));
    in_hand.stopped().await;
    world.broker.fail_commits(0);
    for offset in 0..3 {
        member.call_of(&[offset]).await.ack();
    }
    world.committed(0, 3).await;
    member.stop().await;
}

#[tokio::test]
async fn a_consumer_that_fails_is_made_anew_and_repeats_only_what_was_not_committed() {
    let world = World::with("a b").await;
    let mut member = world.join(one_by_one());
    member.call_of(&[0]).await.ack();
    world.committed(0, 1).await;
    let in_hand = member.call_of(&[1]).await;
    world.broker.tell(ConsumerEvent::Fatal("the client is broken".to_owned()));
    in_hand.stopped().await;
    member.call_of(&[1]).await.ack();
    member.stop().await;
    assert_eq!(world.commits(0).last(), Some(&2));
}
