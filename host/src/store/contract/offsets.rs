//! What an SQL database promises of deliveries and their offsets.

use std::time::Duration;

use futures_util::future::join_all;
use tidemill_core::record::Offset;
use tokio::sync::oneshot;

use super::sql::{INSERT, Opened, connect, execute, number, order, orders};
use crate::store::{
    Delivery, Sql, SqlError, Value,
    offsets::{Fence, Place, Standing},
};

/// Longer than any of these tests.
const SILENCE_MAX: Duration = Duration::from_secs(60);

fn place(partition: i32) -> Place {
    Place { group: "g".to_owned(), topic: "orders".to_owned(), partition }
}

fn standing(epoch: i64, next: impl Into<Option<Offset>>) -> Standing {
    Standing { epoch, next: next.into() }
}

async fn own(sql: &dyn Sql) -> Fence {
    Fence { place: place(0), standing: sql.own(place(0)).await.expect("it is taken over") }
}

/// A delivery that has inserted one order.
async fn delivery(sql: &dyn Sql, id: i64) -> Box<dyn Delivery> {
    let mut delivery = sql.deliver(SILENCE_MAX).await.expect("a delivery");
    execute(&mut *delivery, INSERT, &order(id)).await.expect("a row");
    delivery
}

async fn count<K>(opened: &Opened<K>) -> i64 {
    number(&mut *connect(opened).await, "SELECT count(*) FROM orders").await
}

pub async fn a_delivery_and_its_offset_last_together<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    let sql = &*opened.sql;
    assert_eq!(sql.standing(place(0)).await, Ok(None));
    let mut fence = own(sql).await;
    assert_eq!(fence.standing, standing(1, None));
    assert_eq!(delivery(sql, 1).await.commit(fence.clone(), 5).await, Ok(true));
    assert_eq!((sql.standing(place(0)).await, count(&opened).await), (Ok(Some(standing(1, 5))), 1));

    fence.standing.next = Some(5);
    drop(delivery(sql, 2).await);
    assert_eq!(delivery(sql, 3).await.rollback().await, Ok(()));
    assert_eq!((sql.standing(place(0)).await, count(&opened).await), (Ok(Some(standing(1, 5))), 1));
    let empty = sql.deliver(SILENCE_MAX).await.expect("a delivery");
    assert_eq!(empty.commit(fence, 9).await, Ok(true), "a delivery need not write anything");
    assert_eq!(sql.own(place(0)).await, Ok(standing(2, 9)));
}

/// FENCE-1
pub async fn a_new_owner_shuts_the_old_one_out<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    let sql = &*opened.sql;
    let old = own(sql).await;
    let new = own(sql).await;
    assert_eq!(delivery(sql, 1).await.commit(old, 5).await, Ok(false), "FENCE-1: the old owner stores nothing");
    assert_eq!((sql.standing(place(0)).await, count(&opened).await), (Ok(Some(standing(2, None))), 0));
    assert_eq!(delivery(sql, 1).await.commit(new, 5).await, Ok(true));
    assert_eq!((sql.standing(place(0)).await, count(&opened).await), (Ok(Some(standing(2, 5))), 1));
}

/// FENCE-1
pub async fn an_offset_is_stored_on_top_of_the_last_alone<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    let sql = &*opened.sql;
    let fence = own(sql).await;
    assert_eq!(delivery(sql, 1).await.commit(fence.clone(), 5).await, Ok(true));
    assert_eq!(delivery(sql, 2).await.commit(fence.clone(), 7).await, Ok(false), "FENCE-1: 5 is stored already");
    let ahead = Fence { standing: standing(1, 6), ..fence };
    assert_eq!(delivery(sql, 2).await.commit(ahead, 7).await, Ok(false));
    assert_eq!((sql.standing(place(0)).await, count(&opened).await), (Ok(Some(standing(1, 5))), 1));
}

pub async fn a_failed_statement_ends_its_delivery<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    let sql = &*opened.sql;
    let fence = own(sql).await;
    let mut broken = delivery(sql, 1).await;
    execute(&mut *broken, INSERT, &order(1)).await.expect_err("the same key again");
    assert_eq!(execute(&mut *broken, INSERT, &order(2)).await, Err(SqlError::TransactionAborted));
    assert_eq!(broken.commit(fence, 5).await, Err(SqlError::TransactionAborted));
    assert_eq!((sql.standing(place(0)).await, count(&opened).await), (Ok(Some(standing(1, None))), 0));
}

