//! Every accepted record is stored, by every handler, however the host ends.

use std::time::Duration;

use anyhow::Result;
use tests::client::Load;
use tests::host::Handler;
use tests::scenario::Scenario;
use tests::{names, servers};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn every_accepted_record_is_stored_exactly_where_it_should_be() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(4)?;
    let host = scenario.setup().handler(scenario.handler("")).start()?;
    let commits = scenario.watch_commits()?;
    let singles = scenario.send(&host, &Load::new("singles", 500))?;
    let batches = scenario.send(&host, &Load::batches("batches", 5_000))?;
    assert_eq!((singles.accepted_share(), batches.accepted_share()), (1.0, 1.0), "{singles:?} {batches:?}");
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(commits.stop()?, 0)??;
    assert_eq!((summary.acked, summary.stored, summary.dead), (5_500, 5_500, 0));
    Ok(())
}

#[test]
fn a_handler_dropped_in_later_reads_everything_with_a_group_of_its_own() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(4)?;
    let host = scenario.setup().handler(scenario.handler("")).start()?;
    scenario.send(&host, &Load::batches("before", 2_000))?;
    scenario.wait_until_committed(DEADLINE)?;

    let group = names::unique("late");
    let manifest = format!("topics = [\"{}\"]\ngroup = \"{group}\"\n[grants]\nsql = [\"main\"]\n", scenario.topic);
    let schema = "CREATE TABLE audit (record_id TEXT NOT NULL PRIMARY KEY, value_bytes BIGINT)";
    host.drop_in(&Handler::new("late", "audit", &manifest).migration(schema))?;
    scenario.send(&host, &Load::batches("after", 2_000))?;
    scenario.wait_until_group_committed(&group, DEADLINE)?;
    scenario.wait_until_committed(DEADLINE)?;

    let missing =
        "SELECT count(*) FROM seen FULL JOIN audit USING (record_id) WHERE key IS NULL OR value_bytes IS NULL";
    assert_eq!(scenario.sink.number(missing, &[])?, 0, "both handlers have the same records");
    assert_eq!(scenario.sink.number("SELECT count(*) FROM audit", &[])?, 4_000);
    scenario.judge(Vec::new(), 0)??;
    Ok(())
}

#[test]
fn a_terminated_host_drains_and_the_next_one_repeats_nothing() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(4, Duration::from_millis(2))?;
    let setup = scenario.setup().handler(scenario.handler("[batch]\nrecords_max = 20"));
    let commits = scenario.watch_commits()?;
    let mut first = setup.start()?;
    scenario.send(&first, &Load::batches("load", 3_000))?;
    scenario.wait_until_stored(200, DEADLINE)?;
    let ended = first.terminate(Duration::from_secs(30))?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let stored = scenario.sink.count()?;
    assert!(stored < 3_000, "it was told to end in the middle of its work");

    let _second = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(commits.stop()?, 0)??;
    assert_eq!(summary.stored, 3_000);
    Ok(())
}

#[test]
fn a_second_signal_ends_the_host_at_once_and_nothing_is_lost() -> Result<()> {
    let _machine = servers::in_company();
    // Each call takes seconds, so that the first signal's drain can't be over when the second comes.
    let scenario = Scenario::slow(1, Duration::from_millis(200))?;
    let manifest = "[batch]\nrecords_max = 20\n[consumer_properties]\n\"session.timeout.ms\" = \"6000\"";
    let setup = scenario.setup().handler(scenario.handler(manifest));
    let mut first = setup.start()?;
    scenario.send(&first, &Load::batches("load", 40))?;
    wait::until("a call to run", DEADLINE, || Ok((first.metrics()?.in_flight() > 0.0).then_some(())))?;
    first.ask_to_end()?;
    wait::until("the host to drain", DEADLINE, || Ok(first.log().contains("the host drains and ends").then_some(())))?;
    let ended = first.terminate(Duration::from_secs(5))?;
    assert_eq!(ended.code, Some(130), "{ended:?}");

    let _second = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(Vec::new(), 40)??;
    assert_eq!(summary.stored, 40);
    Ok(())
}
