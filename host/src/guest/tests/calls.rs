//! What a call comes to.

use tidemill_core::retry::Class;

use super::*;
use crate::store::migrations::{MigrationError, Migrations};
use crate::store::offsets::{Place, Standing};
use crate::store::{Connection, Delivery, SqlError};

#[tokio::test]
async fn a_guest_answers_for_each_record_and_its_revision_is_named() {
    let live = Test::default().load_odd(Odd::default()).await;
    let called = live.call(&mut attempt(3, Duration::from_secs(60))).await;
    assert_eq!(called.outcomes, Ok(vec![Outcome::Skip; 3]));
    assert_eq!(called.revision, live.digest());
}

#[tokio::test]
async fn the_identity_guest_gives_back_what_it_got() {
    let test = Test { manifest: "grants.produce = [\"identity.out\"]", ..Test::default() };
    let live = test.load(prebuilt("identity")).await.expect("it loads");
    let outcomes = call(&live, 2).await.expect("it answers");
    let [Outcome::Ack(outputs), Outcome::Ack(_)] = &outcomes[..] else { panic!("two acks, not {outcomes:?}") };
    assert_eq!(outputs.len(), 1);
    assert_eq!(&*outputs[0].topic, "identity.out");
    assert_eq!((outputs[0].key.as_deref(), outputs[0].value.as_deref()), (Some(&b"key"[..]), Some(&b"value"[..])));
}

#[tokio::test]
async fn an_output_to_a_topic_that_is_not_granted_is_a_dead_letter_that_names_the_grant() {
    let live = Test::default().load(prebuilt("identity")).await.expect("it loads");
    let reason = Reason {
        code: "access-denied".to_owned(),
        detail: "topic `identity.out` is not granted; add it to `produce` under `[grants]` in the handler's manifest"
            .to_owned(),
    };
    assert_eq!(call(&live, 1).await, Ok(vec![Outcome::DeadLetter(reason)]));
}

#[tokio::test]
async fn missing_outcomes_are_untouched_and_surplus_ones_an_error() {
    let short = Test::default().load_odd(Odd { surplus: -1, ..Odd::default() }).await;
    assert_eq!(call(&short, 2).await, Ok(vec![Outcome::Skip, Outcome::Untouched]));
    let long = Test::default().load_odd(Odd { surplus: 1, ..Odd::default() }).await;
    assert_eq!(
        call(&long, 2).await,
        Err(CallError { class: Class::Malformed, detail: "the guest gave 3 outcomes for 2 records".to_owned() })
    );
}

#[tokio::test]
async fn each_way_to_fail_has_its_class_and_leaves_no_instance_behind() {
    let engine = engine_with(4);
    for (handle, fields, expected) in [
        ("unreachable", "", Class::Trap),
        ("(call $deeper)", "(func $deeper (call $deeper) (call $deeper))", Class::Trap),
        ("(loop $for_ever (br $for_ever))", "", Class::Deadline),
        ("(if (i32.eq (memory.grow (i32.const 1100)) (i32.const -1)) (then unreachable))", "", Class::Memory),
        (
            "(if (i32.eq (table.grow $t (ref.null func) (i32.const 200000)) (i32.const -1)) (then unreachable))",
            "(table $t 1 funcref)",
            Class::Memory,
        ),
    ] {
        let test = Test { engine: Arc::clone(&engine), ..Test::default() };
        let live = test.load_odd(Odd { handle, fields, ..Odd::default() }).await;
        let error = failure(&live).await;
        assert_eq!(error.class, expected, "{handle}: {error}");
        drop(live);
        assert_eq!(engine.room_left(), 4, "{handle}");
    }
}

#[tokio::test]
async fn what_stays_within_its_limits_is_answered_for() {
    for (handle, fields) in [
        ("(if (i32.eq (memory.grow (i32.const 900)) (i32.const -1)) (then unreachable))", ""),
        (
            "(if (i32.eq (table.grow $t (ref.null func) (i32.const 90000)) (i32.const -1)) (then unreachable))",
            "(table $t 1 funcref)",
        ),
    ] {
        let live = Test::default().load_odd(Odd { handle, fields, ..Odd::default() }).await;
        assert_eq!(call(&live, 1).await, Ok(vec![Outcome::Skip]), "{handle}");
    }
}

#[tokio::test]
async fn a_guest_that_waits_is_stopped_at_its_deadline_too() {
    let live =
        Test { manifest: "config.ms = \"60000\"", ..Test::default() }.load(prebuilt("slow")).await.expect("it loads");
    assert_eq!(failure(&live).await.class, Class::Deadline);
}

