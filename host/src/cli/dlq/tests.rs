use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::*;
use crate::broker::embedded::Embedded;
use crate::broker::{Header, Outgoing, Position, Producer, WhenFull};

#[tokio::test]
async fn letters_are_counted_by_what_they_say() {
    let bench = Bench::new().await;
    bench.write(vec![letter("a", "h", "rejected", "bad"), letter("b", "h", "rejected", "bad")]).await;
    bench.write(vec![letter("c", "other", "trap", "trap"), plain("stray")]).await;
    assert_eq!(
        bench.list(&[]).await,
        [
            "LETTERS IN  HANDLER  CLASS     CODE  REVISION      FROM    LETTERS  REDRIVEN  FIRST                 LAST",
            "orders.dlq  -        -         -     -             -       1        0         -                     -",
            "orders.dlq  h        rejected  bad   0123456789ab  orders  2        0         2026-01-01T00:00:00Z  2026-01-01T00:00:00Z",
            "orders.dlq  other    trap      trap  0123456789ab  orders  1        0         2026-01-01T00:00:00Z  2026-01-01T00:00:00Z",
        ]
    );
    let lines = bench.list(&["--json", "--handler", "other"]).await;
    let line: Value = serde_json::from_str(&lines[0]).expect("a line is JSON");
    assert_eq!((&line["class"], &line["letters"], &line["redriven"]), (&json!("trap"), &json!(1), &json!(0)));
}

#[tokio::test]
async fn a_redriven_record_is_what_it_was_with_its_first_id_and_in_its_partition() {
    let bench = Bench::new().await;
    let own = vec![header("a", Some("1")), header("a", None), header("__connect.errors.topic", Some("its own"))];
    let first = letter("k", "h", "rejected", "bad");
    let headers = [own.clone(), first.headers.clone(), vec![header("__connect.errors.topic", Some("ours"))]].concat();
    bench.write(vec![Outgoing { headers, value: None, timestamp_ms: Some(1234), ..first }]).await;
    assert_eq!(bench.redrive(&[]).await.expect("it is sent"), ["1 letters were sent again", "  1 to orders"]);

    let sent = bench.read("orders", 1).await;
    assert_eq!(sent.len(), 1, "in the partition that it came from");
    let record = &sent[0];
    assert_eq!((record.key(), record.value(), record.timestamp().millis()), (Some(&b"k"[..]), None, Some(1234)));
    let expected = [
        own,
        vec![
            header("tidemill.redriven.id", Some("orders/1/7/99")),
            header("tidemill.redriven.to", Some("orders")),
            header("tidemill.redriven.times", Some("1")),
        ],
    ]
    .concat();
    let found: Vec<Header> = record
        .headers()
        .map(|it| Header { name: Bytes::copy_from_slice(it.name), value: it.value.map(Bytes::copy_from_slice) })
        .collect();
    assert_eq!(found, expected);
    let place = tidemill_core::record::TopicPartition::new("orders", 1);
    assert_eq!(record.id(&place), "orders/1/7/99");
}

#[tokio::test]
async fn a_second_run_sends_only_what_the_first_left() {
    let bench = Bench::new().await;
    let letters =
        ["a", "b", "c", "d", "e"].map(|key| letter(key, "h", "rejected", if key < "c" { "one" } else { "two" }));
    bench.write(letters.to_vec()).await;
    bench.redrive(&["--code", "two", "--limit", "2"]).await.expect("it is sent");
    assert_eq!(bench.keys("orders").await, ["c", "d"]);
    let lines = bench.list(&["--json"]).await;
    let counts = lines.iter().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        (line["code"].as_str().expect("a code").to_owned(), line["letters"].as_u64(), line["redriven"].as_u64())
    });
    assert_eq!(
        counts.collect::<Vec<_>>(),
        [("one".to_owned(), Some(2), Some(0)), ("two".to_owned(), Some(1), Some(2))]
    );
    let said = bench.redrive(&[]).await.expect("it is sent");
    assert_eq!(said, ["3 letters were sent again", "  3 to orders", "  2 left: sent again by an earlier run"]);
    assert_eq!(bench.keys("orders").await, ["c", "d", "a", "b", "e"]);
    bench.redrive(&[]).await.expect("nothing is sent");
    assert_eq!(bench.keys("orders").await.len(), 5);
    assert_eq!(bench.show(&[]).await, [""; 0], "receipts are no letters");
}

