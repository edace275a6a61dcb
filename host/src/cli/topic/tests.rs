use std::path::Path;

use super::*;
use crate::broker::embedded::Embedded;
use crate::broker::{Header, Outgoing, WhenFull};

/// A broker, a file, and what a command prints.
struct Bench {
    broker: Embedded,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let broker = Embedded::in_memory().expect("a log in memory opens");
        Self { broker, folder: tempfile::tempdir().expect("a folder") }
    }

    async fn produce(&self, file: &str, content: &str, more: &[&str]) -> Result<u64, TopicError> {
        let path = self.folder.path().join(file);
        std::fs::write(&path, content).expect("the file is written");
        let producer = self.broker.producer(&Default::default())?;
        produce::produce(&*producer, &produce_args(&path, more)).await
    }

    async fn tail(&self, flags: &[&str]) -> Vec<String> {
        self.try_tail(flags).await.expect("the topic can be read")
    }

    async fn try_tail(&self, flags: &[&str]) -> Result<Vec<String>, TopicError> {
        let command = parse(&[&["tail", "t"], flags].concat());
        let Command::Tail(args) = command else { panic!("{command:?}") };
        let mut lines = Vec::new();
        let admin = self.broker.admin()?;
        tail::tail(&*admin, &args, |line| keep(&mut lines, line)).await?;
        Ok(lines)
    }

    async fn list(&self, as_json: bool) -> Vec<String> {
        let mut lines = Vec::new();
        let admin = self.broker.admin().expect("it has an admin");
        list::list(&*admin, None, as_json, |line| keep(&mut lines, line)).await.expect("topics are listed");
        lines
    }

    async fn create(&self, partitions: i32) {
        let admin = self.broker.admin().expect("it has an admin");
        admin.create_topic("t", partitions, None).await.expect("the topic is made");
    }

    async fn send(&self, records: Vec<Outgoing>) {
        let producer = self.broker.producer(&Default::default()).expect("it has a producer");
        for result in producer.send(records, WhenFull::Wait).await {
            result.expect("it is stored");
        }
    }
}

#[derive(Debug, clap::Parser)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

fn keep(lines: &mut Vec<String>, line: &str) -> std::io::Result<()> {
    lines.push(line.to_owned());
    Ok(())
}

fn parse(args: &[&str]) -> Command {
    let args = ["topic"].iter().chain(args);
    <Flags as clap::Parser>::try_parse_from(args).expect("the flags are right").command
}

fn produce_args(path: &Path, more: &[&str]) -> ProduceArgs {
    let path = path.to_str().expect("the folder's name is text");
    let command = parse(&[&["produce", "t", "--from", path], more].concat());
    let Command::Produce(args) = command else { panic!("{command:?}") };
    args
}

fn record(millis: i64, key: Option<&'static [u8]>, value: Option<&'static [u8]>) -> Outgoing {
    Outgoing {
        topic: "t".into(),
        partition: Some((millis % 2) as i32),
        timestamp_ms: Some(millis),
        key: key.map(bytes::Bytes::from_static),
        value: value.map(bytes::Bytes::from_static),
        headers: Vec::new(),
    }
}

