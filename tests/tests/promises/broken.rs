//! The judge judged: a host that is broken on purpose is caught, each time by the fault that it has.
//!
//! `TIDEMILL_FAULT` is heard only by a binary with the feature `fault-injection`, which no release has.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::checker::{Fault, Faults};
use tests::client::Load;
use tests::scenario::Scenario;
use tests::{checker, frozen, servers, topics};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(60);
const MANIFEST: &str = "\
drain_deadline = \"1s\"
[batch]
records_max = 20
[buffer]
records_max = 100
[consumer_properties]
\"session.timeout.ms\" = \"6000\"
\"heartbeat.interval.ms\" = \"1000\"";

#[test]
fn a_host_that_commits_before_success_is_caught() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(2, Duration::from_millis(20))?;
    let setup = scenario.setup().handler(scenario.handler(MANIFEST));
    let commits = scenario.watch_commits()?;
    let mut broken = setup.clone().fault("commit-before-success").start()?;
    scenario.send(&broken, &Load::batches("load", 2_000))?;
    wait::until("a commit that is far ahead", DEADLINE, || {
        let committed = topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?;
        let committed: i64 = committed.into_iter().flatten().sum();
        Ok((committed >= i64::try_from(scenario.sink.count()?)? + 50).then_some(()))
    })?;
    broken.kill()?;
    let _next = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    let faults = caught(&scenario, commits.stop()?, 2_000)?;
    assert!(faults.any(|fault| matches!(fault, Fault::CommitAhead { .. })), "{faults}");
    assert!(faults.any(|fault| matches!(fault, Fault::Lost(_))), "{faults}");
    Ok(())
}

#[test]
fn a_host_that_ignores_the_assignment_epoch_is_caught() -> Result<()> {
    let _machine = servers::in_company();
    let (evidence, repeats_max) = frozen::run(Some("ignore-epoch"))?;
    let faults = checker::check(&evidence, repeats_max).err().context("the judge saw nothing")?;
    assert!(faults.any(|fault| matches!(fault, Fault::CommitFell { .. })), "{faults}");
    Ok(())
}

#[test]
fn a_host_that_drops_records_when_it_is_full_is_caught() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(2, Duration::from_millis(2))?;
    let setup = scenario.setup().handler(scenario.handler(MANIFEST));
    let commits = scenario.watch_commits()?;
    let broken = setup.fault("drop-on-full").start()?;
    scenario.send(&broken, &Load::batches("load", 2_000))?;
    wait::until("the broken host to have nothing in hand", DEADLINE, || {
        let metrics = broken.metrics()?;
        let sum = |name| metrics.sum(name, &[]);
        Ok((sum("tidemill_receive_records_total") >= 2_000.0 && sum("tidemill_admit_pending_records") == 0.0)
            .then_some(()))
    })?;
    // The frontier passes what was dropped as soon as later records are settled.
    scenario.send(&broken, &Load::new("after", 50))?;
    scenario.wait_until_committed(DEADLINE)?;
    let faults = caught(&scenario, commits.stop()?, 0)?;
    assert!(faults.any(|fault| matches!(fault, Fault::Lost(_))), "{faults}");
    Ok(())
}

fn caught(scenario: &Scenario, commits: Vec<tests::checker::Commit>, repeats_max: usize) -> Result<Faults> {
    match scenario.judge(commits, repeats_max)? {
        Ok(summary) => anyhow::bail!("the host was broken and the judge saw nothing: {summary:?}"),
        Err(faults) => Ok(faults),
    }
}
