//! What happens to the database.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::scene::HOST_SESSIONS;
use super::stage::{Moment, NotInjected, Stage};
use crate::books::Books;
use crate::ledger::Place;
use crate::proxy::Link;
use crate::results::{Booked, Results};
use crate::topics::{Kept, Tail};

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

/// Another owner, whom the group does not know, takes the rows of all partitions over and books what the host has in hand.
pub(super) fn taken_over(stage: &mut Stage) -> Result<()> {
    let Results::Books(Booked { books: Books::Postgres(sink), bootstrap, source }) = stage.results.clone() else {
        bail!("this fault needs books in PostgreSQL");
    };
    let mut tail = Tail::new(&bootstrap, &source)?;
    let mut known = tail.news()?;
    let moment = stage.amid(0)?;
    let rows = sink.query(TAKE, &[&stage.scenario.handler])?;
    let struck = Instant::now();
    known.extend(tail.news()?);
    let mut booked = 0;
    for row in rows {
        let (partition, epoch, next): (i32, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let ahead = known.iter().filter(|kept| kept.place.partition == partition && kept.place.offset >= next);
        let (ids, accounts): (Vec<String>, Vec<String>) = ahead.map(|kept| (id(&source, kept), account(kept))).unzip();
        let end = next + i64::try_from(ids.len())?;
        booked += sink.query(BOOK, &[&stage.scenario.handler, &partition, &epoch, &end, &ids, &accounts])?.len();
    }
    if booked == 0 {
        bail!(NotInjected);
    }
    stage.notes.push(format!("the other owner booked {booked} records"));
    stage.recover(&moment, struck)
}

/// From here on nobody commits who owned them before.
const TAKE: &str = "UPDATE tidemill_offsets SET owner_epoch = owner_epoch + 1 WHERE consumer_group = $1
    RETURNING topic_partition, owner_epoch, coalesce(next_offset, 0)";

/// Books nothing if the row has another owner by now.
const BOOK: &str = "WITH mine AS (
        UPDATE tidemill_offsets SET next_offset = $4
        WHERE consumer_group = $1 AND topic_partition = $2 AND owner_epoch = $3 RETURNING 1
    )
    INSERT INTO entries (record_id, account)
    SELECT id, account FROM mine, unnest($5::TEXT[], $6::TEXT[]) AS ahead (id, account) RETURNING 1";

fn id(topic: &str, kept: &Kept) -> String {
    let Place { partition, offset } = kept.place;
    format!("{topic}/{partition}/{offset}/{}", kept.timestamp.unwrap_or(-1))
}

fn account(kept: &Kept) -> String {
    String::from_utf8_lossy(kept.key.as_deref().unwrap_or_default()).into_owned()
}
