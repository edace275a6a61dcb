//! Swapping a guest loses nothing and repeats nothing.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::client::Load;
use tests::host::{self, Handler, Host};
use tests::scenario::Scenario;
use tests::{names, servers, topics};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn a_swap_every_second_under_load_loses_and_repeats_nothing() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::slow(4, Duration::from_millis(2))?;
    let (out, group) = (names::unique("flaky-out"), names::unique("flaky"));
    topics::create(&scenario.bootstrap, &out, 2)?;
    // Each of its records fails once, so that at every swap some wait to be tried again.
    let manifest = format!(
        "topics = [\"{}\"]\ngroup = \"{group}\"\n[retry]\ndelay_min = \"200ms\"\ndelay_max = \"400ms\"\n\
         [grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\ntimes = \"1\"\n",
        scenario.topic
    );
    let setup = scenario.setup().handler(scenario.handler("[batch]\nrecords_max = 20"));
    let host = setup.handler(Handler::new("flaky", "flaky", &manifest)).start()?;
    let commits = scenario.watch_commits()?;
    let (ingest, topic, ledger) = (host.ingest()?, scenario.topic.clone(), scenario.ledger.clone());
    let load = Load { keys: 200, ..Load::batches("load", 4_000) }.rate(400.0);
    let load = thread::spawn(move || load.send(&ingest, &topic, &ledger));
    let (store, flaky) = (host::guest_bytes("store")?, host::guest_bytes("flaky")?);
    let mut swaps = 0;
    while !load.is_finished() {
        swaps += 1;
        host.swap_bytes(&scenario.handler, &host::with_another_digest(&store, swaps))?;
        host.swap_bytes("flaky", &host::with_another_digest(&flaky, swaps))?;
        thread::sleep(Duration::from_secs(1));
    }
    let report = load.join().ok().context("the client panicked")??;
    assert_eq!(report.accepted_share(), 1.0, "{report:?}");
    scenario.wait_until_committed(DEADLINE)?;
    scenario.wait_until_group_committed(&group, DEADLINE)?;

    let metrics = host.metrics()?;
    for handler in [scenario.handler.as_str(), "flaky"] {
        let live = metrics.sum("tidemill_guest_swaps_total", &[("handler", handler)]);
        assert!(live >= f64::from(swaps) / 2.0, "{handler}: {live} of {swaps} builds went live");
    }
    let summary = scenario.judge(commits.stop()?, 0)??;
    assert_eq!(summary.stored, 4_000);
    let mut forwarded: BTreeMap<Option<Vec<u8>>, usize> = BTreeMap::new();
    for kept in topics::read(&scenario.bootstrap, &out)? {
        *forwarded.entry(kept.value).or_default() += 1;
    }
    let sent: Vec<_> = scenario.ledger.fates().into_keys().map(|body| Some(body.to_bytes())).collect();
    assert!(sent.iter().all(|value| forwarded.get(value) == Some(&1)), "each was forwarded once");
    assert_eq!(forwarded.len(), sent.len());
    Ok(())
}

#[test]
fn what_was_rolled_back_stays_so_over_a_restart_until_another_file_comes() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let state = tempfile::tempdir()?;
    let setup = |component: &[u8]| {
        let setup = scenario.setup().ahead(&format!("state = \"{}\"\n\n", state.path().display()));
        setup.handler(scenario.handler("commit_interval = \"20ms\"").component(component))
    };
    let good = host::guest_bytes("store")?;
    // It refuses every record of this test.
    let (bad, mended) = (host::guest_bytes("weather")?, host::with_another_digest(&good, 1));
    let mut first = setup(&good).start()?;
    let digest = live(&first)?;
    first.swap_bytes(&scenario.handler, &bad)?;
    wait::until("the bad build to be live", DEADLINE, || Ok((live(&first)? != digest).then_some(())))?;
    let told = first.ask(&["guests", "rollback", &scenario.handler])?;
    ensure!(told.contains("set aside until another file comes, also after a restart"), "{told}");
    assert_eq!(first.terminate(DEADLINE)?.code, Some(0));

    let mut second = setup(&bad).start()?;
    assert_eq!(live(&second)?, digest, "the bad file lies in the folder, and does not run");
    let list = second.ask(&["guests", "list"])?;
    ensure!(list.contains("was rolled back from and is set aside"), "{list}");
    scenario.send(&second, &Load::batches("load", 200))?;
    scenario.wait_until_committed(DEADLINE)?;
    second.swap_bytes(&scenario.handler, &mended)?;
    wait::until("the mended build to be live", DEADLINE, || Ok((live(&second)? != digest).then_some(())))?;
    assert_eq!(second.terminate(DEADLINE)?.code, Some(0));
    let summary = scenario.judge(Vec::new(), 0)??;
    assert_eq!((summary.stored, summary.dead), (200, 0));

    let third = setup(&bad).start()?;
    ensure!(live(&third)? != digest, "after another file it is a deployment like any other");
    Ok(())
}

/// The digest that the host's only handler runs.
fn live(host: &Host) -> Result<String> {
    let handlers: Value = serde_json::from_str(&host.ask(&["guests", "list", "--json"])?)?;
    Ok(handlers[0]["revision"].as_str().context("a handler that runs")?.to_owned())
}

#[test]
fn a_file_that_is_no_good_guest_changes_nothing() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let host = scenario.setup().handler(scenario.handler("")).start()?;
    let good = host::guest_bytes("store")?;
    let files = [
        ("a half-written file", good[..good.len() / 2].to_vec()),
        ("an empty file", Vec::new()),
        ("a foreign file", b"#!/bin/sh\n".to_vec()),
        ("a guest that refuses in `init`", host::guest_bytes("refusing")?),
        ("a component that is no handler", wat::parse_str("(component)")?),
    ];
    for (number, (what, bytes)) in files.iter().enumerate() {
        host.swap_bytes(&scenario.handler, bytes)?;
        let rejected = || {
            let metrics = host.metrics()?;
            let count = metrics.sum("tidemill_guest_rejected_loads_total", &[("handler", &scenario.handler)]);
            Ok((count >= (number + 1) as f64).then_some(()))
        };
        wait::until(&format!("{what} to be rejected"), DEADLINE, rejected)?;
        scenario.send(&host, &Load::batches(&format!("after-{number}"), 200))?;
        scenario.wait_until_committed(DEADLINE).with_context(|| format!("after {what}"))?;
    }
    assert_eq!(host.metrics()?.sum("tidemill_guest_swaps_total", &[]), 0.0);
    scenario.judge(Vec::new(), 0)??;
    Ok(())
}
