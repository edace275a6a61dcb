//! A paused handler stands still, over a restart too, until somebody lets it go on; one command reaches all hosts that run it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::client::Load;
use tests::host::{Host, Said};
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
    let paused = |host: &Host| Ok::<_, anyhow::Error>(host.metrics()?.sum("tidemill_admit_paused", &[]));
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

#[test]
fn one_command_pauses_moves_and_resumes_a_handler_on_all_hosts_that_are_named() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let setup = scenario.setup().handler(scenario.handler("commit_interval = \"20ms\""));
    let (one, mut other) = (setup.start()?, setup.start()?);
    wait::until("a partition for each host", DEADLINE, || {
        let holds = |host: &Host| -> Result<Option<usize>> {
            let handlers: Value = serde_json::from_str(&host.ask(&["guests", "list", "--json"])?)?;
            Ok(handlers[0]["partitions"].as_array().map(Vec::len))
        };
        Ok((holds(&one)? == Some(1) && holds(&other)? == Some(1)).then_some(()))
    })?;
    scenario.send(&one, &Load::batches("before", 500))?;
    scenario.wait_until_committed(DEADLINE)?;
    let handler = &*scenario.handler;
    let (first, second) = (one.admin_url()?, other.admin_url()?);
    let both = format!("{first},{second}");

    let told = one.command(&["pause", handler, "--admin", &both])?;
    ensure!(told.contains(&first) && told.contains(&second), "{told}");
    let list = one.command(&["guests", "list", "--admin", &both])?;
    assert_eq!(list.matches("paused").count(), 2, "{list}");

    let reset = ["offsets", "reset", handler, "--to", "earliest", "--dry-run", "--admin"];
    let Said { succeeded, printed, told } = one.command_says(&[&reset[..], &[&first]].concat())?;
    ensure!(!succeeded && told.contains("1 partitions are held elsewhere"), "{printed}{told}");
    let would = one.command(&[&reset[..], &[&both]].concat())?;
    ensure!(would.contains("2 partitions would begin elsewhere") && !would.contains("is held by"), "{would}");

    one.command(&["resume", handler, "--admin", &both])?;
    scenario.send(&one, &Load::batches("after", 500))?;
    scenario.wait_until_committed(DEADLINE)?;

    other.kill()?;
    let Said { succeeded, printed, told } = one.command_says(&["pause", handler, "--admin", &both])?;
    ensure!(!succeeded && printed.contains("paused"), "who answers is paused: {printed}");
    ensure!(told.contains("not all hosts have answered: no host answers at"), "{told}");
    Ok(())
}
