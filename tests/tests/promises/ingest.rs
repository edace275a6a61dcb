//! Ingest lives apart from processing.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tests::client::{Load, post_one};
use tests::host::Setup;
use tests::scenario::Scenario;
use tests::{names, servers, topics};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn topics_may_want_weaker_acknowledgements_and_what_that_costs_is_said() -> Result<()> {
    let _machine = servers::in_company();
    let (bootstrap, none, leader) = (servers::kafka(), names::unique("none"), names::unique("leader"));
    topics::create(&bootstrap, &none, 1)?;
    topics::create(&bootstrap, &leader, 1)?;
    let weaker = format!("\n[broker.topics.\"{none}\"]\nacks = 0\n[broker.topics.\"{leader}\"]\nacks = 1\n");
    let host = Setup::on_kafka(&bootstrap, &[&none, &leader]).with(&weaker).start()?;
    for number in 0..20 {
        let (status, answer) = post_one(&host.ingest()?, &none, &[], b"x")?;
        assert_eq!(
            (status, &answer["stored"], &answer["offset"]),
            (200, &json!("yes"), &json!(null)),
            "nobody says where"
        );
        let (status, answer) = post_one(&host.ingest()?, &leader, &[], b"x")?;
        assert_eq!((status, &answer["offset"]), (200, &json!(number)));
    }
    for topic in [&none, &leader] {
        ensure!(host.log().contains(&format!("records for `{topic}` count as stored once")), "the cost is said");
        wait::until("the records", DEADLINE, || Ok((topics::ends(&bootstrap, topic)? == [20]).then_some(())))?;
    }
    Ok(())
}

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
    // Two partitions, one record at a time in each, 25 ms a record: at most 80 records a second, a tenth of what comes.
    let scenario = Scenario::slow(2, Duration::from_millis(25))?;
    let setup = scenario.setup().handler(scenario.handler("order = \"partition\""));
    let ingest = setup.clone().argument("--only").argument("ingest").start()?;
    let burst = |name: &str| {
        let load = Load { requests: 16, ..Load::new(name, 400) }.rate(800.0);
        let report = scenario.send(&ingest, &load)?;
        assert_eq!(report.accepted_share(), 1.0, "{report:?}");
        anyhow::Ok(report.p99())
    };
    // The middle one of three: a server that stops for a moment does so with and without handlers.
    let p99 = |names: [&str; 3]| {
        let mut p99s = names.map(|name| burst(name).expect("a burst is sent"));
        p99s.sort();
        p99s[1]
    };
    p99(["warm-1", "warm-2", "warm-3"]);
    let alone = p99(["alone-1", "alone-2", "alone-3"]);
    let _handlers = setup.argument("--only").argument("handlers").start()?;
    let amid = p99(["amid-1", "amid-2", "amid-3"]);
    let waiting = scenario.ledger.acked() - scenario.sink.count()?;
    eprintln!("p99 with no handler {alone:?}, while one falls behind {amid:?}; {waiting} wait");
    assert!(waiting > 2_400, "the handler was to fall behind, and only {waiting} records waited");
    // Broker, database, hosts and clients share a few cores here, so that a figure moves a little by itself. An ingest that
    // waited for the handler would take as long as the backlog: more than half a minute.
    let bound = (alone * 3).max(Duration::from_millis(500));
    assert!(amid < bound, "p99 went from {alone:?} to {amid:?}");

    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(Vec::new(), 0)??;
    assert_eq!(summary.stored, 3_600);
    Ok(())
}
