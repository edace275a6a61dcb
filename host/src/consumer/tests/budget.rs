//! What a host may hold in all.

use std::pin::pin;

use futures_util::poll;

use crate::consumer::Budget;
use crate::metrics::Metrics;

#[tokio::test]
async fn a_full_budget_holds_back_all_but_those_below_their_floor() {
    let budget = Budget::new(100, Metrics::new().held_bytes());
    let (mut one, mut other) = (budget.share(10), budget.share(10));
    assert_eq!(one.room(), 10, "a part of it at a time");
    one.set(100);
    assert_eq!((one.room(), other.room()), (0, 10), "who holds nothing gets its first chunk");
    other.set(4);
    assert_eq!(other.room(), 6);
    other.set(30);
    assert_eq!(other.room(), 0);
    {
        let mut waiting = pin!(other.freed());
        assert!(poll!(&mut waiting).is_pending());
        one.set(60);
        waiting.await;
    }
    assert_eq!(other.room(), 10);
    drop((one, other));
    assert_eq!(budget.share(100).room(), 100, "what ends gives back what it held");
}

#[test]
fn a_partition_holds_its_floor_even_where_that_is_more_than_the_bound() {
    let budget = Budget::new(5, Metrics::new().held_bytes());
    let mut share = budget.share(10);
    assert_eq!(share.room(), 10);
    share.set(10);
    assert_eq!(share.room(), 0);
}

#[tokio::test]
async fn room_that_comes_while_one_begins_to_wait_is_not_missed() {
    for _ in 0..200 {
        let budget = Budget::new(10, Metrics::new().held_bytes());
        let (mut full, waiting) = (budget.share(1), budget.share(1));
        full.set(10);
        let waiter = tokio::spawn(async move { waiting.freed().await });
        full.set(0);
        waiter.await.expect("it hears of the room");
    }
}
