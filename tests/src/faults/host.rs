//! What happens to hosts.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::lab::wait;

use super::SESSION_TIMEOUT;
use super::database;
use super::stage::{DEADLINE, Moment, Stage};
use crate::host::Host;

/// Where in its work a host is when it is killed is left to chance.
const RANDOM_MAX: Duration = Duration::from_secs(2);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const STORM_ROUNDS: usize = 3;

pub(super) fn killed(stage: &mut Stage) -> Result<()> {
    let victim = stage.recoveries().len() % stage.hosts.len();
    let (moment, struck) = kill(stage, victim)?;
    stage.recover(&moment, struck)?;
    stage.replace(victim)
}

pub(super) fn only_one_killed(stage: &mut Stage) -> Result<()> {
    let (moment, struck) = kill(stage, 0)?;
    stage.replace(0)?;
    stage.recover(&moment, struck)
}

/// At a random moment.
fn kill(stage: &mut Stage, victim: usize) -> Result<(Moment, Instant)> {
    thread::sleep(stage.moment_within(RANDOM_MAX));
    let partitions = stage.partitions_of(victim)?;
    let moment = stage.amid(victim)?;
    let struck = kill_for_good(stage, victim)?;
    let committed = stage.committed()?;
    stage.may_redeliver_what_is_stored(&partitions, &committed)?;
    Ok((moment, struck))
}

/// Kills a host, and waits until nothing comes of what it had asked for.
pub(super) fn kill_for_good(stage: &mut Stage, victim: usize) -> Result<Instant> {
    let before = sessions(stage)?;
    stage.hosts[victim].kill()?;
    let struck = Instant::now();
    // What it had sent the database does to its end.
    wait::until("the dead host's sessions to end", DEADLINE, || {
        Ok((sessions(stage)? < before || before == 0).then_some(()))
    })?;
    Ok(struck)
}

/// Sessions of hosts in the database.
fn sessions(stage: &Stage) -> Result<i64> {
    const QUERY: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()";
    Ok(database::sessions(stage, QUERY)?.unwrap_or(0))
}

pub(super) fn terminated(stage: &mut Stage) -> Result<()> {
    let victim = stage.recoveries().len() % stage.hosts.len();
    thread::sleep(stage.moment_within(RANDOM_MAX));
    let moment = stage.amid(victim)?;
    let ended = stage.hosts[victim].terminate(STOP_DEADLINE)?;
    ensure!(ended.code == Some(0), "the host ended with {ended:?}\n{}", stage.hosts[victim].log());
    stage.recovered(ended.took);
    stage.wait_until_caught_up(&moment)?;
    stage.replace(victim)
}

/// A static member is back under its name before it is missed: nobody else's partitions move.
pub(super) fn restarted(stage: &mut Stage) -> Result<()> {
    let victim = stage.recoveries().len() % stage.hosts.len();
    let other = (victim + 1) % stage.hosts.len();
    thread::sleep(stage.moment_within(RANDOM_MAX));
    let before = rebalances(stage, other, &[])?;
    let moment = stage.amid(victim)?;
    let struck = Instant::now();
    let ended = stage.hosts[victim].terminate(STOP_DEADLINE)?;
    ensure!(ended.code == Some(0), "the host ended with {ended:?}\n{}", stage.hosts[victim].log());
    stage.replace(victim)?;
    let away = struck.elapsed();
    stage.recover(&moment, struck)?;
    let seen = rebalances(stage, other, &[])? - before;
    stage.notes.push(format!("away for {:.1} s; the other host saw {seen} rebalances", away.as_secs_f64()));
    // On a machine that is too busy it is missed in spite of its name.
    ensure!(seen == 0.0 || away > SESSION_TIMEOUT, "a partition moved, although the host was back in time");
    Ok(())
}

fn rebalances(stage: &Stage, host: usize, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(stage.hosts[host].metrics()?.sum("tidemill_receive_rebalances_total", labels))
}

const LOST: &[(&str, &str)] = &[("kind", "lost")];

pub(super) fn frozen(stage: &mut Stage) -> Result<()> {
    let lost = rebalances(stage, 0, LOST)?;
    let moment = stage.amid(0)?;
    stage.hosts[0].pause()?;
    let struck = Instant::now();
    stage.may_redeliver_since(&moment)?;
    stage.may_come_late()?;
    stage.join()?;
    stage.recover(&moment, struck)?;
    stage.hosts[0].resume()?;
    leave_after_loss(stage, lost)
}

/// It wakes amid the first work of the one that has taken over, with calls, outputs and transactions in hand.
pub(super) fn woken(stage: &mut Stage) -> Result<()> {
    let lost = rebalances(stage, 0, LOST)?;
    let moment = stage.amid(0)?;
    stage.hosts[0].pause()?;
    stage.may_redeliver_since(&moment)?;
    stage.may_come_late()?;
    stage.join()?;
    stage.wait_until_at_work(1)?;
    stage.hosts[0].resume()?;
    let woke = Instant::now();
    stage.recover(&moment, woke)?;
    leave_after_loss(stage, lost)
}

/// The woken host may join its group and get records; then it has gone on to a good end.
fn leave_after_loss(stage: &mut Stage, lost: f64) -> Result<()> {
    wait::until("the woken host to notice that its partitions are lost", DEADLINE, || {
        Ok((rebalances(stage, 0, LOST)? > lost && stage.hosts[0].admin("/readyz")?.0 == 200).then_some(()))
    })?;
    stage.wait_until_at_work(0)?;
    let woken = stage.hosts.remove(0);
    end(woken)
}

fn end(mut host: Host) -> Result<()> {
    let ended = host.terminate(STOP_DEADLINE)?;
    ensure!(ended.code == Some(0), "the host ended with {ended:?}\n{}", host.log());
    Ok(())
}

pub(super) fn ingest_killed(stage: &mut Stage) -> Result<()> {
    let moment = stage.amid_requests()?;
    stage.door.kill()?;
    let struck = Instant::now();
    let accepted = stage.scenario.ledger.acked();
    stage.replace_door()?;
    wait::until("the next record to be accepted", DEADLINE, || {
        Ok((stage.scenario.ledger.acked() > accepted).then_some(()))
    })?;
    stage.recovered(struck.elapsed());
    stage.wait_until_caught_up(&moment)
}

pub(super) fn storm(stage: &mut Stage) -> Result<()> {
    for _ in 0..STORM_ROUNDS {
        let moment = stage.amid(0)?;
        let began = Instant::now();
        stage.join()?;
        stage.wait_until_at_work(stage.hosts.len() - 1)?;
        stage.recover(&moment, began)?;
        let moment = stage.amid(0)?;
        let began = Instant::now();
        // The older one leaves, so that in the end everybody is new.
        let leaving = stage.hosts.remove(0);
        end(leaving).context("leave the group")?;
        stage.recover(&moment, began)?;
    }
    Ok(())
}
