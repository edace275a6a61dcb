//! A paused handler keeps its place and starts no calls.

use super::*;

#[tokio::test]
async fn a_paused_handler_finishes_what_runs_and_goes_on_where_it_stood() {
    let world = World::with("a b c").await;
    let mut member = world.join(one_by_one());
    let in_hand = member.call_of(&[0]).await;
    member.membership.pause(true);
    in_hand.ack();
    // The slot is free by the time that this is committed, and nobody takes it.
    world.committed(0, 1).await;
    world.store(0, "d", 1).await;
    assert!(member.calls.is_empty() && member.membership.is_joined());
    member.membership.pause(false);
    for offset in 1..4 {
        member.call_of(&[offset]).await.ack();
    }
    world.committed(0, 4).await;
    member.stop().await;
}

#[tokio::test]
async fn a_handler_that_starts_paused_calls_nobody_until_it_is_resumed() {
    let world = World::with("a").await;
    let mut member = world.join_paused(config());
    // The other group shows that the record is there.
    let other = Subscription { group: "other".to_owned(), ..config().subscription };
    let mut running = world.join(Config { subscription: other, ..config() });
    running.call_of(&[0]).await.ack();
    running.stop().await;
    while !member.membership.is_joined() {
        tokio::task::yield_now().await;
    }
    assert!(member.calls.is_empty());
    member.membership.pause(false);
    member.call_of(&[0]).await.answer(Answer::Outcomes(vec![Outcome::Skip]));
    member.stop().await;
}

#[tokio::test]
async fn a_paused_handler_gives_partitions_back_and_ends() {
    let world = World::new(2).await;
    for partition in 0..2 {
        world.store(partition, "a b", 1).await;
    }
    let mut first = world.join(one_by_one());
    let in_hand = first.call().await;
    first.membership.pause(true);
    in_hand.ack();
    let mut second = world.join(one_by_one());
    world.broker.revoked(1).await;
    // One of the two is the second's now; which records of it are left depends on which one.
    let call = second.call().await;
    let from = call.call.from.clone();
    call.ack();
    first.stop().await;
    while world.ledger.settled() < 4 {
        second.call().await.ack();
    }
    second.stop().await;
    assert_eq!(world.commits(from.partition).last(), Some(&2));
}
