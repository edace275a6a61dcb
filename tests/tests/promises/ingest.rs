//! Ingest lives apart from processing.

use std::time::Duration;

use anyhow::Result;
use tests::client::Load;
use tests::scenario::Scenario;
use tests::servers;

const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn ingest_alone_keeps_accepting_while_no_handler_runs() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(4)?;
    let setup = scenario.setup().handler(scenario.handler(""));
    let ingest = setup.clone().argument("--only").argument("ingest").start()?;
    let report = scenario.send(&ingest, &Load::new("alone", 1_000))?;
    assert_eq!(report.accepted_share(), 1.0, "{report:?}");
    assert_eq!(scenario.sink.count()?, 0, "no handler runs");

    let commits = scenario.watch_commits()?;
    let _handlers = setup.argument("--only").argument("handlers").start()?;
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(commits.stop()?, 0)??;
    assert_eq!(summary.stored, 1_000);
    Ok(())
}

#[test]
fn ingest_does_not_feel_a_burst_of_ten_times_the_handlers_rate() -> Result<()> {
    let _machine = servers::alone();
    // Two partitions, one record at a time in each, 10 ms a record: at most 200 records a second.
    let scenario = Scenario::slow(2, Duration::from_millis(10))?;
    let setup = scenario.setup().handler(scenario.handler("order = \"partition\""));
    let ingest = setup.clone().argument("--only").argument("ingest").start()?;
    let _handlers = setup.argument("--only").argument("handlers").start()?;
    scenario.send(&ingest, &Load::new("warm", 200))?;
    let calm = scenario.send(&ingest, &Load { requests: 16, ..Load::new("calm", 300) }.rate(100.0))?;
    let burst = scenario.send(&ingest, &Load { requests: 16, ..Load::new("burst", 4_000) }.rate(2_000.0))?;
    eprintln!("p99 calm {:?}, in the burst {:?}, which took {:?}", calm.p99(), burst.p99(), burst.took);
    assert_eq!((calm.accepted_share(), burst.accepted_share()), (1.0, 1.0), "{calm:?} {burst:?}");
    let waiting = scenario.ledger.acked() - scenario.sink.count()?;
    assert!(waiting > 2_000, "the handler was to fall behind, and only {waiting} records waited");
    let bound = (calm.p99() * 3).max(Duration::from_millis(50));
    assert!(burst.p99() < bound, "p99 went from {:?} to {:?}", calm.p99(), burst.p99());

    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(Vec::new(), 0)??;
    assert_eq!(summary.stored, 4_500);
    Ok(())
}
