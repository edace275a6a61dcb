//! Where a record is, at any moment, with each handler.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::host::{Handler, Host, Setup};
use tests::raw_headers::RawHeader;
use tests::topics::{self, Kept};
use tests::{names, servers};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_record_is_said_to_be_running_waiting_retrying_done_dead_lettered_and_sent_again() -> Result<()> {
    let _machine = servers::in_company();
    let bootstrap = servers::kafka();
    let (topic, group) = (names::unique("where"), names::unique("group"));
    topics::create(&bootstrap, &topic, 1)?;
    topics::create(&bootstrap, &format!("{topic}.dlq"), 1)?;
    let manifest = format!(
        "topics = [\"{topic}\"]\ngroup = \"{group}\"\nlimits.deadline = \"3m\"\n[batch]\nrecords_max = 1\n\
         [retry]\nattempts_max = 1000\ndelay_min = \"5s\"\ndelay_max = \"60s\"\n"
    );
    let records = [
        record("a", "fine", None),
        record("b", "poison", None),
        record("c", "tried again", Some("retry")),
        record("c", "behind it", None),
        record("d", "never returns", Some("deadline")),
        record("e", "fine", None),
    ];
    topics::produce(&bootstrap, &topic, &records)?;
    let host = Setup::on_kafka(&bootstrap, &[]).handler(Handler::new("h", "poison", &manifest)).start()?;
    for (offset, state) in
        [(0, "done"), (1, "dead-lettered"), (2, "retrying"), (3, "waiting"), (4, "running"), (5, "done")]
    {
        wait_for(&host, &topic, offset, state)?;
    }
    let retried = whereabouts(&host, &topic, 2)?;
    assert!(retried["tries"].as_u64() >= Some(1) && retried["again_in_ms"].as_u64() <= Some(60_000), "{retried}");
    // The record that is tried again holds the frontier; what lies behind it is done and not committed.
    wait::until("the commit", DEADLINE, || Ok((whereabouts(&host, &topic, 5)?["committed"] == 2).then_some(())))?;
    let letter = &whereabouts(&host, &topic, 1)?["letter"];
    assert_eq!((&letter["class"], &letter["code"]), (&"rejected".into(), &"poison".into()));
    let text = ask(&host, &[&format!("{topic}/0/1")])?;
    assert!(text.contains(&format!("h  dead-lettered: {topic}.dlq/0/0 (rejected, poison)")), "{text}");
    assert!(ask(&host, &[&format!("{topic}/0/6")])?.contains("not written yet; the partition ends at 6"));

    host.command(&["dlq", "redrive", "--topic", &format!("{topic}.dlq")])?;
    wait_for(&host, &topic, 1, "redriven")
}

#[test]
fn without_a_host_the_log_says_what_is_done() -> Result<()> {
    let _machine = servers::in_company();
    let bootstrap = servers::kafka();
    let (topic, group) = (names::unique("where"), names::unique("group"));
    topics::create(&bootstrap, &topic, 1)?;
    topics::create(&bootstrap, &format!("{topic}.dlq"), 1)?;
    let manifest =
        format!("topics = [\"{topic}\"]\ngroup = \"{group}\"\ncommit_interval = \"20ms\"\nretry.delay_min = \"1h\"\n");
    let records = [record("a", "fine", None), record("b", "poison", None), record("c", "x", Some("retry"))];
    topics::produce(&bootstrap, &topic, &records)?;
    let setup = Setup::on_kafka(&bootstrap, &[]).handler(Handler::new("h", "poison", &manifest));
    let mut host = setup.start()?;
    wait_for(&host, &topic, 2, "retrying")?;
    wait::until("the commit", DEADLINE, || {
        Ok((topics::committed(&bootstrap, &group, &topic)? == [Some(2)]).then_some(()))
    })?;
    host.kill()?;
    for (offset, state) in [(0, "done"), (1, "dead-lettered"), (2, "open")] {
        assert_eq!(whereabouts(&host, &topic, offset)?["state"], state, "{offset}");
    }
    let text = ask(&host, &[&format!("{topic}/0/2")])?;
    assert!(text.contains("its group has committed up to 2") && text.contains("no host answers"), "{text}");
    Ok(())
}

fn wait_for(host: &Host, topic: &str, offset: i64, state: &str) -> Result<()> {
    let mut last = Value::Null;
    let found = wait::until(&format!("offset {offset} to be {state}"), DEADLINE, || {
        last = whereabouts(host, topic, offset)?;
        Ok((last["state"] == state).then_some(()))
    });
    found.with_context(|| format!("it is {last}"))
}

/// The one handler's part of the answer.
fn whereabouts(host: &Host, topic: &str, offset: i64) -> Result<Value> {
    let answer: Value = serde_json::from_str(&ask(host, &["--json", &format!("{topic}/0/{offset}")])?)?;
    Ok(answer["handlers"][0].clone())
}

fn ask(host: &Host, arguments: &[&str]) -> Result<String> {
    let admin = host.admin_url()?;
    host.command(&[&["where", "--admin", &admin], arguments].concat())
}

fn record(key: &str, value: &str, poison: Option<&str>) -> Kept {
    let poison = poison.map(|poison| RawHeader::new("poison", poison));
    Kept { headers: poison.into_iter().collect(), ..Kept::new(Some(key.as_bytes()), Some(value.as_bytes())) }
}
