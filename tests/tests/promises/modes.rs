//! What is promised of a record by choice: at most once, or in no order.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::client::Load;
use tests::host::{Handler, Setup};
use tests::ledger::Place;
use tests::scenario::Scenario;
use tests::topics::Kept;
use tests::{names, servers, topics};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(90);
const PARTITIONS: usize = 2;
/// What a partition may have committed and not done.
const AHEAD_MAX: usize = 30;
const AT_MOST_ONCE: &str = "\
delivery = \"at-most-once\"
[batch]
records_max = 10
[buffer]
ahead_max = 30
[consumer_properties]
\"session.timeout.ms\" = \"6000\"
\"heartbeat.interval.ms\" = \"1000\"";

#[test]
fn at_most_once_a_killed_host_repeats_nothing_and_loses_no_more_than_it_had_committed_ahead() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(PARTITIONS as i32, Duration::from_millis(5))?;
    let setup = scenario.setup().handler(scenario.handler(AT_MOST_ONCE));
    let mut victim = setup.start()?;
    scenario.send(&victim, &Load::batches("load", 2_000))?;
    scenario.wait_until_stored(200, DEADLINE)?;
    victim.kill()?;
    assert!(scenario.sink.count()? < 2_000, "it is killed amid its work");

    let mut next = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    // All is committed, and an orderly end does all that is.
    assert_eq!(next.terminate(DEADLINE)?.code, Some(0));
    let times = times_stored(&scenario)?;
    let repeated: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(repeated.is_empty(), "twice: {repeated:?}");
    assert!(scenario.dead()?.is_empty(), "nothing failed");
    let lost = scenario.ledger.acked() - times.len();
    eprintln!("{lost} of {} records are lost; {} may be", scenario.ledger.acked(), PARTITIONS * AHEAD_MAX);
    assert!(lost <= PARTITIONS * AHEAD_MAX, "{lost} records are lost");
    Ok(())
}

#[test]
fn at_most_once_a_terminated_host_repeats_nothing_and_loses_nothing() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(PARTITIONS as i32, Duration::from_millis(2))?;
    let setup = scenario.setup().handler(scenario.handler(AT_MOST_ONCE));
    let mut first = setup.start()?;
    scenario.send(&first, &Load::batches("load", 2_000))?;
    scenario.wait_until_stored(200, DEADLINE)?;
    assert_eq!(first.terminate(DEADLINE)?.code, Some(0));
    let before = scenario.sink.count()?;
    assert!(before < 2_000, "it is ended amid its work");
    let mut second = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(second.terminate(DEADLINE)?.code, Some(0));
    let summary = scenario.judge(Vec::new(), 0)??;
    assert_eq!((summary.stored, summary.dead), (2_000, 0));
    Ok(())
}

#[test]
fn unordered_records_of_one_key_run_at_once_and_none_is_lost() -> Result<()> {
    const RECORDS: usize = 400;
    let _machine = servers::in_company();
    let scenario = Scenario::new(1)?;
    let (out, name) = (names::unique("forwarded"), names::unique("slow"));
    topics::create(&scenario.bootstrap, &out, 1)?;
    let manifest = format!(
        "topics = [\"{}\"]\norder = \"unordered\"\nconcurrency = 8\n[batch]\nrecords_max = 1\n[grants]\nproduce = [\"{out}\"]\n\
         [config]\nms = \"20\"\nto = \"{out}\"\n",
        scenario.topic
    );
    let setup =
        Setup::on_kafka(&scenario.bootstrap, &[&scenario.topic]).handler(Handler::new(&name, "slow", &manifest));
    let mut host = setup.start()?;
    let one_key = Load { keys: 1, ..Load::batches("load", RECORDS) };
    scenario.send(&host, &one_key)?;
    wait::until("several records of the key to run at once", DEADLINE, || {
        Ok((host.metrics()?.in_flight() >= 4.0).then_some(()))
    })?;
    host.kill()?;
    let _next = setup.start()?;
    scenario.wait_until_group_committed(&name, DEADLINE)?;
    let forwarded = topics::read(&scenario.bootstrap, &out)?;
    let mut values: Vec<_> = forwarded.into_iter().map(|kept| kept.value).collect();
    values.sort_unstable();
    values.dedup();
    ensure!(values.len() == RECORDS, "{} of {RECORDS} different records came out", values.len());
    Ok(())
}

#[test]
fn a_slow_key_does_not_hold_up_the_keys_that_came_with_it() -> Result<()> {
    const OTHERS: usize = 20;
    const SLOW: &[u8] = b"180000000";
    let _machine = servers::in_company();
    let bootstrap = servers::kafka();
    let (topic, out, name) = (names::unique("records"), names::unique("forwarded"), names::unique("slow"));
    topics::create(&bootstrap, &topic, 1)?;
    topics::create(&bootstrap, &out, 1)?;
    // All of them are there before the host reads, and one call has room for them.
    let other = |number| Kept::new(Some(format!("k{number}").as_bytes()), Some(b"0"));
    let mut records = vec![Kept::new(Some(b"slow"), Some(SLOW))];
    records.extend((0..OTHERS).map(other));
    topics::produce(&bootstrap, &topic, &records)?;
    let manifest = format!(
        "topics = [\"{topic}\"]\nconcurrency = 32\n[limits]\ndeadline = \"4m\"\n[grants]\nproduce = [\"{out}\"]\n\
         [config]\nms = \"value\"\nto = \"{out}\"\n"
    );
    let setup = Setup::on_kafka(&bootstrap, &[&topic]).handler(Handler::new(&name, "slow", &manifest));
    let _host = setup.start()?;
    wait::until("the other keys to come out", DEADLINE, || {
        Ok((topics::read(&bootstrap, &out)?.len() >= OTHERS).then_some(()))
    })?;
    let forwarded = topics::read(&bootstrap, &out)?;
    ensure!(
        forwarded.iter().all(|kept| kept.value.as_deref() != Some(SLOW)),
        "the slow one takes longer than this test"
    );
    Ok(())
}

/// How often each record was stored.
fn times_stored(scenario: &Scenario) -> Result<BTreeMap<Place, usize>> {
    let mut times = BTreeMap::new();
    for stored in scenario.sink.stored()? {
        *times.entry(stored.place).or_default() += 1;
    }
    Ok(times)
}
