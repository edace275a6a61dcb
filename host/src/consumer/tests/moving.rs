//! An operator moves a handler while it runs.

use super::*;

fn at(partition: i32, offset: Offset) -> (TopicPartition, Offset) {
    (TopicPartition::new(TOPIC, partition), offset)
}

fn move_to(member: &Member, places: impl IntoIterator<Item = (TopicPartition, Offset)>) -> JoinHandle<Moves> {
    let (membership, places) = (Arc::clone(&member.membership), places.into_iter().collect());
    tokio::spawn(async move { membership.move_to(places).await })
}

type Moves = Result<Vec<Moved>, MoveError>;

async fn moved(wish: JoinHandle<Moves>) -> Vec<(Option<Offset>, Offset)> {
    let moved = timeout(PATIENCE, wish).await.expect("it is answered").expect("no panic").expect("they moved");
    moved.into_iter().map(|moved| (moved.from, moved.to)).collect()
}

/// Commits fall here, since an operator wants it: of them nothing is asked.
async fn world(keys: &str) -> World {
    let world = World::ruled(1, Arc::default(), Watched::new(|_, _| ())).await;
    world.store(0, keys, 1).await;
    world
}

#[tokio::test]
async fn a_handler_begins_again_where_an_operator_wants_it_and_commits_from_there() {
    let world = world("a b c d").await;
    let mut member = world.join(one_by_one());
    for offset in 0..4 {
        // The ledger would call it twice settled.
        member.call_of(&[offset]).await.answer(acknowledged());
    }
    world.committed(0, 4).await;
    let wish = move_to(&member, [at(0, 1)]);
    member.call_of(&[1]).await.answer(acknowledged());
    assert_eq!(moved(wish).await, [(Some(4), 1)]);
    assert!(world.commits(0).contains(&1), "the place is kept for whoever comes next");
    for offset in 2..4 {
        member.call_of(&[offset]).await.answer(acknowledged());
    }
    world.committed(0, 4).await;
    world.store(0, "e", 1).await;
    member.call_of(&[4]).await.answer(acknowledged());
    world.committed(0, 5).await;
    member.stop().await;
}

#[tokio::test]
async fn what_is_in_hand_ends_before_the_handler_is_moved_and_is_not_called_again() {
    let world = world("a a a a a").await;
    let mut member = world.join(one_by_one());
    let open = member.call_of(&[0]).await;
    let wish = move_to(&member, [at(0, 3)]);
    tokio::task::yield_now().await;
    assert!(!wish.is_finished(), "a call runs");
    open.answer(acknowledged());
    assert_eq!(moved(wish).await.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [3]);
    member.call_of(&[3]).await.answer(acknowledged());
    member.call_of(&[4]).await.answer(acknowledged());
    world.committed(0, 5).await;
    member.stop().await;
}

#[tokio::test]
async fn a_partition_that_stands_still_is_moved_past_its_record() {
    let world = world("a b").await;
    let policy = RetryPolicy::new(1, Duration::ZERO, FOR_EVER).expect("valid");
    let mut member = world.join_with(one_by_one(), policy.exhausted(tidemill_core::retry::Exhausted::Stop));
    member.call_of(&[0]).await.refuse();
    let wish = move_to(&member, [at(0, 1)]);
    assert_eq!(moved(wish).await.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [1]);
    member.call_of(&[1]).await.answer(acknowledged());
    world.committed(0, 2).await;
    member.stop().await;
}

#[tokio::test]
async fn partitions_of_other_members_are_left_alone() {
    let world = world("a").await;
    let mut member = world.join(one_by_one());
    member.call_of(&[0]).await.answer(acknowledged());
    world.committed(0, 1).await;
    assert!(moved(move_to(&member, [at(7, 0)])).await.is_empty());
    assert!(world.commits(0).iter().all(|commit| *commit == 1));
    member.stop().await;
}

#[tokio::test]
async fn a_place_that_is_not_committed_is_a_failure_and_the_handler_goes_on_where_it_stood() {
    let world = world("a b").await;
    let mut member = world.join(one_by_one());
    for offset in 0..2 {
        member.call_of(&[offset]).await.answer(acknowledged());
    }
    world.committed(0, 2).await;
    world.broker.fail_commits(1);
    let wish = timeout(PATIENCE, move_to(&member, [at(0, 0)])).await.expect("answered").expect("no panic");
    let error = wish.expect_err("it was not committed").to_string();
    assert!(error.contains("the new place was not committed") && error.contains("try again"), "{error}");
    world.store(0, "c", 1).await;
    member.call_of(&[2]).await.answer(acknowledged());
    world.committed(0, 3).await;
    member.stop().await;
}

#[tokio::test]
async fn who_moves_a_handler_that_has_ended_is_told() {
    let world = world("").await;
    let member = world.join(config());
    let membership = Arc::clone(&member.membership);
    member.stop().await;
    tokio::time::pause();
    assert_eq!(membership.move_to(BTreeMap::from([at(0, 0)])).await, Err(MoveError::NotTaken));
}

#[tokio::test]
async fn a_moved_transaction_is_whole_before_and_begins_anew_behind() {
    let world = world("a b").await;
    let mut member = world.join(Config { guarantee: Guarantee::KafkaTransaction, ..one_by_one() });
    for offset in 0..2 {
        member.call_of(&[offset]).await.answer(acknowledged());
    }
    world.committed(0, 2).await;
    let wish = move_to(&member, [at(0, 0)]);
    member.call_of(&[0]).await.answer(acknowledged());
    assert_eq!(moved(wish).await.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [0]);
    member.call_of(&[1]).await.answer(acknowledged());
    world.committed(0, 2).await;
    let admin = world.broker.admin().expect("an admin");
    assert_eq!(admin.committed(GROUP, TOPIC).await, Ok(vec![(0, Some(2))]));
    member.stop().await;
}

fn acknowledged() -> Answer {
    Answer::Outcomes(vec![Outcome::Ack(Vec::new())])
}
