//! A key that is parked waits, the others flow, and nothing of it is lost or overtaken.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tests::host::{Handler, Host, Setup};
use tests::topics::{self, Kept};
use tests::{names, servers};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn a_parked_key_waits_while_the_others_flow_and_a_swap_lets_it_go_on_in_order() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::new()?;
    stage.send(&[("a", "a1"), ("k", "poison"), ("b", "b1"), ("k", "k2"), ("a", "a2"), ("k", "k3")])?;
    let host = stage.host()?;
    stage.wait_until_committed(6)?;
    let mut others = stage.forwarded()?;
    others.sort();
    assert_eq!(others, ["a1", "a2", "b1"], "only the others flow");
    let parked = |host: &Host| Ok::<_, anyhow::Error>(host.metrics()?.sum("tidemill_settle_parked_records", &[]));
    wait::until("the gauge", DEADLINE, || Ok((parked(&host)? == 3.0).then_some(())))?;
    let list = host.ask(&["park", "list", "h"])?;
    assert!(list.contains("the value is `poison`"), "{list}");
    let keys: Value = serde_json::from_str(&host.ask(&["park", "list", "h", "--json"])?)?;
    assert_eq!((&keys["keys"][0]["key"], &keys["keys"][0]["records"]), (&"k".into(), &3.into()));
    assert_eq!((&keys["more"], &keys["elsewhere"]), (&0.into(), &Value::Array(Vec::new())), "and that is all");
    assert!(host.ask(&["guests", "list"])?.contains("3 parked records"));
    let place = format!("{}/0/3", stage.topic);
    let said = host.command(&["where", "--admin", &host.admin_url()?, &place])?;
    assert!(said.contains("parked, with its key"), "{said}");

    host.swap("h", "identity")?;
    stage.wait_until_forwarded(6)?;
    stage.send(&[("k", "k4")])?;
    stage.wait_until_forwarded(7)?;
    assert_eq!(stage.forwarded_of("k")?, ["poison", "k2", "k3", "k4"], "each once and in order");
    wait::until("the gauge to fall", DEADLINE, || Ok((parked(&host)? == 0.0).then_some(())))
}

#[test]
fn parked_keys_outlive_a_killed_host_and_an_operator_lets_them_go_on() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::new()?;
    stage.send(&[("k", "poison"), ("a", "a1"), ("k", "k2")])?;
    let mut first = stage.host()?;
    stage.wait_until_committed(3)?;
    first.kill()?;

    let second = stage.host()?;
    stage.send(&[("k", "k3"), ("a", "a2")])?;
    stage.wait_until_committed(5)?;
    assert_eq!(stage.forwarded()?, ["a1", "a2"], "the key waits with the next host too");
    let counted = second.ask(&["unpark", "h", "--key", "k", "--dry-run"])?;
    assert!(counted.contains("1 keys with 3 records would be tried again"), "{counted}");
    assert!(second.ask(&["unpark", "h", "--key", "other"])?.contains("0 keys"));

    // It is tried again on the same revision, and fails again: nothing behind it is handled before it.
    second.ask(&["unpark", "h"])?;
    wait::until("the second failure", DEADLINE, || {
        Ok(second.log().contains("a parked record failed again").then_some(()))
    })?;
    assert_eq!(stage.forwarded()?, ["a1", "a2"]);
    let parked = &serde_json::from_str::<Value>(&second.ask(&["park", "list", "h", "--json"])?)?["keys"];
    assert_eq!(
        (&parked[0]["key"], &parked[0]["records"], &parked[0]["tried"]),
        (&"k".into(), &3.into(), &false.into())
    );

    second.swap("h", "identity")?;
    stage.wait_until_forwarded(5)?;
    assert_eq!(stage.forwarded_of("k")?, ["poison", "k2", "k3"], "each once and in order");
    Ok(())
}

#[test]
fn another_host_takes_over_what_is_parked_and_what_was_handled_of_it() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::new()?;
    stage.send(&[("k", "poison"), ("k", "k2"), ("a", "a1")])?;
    let mut first = stage.host()?;
    stage.wait_until_committed(3)?;
    // The key goes on: what was handled is noted, so that nobody handles it again.
    first.swap("h", "identity")?;
    stage.wait_until_forwarded(3)?;
    wait::until("the receipt", DEADLINE, || {
        Ok((first.metrics()?.sum("tidemill_settle_parked_records", &[]) == 0.0).then_some(()))
    })?;
    let second = stage.host()?;
    first.kill()?;
    stage.send(&[("k", "k3"), ("a", "a2")])?;
    stage.wait_until_committed(5)?;
    stage.wait_until_forwarded(5)?;
    assert_eq!(stage.forwarded_of("k")?, ["poison", "k2", "k3"], "each once and in order");
    assert_eq!(second.metrics()?.sum("tidemill_settle_parked_records", &[]), 0.0);
    Ok(())
}

