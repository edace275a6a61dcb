//! Settling under a database's transaction, on a real SQLite file.

use crate::attempt::Ownership;
use crate::store::offsets::Place;
use crate::store::{Sql, SqlError, Value, sqlite};

use super::*;

/// A world with a database that holds a table `t`, whose row of offsets this host owns.
struct Together {
    world: World,
    sql: Arc<dyn Sql>,
    owner: Arc<Ownership>,
    _folder: tempfile::TempDir,
}

impl Together {
    async fn new(answers: Vec<Result<Position, SendError>>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = sqlite::Config::new(folder.path().join("test.db"));
        let sql: Arc<dyn Sql> = Arc::new(sqlite::Sqlite::open(config).await.expect("a database"));
        let mut connection = sql.connect().await.expect("a connection");
        connection.execute("CREATE TABLE t (n INTEGER)".to_owned(), vec![]).await.expect("a table");
        let owner = Arc::new(own(&sql).await);
        Self { world: World::new(answers), sql, owner, _folder: folder }
    }

    /// An attempt whose guest wrote one row for each record.
    async fn attempt(&self, records: usize) -> Attempt {
        let mut attempt = attempt(&"a ".repeat(records));
        attempt.guarantee = Guarantee::SqlTransaction;
        attempt.owner = Some(Arc::clone(&self.owner));
        let mut open = self.owner.open().await.expect("a transaction");
        for _ in 0..records {
            open.delivery().execute("INSERT INTO t VALUES (1)".to_owned(), vec![]).await.expect("a row");
        }
        attempt.effects.open = Some(open);
        attempt
    }

    async fn settle(&self, outcomes: Result<Vec<Outcome>, CallError>, records: usize) -> Vec<Verdict> {
        let mut attempt = self.attempt(records).await;
        self.world.settler.settle_together(&mut attempt, &self.owner, called(outcomes)).await.verdicts
    }

    /// The rows that last, and the offset.
    async fn kept(&self) -> (i64, Option<i64>) {
        let mut connection = self.sql.connect().await.expect("a connection");
        let rows = connection.query("SELECT count(*) FROM t".to_owned(), vec![]).await.expect("counted").rows;
        let Value::Int(count) = rows[0][0] else { panic!("a count, not {rows:?}") };
        let standing = self.sql.standing(place()).await.expect("read").expect("a row");
        (count, standing.next)
    }
}

fn place() -> Place {
    Place { group: "g".to_owned(), topic: "in".to_owned(), partition: 0 }
}

async fn own(sql: &Arc<dyn Sql>) -> Ownership {
    let taken = Ownership::take(Arc::clone(sql), "main".into(), place(), Duration::from_secs(1));
    taken.await.expect("it is taken over")
}

fn dead_letter() -> Outcome {
    Outcome::DeadLetter(Reason::default())
}

#[tokio::test]
async fn a_call_that_ended_well_is_kept_with_its_offset_once_its_outputs_are_acknowledged() {
    let together = Together::new(vec![]).await;
    let verdicts = together.settle(Ok(vec![ack(2), Outcome::Skip, ack(0)]), 3).await;
    assert_eq!(verdicts, [Verdict::Settled; 3]);
    assert_eq!(together.kept().await, (3, Some(3)));
    assert_eq!(together.world.sent(), ["out", "out"]);
}

#[tokio::test]
async fn a_call_with_a_record_that_failed_keeps_nothing_and_is_halved() {
    let trap = Err(CallError { class: Class::Trap, detail: "unreachable".to_owned() });
    let too_large = SendError::TooLarge("1 MiB".to_owned());
    for (outcomes, answers) in [
        (Ok(vec![ack(0), retry(false)]), vec![]),
        (Ok(vec![ack(0), dead_letter()]), vec![]),
        (Ok(vec![ack(0), Outcome::Untouched]), vec![]),
        (Ok(vec![ack(0), ack(1)]), vec![Err(too_large)]),
        (trap, vec![]),
    ] {
        let together = Together::new(answers).await;
        assert_eq!(together.settle(outcomes, 2).await, [Verdict::Halve; 2]);
        assert_eq!(together.kept().await, (0, None));
        assert!(!together.world.sent().contains(&"in.dlq".to_owned()));
    }
}