#[tokio::test]
async fn a_dry_run_and_a_limit_say_what_they_leave_and_filters_choose() {
    let bench = Bench::new().await;
    bench
        .write(vec![letter("a", "h", "trap", "x"), letter("b", "h", "trap", "x"), letter("c", "g", "retry", "y")])
        .await;
    let dry = |flags: &'static [&'static str]| {
        let bench = &bench;
        async move {
            let said = bench.redrive(&[&["--dry-run", "--json"], flags].concat()).await.expect("it is read");
            serde_json::from_str::<Value>(&said[0]).expect("JSON")
        }
    };
    assert_eq!(dry(&[]).await["sent"], 3);
    let limited = dry(&["--limit", "2"]).await;
    assert_eq!((&limited["sent"], &limited["beyond_limit"]), (&json!(2), &json!(1)));
    for (flags, expected) in [
        (&["--handler", "h"][..], 2),
        (&["--class", "retry"], 1),
        (&["--code", "nobody"], 0),
        (&["--key", "b"], 1),
        (&["--since", "2026-01-01T00:00:00Z"], 3),
        (&["--until", "2026-01-01T00:00:00Z"], 0),
        (&["--partition", "0", "--offset", "1"], 1),
        (&["--partition", "7"], 0),
    ] {
        assert_eq!(dry(flags).await["sent"], expected, "{flags:?}");
    }
    assert_eq!(bench.keys("orders").await, [""; 0], "nothing was sent");
}

#[tokio::test]
async fn a_record_that_comes_back_each_time_is_left_in_the_end() {
    let bench = Bench::new().await;
    let mut again = letter("a", "h", "rejected", "bad");
    again.headers.insert(0, header("tidemill.redriven.times", Some("3")));
    bench.write(vec![again]).await;
    let said = bench.redrive(&[]).await.expect("nothing is sent");
    assert_eq!(said, ["0 letters were sent again", "  1 left: 3 redrives have not helped; --redrives-max takes more"]);
    bench.redrive(&["--redrives-max", "4"]).await.expect("it is sent");
    let sent = bench.read("orders", 1).await;
    assert_eq!(sent[0].last_header("tidemill.redriven.times"), Some(&b"4"[..]));
}

#[tokio::test]
async fn what_has_no_origin_needs_a_topic_and_the_dead_letter_topic_is_none() {
    let bench = Bench::new().await;
    bench.write(vec![plain("stray")]).await;
    let said = bench.redrive(&[]).await.expect("nothing is sent");
    assert_eq!(said[1], "  1 left: nothing says where they came from; --to names a topic");
    let error = bench.redrive(&["--to", "orders.dlq"]).await.expect_err("it would come back");
    assert!(error.to_string().contains("is the dead-letter topic itself"), "{error}");
    let error = bench.redrive(&["--to", "nowhere"]).await.expect_err("there is no such topic");
    assert!(error.to_string().contains("there is no topic `nowhere`"), "{error}");
    bench.redrive(&["--to", "orders"]).await.expect("it is sent");
    assert_eq!(bench.keys("orders").await, ["stray"]);
}

