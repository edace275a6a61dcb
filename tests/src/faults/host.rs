//! What happens to hosts.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::lab::wait;

use super::Form;
use super::stage::{DEADLINE, HOST_SESSIONS, Stage};
use crate::results::Results;

/// Where in its work a host is when it is killed is left to chance.
const RANDOM_MAX: Duration = Duration::from_secs(2);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const STORM_ROUNDS: usize = 3;

pub(super) fn killed(stage: &mut Stage, _form: Form) -> Result<()> {
    let victim = stage.recoveries().len() % stage.hosts.len();
    thread::sleep(stage.moment_within(RANDOM_MAX));
    let partitions = stage.partitions_of(victim)?;
    let sessions = sessions(stage)?;
    let moment = stage.amid(victim)?;
    stage.hosts[victim].kill()?;
    let struck = Instant::now();
    // What it had sent the database does to its end.
    wait::until("the dead host's sessions to end", DEADLINE, || {
        Ok((self::sessions(stage)? < sessions || sessions == 0).then_some(()))
    })?;
    stage.may_redeliver_what_is_stored(&partitions)?;
    stage.recover(&moment, struck)?;
    stage.replace(victim)
}

/// Sessions of hosts in the database.
fn sessions(stage: &Stage) -> Result<i64> {
    const QUERY: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()";
    match &stage.results {
        Results::Table(sink) => sink.number(QUERY, &[&HOST_SESSIONS]),
        Results::Topic(_) => Ok(0),
    }
}

pub(super) fn terminated(stage: &mut Stage, _form: Form) -> Result<()> {
    let victim = stage.recoveries().len() % stage.hosts.len();
    thread::sleep(stage.moment_within(RANDOM_MAX));
    let moment = stage.amid(victim)?;
    let ended = stage.hosts[victim].terminate(STOP_DEADLINE)?;
    ensure!(ended.code == Some(0), "the host ended with {ended:?}\n{}", stage.hosts[victim].log());
    stage.recovered(ended.took);
    stage.wait_until_caught_up(&moment)?;
    stage.replace(victim)
}

pub(super) fn frozen(stage: &mut Stage, _form: Form) -> Result<()> {
    let lost = |stage: &Stage| {
        Ok::<_, anyhow::Error>(stage.hosts[0].metrics()?.sum("tidemill_receive_rebalances_total", &[("kind", "lost")]))
    };
    let lost_before = lost(stage)?;
    let moment = stage.amid(0)?;
    stage.hosts[0].pause()?;
    let struck = Instant::now();
    stage.may_redeliver_since(&moment)?;
    stage.join()?;
    stage.recover(&moment, struck)?;
    stage.hosts[0].resume()?;
    wait::until("the woken host to notice that its partitions are lost", DEADLINE, || {
        Ok((lost(stage)? > lost_before && stage.hosts[0].admin("/readyz")?.0 == 200).then_some(()))
    })?;
    // It may join its group and get records; then it has gone on to a good end.
    stage.wait_until_at_work(0)?;
    let woken = stage.hosts.remove(0);
    end(woken)
}

fn end(mut host: crate::host::Host) -> Result<()> {
    let ended = host.terminate(STOP_DEADLINE)?;
    ensure!(ended.code == Some(0), "the host ended with {ended:?}\n{}", host.log());
    Ok(())
}

pub(super) fn ingest_killed(stage: &mut Stage, _form: Form) -> Result<()> {
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

pub(super) fn storm(stage: &mut Stage, _form: Form) -> Result<()> {
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
