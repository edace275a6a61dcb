//! Two hosts share the partitions; when one is killed, the other one goes on where it was.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::client::Load;
use tests::host::Host;
use tests::scenario::Scenario;
use tests::{checker, frozen, servers};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(120);
/// A killed member is missed after this long; the default of 45 s only makes the test longer.
const MANIFEST: &str = "\
[batch]
records_max = 20
[consumer_properties]
\"session.timeout.ms\" = \"6000\"
\"heartbeat.interval.ms\" = \"1000\"";

#[test]
fn two_hosts_share_the_partitions_and_one_takes_over_when_the_other_is_killed() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(4, Duration::from_millis(4))?;
    let setup = scenario.setup().handler(scenario.handler(MANIFEST));
    let commits = scenario.watch_commits()?;
    let survivor = setup.start()?;
    let mut victim = setup.start()?;
    let (ingest, topic, ledger) = (survivor.ingest()?, scenario.topic.clone(), scenario.ledger.clone());
    let load = thread::spawn(move || Load::batches("load", 6_000).rate(1_500.0).send(&ingest, &topic, &ledger));
    for host in [&survivor, &victim] {
        wait::until("both hosts to receive records", DEADLINE, || Ok(is_amid_a_call(host, 20.0)?.then_some(())))?;
    }

    wait::until("the victim to be amid a call", DEADLINE, || Ok(is_amid_a_call(&victim, 20.0)?.then_some(())))?;
    victim.kill()?;
    // What the victim stored and did not commit is delivered again; what it had not stored is not a repeat.
    let repeats_max = scenario.stored_and_not_committed()?;
    load.join().ok().context("the client panicked")??;
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(commits.stop()?, repeats_max)??;
    assert_eq!(summary.stored, 6_000);
    Ok(())
}

#[test]
fn a_host_that_wakes_from_a_freeze_commits_nothing_that_is_another_ones() -> Result<()> {
    let _machine = servers::in_company();
    let (evidence, repeats_max) = frozen::run(None)?;
    let summary = checker::check(&evidence, repeats_max)?;
    assert_eq!(summary.stored, 2_200);
    Ok(())
}

/// Whether the guest has records in hand, after having been given at least this many.
fn is_amid_a_call(host: &Host, received_min: f64) -> Result<bool> {
    let metrics = host.metrics()?;
    let received = metrics.sum("tidemill_receive_records_total", &[]);
    Ok(received >= received_min && metrics.in_flight() > 0.0)
}
