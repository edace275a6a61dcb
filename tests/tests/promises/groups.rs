//! Groups by choice: the newer protocol, and members that keep their place while they restart.

use std::time::Duration;

use anyhow::Result;
use tests::client::Load;
use tests::host::{Host, Setup};
use tests::scenario::Scenario;
use tests::servers;
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(120);
const SMALL_CALLS: &str = "[batch]\nrecords_max = 20\n";

#[test]
fn a_static_member_that_restarts_moves_no_partition_and_one_that_is_killed_is_replaced() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(4, Duration::from_millis(2))?;
    let manifest = format!(
        "{SMALL_CALLS}[consumer_properties]\n\"session.timeout.ms\" = 10000\n\"heartbeat.interval.ms\" = 1000\n"
    );
    let named = |id: &str| {
        let property = format!("\n[broker.consumer]\n\"group.instance.id\" = \"{id}\"\n");
        scenario.setup().with(&property).handler(scenario.handler(&manifest))
    };
    let (mut one, mut other) = (named("one").start()?, named("other").start()?);
    both_work(&scenario, [&one, &other], "first")?;
    scenario.wait_until_committed(DEADLINE)?;

    let before = rebalances(&other)?;
    assert_eq!(one.terminate(DEADLINE)?.code, Some(0));
    let one = named("one").start()?;
    both_work(&scenario, [&one, &other], "again")?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(rebalances(&other)?, before, "the other member has noticed nothing");
    scenario.judge(Vec::new(), 0)??;

    scenario.send(&one, &Load::batches("more", 2_000))?;
    wait::until("the victim to be amid a call", DEADLINE, || Ok(is_amid_a_call(&other)?.then_some(())))?;
    other.kill()?;
    let repeats_max = scenario.stored_and_not_committed()?;
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(Vec::new(), repeats_max)??;
    assert_eq!(summary.stored, scenario.ledger.acked());
    Ok(())
}

#[test]
fn by_the_newer_protocol_a_killed_and_a_terminated_host_are_replaced_and_nothing_is_lost() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(4, Duration::from_millis(2))?;
    let setup: Setup = scenario.setup().with("\n[broker.consumer]\n\"group.protocol\" = \"consumer\"\n");
    let setup = setup.handler(scenario.handler(SMALL_CALLS));
    let commits = scenario.watch_commits()?;
    let (survivor, mut victim) = (setup.start()?, setup.start()?);
    both_work(&scenario, [&survivor, &victim], "first")?;
    scenario.send(&survivor, &Load::batches("load", 2_000))?;
    wait::until("the victim to be amid a call", DEADLINE, || Ok(is_amid_a_call(&victim)?.then_some(())))?;
    victim.kill()?;
    let repeats_max = scenario.stored_and_not_committed()?;
    scenario.wait_until_committed(DEADLINE)?;

    let mut leaver = setup.start()?;
    both_work(&scenario, [&survivor, &leaver], "second")?;
    scenario.send(&survivor, &Load::batches("more", 2_000))?;
    wait::until("the leaver to be amid a call", DEADLINE, || Ok(is_amid_a_call(&leaver)?.then_some(())))?;
    assert_eq!(leaver.terminate(DEADLINE)?.code, Some(0));
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(commits.stop()?, repeats_max)??;
    assert_eq!(summary.stored, scenario.ledger.acked());
    Ok(())
}

/// Sends until both hosts have partitions and records of them.
fn both_work(scenario: &Scenario, hosts: [&Host; 2], name: &str) -> Result<()> {
    let before = [received(hosts[0])?, received(hosts[1])?];
    let mut round = 0;
    wait::until("both hosts to receive records", DEADLINE, || {
        round += 1;
        scenario.send(hosts[0], &Load::batches(&format!("{name}-{round}"), 200))?;
        Ok((received(hosts[0])? > before[0] && received(hosts[1])? > before[1]).then_some(()))
    })
}

fn received(host: &Host) -> Result<f64> {
    Ok(host.metrics()?.sum("tidemill_receive_records_total", &[]))
}

fn rebalances(host: &Host) -> Result<f64> {
    Ok(host.metrics()?.sum("tidemill_receive_rebalances_total", &[]))
}

fn is_amid_a_call(host: &Host) -> Result<bool> {
    Ok(host.metrics()?.in_flight() > 0.0)
}
