use expect_test::{Expect, expect};

use super::*;
use crate::attempt::Guarantee;

#[test]
fn the_smallest_manifest_is_a_topic() {
    let folder = folder_with(&["orders.wasm"]);
    let spec = HandlerSpec::parse("orders", folder.path(), "topics = [\"orders\"]").expect("valid");
    assert_eq!(spec.consumer.subscription.group, "orders");
    assert_eq!(spec.module, folder.path().join("orders.wasm"));
    assert_eq!(spec.consumer.order, Order::Key);
    assert_eq!(spec.grants, Grants::default(), "nothing is granted unless it is named");
}

#[test]
fn each_mistake_names_its_key_and_its_cure() {
    check(
        "topics = []\nconcurrency = 0\nisolation = \"record\"\nbatch.records_max = 5\nretry.attempts_max = 0\nlimits.memory = \"1B\"",
        expect![[r#"
            handler.toml: `topics` is empty; name at least one topic, such as topics = ["orders"]
            handler.toml: `concurrency` is 0; use at least 1, or leave the key out for the default
            handler.toml: `batch.records_max` is more than 1, but isolation = "record" calls with one record; leave one of the two out
            handler.toml: `limits.memory` must be between 1MiB and 1GiB
            handler.toml: `retry` `attempts_max` is 0; use 1 to never retry
        "#]],
    );
}

#[test]
fn what_is_called_once_can_not_stop_its_partition() {
    check(
        "topics = [\"a\"]\ndelivery = \"at-most-once\"\nretry.exhausted = \"stop\"",
        expect![[r#"
            handler.toml: `retry.exhausted` is "stop", which at most once can't do: the record's offset is committed before its one attempt; write "dead-letter" or "drop"
        "#]],
    );
}

#[test]
fn parking_is_refused_where_there_are_no_keys_to_hold_with_what_to_write_instead() {
    let folder = folder_with(&["h.wasm"]);
    let spec = HandlerSpec::parse("h", folder.path(), "topics = [\"a\"]\nretry.exhausted = \"park\"").expect("valid");
    assert_eq!((spec.retry.end(), spec.parked_max), (Exhausted::Park, 100_000));
    for (more, says) in [
        ("order = \"partition\"", "write \"stop\", which does that, or order = \"key\""),
        ("order = \"unordered\"", "write \"dead-letter\""),
        ("delivery = \"at-most-once\"", "write \"dead-letter\" or \"drop\""),
        ("delivery = \"exactly-once\"", "write \"stop\", which holds the record's whole partition"),
    ] {
        let manifest = format!("topics = [\"a\"]\n{more}\nretry.exhausted = \"park\"");
        let problems = HandlerSpec::parse("h", folder.path(), &manifest).expect_err("it is refused");
        assert!(problems.len() == 1 && problems[0].to_string().contains(says), "{more}: {problems:?}");
    }
    check(
        "topics = [\"a\"]\nretry.parked_max = 5",
        expect![[r#"
            handler.toml: `retry.parked_max` is of use with exhausted = "park" only; leave one of the two out
        "#]],
    );
}

#[test]
fn outputs_must_not_come_back() {
    check(
        "topics = [\"a\"]\ndead_letters.topic = \"a\"\ngrants.produce = [\"a\"]",
        expect![[r#"
            handler.toml: `dead_letters.topic` is `a`, which this handler also reads: its dead letters would go round for ever; name another topic
            handler.toml: `grants.produce` holds `a`, which this handler also reads: its outputs would go round for ever; name another topic
        "#]],
    );
}

#[test]
fn a_partition_runs_further_ahead_of_kafka_transactions_unless_the_operator_bounds_it() {
    let folder = folder_with(&["h.wasm"]);
    let span = |more: &str| {
        let manifest = format!("topics = [\"t\"]\n{more}");
        HandlerSpec::parse("h", folder.path(), &manifest).expect("valid").consumer.bounds.span_max
    };
    assert_eq!(span(""), 10_000);
    assert_eq!(span("delivery = \"exactly-once\""), 100_000);
    assert_eq!(span("delivery = \"exactly-once\"\nbuffer.span_max = 7"), 7);
}

#[test]
fn a_transaction_of_a_database_is_of_a_granted_one_and_keeps_the_order_of_the_partition() {
    let folder = folder_with(&["h.wasm"]);
    let manifest = "topics = [\"t\"]\ndelivery = \"exactly-once\"\nexactly_once.transaction = \"sql.main\"\ngrants.sql = [\"main\"]";
    let spec = HandlerSpec::parse("h", folder.path(), manifest).expect("valid");
    assert_eq!((spec.consumer.guarantee, spec.consumer.order), (Guarantee::SqlTransaction, Order::Partition));
    assert_eq!(spec.database.as_deref(), Some("main"));
    check(
        "topics = [\"t\"]\ndelivery = \"exactly-once\"\norder = \"key\"\n[exactly_once]\ntransaction = \"sql.main\"",
        expect![[r#"
            handler.toml: `exactly_once.transaction` names the database `main`, which is not granted; add it to `sql` under `[grants]`
            handler.toml: `order` must be "partition" with a transaction of a database, since one offset stands for all records before it; leave `order` out, and give the topic more partitions for more at once
        "#]],
    );
}

#[test]
fn what_a_database_s_transaction_does_not_cover_is_refused_unless_the_operator_says_that_it_may_be_repeated() {
    let manifest = |more: &str| {
        format!(
            "topics = [\"t\"]\ndelivery = \"exactly-once\"\n{more}\n[exactly_once]\ntransaction = \"sql.main\"\n\
             [grants]\nsql = [\"main\", \"other\"]\nkv = [\"seen\"]\nproduce = [\"out\"]\nsecrets = [\"token\"]"
        )
    };
    check(
        &manifest(""),
        expect![[r#"
            handler.toml: `grants.sql` holds `other`, which the transaction of `main` does not cover: what is done there is repeated when a transaction is; take it out, or say effects = "idempotent" if that is harmless
            handler.toml: `grants.kv` holds `seen`, which the transaction of `main` does not cover: what is done there is repeated when a transaction is; take it out, or say effects = "idempotent" if that is harmless
            handler.toml: `grants.produce` holds `out`, which the transaction of `main` does not cover: what is done there is repeated when a transaction is; take it out, or say effects = "idempotent" if that is harmless
        "#]],
    );
    let folder = folder_with(&["h.wasm"]);
    let said = HandlerSpec::parse("h", folder.path(), &manifest("effects = \"idempotent\""));
    assert!(said.is_ok(), "{said:?}");
    check(
        "topics = [\"t\"]\ndelivery = \"exactly-once\"\n[exactly_once]\ntransaction = \"sql.main\"\ninterval = \"1s\"\n[grants]\nsql = [\"main\"]",
        expect![[r#"
            handler.toml: `exactly_once` has bounds of a Kafka transaction; one of a database has those of a call, `batch.records_max` and `batch.bytes_max`
        "#]],
    );
}

#[test]
fn a_kafka_transaction_refuses_what_it_does_not_cover_unless_the_operator_says_that_it_may_be_repeated() {
    let manifest = |more: &str| {
        format!(
            "topics = [\"t\"]\ndelivery = \"exactly-once\"\n{more}\n[grants]\nsql = [\"main\"]\nkv = [\"seen\"]\nproduce = [\"out\"]"
        )
    };
    check(
        &manifest(""),
        expect![[r#"
        handler.toml: `grants.sql` holds `main`, which a Kafka transaction does not cover: what is done there is repeated when the record is; take it out, or say effects = "idempotent" if that is harmless
        handler.toml: `grants.kv` holds `seen`, which a Kafka transaction does not cover: what is done there is repeated when the record is; take it out, or say effects = "idempotent" if that is harmless
    "#]],
    );
    let folder = folder_with(&["h.wasm"]);
    let spec = HandlerSpec::parse("h", folder.path(), &manifest("effects = \"idempotent\"")).expect("it is harmless");
    assert_eq!(spec.consumer.guarantee, Guarantee::KafkaTransaction);
    assert_eq!(spec.consumer.subscription.properties["isolation.level"], "read_committed");
}

#[test]
fn the_bounds_of_a_transaction_are_checked() {
    check(
        "topics = [\"t\"]\nexactly_once.interval = \"1s\"",
        expect![[r#"
        handler.toml: `exactly_once` is set without delivery = "exactly-once"; add that, or leave the table out
    "#]],
    );
    check(
        "topics = [\"t\"]\ndelivery = \"exactly-once\"\n[exactly_once]\ntransaction = \"x\"",
        expect![[r#"
        handler.toml: `exactly_once.transaction` must be "kafka", or "sql.NAME" with NAME one of `grants.sql`
    "#]],
    );
    check(
        "topics = [\"t\"]\ndelivery = \"exactly-once\"\n[exactly_once]\ninterval = \"1m\"\nrecords_max = 0\n[consumer_properties]\n\"isolation.level\" = \"read_uncommitted\"",
        expect![[r#"
            handler.toml: `exactly_once.interval` must be between 1ms and 5s: whoever reads the outputs waits for it, and the broker gives up a transaction that stays open
            handler.toml: `exactly_once.records_max` is 0; use at least 1, or leave the key out for the default
            handler.toml: `consumer_properties` sets `isolation.level`, which can only be `read_committed` with a Kafka transaction; leave it out
        "#]],
    );
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    check(
        "topics = [\"a\"]\n\nordr = \"key\"",
        expect![[r#"
            handler.toml:3: unknown field `ordr`, expected one of `topics`, `group`, `module`, `delivery`, `exactly_once`, `effects`, `order`, `isolation`, `concurrency`, `start`, `dead_letters`, `commit_interval`, `drain_deadline`, `batch`, `buffer`, `retry`, `limits`, `grants`, `config`, `consumer_properties`
        "#]],
    );
}

#[test]
fn a_failure_policy_says_when_a_record_ends_and_how() {
    let folder = folder_with(&["h.wasm"]);
    let manifest = "topics = [\"t\"]\n[retry]\nage_max = \"1h\"\nexhausted = \"stop\"\nunavailable = \"exhaust\"\n\
                    [dead_letters]\ntopic = \"l\"\nheaders = \"spring\"";
    let spec = HandlerSpec::parse("h", folder.path(), manifest).expect("valid");
    assert_eq!(spec.retry.end(), Exhausted::Stop);
    assert!(spec.retry.charges(tidemill_core::retry::Class::Unavailable));
    let letters = DeadLetters { topic: Some("l".to_owned()), headers: HeaderStyle::Spring };
    assert_eq!(spec.dead_letters, letters);
}

#[test]
fn several_components_need_a_choice() {
    let folder = folder_with(&["a.wasm", "b.wasm"]);
    let problems = HandlerSpec::parse("h", folder.path(), "topics = [\"t\"]").expect_err("ambiguous");
    assert!(problems[0].to_string().ends_with("say which with module = \"NAME.wasm\""), "{}", problems[0]);
    assert!(HandlerSpec::parse("h", folder.path(), "topics = [\"t\"]\nmodule = \"b.wasm\"").is_ok());
}

#[track_caller]
fn check(manifest: &str, expected: Expect) {
    let folder = folder_with(&["h.wasm"]);
    let problems = HandlerSpec::parse("h", folder.path(), manifest).expect_err("the manifest is wrong");
    let place = format!("{}/", folder.path().display());
    let text: String = problems.iter().map(|problem| format!("{problem}\n").replace(&place, "")).collect();
    expected.assert_eq(&text);
}

fn folder_with(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in files {
        std::fs::write(folder.path().join(file), b"").expect("write");
    }
    folder
}
