//! What is committed, and when.

use super::*;

#[tokio::test]
async fn only_what_is_behind_the_contiguous_frontier_is_committed() {
    let world = World::new(2).await;
    world.store(0, "a b c d e", 1).await;
    let mut member = world.join(Config { concurrency: 3, ..config() });
    let first = member.call_of(&[0]).await;
    let second = member.call_of(&[1]).await;
    let third = member.call_of(&[2]).await;
    third.ack();
    second.ack();
    let fourth = member.call_of(&[3]).await;
    let fifth = member.call_of(&[4]).await;
    fifth.ack();
    // A commit is of all partitions: by this one, all but the first and the fourth of the other have returned.
    world.store(1, "a", 1).await;
    member.call_of(&[0]).await.ack();
    world.committed(1, 1).await;
    assert_eq!(world.commits(0), NONE);
    first.ack();
    world.committed(0, 3).await;
    fourth.ack();
    world.committed(0, 5).await;
    member.stop().await;
}

#[tokio::test]
async fn a_commit_is_of_what_was_settled_in_whatever_order() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let keys: Vec<String> = (0..80).map(|key| key.to_string()).collect();
    let world = World::with(&keys.join(" ")).await;
    let mut member =
        world.join(Config { concurrency: 8, bounds: Bounds { calls_max: 8, ..config().bounds }, ..config() });
    let mut open = Vec::new();
    for _ in 0..80 {
        open.push(member.call().await);
        while open.len() == 8 || (!open.is_empty() && dice.bool()) {
            open.swap_remove(dice.usize(..open.len())).ack();
        }
    }
    open.into_iter().for_each(Open::ack);
    world.committed(0, 80).await;
    member.stop().await;
}

#[tokio::test]
async fn a_commit_that_fails_is_made_good_by_the_next() {
    let world = World::with("a").await;
    world.broker.fail_commits(2);
    let mut member = world.join(config());
    member.call_of(&[0]).await.ack();
    world.committed(0, 1).await;
    assert_eq!(member.metrics.commits(CommitResult::Failed).get(), 2);
    member.stop().await;
}

#[tokio::test]
async fn a_handler_that_panics_loses_no_record() {
    let world = World::with("a a").await;
    let mut member = world.join(config());
    member.call_of(&[0]).await.panic();
    member.call_of(&[0]).await.ack();
    member.call_of(&[1]).await.ack();
    world.committed(0, 2).await;
    assert_eq!(member.metrics.in_flight.get(), 0);
    member.stop().await;
}

#[tokio::test]
async fn a_group_goes_on_where_it_stopped() {
    let world = World::with("a b").await;
    let mut member = world.join(one_by_one());
    member.call_of(&[0]).await.ack();
    member.call_of(&[1]).await.ack();
    member.stop().await;
    assert_eq!(world.commits(0).last(), Some(&2), "a stop commits");
    world.store(0, "c", 1).await;
    let mut next = world.join(one_by_one());
    next.call_of(&[2]).await.ack();
    next.stop().await;
    assert_eq!(world.commits(0).last(), Some(&3));
}