#[tokio::test]
async fn lines_are_sent_as_they_stand_with_their_key() {
    let bench = Bench::new();
    bench.create(1).await;
    let content = "{\"id\":\"a\",  \"n\":1}\n\n{\"id\":7}\r\n{\"id\":null}";
    assert_eq!(bench.produce("r.ndjson", content, &["--key", "id"]).await.expect("it is sent"), 3);
    let lines = bench.tail(&["--json"]).await;
    let read = |line: &String| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        (line["offset"].as_i64(), line["key"].clone(), line["value"].as_str().map(str::to_owned))
    };
    let expected = [
        (Some(0), "a".into(), Some("{\"id\":\"a\",  \"n\":1}".to_owned())),
        (Some(1), "7".into(), Some("{\"id\":7}".to_owned())),
        (Some(2), serde_json::Value::Null, Some("{\"id\":null}".to_owned())),
    ];
    assert_eq!(lines.iter().map(read).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn nothing_is_sent_when_a_line_is_wrong() {
    let bench = Bench::new();
    bench.create(1).await;
    for (file, content, flags, expected) in [
        ("r.ndjson", "{}\n{\"a\":}\n", &[][..], "line 2: not JSON: expected value at column 6"),
        ("r.jsonl", "{\"id\":1}\n\n{}\n", &["--key", "id"], "line 3: there is no field `id` for the key"),
        ("r.ndjson", "[1]\n", &["--key", "id"], "line 1: not an object, so it has no field for the key"),
        ("r.ndjson", "{\"id\":[]}\n", &["--key", "id"], "line 1: the field `id` is no text and no number"),
        ("r.csv", "a,b\n1,2\n1,2,3\n", &[], "line 3: "),
        ("r.csv", "a,b\n1,2\n", &["--key", "id"], "line 1: there is no column `id` for the key; there are `a`, `b`"),
        ("r.txt", "{}", &[], "add --format ndjson or --format csv"),
    ] {
        let error = bench.produce(file, content, flags).await.expect_err("it is wrong").to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(bench.tail(&[]).await, [""; 0]);
}

#[tokio::test]
async fn rows_become_objects_of_texts_or_of_values() {
    let bench = Bench::new();
    bench.create(1).await;
    let content = "id,n,note\na,01,\"x, y\"\nb,2.50,\n";
    bench.produce("r.csv", content, &["--key", "id"]).await.expect("it is sent");
    bench.produce("r.csv", content, &["--typed"]).await.expect("it is sent");
    let values: Vec<_> =
        bench.tail(&[]).await.iter().map(|line| line.splitn(3, ' ').nth(2).map(str::to_owned)).collect();
    let expected = [
        r#"a {"id":"a","n":"01","note":"x, y"}"#,
        r#"b {"id":"b","n":"2.50","note":""}"#,
        r#"null {"id":"a","n":"01","note":"x, y"}"#,
        r#"null {"id":"b","n":2.5,"note":null}"#,
    ];
    assert_eq!(values, expected.map(|line| Some(line.to_owned())));
}

#[tokio::test]
async fn a_tail_begins_where_it_is_told_and_shows_the_oldest_first() {
    let bench = Bench::new();
    bench.create(2).await;
    let at = |millis| record(millis, None, Some(b"x"));
    bench.send(vec![at(1001), at(1003), at(1000), at(1002)]).await;
    let places = async |flags: &[&str]| -> Vec<String> {
        let lines = bench.tail(flags).await;
        lines.iter().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    };
    assert_eq!(places(&[]).await, ["0/0", "1/0", "0/1", "1/1"]);
    assert_eq!(places(&["--from", "latest"]).await, [""; 0]);
    assert_eq!(places(&["--from", "1"]).await, ["0/1", "1/1"]);
    assert_eq!(places(&["--from", "1970-01-01T00:00:01.002Z"]).await, ["0/1", "1/1"]);
    assert_eq!(places(&["--partition", "1", "--max", "1"]).await, ["1/0"]);
    let refused = bench.try_tail(&["--partition", "2"]).await.expect_err("there is none").to_string();
    assert_eq!(refused, "topic `t` has no partition 2; it has 0 to 1");
}

#[tokio::test(start_paused = true)]
async fn a_tail_follows_what_is_written() {
    let bench = Bench::new();
    bench.create(1).await;
    let write = async {
        for millis in [1000, 2000, 3000] {
            bench.send(vec![record(millis, None, Some(b"x"))]).await;
        }
    };
    let flags = ["--follow", "--from", "earliest", "--max", "3"];
    let (lines, ()) = futures_util::future::join(bench.tail(&flags), write).await;
    assert_eq!(lines.len(), 3);
}

#[tokio::test]
async fn what_is_no_text_is_shown_as_base64_and_null_is_not_empty() {
    let bench = Bench::new();
    bench.create(2).await;
    let header = |name: &'static [u8], value: Option<&'static [u8]>| Header {
        name: bytes::Bytes::from_static(name),
        value: value.map(bytes::Bytes::from_static),
    };
    let headers = vec![header(b"h", None), header(b"\xff", Some(b"1"))];
    bench
        .send(vec![Outgoing { headers, ..record(0, Some(b"\xff\xfe"), None) }, record(2, Some(b""), Some(b"a\nb"))])
        .await;
    assert_eq!(
        bench.tail(&[]).await,
        [
            "0/0 1970-01-01T00:00:00.000Z base64://4= null h=null base64:/w===1",
            "0/1 1970-01-01T00:00:00.002Z \"\" a\\nb",
        ]
    );
    let expected = serde_json::json!({
        "partition": 0, "offset": 0, "timestamp": "1970-01-01T00:00:00.000Z", "key": {"base64": "//4="}, "value": null,
        "headers": [{"name": "h", "value": null}, {"name": {"base64": "/w=="}, "value": "1"}],
    });
    assert_eq!(bench.tail(&["--json", "-n", "1"]).await, [expected.to_string()]);
}

#[tokio::test]
async fn topics_are_listed_for_people_and_for_programs() {
    let bench = Bench::new();
    bench.create(2).await;
    bench.send(vec![record(0, None, None), record(1, None, None), record(2, None, None)]).await;
    assert_eq!(
        bench.list(false).await,
        ["TOPIC  PARTITIONS       RECORDS  REPLICAS", "t               2             3         1",]
    );
    let partition =
        |number: i32, end: i64| serde_json::json!({"partition": number, "start": 0, "end": end, "replicas": 1});
    let expected = serde_json::json!({
        "topic": "t", "records": 3, "replicas": 1, "partitions": [partition(0, 2), partition(1, 1)],
    });
    assert_eq!(bench.list(true).await, [expected.to_string()]);
}

#[test]
fn only_commands_that_write_need_the_log_for_themselves() {
    assert!(parse(&["list"]).only_reads() && parse(&["tail", "t"]).only_reads());
    assert!(!parse(&["create", "t"]).only_reads() && !parse(&["produce", "t", "--from", "f"]).only_reads());
}
