use std::collections::VecDeque;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::store::migrations::{MigrationError, Migrations};
use crate::store::offsets::Standing;
use crate::store::{Connection, RowSet, Statements, Value};

/// A database that loses the answer to each commit, and then says what it is told to.
#[derive(Debug, Default)]
struct Forgetful {
    says: Mutex<VecDeque<Result<Option<Standing>, SqlError>>>,
}

struct Lost;

fn lost<T>() -> BoxFuture<'static, Result<T, SqlError>> {
    let cause = DbError { sqlstate: None, message: "connection reset".to_owned(), constraint: None };
    async { Err(SqlError::OutcomeUnknown(cause)) }.boxed()
}

fn standing(epoch: i64, next: i64) -> Standing {
    Standing { epoch, next: Some(next) }
}

impl Sql for Forgetful {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, SqlError>> {
        lost()
    }

    fn apply(&self, _: Migrations) -> BoxFuture<'_, Result<Vec<String>, MigrationError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn own(&self, _: Place) -> BoxFuture<'_, Result<Standing, SqlError>> {
        async { Ok(standing(4, 10)) }.boxed()
    }

    fn standing(&self, _: Place) -> BoxFuture<'_, Result<Option<Standing>, SqlError>> {
        let said = self.says.lock().expect("not poisoned").pop_front().expect("it is asked no more than that");
        async { said }.boxed()
    }

    fn deliver(&self, _: Duration) -> BoxFuture<'_, Result<Box<dyn Delivery>, SqlError>> {
        async { Ok(Box::new(Lost) as Box<dyn Delivery>) }.boxed()
    }
}

impl Statements for Lost {
    fn query(&mut self, _: String, _: Vec<Value>) -> BoxFuture<'_, Result<RowSet, SqlError>> {
        lost()
    }

    fn execute(&mut self, _: String, _: Vec<Value>) -> BoxFuture<'_, Result<u64, SqlError>> {
        lost()
    }

    fn execute_many(&mut self, _: String, _: Vec<Vec<Value>>) -> BoxFuture<'_, Result<u64, SqlError>> {
        lost()
    }
}

impl Delivery for Lost {
    fn commit(self: Box<Self>, _: Fence, _: Offset) -> BoxFuture<'static, Result<bool, SqlError>> {
        lost()
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), SqlError>> {
        lost()
    }
}

/// Commits 15 on top of 10, in epoch 4; the answer is lost, and the database then says this.
async fn commit(says: Vec<Result<Option<Standing>, SqlError>>) -> (Result<Committed, SqlError>, Option<Offset>) {
    let sql = Arc::new(Forgetful { says: Mutex::new(says.into()) });
    let place = Place { group: "g".to_owned(), topic: "t".to_owned(), partition: 0 };
    let owner = Ownership::take(sql, "main".into(), place, Duration::ZERO).await.expect("it is taken over");
    let open = owner.open().await.expect("a transaction");
    let committed = owner.commit(Some(open), 15).await;
    (committed, owner.next())
}

#[tokio::test(start_paused = true)]
async fn what_became_of_a_commit_whose_answer_is_lost_is_read_from_the_row() {
    let away = || Err(SqlError::Unavailable("in recovery".to_owned()));
    let (committed, next) = commit(vec![away(), away(), away(), Ok(Some(standing(4, 15)))]).await;
    assert_eq!((committed, next), (Ok(Committed::Stored), Some(15)));
    let (committed, next) = commit(vec![away(), Ok(Some(standing(4, 10)))]).await;
    assert!(matches!(committed, Err(SqlError::Unavailable(_))), "{committed:?}");
    assert_eq!(next, Some(10), "the same records may be delivered again");
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_somebody_elses_by_then_ends_the_assignment_whatever_became_of_the_commit() {
    for row in [Some(standing(5, 15)), Some(standing(5, 10)), Some(standing(4, 99)), None] {
        let (committed, _) = commit(vec![Ok(row)]).await;
        assert_eq!(committed, Ok(Committed::Fenced), "{row:?}");
    }
}