#[tokio::test]
async fn what_could_not_be_sent_is_named_and_sent_by_the_next_run() {
    let bench = Bench::new().await;
    bench.write(["a", "b", "c"].map(|key| letter(key, "h", "trap", "x")).to_vec()).await;
    let answers = [Ok(AT), Err(SendError::Denied("orders".to_owned())), Ok(AT), Ok(AT)];
    let flaky = Flaky { answers: Mutex::new(answers.into()), sent: Mutex::default() };
    let admin = bench.broker.admin().expect("an admin");
    let Command::Redrive(args) = parse(&["redrive"]) else { panic!("a redrive") };
    let failed = redrive::redrive(&*admin, &flaky, &BTreeSet::new(), &args, |_| Ok(())).await;
    let error = failed.expect_err("one is refused").to_string();
    assert!(error.starts_with("the letter orders.dlq/0/1 was not sent to `orders`"), "{error}");
    assert!(error.contains("2 others were"), "{error}");
    let receipt = flaky.sent.lock().expect("not poisoned").pop().expect("a receipt");
    assert_eq!((&*receipt.topic, receipt.partition), ("orders.dlq", Some(0)));
    assert_eq!(receipt.headers[0].value.as_deref(), Some(&b"0,2"[..]), "what was stored is noted");
}

#[tokio::test]
async fn a_letter_is_shown_for_people_and_for_programs() {
    let bench = Bench::new().await;
    let mut odd = letter("k\n", "h", "rejected", "bad");
    odd.headers.insert(0, header("own", None));
    bench.write(vec![odd]).await;
    let text = bench.show(&[]).await.join("\n");
    assert_eq!(
        text,
        "orders.dlq/0/0  rejected  bad\n  from     orders/1/7\n  failed   2026-01-01T00:00:00.000Z, h on 0123456789ab, attempts 1\n  \
         message  what happened\n  key      k\\n\n  value    v\n  header   own=null"
    );
    let lines = bench.show(&["--json"]).await;
    let line: Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(line["letter"], json!({"topic": "orders.dlq", "partition": 0, "offset": 0}));
    assert_eq!(line["error"]["id"], "orders/1/7/99");
    assert_eq!(line["headers"], json!([{"name": "own", "value": null}]), "the letter's own are not the record's");
}

#[tokio::test]
async fn without_a_dead_letter_topic_the_command_says_where_it_looked() {
    let broker = Embedded::in_memory().expect("a log in memory opens");
    let admin = broker.admin().expect("an admin");
    let Command::List(args) = parse(&["list"]) else { panic!("a list") };
    let error = list::list(&*admin, &BTreeSet::new(), &args, |_| Ok(())).await.expect_err("there is none");
    assert!(error.to_string().contains("none ends with `.dlq`"), "{error}");
}

#[test]
fn only_commands_that_send_need_the_log_for_themselves() {
    assert!(parse(&["list"]).only_reads() && parse(&["show"]).only_reads());
    assert!(parse(&["redrive", "--dry-run"]).only_reads() && !parse(&["redrive"]).only_reads());
}

const AT: Position = Position { partition: 0, offset: 0 };

/// A log with `orders` of two partitions and its dead letters in one.
struct Bench {
    broker: Embedded,
}

impl Bench {
    async fn new() -> Self {
        let broker = Embedded::in_memory().expect("a log in memory opens");
        let admin = broker.admin().expect("an admin");
        admin.create_topic("orders", 2, None).await.expect("the topic is made");
        admin.create_topic("orders.dlq", 1, None).await.expect("the topic is made");
        Self { broker }
    }

    async fn write(&self, records: Vec<Outgoing>) {
        let producer = self.broker.producer(&Default::default()).expect("a producer");
        for result in producer.send(records, WhenFull::Wait).await {
            result.expect("it is stored");
        }
    }

    async fn read(&self, topic: &str, partition: i32) -> Vec<tidemill_core::record::Record> {
        let admin = self.broker.admin().expect("an admin");
        admin.read(topic, partition, 0, 100).await.expect("it can be read").records().collect()
    }

