//! The guests under `guests/`, as they are checked in, held to their own first lines.

use expect_test::{Expect, expect};
use tidemill_core::record::{ChunkBuilder, HeaderRef, Timestamp};
use tidemill_core::retry::Class;

use super::*;
use crate::store::Value;
use crate::store::migrations::migrate;
use crate::store::sqlite::{self, Sqlite};

const PLENTY: Duration = Duration::from_secs(60);

#[tokio::test]
async fn flaky_fails_as_often_as_it_is_told_and_then_forwards() {
    check(
        "flaky",
        "",
        "a:1 b:1*1 c:1*2",
        expect![[r#"
            a:1 -> retry flaky: attempt 1 fails
            b:1*1 -> retry flaky: attempt 2 fails
            c:1*2 -> ack
        "#]],
    )
    .await;
    check(
        "flaky",
        "config = { times = \"1\", to = \"out\" }\ngrants.produce = [\"out\"]",
        "a:1 b:2*1 b:3 b:4*1 null:null*1",
        expect![[r#"
            a:1 -> retry flaky: attempt 1 fails
            b:2*1 -> ack out<b:2>
            b:3 -> retry flaky: attempt 1 fails
            b:4*1 -> untouched
            null:null*1 -> ack out<null:null>
        "#]],
    )
    .await;
}

#[tokio::test]
async fn failing_asks_for_ever_and_holds_what_comes_after_in_its_lane() {
    let records = "a:good a:bad b:good a:good null:bad :good null:good*4294967295";
    check(
        "failing",
        "config.when = \"bad\"",
        records,
        expect![[r#"
            a:good -> ack
            a:bad -> retry failing: attempt 1 failed, as each will
            b:good -> ack
            a:good -> untouched
            null:bad -> retry failing: attempt 1 failed, as each will
            :good -> ack
            null:good*4294967295 -> untouched
        "#]],
    )
    .await;
    check(
        "failing",
        "config.when = \"bad\"\norder = \"partition\"",
        "a:good a:bad b:good null:good",
        expect![[r#"
            a:good -> ack
            a:bad -> retry failing: attempt 1 failed, as each will
            b:good -> untouched
            null:good -> untouched
        "#]],
    )
    .await;
    check(
        "failing",
        "",
        "a:1*4294967295",
        expect![[r#"
            a:1*4294967295 -> retry failing: attempt 4294967295 failed, as each will
        "#]],
    )
    .await;
}

#[tokio::test]
async fn poison_is_a_dead_letter_without_outputs_and_holds_nothing() {
    check(
        "poison",
        "config.to = \"out\"\ngrants.produce = [\"out\"]",
        "a:1 a:poison a:2 a:null a:",
        expect![[r#"
            a:1 -> ack out<a:1>
            a:poison -> dead-letter poison: the value is `poison`
            a:2 -> ack out<a:2>
            a:null -> ack out<a:null>
            a: -> ack out<a:>
        "#]],
    )
    .await;
}

#[tokio::test]
async fn outputs_belong_to_their_record_in_the_order_they_were_emitted() {
    check(
        "emitting",
        "config.count = \"2\"\ngrants.produce = [\"emitting.out\"]",
        "a:1 null:2 a:3",
        expect![[r#"
            a:1 -> ack emitting.out<a:orders/3/0/-1#0> emitting.out<a:orders/3/0/-1#1>
            null:2 -> ack emitting.out<null:orders/3/1/-1#0> emitting.out<null:orders/3/1/-1#1>
            a:3 -> ack emitting.out<a:orders/3/2/-1#0> emitting.out<a:orders/3/2/-1#1>
        "#]],
    )
    .await;
    let none = expect![[r#"
        a:1 -> ack
    "#]];
    check("emitting", "config.count = \"0\"", "a:1", none).await;
}

#[tokio::test]
async fn one_output_that_is_not_granted_takes_its_record_and_leaves_the_others() {
    let denied = "topic `secret` is not granted; add it to `produce` under `[grants]` in the handler's manifest";
    let live = load("flaky", "config = { times = \"1\", to = \"secret\" }", None).await;
    let told = told(&live, "a:1*1 b:2").await;
    assert_eq!(told, format!("a:1*1 -> dead-letter access-denied: {denied}\nb:2 -> retry flaky: attempt 1 fails\n"));
}

#[tokio::test]
async fn refusing_says_what_it_was_told_to_say() {
    let test = Test { manifest: "config.because = \"the moon is full\"", ..Test::default() };
    let error = test.load(prebuilt("refusing")).await.expect_err("it refuses");
    assert_eq!(error.to_string(), "the guest refuses to run: refusing: the moon is full");
}

#[tokio::test]
async fn a_guest_that_one_record_breaks_serves_the_next_call() {
    for (guest, class, words) in [
        ("trapping", Class::Trap, "this guest panics on purpose"),
        ("looping", Class::Deadline, "the guest did not return before its deadline"),
        ("hungry", Class::Memory, "the guest asked for more than its 67108864 B of memory"),
    ] {
        let live = load(guest, "config.when = \"bad\"", None).await;
        for records in ["a:good b:bad", "b:bad"] {
            // Only the looping one needs its time to be short.
            let deadline = if class == Class::Deadline { Duration::from_millis(100) } else { PLENTY };
            let called = live.call(&mut written(records, deadline)).await;
            let error = called.outcomes.expect_err("the call fails");
            assert_eq!(error.class, class, "{guest}: {error}");
            assert!(error.detail.contains(words), "{guest}: {error}");
            assert_eq!(told(&live, "a:good null:null").await, "a:good -> ack\nnull:null -> ack\n", "{guest}");
        }
    }
}

#[tokio::test]
async fn slow_forwards_when_its_time_is_over() {
    check(
        "slow",
        "config = { ms = \"1\", to = \"out\" }\ngrants.produce = [\"out\"]",
        "a:1 a:2",
        expect![[r#"
            a:1 -> ack out<a:1>
            a:2 -> ack out<a:2>
        "#]],
    )
    .await;
}

#[tokio::test]
async fn echo_is_shown_every_field_as_it_came() {
    let live = load("echo", "grants.produce = [\"echo.out\"]", None).await;
    let outcomes = live.call(&mut odd_records()).await.outcomes.expect("it answers");
    let told: String = outcomes.iter().map(|outcome| format!("{}\n", outcome_told(outcome))).collect();
    expect![[r#"
        ack echo.out<null:{"id":"orders/3/5/7","topic":"orders","partition":3,"offset":5,"timestamp_type":"create-time","timestamp_ms":7,"key":null,"value":"","headers":[["a","31"],["a",null],["a",""],["","00ff"],["ä","c3"]],"attempt":1}>
        ack echo.out<:{"id":"orders/3/9/-1","topic":"orders","partition":3,"offset":9,"timestamp_type":"log-append-time","timestamp_ms":-1,"key":"","value":null,"headers":[],"attempt":4}>
        ack echo.out<\x00\xff:{"id":"orders/3/9223372036854775807/-1","topic":"orders","partition":3,"offset":9223372036854775807,"timestamp_type":"none","timestamp_ms":null,"key":"00ff","value":"fffe000a22","headers":[["h","68"]],"attempt":1}>
    "#]]
    .assert_eq(&told);
}

#[tokio::test]
async fn identity_gives_back_nulls_bytes_and_repeated_headers() {
    let live = load("identity", "config.to = \"out\"\ngrants.produce = [\"out\"]", None).await;
    let mut attempt = odd_records();
    let outcomes = live.call(&mut attempt).await.outcomes.expect("it answers");
    for (CallRecord { record, .. }, outcome) in attempt.records.iter().zip(&outcomes) {
        let Outcome::Ack(outputs) = outcome else { panic!("an ack, not {outcome:?}") };
        let [output] = &outputs[..] else { panic!("one output, not {outputs:?}") };
        assert_eq!((output.key.as_deref(), output.value.as_deref()), (record.key(), record.value()), "{record:?}");
        let headers =
            output.headers.iter().map(|header| HeaderRef { name: &header.name, value: header.value.as_deref() });
        assert_eq!(headers.collect::<Vec<_>>(), record.headers().collect::<Vec<_>>(), "{record:?}");
    }
}

#[tokio::test]
async fn orders_stores_an_order_once_and_leaves_out_what_is_none() {
    let database = Database::of("orders").await;
    let live = load("orders", "grants = { sql = [\"main\"], produce = [\"orders.enriched\"] }", Some(&database)).await;
    let records = r#"
        a:{"id":"o-1","customer":"c-7","amount_cents":1250}
        a:{"id":"o-1","customer":"c-7","amount_cents":1250}
        b:{"id":"o-2","customer":"c-7","amount_cents":10000}
        b:{"id":"o-3","customer":"c-7","amount_cents":0}
        b:{"id":"o-4"
        b:null"#;
    let expected = expect![[r#"
        a:{"id":"o-1","customer":"c-7","amount_cents":1250} -> ack orders.enriched<c-7:{"id":"o-1","customer":"c-7","amount_cents":1250,"size":"small"}>
        a:{"id":"o-1","customer":"c-7","amount_cents":1250} -> ack orders.enriched<c-7:{"id":"o-1","customer":"c-7","amount_cents":1250,"size":"small"}>
        b:{"id":"o-2","customer":"c-7","amount_cents":10000} -> ack orders.enriched<c-7:{"id":"o-2","customer":"c-7","amount_cents":10000,"size":"large"}>
        b:{"id":"o-3","customer":"c-7","amount_cents":0} -> dead-letter amount-not-positive: `amount_cents` is 0
        b:{"id":"o-4" -> dead-letter invalid-json: value is not the expected JSON: EOF while parsing an object at line 1 column 11
        b:null -> dead-letter value-missing: the record has no value; take an `Option` if tombstones are expected
    "#]];
    expected.assert_eq(&told(&live, records).await);
    expected.assert_eq(&told(&live, records).await);
    assert_eq!(
        database.rows("SELECT customer, orders, amount_cents FROM customer_totals").await,
        [[Value::Text("c-7".to_owned()), Value::Int(2), Value::Int(11_250)]]
    );
}

#[tokio::test]
async fn audit_notes_each_record_once_good_or_bad() {
    let database = Database::of("audit").await;
    let live = load("audit", "grants.sql = [\"main\"]", Some(&database)).await;
    for _ in 0..2 {
        assert_eq!(told(&live, "a:{ b:null c:").await, "a:{ -> ack\nb:null -> ack\nc: -> ack\n");
    }
    let noted = |offset: u8, bytes| [Value::Text(format!("orders/3/{offset}/-1")), bytes];
    assert_eq!(
        database.rows("SELECT record_id, value_bytes FROM audit ORDER BY record_id").await,
        [noted(0, Value::Int(1)), noted(1, Value::Null), noted(2, Value::Int(0))]
    );
}

#[tokio::test]
async fn weather_takes_dirty_numbers_and_refuses_what_is_none() {
    let database = Database::of("weather").await;
    let live = load("weather", "grants.sql = [\"main\"]", Some(&database)).await;
    let records = r#"
        a:{"origin":"EWR","time_hour":"1","temp":"39.02","humid":"NA","hour":1.0}
        a:{"origin":"EWR","time_hour":"1","temp":0}
        a:{"origin":"NA","time_hour":"2"}
        a:{"origin":"EWR","time_hour":"3","temp":"warm"}"#;
    expect![[r#"
        a:{"origin":"EWR","time_hour":"1","temp":"39.02","humid":"NA","hour":1.0} -> ack
        a:{"origin":"EWR","time_hour":"1","temp":0} -> ack
        a:{"origin":"NA","time_hour":"2"} -> dead-letter reading-without-place-or-time: `origin` and `time_hour` say which reading it is
        a:{"origin":"EWR","time_hour":"3","temp":"warm"} -> dead-letter invalid-json: value is not the expected JSON: `warm` is not a number at line 1 column 46
    "#]]
    .assert_eq(&told(&live, records).await);
    assert_eq!(
        database.rows("SELECT hour, temp, humid FROM weather").await,
        [[Value::Int(1), Value::Float(39.02), Value::Null]]
    );
}

#[tokio::test]
async fn a_batch_is_stored_whole_and_once_with_its_nulls() {
    let database = Database::of("store").await;
    let live = load("store", "grants.sql = [\"main\"]", Some(&database)).await;
    assert_eq!(told(&live, "a:1 null:").await, "a:1 -> ack\nnull: -> ack\n");
    assert_eq!(told(&live, "a:1 null: a:null").await, "a:1 -> ack\nnull: -> ack\na:null -> ack\n");
    let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
    assert_eq!(
        database.rows("SELECT key, value FROM seen ORDER BY record_id").await,
        [[bytes(b"a"), bytes(b"1")], [Value::Null, bytes(b"")], [bytes(b"a"), Value::Null]]
    );
}

#[tokio::test]
async fn a_batch_that_fails_blames_nobody_until_its_record_is_alone() {
    // Without its migrations: the table is not there.
    let database = Database::of("echo").await;
    let live = load("store", "grants.sql = [\"main\"]", Some(&database)).await;
    assert_eq!(told(&live, "a:1 b:2").await, "retry: sql-rejected: no such table: seen");
    assert_eq!(told(&live, "a:1").await, "a:1 -> retry sql-rejected: no such table: seen\n");
}

/// Calls a prebuilt guest once and compares what became of each record.
async fn check(guest: &str, manifest: &'static str, records: &str, expected: Expect) {
    expected.assert_eq(&told(&load(guest, manifest, None).await, records).await);
}

async fn load(guest: &str, manifest: &'static str, database: Option<&Database>) -> LiveHandler {
    let sql = database.map(|database| Arc::clone(&database.sql));
    Test { manifest, sql, ..Test::default() }.load(prebuilt(guest)).await.expect("it loads")
}

/// What became of each record, or why the call failed.
async fn told(live: &LiveHandler, records: &str) -> String {
    match live.call(&mut written(records, PLENTY)).await.outcomes {
        Ok(outcomes) => {
            let told = records.split_whitespace().zip(&outcomes);
            told.map(|(record, outcome)| format!("{record} -> {}\n", outcome_told(outcome))).collect()
        }
        Err(error) => error.to_string(),
    }
}

fn outcome_told(outcome: &Outcome) -> String {
    let text = |bytes: Option<&[u8]>| {
        bytes.map_or("null".to_owned(), |bytes| match str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => text.to_owned(),
            _ => bytes.escape_ascii().to_string(),
        })
    };
    match outcome {
        Outcome::Ack(outputs) => outputs.iter().fold("ack".to_owned(), |told, Outgoing { topic, key, value, .. }| {
            format!("{told} {topic}<{}:{}>", text(key.as_deref()), text(value.as_deref()))
        }),
        Outcome::Skip => "skip".to_owned(),
        Outcome::Retry { after: None, reason, unavailable: false } => {
            format!("retry {}: {}", reason.code, reason.detail)
        }
        Outcome::Retry { .. } => format!("{outcome:?}"),
        Outcome::DeadLetter(reason) => format!("dead-letter {}: {}", reason.code, reason.detail),
        Outcome::Untouched => "untouched".to_owned(),
    }
}

/// Records of a call, each written `KEY:VALUE`, with `*N` behind it if it has failed N times.
fn written(records: &str, deadline: Duration) -> Attempt {
    fn bytes(text: &str) -> Option<&[u8]> {
        (text != "null").then_some(text.as_bytes())
    }
    let record = |(offset, text): (usize, &str)| {
        let (text, tries) = text
            .rsplit_once('*')
            .map_or((text, 0), |(text, tries)| (text, tries.parse().expect("the test writes a number")));
        let (key, value) = text.split_once(':').expect("the test writes a key and a value");
        let record = Record::single(offset as i64, bytes(key), bytes(value));
        CallRecord { record, lane: 0, tries, charged: tries, age: Duration::ZERO }
    };
    of_orders(records.split_whitespace().enumerate().map(record).collect(), deadline)
}

/// Records with everything that may be missing, empty, repeated or no text.
fn odd_records() -> Attempt {
    let header = |name: &'static str, value| HeaderRef { name: name.as_bytes(), value };
    let headers = [
        header("a", Some(&b"1"[..])),
        header("a", None),
        header("a", Some(b"")),
        header("", Some(b"\0\xff")),
        header("ä", Some(b"\xc3")),
    ];
    let mut chunk = ChunkBuilder::default();
    chunk.push(5, Timestamp::Create(7), None, Some(b""), headers);
    chunk.push(9, Timestamp::LogAppend(-1), Some(b""), None, []);
    chunk.push(i64::MAX, Timestamp::None, Some(b"\0\xff"), Some(b"\xff\xfe\0\n\""), [header("h", Some(b"h"))]);
    let records = Arc::new(chunk.build()).records().zip([0, 3, 0]);
    let records =
        records.map(|(record, tries)| CallRecord { record, lane: 0, tries, charged: tries, age: Duration::ZERO });
    of_orders(records.collect(), PLENTY)
}

fn of_orders(records: Vec<CallRecord>, deadline: Duration) -> Attempt {
    Attempt::new(
        TopicPartition::new("orders", 3),
        1,
        records,
        Guarantee::AtLeastOnce,
        deadline,
        CancellationToken::new(),
    )
}

/// A database with the tables of one guest.
struct Database {
    sql: Arc<dyn Sql>,
    _folder: TempDir,
}

impl Database {
    async fn of(guest: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let sqlite = Sqlite::open(sqlite::Config::new(folder.path().join("main.db"))).await.expect("a database");
        let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests").join(guest).join("migrations");
        migrate(&sqlite, guest, &migrations).await.expect("its tables");
        Self { sql: Arc::new(sqlite), _folder: folder }
    }

    async fn rows(&self, query: &str) -> Vec<Vec<Value>> {
        let mut connection = self.sql.connect().await.expect("a connection");
        connection.query(query.to_owned(), Vec::new()).await.expect("rows").rows
    }
}