#[tokio::test]
async fn a_record_that_fails_alone_waits_or_is_dead_lettered_and_only_then_passed() {
    let together = Together::new(vec![]).await;
    let verdicts = together.settle(Ok(vec![retry(false)]), 1).await;
    assert!(matches!(verdicts[..], [Verdict::Retry { charge: true, .. }]), "{verdicts:?}");
    assert_eq!(together.kept().await, (0, None));
    assert_eq!(together.settle(Ok(vec![dead_letter()]), 1).await, [Verdict::Settled]);
    assert_eq!(together.kept().await, (0, Some(1)), "the offset passes it, and what it wrote is gone");
    assert_eq!(together.world.sent(), ["in.dlq"]);
}

#[tokio::test]
async fn what_is_nobodys_fault_makes_the_call_wait_and_charges_nobody() {
    let waits = |verdicts: &[Verdict]| {
        assert!(matches!(verdicts[0], Verdict::Retry { charge: false, .. }), "{verdicts:?}");
        assert_eq!(verdicts[1..], [Verdict::Untouched]);
    };
    let away = SendError::Unavailable("no broker".to_owned());
    let together = Together::new(vec![Ok(AT), Err(away)]).await;
    waits(&together.settle(Ok(vec![ack(1), ack(1)]), 2).await);
    assert_eq!(together.kept().await, (0, None));
}

#[tokio::test]
async fn two_calls_that_meet_in_the_same_rows_are_halved_and_charge_nobody() {
    let together = Together::new(vec![]).await;
    for (records, outcomes) in [(2, vec![ack(0), retry(false)]), (1, vec![dead_letter()])] {
        let mut attempt = together.attempt(records).await;
        attempt.effects.conflict = Some("deadlock".to_owned());
        let settling = together.world.settler.settle_together(&mut attempt, &together.owner, called(Ok(outcomes)));
        let verdicts = settling.await.verdicts;
        match records {
            1 => assert!(matches!(verdicts[..], [Verdict::Retry { charge: false, .. }]), "{verdicts:?}"),
            _ => assert_eq!(verdicts, [Verdict::Halve; 2]),
        }
        assert_eq!(together.kept().await, (0, None));
    }
}

#[tokio::test]
async fn a_transaction_that_a_swallowed_error_ended_is_not_taken_for_a_good_one() {
    let together = Together::new(vec![]).await;
    let mut attempt = together.attempt(1).await;
    let open = attempt.effects.open.as_mut().expect("it is open");
    let failed = open.delivery().execute("INSERT INTO nowhere VALUES (1)".to_owned(), vec![]).await;
    assert!(matches!(failed, Err(SqlError::Rejected(_))));
    let verdicts =
        together.world.settler.settle_together(&mut attempt, &together.owner, called(Ok(vec![ack(0)]))).await.verdicts;
    assert!(matches!(verdicts[..], [Verdict::Retry { charge: true, .. }]), "{verdicts:?}");
    assert_eq!(together.kept().await, (0, None));
}

#[tokio::test]
async fn a_host_that_was_taken_over_keeps_nothing() {
    let together = Together::new(vec![]).await;
    let _newer = own(&together.sql).await;
    assert_eq!(together.settle(Ok(vec![ack(0)]), 1).await, [Verdict::Untouched]);
    assert!(together.owner.fenced_since().is_some());
    assert_eq!(together.settle(Ok(vec![dead_letter()]), 1).await, [Verdict::Untouched]);
    assert_eq!(together.kept().await, (0, None));
}
