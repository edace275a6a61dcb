//! Committed before it is called, called once, and nothing of it lost by an orderly end.

use super::*;
use crate::broker::ConsumerEvent;

/// One call at a time, four records committed ahead.
fn once() -> Config {
    Config { guarantee: Guarantee::AtMostOnce, ..one_by_one() }
}

/// The next call, whose records are committed by then.
async fn call_of(world: &World, member: &mut Member, offsets: &[Offset]) -> Open {
    let call = member.call_of(offsets).await;
    let committed = world.commits(0).last().copied();
    assert!(committed > offsets.last().copied(), "OFF-1: {offsets:?} are called and {committed:?} is confirmed");
    call
}

#[tokio::test]
async fn a_record_is_called_once_its_commit_is_confirmed() {
    let world = World::ahead("a a b").await;
    world.broker.fail_commits(3);
    let mut member = world.join(once());
    call_of(&world, &mut member, &[0]).await.ack();
    assert_eq!(member.metrics.commits(CommitResult::Failed).get(), 3);
    call_of(&world, &mut member, &[2]).await.ack();
    call_of(&world, &mut member, &[1]).await.ack();
    member.stop().await;
    assert_eq!(world.commits(0).last(), Some(&3));
}

#[tokio::test]
async fn no_more_is_committed_than_may_be_lost() {
    let world = World::ahead("a b c d e f g h i j").await;
    let mut member = world.join(once());
    for offset in 0..10 {
        let call = call_of(&world, &mut member, &[offset]).await;
        let committed = world.commits(0).last().copied().expect("it is called");
        assert!(committed <= offset + 4, "{committed} is committed and {offset} runs");
        call.ack();
    }
    member.stop().await;
}

#[tokio::test]
async fn a_record_that_is_to_come_again_is_a_dead_letter_and_what_follows_goes_on() {
    let world = World::ahead("a a a").await;
    let mut member = world.join(once());
    call_of(&world, &mut member, &[0]).await.retry(Duration::ZERO);
    call_of(&world, &mut member, &[1]).await.answer(Answer::Panic);
    call_of(&world, &mut member, &[2]).await.ack();
    let metrics = Arc::clone(&member.metrics);
    member.stop().await;
    assert_eq!((metrics.dead_letters(Class::Retry).get(), metrics.lost_records.get()), (1, 1));
    let mut next = world.join(once());
    world.store(0, "a", 1).await;
    call_of(&world, &mut next, &[3]).await;
}

#[tokio::test]
async fn an_orderly_end_calls_what_is_committed_and_nothing_else() {
    let world = World::ahead("a b c d e f").await;
    let mut member = world.join(once());
    let first = call_of(&world, &mut member, &[0]).await;
    world.committed(0, 4).await;
    let (_, unused) = mpsc::unbounded_channel();
    let mut calls = std::mem::replace(&mut member.calls, unused);
    member.stop.cancel();
    let mut done = 1;
    let mut stopping = tokio::spawn(async move {
        first.ack();
        timeout(PATIENCE, &mut member.task).await.expect("it ends").expect("it does not panic");
        member.metrics.lost_records.get()
    });
    let lost = loop {
        tokio::select! {
            call = calls.recv() => {
                Open { call: call.expect("the guest is there"), ledger: Arc::clone(&world.ledger) }.ack();
                done += 1;
            }
            lost = &mut stopping => break lost.expect("it does not panic"),
        }
    };
    assert_eq!((world.commits(0).last(), lost), (Some(&done), 0), "what is committed is done");
    assert!(done < 6, "nothing else is");
    call_of(&world, &mut world.join(once()), &[done]).await;
}

#[tokio::test]
async fn an_orderly_end_waits_for_the_commit_that_was_asked_for() {
    let world = World::ahead("a b").await;
    world.broker.fail_commits(usize::MAX);
    let mut member = world.join(once());
    while member.metrics.commits(CommitResult::Failed).get() == 0 {
        tokio::task::yield_now().await;
    }
    member.stop.cancel();
    world.broker.fail_commits(0);
    for offset in 0..2 {
        call_of(&world, &mut member, &[offset]).await.ack();
    }
    member.stop().await;
    assert_eq!(world.commits(0).last(), Some(&2));
}

#[tokio::test]
async fn what_was_committed_of_a_lost_partition_does_not_come_again_and_is_counted() {
    let world = World::ahead("a b c d e").await;
    let mut member = world.join(once());
    let in_hand = call_of(&world, &mut member, &[0]).await;
    world.committed(0, 4).await;
    world.broker.tell(ConsumerEvent::Lost(vec![TopicPartition::new(TOPIC, 0)]));
    in_hand.stopped().await;
    call_of(&world, &mut member, &[4]).await.ack();
    assert_eq!(member.metrics.lost_records.get(), 4);
    member.stop().await;
}

#[tokio::test]
async fn a_call_that_outlasts_the_drain_deadline_is_not_made_again() {
    let world = World::ahead("a").await;
    let mut member = world.join(Config { drain_deadline: Duration::from_millis(50), ..once() });
    let in_hand = call_of(&world, &mut member, &[0]).await;
    let metrics = Arc::clone(&member.metrics);
    member.stop().await;
    in_hand.stopped().await;
    assert_eq!(metrics.lost_records.get(), 1);
    world.store(0, "b", 1).await;
    call_of(&world, &mut world.join(once()), &[1]).await;
}

#[tokio::test]
async fn a_partition_that_changes_hands_is_called_once_for_each_record() {
    let world = World::ahead_of(2, "a b c d e f g h").await;
    let mut first = world.join(once());
    let in_hand = first.call().await;
    let mut second = world.join(once());
    world.broker.revoked(1).await;
    in_hand.ack();
    // The ledger takes each record once.
    while world.ledger.settled() < 16 {
        tokio::select! {
            call = first.call() => call.ack(),
            call = second.call() => call.ack(),
        }
    }
    let lost = first.metrics.lost_records.get() + second.metrics.lost_records.get();
    first.stop().await;
    second.stop().await;
    assert_eq!((lost, [0, 1].map(|partition| world.commits(partition).last().copied())), (0, [Some(8); 2]));
}
