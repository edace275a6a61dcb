//! What happens to brokers.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use xtask::lab::wait;

use super::host;
use super::stage::{DEADLINE, Stage};
use crate::topics;

/// How long the only broker is away before it is started again, beside the seconds that its start takes.
const AWAY: Duration = Duration::from_secs(1);
/// The group's offsets, which have replicas too.
const OFFSETS: &str = "__consumer_offsets";
const NODES: u16 = 3;
/// A frozen broker's session with its controllers ends after 6 s: then others lead its partitions.
const FROZEN_MAX: Duration = Duration::from_secs(40);

pub(super) fn killed(stage: &mut Stage) -> Result<()> {
    let moment = stage.amid(0)?;
    stage.kafka()?.kill(1)?;
    thread::sleep(AWAY);
    stage.kafka()?.start(1)?;
    let serves = Instant::now();
    // Hosts go on with what they have, and can't commit it.
    stage.may_redeliver(&moment);
    stage.recover(&moment, serves)
}

/// The host can't go on by itself from what it knew: both begin anew.
pub(super) fn killed_with_host(stage: &mut Stage) -> Result<()> {
    let moment = stage.amid(0)?;
    stage.kafka()?.kill(1)?;
    host::kill_for_good(stage, 0)?;
    thread::sleep(AWAY);
    stage.kafka()?.start(1)?;
    let serves = Instant::now();
    // Nobody works: what is stored and what is committed stand still.
    let (partitions, committed) = (stage.partitions(), stage.committed()?);
    stage.may_redeliver_what_is_stored(&partitions, &committed)?;
    stage.replace(0)?;
    stage.recover(&moment, serves)
}

pub(super) fn killed_of_three(stage: &mut Stage) -> Result<()> {
    // The first one leads a third of the partitions, and often coordinates the group; the full form takes each.
    let last = if stage.form.is_quick { 1 } else { NODES };
    for node in 1..=last {
        wait_until_in_sync(stage)?;
        let moment = stage.amid(0)?;
        stage.kafka()?.kill(node)?;
        let struck = Instant::now();
        stage.recover(&moment, struck)?;
        stage.may_redeliver_since(&moment)?;
        stage.kafka()?.start(node)?;
    }
    wait_until_in_sync(stage)
}

pub(super) fn frozen(stage: &mut Stage) -> Result<()> {
    wait_until_in_sync(stage)?;
    let node = u16::try_from(stage.recoveries().len())? % NODES + 1;
    let moment = stage.amid(0)?;
    stage.kafka()?.pause(node)?;
    let struck = Instant::now();
    let led = wait::until("the frozen broker to lead nothing", FROZEN_MAX, || {
        let replicas = topics::replicas(&stage.scenario.bootstrap, &stage.scenario.topic)?;
        Ok(replicas.iter().all(|replicas| replicas.first() != Some(&i32::from(node))).then_some(()))
    });
    let recovered = led.and_then(|()| stage.recover(&moment, struck));
    // Whatever came of it, the next row needs the broker.
    stage.kafka()?.resume(node)?;
    recovered?;
    stage.may_redeliver_since(&moment)?;
    wait_until_in_sync(stage)
}

pub(super) fn leaders_moved(stage: &mut Stage) -> Result<()> {
    wait_until_in_sync(stage)?;
    let (bootstrap, topic) = (stage.scenario.bootstrap.clone(), stage.scenario.topic.clone());
    let before = topics::replicas(&bootstrap, &topic)?;
    let turned: Vec<Vec<i32>> =
        before.iter().map(|replicas| replicas.iter().cycle().skip(1).take(replicas.len()).copied().collect()).collect();
    let partitions: Vec<_> = turned
        .iter()
        .enumerate()
        .map(|(partition, replicas)| json!({"topic": topic, "partition": partition, "replicas": replicas}))
        .collect();
    let folder = tempfile::tempdir()?;
    let order = folder.path().join("order.json");
    std::fs::write(&order, json!({"version": 1, "partitions": partitions}).to_string())?;
    let order = order.to_str().context("a temporary folder's path is UTF-8")?;
    // The new order of the replicas says who is preferred; the election makes those the leaders.
    stage.kafka()?.command("reassign.ReassignPartitionsCommand", &["--reassignment-json-file", order, "--execute"])?;
    let moment = stage.amid(0)?;
    let election = ["--election-type", "preferred", "--path-to-json-file", order];
    stage.kafka()?.command("LeaderElectionCommand", &election)?;
    wait::until("the leaders to have moved", DEADLINE, || {
        let now = topics::replicas(&bootstrap, &topic)?;
        Ok(now.iter().zip(&before).all(|(now, before)| now.first() != before.first()).then_some(()))
    })?;
    stage.recover(&moment, Instant::now())
}

pub(super) fn disk_full(stage: &mut Stage) -> Result<()> {
    let moment = stage.amid(0)?;
    stage.cluster()?.disk.as_ref().context("this cluster has a small disk")?.fill()?;
    let acked = stage.scenario.ledger.acked();
    wait::until("the broker to end", DEADLINE, || Ok(stage.kafka()?.has_ended(1)?.then_some(())))?;
    stage.notes.push(format!("{} records were accepted while the disk filled", stage.scenario.ledger.acked() - acked));
    stage.cluster()?.disk.as_ref().context("this cluster has a small disk")?.clear()?;
    stage.kafka()?.start(1)?;
    let serves = Instant::now();
    stage.may_redeliver_since(&moment)?;
    stage.recover(&moment, serves)
}

fn wait_until_in_sync(stage: &Stage) -> Result<()> {
    for topic in [stage.scenario.topic.as_str(), OFFSETS] {
        topics::wait_until_in_sync(&stage.scenario.bootstrap, topic, usize::from(NODES), DEADLINE)?;
    }
    Ok(())
}
