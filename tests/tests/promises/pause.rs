//! A paused handler stands still, over a restart too, until somebody lets it go on.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::client::Load;
use tests::scenario::Scenario;
use tests::servers;
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_paused_handler_stands_still_over_a_restart_and_goes_on_where_it_stood() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let state = tempfile::tempdir()?;
    let setup = scenario
        .setup()
        .ahead(&format!("state = \"{}\"\n\n", state.path().display()))
        .handler(scenario.handler("commit_interval = \"20ms\""));
    let mut first = setup.start()?;
    scenario.send(&first, &Load::batches("before", 500))?;
    scenario.wait_until_committed(DEADLINE)?;

    let told = first.ask(&["pause", &scenario.handler])?;
    ensure!(told.contains("paused, also after a restart"), "{told}");
    scenario.send(&first, &Load::batches("meanwhile", 500))?;
    let list = first.ask(&["guests", "list"])?;
    ensure!(list.contains("paused"), "{list}");
    let paused = |host: &tests::host::Host| Ok::<_, anyhow::Error>(host.metrics()?.sum("tidemill_admit_paused", &[]));
    assert_eq!(paused(&first)?, 1.0);
    assert_eq!(first.terminate(DEADLINE)?.code, Some(0));

    let second = setup.start()?;
    assert_eq!(paused(&second)?, 1.0);
    ensure!(second.log().contains("the handler is paused"), "the log says so when it starts");
    // It has its partitions, and its lag is seen to grow.
    wait::until("the paused handler's lag", DEADLINE, || {
        Ok((second.metrics()?.sum("tidemill_receive_lag_records", &[]) >= 500.0).then_some(()))
    })?;
    assert_eq!(second.metrics()?.sum("tidemill_invoke_attempts_total", &[]), 0.0);
    assert_eq!(scenario.sink.count()?, 500);

    second.ask(&["resume", &scenario.handler])?;
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(Vec::new(), 0)??;
    assert_eq!(summary.stored, 1_000);
    Ok(())
}
