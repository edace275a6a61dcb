//! What happens to the database.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Form;
use super::stage::{HOST_SESSIONS, Stage};
use crate::proxy::Link;
use crate::results::Results;

/// How long it is away, beside the time that its start takes.
const AWAY: Duration = Duration::from_secs(3);
const SLOW: Duration = Duration::from_millis(75);
const SLOW_FOR: Duration = Duration::from_secs(5);
const COMMITTING_DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn stopped(stage: &mut Stage, _form: Form) -> Result<()> {
    let moment = stage.amid(0)?;
    stage.database()?.postgres.stop()?;
    stage.may_redeliver_since(&moment)?;
    thread::sleep(AWAY);
    stage.database()?.postgres.start()?;
    let serves = Instant::now();
    stage.recover_flow(serves)?;
    stage.catch_up(&moment, serves)
}

pub(super) fn killed(stage: &mut Stage, _form: Form) -> Result<()> {
    let started = Instant::now();
    let moment = loop {
        let moment = stage.amid(0)?;
        if committing(stage)? > 0 {
            break moment;
        }
        if started.elapsed() > COMMITTING_DEADLINE {
            bail!(super::stage::NotInjected);
        }
    };
    stage.database()?.postgres.kill()?;
    stage.may_redeliver_since(&moment)?;
    thread::sleep(AWAY);
    stage.database()?.postgres.start()?;
    let serves = Instant::now();
    stage.recover_flow(serves)?;
    stage.catch_up(&moment, serves)
}

/// Sessions of hosts that are within COMMIT now.
fn committing(stage: &Stage) -> Result<i64> {
    const QUERY: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()
        AND state = 'active' AND query ILIKE 'commit%'";
    match &stage.results {
        Results::Table(sink) => sink.number(QUERY, &[&HOST_SESSIONS]),
        Results::Topic(_) => bail!("this fault needs results in a table"),
    }
}

pub(super) fn slow(stage: &mut Stage, _form: Form) -> Result<()> {
    let moment = stage.amid(0)?;
    stage.database()?.proxy.set(Link::Slow(SLOW));
    thread::sleep(SLOW_FOR);
    stage.database()?.proxy.set(Link::Open);
    stage.recover(&moment, Instant::now())
}
