//! A dependency that is away is nobody's fault.

use std::time::Duration;

use anyhow::Result;
use tests::client::Load;
use tests::scenario::Scenario;
use tests::sink::Sink;
use tests::{servers, topics};
use xtask::lab::postgres::Postgres;
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn records_wait_while_postgresql_is_stopped_and_are_stored_when_it_is_back() -> Result<()> {
    let _machine = servers::in_company();
    let mut postgres = Postgres::start_new()?;
    let sink = Sink::at(postgres.create_database("promise")?);
    let scenario = Scenario::with(&servers::kafka(), 4, sink)?;
    let manifest = "[retry]\nattempts_max = 2\ndelay_min = \"100ms\"\ndelay_max = \"500ms\"";
    let host = scenario.setup().handler(scenario.handler(manifest)).start()?;
    let commits = scenario.watch_commits()?;
    scenario.send(&host, &Load::batches("before", 1_000))?;
    scenario.wait_until_committed(DEADLINE)?;

    postgres.stop()?;
    let committed = topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?;
    scenario.send(&host, &Load::batches("away", 1_000))?;
    // More attempts than a record may be charged for, so that a charge would be seen.
    wait::until("records to be tried in vain", DEADLINE, || {
        let retries = host.metrics()?.sum("tidemill_settle_retries_total", &[("class", "unavailable")]);
        Ok((retries > 20.0).then_some(()))
    })?;
    let meanwhile = topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?;
    assert_eq!(meanwhile, committed, "offsets stand still");
    assert_eq!(scenario.dead()?, [], "nothing is given up");

    postgres.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    // A session that was cut off while it committed may have stored what is then stored again.
    let summary = scenario.judge(commits.stop()?, 200)??;
    assert_eq!((summary.stored, summary.dead), (2_000, 0));
    Ok(())
}