pub async fn owners_that_come_together_come_one_after_another<K>(opened: Opened<K>) {
    let owners = (0..8).map(|_| {
        let sql = opened.sql.clone();
        tokio::spawn(async move {
            loop {
                match sql.own(place(0)).await {
                    // There are fewer connections than owners.
                    Err(SqlError::Unavailable(_)) => {}
                    owned => return owned.expect("it is taken over").epoch,
                }
            }
        })
    });
    let mut epochs: Vec<_> = join_all(owners).await.into_iter().map(|owner| owner.expect("an owner")).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, (1..=8).collect::<Vec<_>>());
}

/// FENCE-1, with an old owner that delivers as fast as it can while it is shut out.
pub async fn a_new_owner_reads_all_that_the_old_one_ever_stores<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    for round in 1..=10 {
        let (fence, sql) = (own(&*opened.sql).await, opened.sql.clone());
        let (began, begun) = oneshot::channel();
        let old = tokio::spawn(deliver_until_fenced(sql, fence, began));
        begun.await.expect("some are delivered");
        let seen = opened.sql.own(place(0)).await.expect("it is taken over");
        old.await.expect("it is shut out");
        assert_eq!(opened.sql.standing(place(0)).await, Ok(Some(seen)), "round {round}");
        assert_eq!(Some(count(&opened).await), seen.next, "round {round}");
    }
}

async fn deliver_until_fenced(sql: std::sync::Arc<dyn Sql>, mut fence: Fence, began: oneshot::Sender<()>) {
    let mut began = Some(began);
    loop {
        let next = fence.standing.next.unwrap_or(0) + 1;
        if !delivery(&*sql, next).await.commit(fence.clone(), next).await.expect("an answer") {
            return;
        }
        fence.standing.next = Some(next);
        if next % 3 == 0
            && let Some(began) = began.take()
        {
            began.send(()).expect("it is waited for");
        }
    }
}

pub async fn each_group_and_partition_has_a_row_of_its_own<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    let sql = &*opened.sql;
    let other_group = Place { group: "other".to_owned(), ..place(0) };
    let other_topic = Place { topic: "invoices".to_owned(), ..place(0) };
    let places = [place(0), place(1), other_group, other_topic];
    for (id, place) in (0..).zip(&places) {
        let fence = Fence { place: place.clone(), standing: sql.own(place.clone()).await.expect("it is taken over") };
        assert_eq!(fence.standing, standing(1, None), "{place}");
        assert_eq!(delivery(sql, id).await.commit(fence, 100 + id).await, Ok(true), "{place}");
    }
    for (id, place) in (0..).zip(places) {
        assert_eq!(sql.standing(place).await, Ok(Some(standing(1, 100 + id))));
    }
}

pub async fn a_guest_cannot_write_the_offsets<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    let sql = &*opened.sql;
    let fence = own(sql).await;
    for statement in [
        "UPDATE tidemill_offsets SET next_offset = 7",
        "UPDATE \"Tidemill_Offsets\" SET next_offset = 7",
        "DELETE FROM tidemill_offsets",
        "INSERT INTO tidemill_offsets VALUES ('x', 'y', 0, 1, 1)",
        "DROP TABLE tidemill_offsets",
        "ALTER TABLE tidemill_offsets ADD COLUMN x TEXT",
        "CREATE TRIGGER t AFTER UPDATE ON tidemill_offsets BEGIN SELECT 1; END",
    ] {
        let mut connection = connect(&opened).await;
        let error = execute(&mut *connection, statement, &[]).await.expect_err(statement);
        assert!(matches!(error, SqlError::Rejected(_)), "{statement}: {error}");
        drop(connection);
        let mut delivery = sql.deliver(SILENCE_MAX).await.expect("a delivery");
        let error = execute(&mut *delivery, statement, &[]).await.expect_err(statement);
        assert!(matches!(error, SqlError::Rejected(_)), "{statement}: {error}");
    }
    assert_eq!(sql.standing(place(0)).await, Ok(Some(fence.standing)));
    assert_eq!(delivery(sql, 1).await.commit(fence, 1).await, Ok(true), "the host can");
    let mut connection = connect(&opened).await;
    let same = "UPDATE orders SET cents = $1 WHERE id = 1";
    assert_eq!(execute(&mut *connection, same, &[Value::Int(9)]).await, Ok(1), "other tables are the guest's");
}
