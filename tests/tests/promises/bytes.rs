//! Bytes arrive as they were sent, whatever they are.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::host::{Handler, Setup};
use tests::raw_headers::RawHeader;
use tests::scenario::dead_letters;
use tests::topics::Kept;
use tests::{names, servers, topics};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn binary_keys_null_and_empty_values_and_repeated_headers_reach_the_guest_as_they_are() -> Result<()> {
    let headers =
        vec![RawHeader::new("a", "1"), RawHeader { name: b"a".to_vec(), value: None }, RawHeader::new("a", "")];
    let with_headers = Kept { headers, ..Kept::new(Some(b"k"), Some(b"v")) };
    let records = [
        Kept::new(Some(b"\x00\xff\xc3"), Some(b"\xfe\x00")),
        Kept::new(Some(b"tombstone"), None),
        Kept::new(Some(b"empty"), Some(b"")),
        Kept::new(None, Some(b"no key")),
        Kept::new(Some(b""), Some(b"empty key")),
        Kept { timestamp: Some(1_357_020_000_000), ..with_headers },
    ];
    let echo = Echo::run(&records)?;
    let told = echo.told(records.len())?;
    let fields = |index: usize| (&told[index]["key"], &told[index]["value"], &told[index]["headers"]);
    assert_eq!(fields(0), (&json!("00ffc3"), &json!("fe00"), &json!([])));
    assert_eq!(fields(1), (&json!(hex("tombstone")), &Value::Null, &json!([])));
    assert_eq!(fields(2), (&json!(hex("empty")), &json!(""), &json!([])));
    assert_eq!(fields(3), (&Value::Null, &json!(hex("no key")), &json!([])));
    assert_eq!(fields(4), (&json!(""), &json!(hex("empty key")), &json!([])));
    let headers = json!([["a", hex("1")], ["a", null], ["a", ""]]);
    assert_eq!(fields(5), (&json!(hex("k")), &json!(hex("v")), &headers));
    for (offset, told) in told.iter().enumerate() {
        assert_eq!((&told["partition"], &told["offset"], &told["attempt"]), (&json!(0), &json!(offset), &json!(1)));
        assert_eq!(told["timestamp_type"], "create-time");
        assert_eq!(told["id"], format!("{}/0/{offset}/{}", echo.topic, told["timestamp_ms"]));
    }
    assert_eq!(told[5]["timestamp_ms"], 1_357_020_000_000_i64);
    Ok(())
}

#[test]
fn a_header_name_that_is_not_utf8_is_dead_lettered_and_keeps_its_bytes() -> Result<()> {
    let odd = RawHeader::new(b"\xff\xfename".as_slice(), b"\x00value".as_slice());
    let bad = Kept { headers: vec![RawHeader::new("ok", "1"), odd.clone()], ..Kept::new(Some(b"k"), Some(b"bad")) };
    let records = [Kept::new(Some(b"k"), Some(b"before")), bad, Kept::new(Some(b"k"), Some(b"after"))];
    let echo = Echo::run(&records)?;
    let told = echo.told(2)?;
    assert_eq!((&told[0]["value"], &told[1]["value"]), (&json!(hex("before")), &json!(hex("after"))));
    let letters = wait::until("the dead letter", DEADLINE, || {
        let letters = topics::read(&echo.bootstrap, &dead_letters(&echo.topic))?;
        Ok((!letters.is_empty()).then_some(letters))
    })?;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (letters[0].key.as_deref(), letters[0].value.as_deref()),
        (Some(b"k".as_slice()), Some(b"bad".as_slice()))
    );
    assert_eq!(letters[0].headers[..2], [RawHeader::new("ok", "1"), odd]);
    assert_eq!(letters[0].header("tidemill.error.class").as_deref(), Some("malformed"));
    Ok(())
}

/// The guest `echo` on one partition.
struct Echo {
    bootstrap: String,
    topic: String,
    out: String,
    _host: tests::host::Host,
}

impl Echo {
    fn run(records: &[Kept]) -> Result<Echo> {
        let _machine = servers::in_company();
        let (bootstrap, topic, out) = (servers::kafka(), names::unique("bytes"), names::unique("told"));
        for name in [&topic, &out, &dead_letters(&topic)] {
            topics::create(&bootstrap, name, 1)?;
        }
        topics::produce(&bootstrap, &topic, records)?;
        let manifest = format!(
            "topics = [\"{topic}\"]\ngroup = \"{topic}\"\norder = \"partition\"\n\
             [grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\n"
        );
        let host = Setup::on_kafka(&bootstrap, &[]).handler(Handler::new("echo", "echo", &manifest)).start()?;
        Ok(Echo { bootstrap, topic, out, _host: host })
    }

    /// What it told of so many records, in their order.
    fn told(&self, count: usize) -> Result<Vec<Value>> {
        let told = wait::until("the guest to tell of all records", DEADLINE, || {
            let told = topics::read(&self.bootstrap, &self.out)?;
            Ok((told.len() >= count).then_some(told))
        })?;
        let parsed =
            told.iter().map(|kept| Ok(serde_json::from_slice(kept.value.as_deref().context("it has a value")?)?));
        parsed.collect()
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
