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
    // Two partitions, one record at a time in each, 10 ms a record: at most 200 records a second, a tenth of what comes.
    let scenario = Scenario::slow(2, Duration::from_millis(10))?;
    let setup = scenario.setup().handler(scenario.handler("order = \"partition\""));
    let ingest = setup.clone().argument("--only").argument("ingest").start()?;
    let burst = |name| Load { requests: 16, ..Load::new(name, 2_500) }.rate(2_000.0);
    scenario.send(&ingest, &Load::new("warm", 200))?;
    let alone = scenario.send(&ingest, &burst("alone"))?;
    let _handlers = setup.argument("--only").argument("handlers").start()?;
    let amid = scenario.send(&ingest, &burst("amid"))?;
    let waiting = scenario.ledger.acked() - scenario.sink.count()?;
    eprintln!("p99 with no handler {:?}, while one falls behind {:?}; {waiting} wait", alone.p99(), amid.p99());
    assert_eq!((alone.accepted_share(), amid.accepted_share()), (1.0, 1.0), "{alone:?} {amid:?}");
    assert!(waiting > 2_500, "the handler was to fall behind, and only {waiting} records waited");
    let bound = (alone.p99() * 3).max(Duration::from_millis(100));
    assert!(amid.p99() < bound, "p99 went from {:?} to {:?}", alone.p99(), amid.p99());

    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(Vec::new(), 0)??;
    assert_eq!(summary.stored, 5_200);
    Ok(())
}