    /// The keys in both partitions, in the order in which they were sent within each.
    async fn keys(&self, topic: &str) -> Vec<String> {
        let mut keys = Vec::new();
        for partition in 0..2 {
            let records = self.read(topic, partition).await;
            keys.extend(records.iter().map(|it| String::from_utf8_lossy(it.key().unwrap_or_default()).into_owned()));
        }
        keys
    }

    async fn list(&self, flags: &[&str]) -> Vec<String> {
        let Command::List(args) = parse(&[&["list"], flags].concat()) else { panic!("a list") };
        let admin = self.broker.admin().expect("an admin");
        let mut lines = Vec::new();
        let done = list::list(&*admin, &BTreeSet::new(), &args, |line| keep(&mut lines, line)).await;
        done.expect("letters are counted");
        lines
    }

    async fn show(&self, flags: &[&str]) -> Vec<String> {
        let Command::Show(args) = parse(&[&["show"], flags].concat()) else { panic!("a show") };
        let admin = self.broker.admin().expect("an admin");
        let mut lines = Vec::new();
        let done = show::show(&*admin, &BTreeSet::new(), &args, |line| keep(&mut lines, line)).await;
        done.expect("letters are shown");
        lines
    }

    async fn redrive(&self, flags: &[&str]) -> Result<Vec<String>, DlqError> {
        let Command::Redrive(args) = parse(&[&["redrive"], flags].concat()) else { panic!("a redrive") };
        let admin = self.broker.admin()?;
        let producer = self.broker.producer(&Default::default())?;
        let mut lines = Vec::new();
        let keep = |line: &str| keep(&mut lines, line);
        if args.dry_run {
            redrive::dry_run(&*admin, &BTreeSet::new(), &args, keep).await?;
        } else {
            redrive::redrive(&*admin, &*producer, &BTreeSet::new(), &args, keep).await?;
        }
        Ok(lines.iter().flat_map(|text| text.lines().map(str::to_owned)).collect())
    }
}

/// A producer that answers as it is told.
struct Flaky {
    answers: Mutex<VecDeque<Result<Position, SendError>>>,
    sent: Mutex<Vec<Outgoing>>,
}

impl Producer for Flaky {
    fn send(&self, records: Vec<Outgoing>, _: WhenFull) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        let mut answers = self.answers.lock().expect("not poisoned");
        let results = records.iter().map(|_| answers.pop_front().unwrap_or(Ok(AT))).collect();
        self.sent.lock().expect("not poisoned").extend(records);
        async move { results }.boxed()
    }

    fn ready(&self) -> bool {
        true
    }
}

#[derive(Debug, clap::Parser)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

fn parse(args: &[&str]) -> Command {
    let args = ["dlq"].iter().chain(args);
    <Flags as clap::Parser>::try_parse_from(args).expect("the flags are right").command
}

fn keep(lines: &mut Vec<String>, line: &str) -> std::io::Result<()> {
    lines.push(line.to_owned());
    Ok(())
}

fn header(name: &str, value: Option<&str>) -> Header {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Header { name: bytes(name), value: value.map(bytes) }
}

/// What lies in the dead-letter topic and is no letter.
fn plain(key: &str) -> Outgoing {
    Outgoing {
        topic: "orders.dlq".into(),
        partition: None,
        timestamp_ms: None,
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::from_static(b"v")),
        headers: Vec::new(),
    }
}

fn letter(key: &str, handler: &str, class: &str, code: &str) -> Outgoing {
    let said = [
        ("id", "orders/1/7/99"),
        ("topic", "orders"),
        ("partition", "1"),
        ("offset", "7"),
        ("handler", handler),
        ("group", "g"),
        ("revision", "0123456789abcdef"),
        ("class", class),
        ("code", code),
        ("attempts", "1"),
        ("time", "2026-01-01T00:00:00Z"),
        ("message", "what happened"),
    ];
    let headers = said.map(|(name, value)| header(&format!("tidemill.error.{name}"), Some(value)));
    Outgoing { headers: headers.to_vec(), ..plain(key) }
}
