use std::collections::BTreeMap;

use clap::Parser;
use expect_test::expect;
use tidemill_core::record::TopicPartition;
use tidemill_core::retry::Class;

use super::*;
use crate::guest::Reason;
use crate::replay::Part;
use crate::settle::Stop;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(more: &[&str]) -> Args {
    let line = ["replay", "orders", "--from", "earliest"].iter().chain(more);
    Line::try_parse_from(line).expect("flags that can be read").args
}

/// A handler with this manifest beside a component.
fn spec(manifest: &str) -> HandlerSpec {
    let folder = tempfile::tempdir().expect("a folder");
    let handler = folder.path().join("orders");
    std::fs::create_dir(&handler).expect("a folder");
    std::fs::write(handler.join("handler.toml"), format!("topics = [\"orders\"]\n{manifest}")).expect("written");
    std::fs::write(handler.join("orders.wasm"), "").expect("written");
    HandlerSpec::read(&handler).expect("a manifest")
}

fn refusal(more: &[&str], manifest: &str) -> Option<String> {
    match args(more).check(&spec(manifest)) {
        Ok(()) => None,
        Err(Failure::Refused(problems)) => Some(problems.join("\n")),
        Err(Failure::Failed(error)) => panic!("{error}"),
    }
}

#[test]
fn nothing_is_written_once_more_that_nobody_has_asked_for() {
    let emits = "grants.produce = [\"enriched\"]";
    let refused = refusal(&[], emits).expect("nobody said what becomes of outputs");
    assert!(refused.contains("may emit to `enriched`") && refused.contains("--outputs discard"), "{refused}");
    for said in ["discard", "send"] {
        assert_eq!(refusal(&["--outputs", said], emits), None);
    }
    assert_eq!(refusal(&[], ""), None, "without outputs there is nothing to choose");
    assert_eq!(args(&[]).outputs(), Outputs::Discard);
}

#[test]
fn what_is_counted_once_is_rebuilt_elsewhere() {
    let ledger = "delivery = \"exactly-once\"\nexactly_once.transaction = \"sql.main\"\ngrants.sql = [\"main\"]";
    let refused = refusal(&[], ledger).expect("it would count twice");
    assert!(refused.contains("--set sql.main=URL"), "{refused}");
    assert_eq!(refusal(&["--set", "sql.main=rebuilt.db"], ledger), None);
    let refused = refusal(&["--set", "sql.other=rebuilt.db"], ledger).expect("another one");
    assert!(refused.contains("--set sql.other: handler `orders` is not granted that"), "{refused}");
}

#[test]
fn wrong_values_say_what_to_write() {
    for (flags, cure) in [
        (["--rate", "5"], "such as 500/s"),
        (["--rate", "0/s"], "such as 500/s"),
        (["--set", "main=x"], "sql.NAME=FILE"),
        (["--set", "sql.main="], "sql.NAME=FILE"),
        (["--to", "tomorrow"], "a time such as"),
    ] {
        let line = ["replay", "orders", "--from", "earliest"].iter().chain(&flags);
        let error = Line::try_parse_from(line).err().expect("it can't be read").to_string();
        assert!(error.contains(cure), "{error}");
    }
}

#[test]
fn the_report_says_what_came_of_it_and_what_is_left() {
    let done = |partition, reached, stopped, gone| Done {
        part: Part { of: TopicPartition::new("orders", partition), range: 10..50, gone },
        reached,
        stopped,
    };
    let reason = Reason { code: "bad-amount".to_owned(), detail: "the amount is -1".to_owned() };
    let stop = Stop { offset: 30, class: Class::Rejected, reason, revision: "cafe".into() };
    let report = Report {
        revision: "0123456789abcdef".into(),
        records: 60,
        outcomes: BTreeMap::from([("ack", 58), ("dead-letter", 2), ("skip", 0)]),
        retries: 3,
        outputs: 58,
        dead_letters: 1,
        dropped: 0,
        deleted: 0,
        took: Duration::from_millis(1500),
        interrupted: false,
        parts: vec![done(0, 50, None, 10), done(1, 30, Some(stop), 0)],
    };
    expect![[r#"
        orders on 0123456789ab: the range is not done
          records      60 in 1.5 s, 40 a second
          outcomes     58 ack, 2 dead-letter
          outputs      58 not written
          dead letters 1 not written
          retries      3
          orders/0     10 to 50; 10 offsets before it are kept no longer
          orders/1     10 to 30 of 50; stands still at 30 (rejected): bad-amount: the amount is -1"#]]
    .assert_eq(&text(&args(&[]), &report));
    let left = left(&report).expect("something is left");
    assert!(left.contains("stands still at a record"), "{left}");
}