#[test]
fn without_the_parked_topic_the_key_waits_and_the_cure_is_said() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::without_parked_topic(1)?;
    stage.send(&[("k", "poison"), ("a", "a1"), ("k", "k2")])?;
    let host = stage.host()?;
    stage.wait_until_forwarded(1)?;
    let cure = format!("tidemill topic create {} --partitions N", stage.parked);
    wait::until("the cure", DEADLINE, || Ok(host.log().contains(&cure).then_some(())))?;
    assert_eq!(stage.committed()?.unwrap_or(0), 0, "what can't be parked is not settled");
    topics::create(&stage.bootstrap, &stage.parked, 1)?;
    stage.wait_until_committed(3)?;
    assert_eq!(stage.forwarded()?, ["a1"]);
    Ok(())
}

#[test]
fn a_command_reaches_the_hosts_that_are_named_and_says_which_partitions_it_did_not_reach() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::of(2)?;
    let (one, mut other) = (stage.host()?, stage.host()?);
    let has_one = |host: &Host| -> Result<Option<()>> {
        let handlers: Value = serde_json::from_str(&host.ask(&["guests", "list", "--json"])?)?;
        Ok((handlers[0]["partitions"].as_array().map(Vec::len) == Some(1)).then_some(()))
    };
    wait::until("a partition for one host", DEADLINE, || has_one(&one))?;
    wait::until("a partition for the other", DEADLINE, || has_one(&other))?;
    let keys: Vec<String> = (0..8).map(|number| format!("k{number}")).collect();
    stage.send(&keys.iter().map(|key| (key.as_str(), "poison")).collect::<Vec<_>>())?;
    let parked = |host: &Host| Ok::<_, anyhow::Error>(host.metrics()?.sum("tidemill_settle_parked_records", &[]));
    wait::until("all keys to be parked", DEADLINE, || Ok((parked(&one)? + parked(&other)? == 8.0).then_some(())))?;
    assert!(parked(&one)? > 0.0 && parked(&other)? > 0.0, "each has some");

    let list = one.ask(&["park", "list", "h"])?;
    assert!(list.contains("held by 127.0.0.1 (tidemill); ask that host too"), "{list}");
    let refused = one.ask(&["unpark", "h", "--dry-run"]).expect_err("the other host has a partition").to_string();
    assert!(refused.contains("not all partitions were reached"), "{refused}");
    let unknown = one.ask(&["unpark", "h", "--partition", "7"]).expect_err("there is none").to_string();
    assert!(unknown.contains("there is no partition 7"), "{unknown}");

    let both = format!("{},{}", one.admin_url()?, other.admin_url()?);
    let list: Value = serde_json::from_str(&one.command(&["park", "list", "h", "--json", "--admin", &both])?)?;
    assert_eq!(list["keys"].as_array().map(Vec::len), Some(8), "{list}");
    assert_eq!(list["elsewhere"], Value::Array(Vec::new()), "{list}");
    let counted = one.command(&["unpark", "h", "--dry-run", "--admin", &both])?;
    assert!(counted.contains("8 keys with 8 records would be tried again, in 2 partitions"), "{counted}");
    one.command(&["unpark", "h", "--admin", &both])?;
    let has_failed = |host: &Host| Ok(host.log().contains("a parked record failed again").then_some(()));
    wait::until("one host to try again", DEADLINE, || has_failed(&one))?;
    wait::until("the other to try again", DEADLINE, || has_failed(&other))?;

    other.kill()?;
    let refused = one.command(&["unpark", "h", "--admin", &both]).expect_err("a host is away").to_string();
    assert!(refused.contains("not all hosts have answered: no host answers at"), "{refused}");
    Ok(())
}

