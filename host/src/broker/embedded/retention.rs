//! Deleting what is too old or too much, a segment at a time.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use tidemill_core::record::Offset;

use super::append::Tail;
use super::config::Retention;
use super::topics::Partition;

/// So many segments are deleted before appends have their turn again.
const SEGMENTS_PER_PASS: usize = 64;

struct Oldest {
    first: Offset,
    next: Offset,
    bytes: u64,
    appended_ms: i64,
}

/// Deletes a partition's oldest segments while they are beyond what is kept. Returns whether more may be left.
pub(super) fn apply(
    connection: &mut Connection,
    partition: &Arc<Partition>,
    tail: &mut Tail,
    retention: Retention,
    now_ms: i64,
) -> rusqlite::Result<bool> {
    for _ in 0..SEGMENTS_PER_PASS {
        let Some(oldest) = oldest(connection, partition.id)? else { return Ok(false) };
        let too_much = tail.bytes > retention.bytes && oldest.next < tail.next;
        let too_old = now_ms.saturating_sub(oldest.appended_ms) >= retention.age.as_millis() as i64;
        if !too_much && !too_old {
            return Ok(false);
        }
        delete(connection, partition.id, &oldest)?;
        tail.deleted(oldest.first, oldest.bytes);
        partition.publish_start(oldest.next);
        tracing::debug!(
            partition = partition.id,
            from = oldest.first,
            to = oldest.next,
            too_old,
            "old records are deleted"
        );
    }
    Ok(true)
}

fn oldest(connection: &Connection, partition: i64) -> rusqlite::Result<Option<Oldest>> {
    let mut statement = connection.prepare_cached(
        "SELECT first, next, bytes, appended_ms FROM segment WHERE partition = ?1 ORDER BY first LIMIT 1",
    )?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Oldest {
            first: row.get(0)?,
            next: row.get(1)?,
            bytes: row.get::<_, i64>(2)? as u64,
            appended_ms: row.get(3)?,
        })
    };
    statement.query_row([partition], read).optional()
}

fn delete(connection: &mut Connection, partition: i64, oldest: &Oldest) -> rusqlite::Result<()> {
    let deleting = connection.transaction()?;
    deleting.prepare_cached(&format!("DELETE FROM records_{partition} WHERE offset < ?1"))?.execute([oldest.next])?;
    deleting
        .prepare_cached("DELETE FROM segment WHERE partition = ?1 AND first = ?2")?
        .execute(params![partition, oldest.first])?;
    deleting
        .prepare_cached("UPDATE partition SET start = ?2 WHERE id = ?1")?
        .execute(params![partition, oldest.next])?;
    deleting.commit()
}
