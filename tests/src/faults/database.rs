//! What happens to the database.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::scene::HOST_SESSIONS;
use super::stage::{Moment, NotInjected, Stage};
use crate::books::Books;
use crate::proxy::Link;
use crate::results::{Booked, Results};

/// How long it is away, beside the time that its start takes.
const AWAY: Duration = Duration::from_secs(3);
const SLOW: Duration = Duration::from_millis(75);
const SLOW_FOR: Duration = Duration::from_secs(5);
const COMMITTING_DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn stopped(stage: &mut Stage) -> Result<()> {
    let moment = stage.amid(0)?;
    stage.database()?.postgres.stop()?;
    come_back(stage, &moment)
}

pub(super) fn killed(stage: &mut Stage) -> Result<()> {
    let started = Instant::now();
    let moment = loop {
        let moment = stage.amid(0)?;
        if committing(stage)? > 0 {
            break moment;
        }
        if started.elapsed() > COMMITTING_DEADLINE {
            bail!(NotInjected);
        }
    };
    stage.database()?.postgres.kill()?;
    come_back(stage, &moment)
}

/// What is stored and not committed when it comes back is all that may be stored again.
fn come_back(stage: &mut Stage, moment: &Moment) -> Result<()> {
    thread::sleep(AWAY);
    // What was settled is committed by now, and nothing was settled since.
    let committed = stage.committed()?;
    stage.database()?.postgres.start()?;
    let serves = Instant::now();
    stage.may_redeliver_what_is_stored(&stage.partitions(), &committed)?;
    stage.recover_flow(serves)?;
    stage.catch_up(moment, serves)
}

/// Sessions of hosts that are within COMMIT now.
fn committing(stage: &Stage) -> Result<i64> {
    const QUERY: &str =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()
        AND state = 'active' AND query ILIKE 'commit%'";
    sessions(stage, QUERY)?.context("this fault needs results in PostgreSQL")
}

/// Asks PostgreSQL about the sessions of hosts, if that is where results are.
pub(super) fn sessions(stage: &Stage, query: &str) -> Result<Option<i64>> {
    match &stage.results {
        Results::Table(sink) | Results::Books(Booked { books: Books::Postgres(sink), .. }) => {
            Ok(Some(sink.number(query, &[&HOST_SESSIONS])?))
        }
        Results::Topic(_) | Results::Books(Booked { books: Books::Sqlite(_), .. }) => Ok(None),
    }
}

pub(super) fn slow(stage: &mut Stage) -> Result<()> {
    let moment = stage.amid(0)?;
    stage.database()?.proxy.set(Link::Slow(SLOW));
    thread::sleep(SLOW_FOR);
    stage.database()?.proxy.set(Link::Open);
    stage.recover(&moment, Instant::now())
}
