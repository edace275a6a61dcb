//! Swapping a guest loses nothing and repeats nothing.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::client::Load;
use tests::host::{self, Handler};
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