#[tokio::test]
async fn real_guests_fail_in_their_own_words() {
    let trapping = Test::default().load(prebuilt("trapping")).await.expect("it loads");
    let error = call(&trapping, 1).await.expect_err("it panics");
    assert_eq!(error.class, Class::Trap);
    assert!(error.detail.contains("this guest panics on purpose"), "{error}");
    let hungry = Test::default().load(prebuilt("hungry")).await.expect("it loads");
    let error = call(&hungry, 1).await.expect_err("it eats all of its memory");
    assert_eq!(error.class, Class::Memory, "{error}");
    assert!(error.detail.starts_with("the guest asked for more than its 67108864 B of memory"), "{error}");
}

/// Makes the first outcome a retry with `unavailable`, whose code and detail are `bytes` zeroes.
const RETRY: &str = "
    (i32.store8 (i32.const 65536) (i32.const 2))
    (i32.store (i32.const 65552) (i32.const 2000))
    (i32.store (i32.const 65548) (i32.const 2048))
    (i32.store (i32.const 65556) (i32.const 2048))
    (i32.store (i32.const 65560) (i32.const 2000))
    (i32.store8 (i32.const 65564) (i32.const 1))";

#[tokio::test]
async fn a_claim_that_something_is_away_is_not_believed_and_its_words_are_cut() {
    let live = Test::default().load_odd(Odd { handle: RETRY, ..Odd::default() }).await;
    let outcomes = call(&live, 1).await.expect("it answers");
    let [Outcome::Retry { after: None, reason, unavailable: false }] = &outcomes[..] else {
        panic!("a retry that is not believed, not {outcomes:?}");
    };
    assert_eq!((reason.code.len(), reason.detail.len()), (100, 1024));
}

#[tokio::test]
async fn an_answer_beyond_the_transfer_limit_fails_and_one_below_does_not() {
    let limits = Limits { transfer_bytes_max: 10_000, ..Limits::default() };
    let live = Test { limits, ..Test::default() }.load_odd(Odd::default()).await;
    assert_eq!(call(&live, 10).await, Ok(vec![Outcome::Skip; 10]));
    assert_eq!(call(&live, 1000).await.expect_err("too much").class, Class::Trap);
}

/// A database that is not there, or worse.
#[derive(Debug)]
struct Gone {
    panics: bool,
}

impl Sql for Gone {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, SqlError>> {
        assert!(!self.panics, "a mistake in the host");
        Box::pin(async { Err(SqlError::Unavailable("nobody listens".to_owned())) })
    }

    fn apply(&self, _: Migrations) -> BoxFuture<'_, Result<Vec<String>, MigrationError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn own(&self, _: Place) -> BoxFuture<'_, Result<Standing, SqlError>> {
        Box::pin(async { Err(SqlError::Unavailable("nobody listens".to_owned())) })
    }

    fn standing(&self, _: Place) -> BoxFuture<'_, Result<Option<Standing>, SqlError>> {
        Box::pin(async { Err(SqlError::Unavailable("nobody listens".to_owned())) })
    }

    fn deliver(&self, _: Duration) -> BoxFuture<'_, Result<Box<dyn Delivery>, SqlError>> {
        Box::pin(async { Err(SqlError::Unavailable("nobody listens".to_owned())) })
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_nobodys_fault() {
    let sql: Arc<dyn Sql> = Arc::new(Gone { panics: false });
    let test = Test { manifest: "grants.sql = [\"main\"]", sql: Some(sql), ..Test::default() };
    let live = test.load(prebuilt("store")).await.expect("it loads");
    let mut attempt = attempt(2, Duration::from_secs(60));
    let outcomes = live.call(&mut attempt).await.outcomes.expect("it answers");
    assert!(
        attempt.effects.unavailable.as_deref().is_some_and(|away| away.contains("nobody listens")),
        "{:?}",
        attempt.effects
    );
    assert!(matches!(outcomes[0], Outcome::Retry { unavailable: true, .. }), "{outcomes:?}");
}

#[tokio::test]
async fn a_mistake_of_the_host_beneath_a_guest_ends_only_the_call() {
    let sql: Arc<dyn Sql> = Arc::new(Gone { panics: true });
    let test = Test { manifest: "grants.sql = [\"main\"]", sql: Some(sql), ..Test::default() };
    let live = test.load(prebuilt("store")).await.expect("it loads");
    for _ in 0..2 {
        let error = call(&live, 1).await.expect_err("the host panics beneath it");
        assert_eq!(
            (error.class, &*error.detail),
            (Class::Trap, "the host failed beneath the guest: a mistake in the host")
        );
    }
}