#[test]
fn what_is_parked_stays_when_its_group_is_moved_and_what_is_read_again_goes_behind_it() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::new()?;
    stage.send(&[("k", "k1"), ("a", "a1"), ("k", "poison"), ("k", "k3")])?;
    let host = stage.host()?;
    stage.wait_until_committed(4)?;
    let parked = |records: f64| {
        wait::until(&format!("{records} parked records"), DEADLINE, || {
            Ok((host.metrics()?.sum("tidemill_settle_parked_records", &[]) == records).then_some(()))
        })
    };
    parked(2.0)?;
    // Back: the first of the key comes again, behind what is parked; what is parked comes again too, behind that.
    host.ask(&["offsets", "reset", "h", "--to", "earliest"])?;
    stage.wait_until_forwarded(3)?;
    stage.wait_until_committed(4)?;
    parked(5.0)?;
    // Ahead: what lies between is skipped, and nothing that is parked.
    host.ask(&["pause", "h"])?;
    stage.send(&[("k", "never"), ("a", "never")])?;
    host.ask(&["offsets", "reset", "h", "--to", "latest"])?;
    host.ask(&["resume", "h"])?;
    stage.send(&[("k", "k4"), ("a", "a2")])?;
    stage.wait_until_committed(8)?;
    parked(6.0)?;

    host.swap("h", "identity")?;
    stage.wait_until_forwarded(10)?;
    parked(0.0)?;
    let expected = ["k1", "poison", "k3", "k1", "poison", "k3", "k4"];
    assert_eq!(stage.forwarded_of("k")?, expected, "in order, and in order once more");
    assert_eq!(stage.forwarded_of("a")?, ["a1", "a1", "a2"]);
    Ok(())
}

/// A topic whose records with the value `poison` the handler `h` refuses; it forwards the others.
struct Stage {
    bootstrap: String,
    topic: String,
    parked: String,
    out: String,
    group: String,
    manifest: String,
}

impl Stage {
    fn new() -> Result<Stage> {
        Self::of(1)
    }

    fn of(partitions: i32) -> Result<Stage> {
        let stage = Self::without_parked_topic(partitions)?;
        topics::create(&stage.bootstrap, &stage.parked, partitions)?;
        Ok(stage)
    }

    fn without_parked_topic(partitions: i32) -> Result<Stage> {
        let bootstrap = servers::kafka();
        let (topic, out, group) = (names::unique("park"), names::unique("out"), names::unique("group"));
        topics::create(&bootstrap, &topic, partitions)?;
        topics::create(&bootstrap, &out, 1)?;
        let manifest = format!(
            "topics = [\"{topic}\"]\ngroup = \"{group}\"\ncommit_interval = \"20ms\"\nretry.exhausted = \"park\"\n\
             [grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\n[consumer_properties]\n\
             \"session.timeout.ms\" = \"6000\"\n\"heartbeat.interval.ms\" = \"1000\"\n"
        );
        let parked = format!("{topic}.h.parked");
        Ok(Stage { bootstrap, topic, parked, out, group, manifest })
    }

    fn host(&self) -> Result<Host> {
        Setup::on_kafka(&self.bootstrap, &[]).handler(Handler::new("h", "poison", &self.manifest)).start()
    }

    fn send(&self, records: &[(&str, &str)]) -> Result<()> {
        let record = |(key, value): &(&str, &str)| Kept::new(Some(key.as_bytes()), Some(value.as_bytes()));
        topics::produce(&self.bootstrap, &self.topic, &records.iter().map(record).collect::<Vec<_>>())
    }

    fn committed(&self) -> Result<Option<i64>> {
        Ok(topics::committed(&self.bootstrap, &self.group, &self.topic)?[0])
    }

    fn wait_until_committed(&self, offset: i64) -> Result<()> {
        wait::until("the commit", DEADLINE, || Ok((self.committed()? == Some(offset)).then_some(())))
    }

    fn wait_until_forwarded(&self, records: usize) -> Result<()> {
        wait::until("the outputs", DEADLINE, || Ok((self.forwarded()?.len() >= records).then_some(())))
    }

    fn forwarded(&self) -> Result<Vec<String>> {
        let read = topics::read(&self.bootstrap, &self.out)?;
        Ok(read.iter().map(|kept| text(kept.value.as_deref())).collect())
    }

    fn forwarded_of(&self, key: &str) -> Result<Vec<String>> {
        let read = topics::read(&self.bootstrap, &self.out)?;
        let of_it = read.iter().filter(|kept| text(kept.key.as_deref()) == key);
        Ok(of_it.map(|kept| text(kept.value.as_deref())).collect())
    }
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}
