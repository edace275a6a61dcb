//! Deliveries and their offsets, in a transaction that has the one permit to write.

use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tidemill_core::record::Offset;

use super::{
    error,
    pool::{Handle, Loan},
    session::{SqliteConnection, SqliteTransaction},
};
use crate::{
    fault::Fault,
    store::{
        Delivery, SqlError, Transaction,
        offsets::{self, Fence, Place, Standing},
    },
};

/// Takes a row over.
pub(super) async fn own(loan: Loan, place: Place) -> Result<Standing, SqlError> {
    alone(loan, move |connection| {
        connection.execute_batch(offsets::CREATE)?;
        let place = params![place.group, place.topic, place.partition];
        connection.prepare(offsets::OWN)?.query_row(place, standing_of)
    })
    .await
}

/// Reads a row.
pub(super) async fn standing(loan: Loan, place: Place) -> Result<Option<Standing>, SqlError> {
    alone(loan, move |connection| {
        connection.execute_batch(offsets::CREATE)?;
        let mut select = connection.prepare(
            "SELECT owner_epoch, next_offset FROM tidemill_offsets
             WHERE consumer_group = $1 AND topic = $2 AND topic_partition = $3",
        )?;
        select.query_row(params![place.group, place.topic, place.partition], standing_of).optional()
    })
    .await
}

fn standing_of(row: &Row<'_>) -> rusqlite::Result<Standing> {
    Ok(Standing { epoch: row.get(0)?, next: row.get(1)? })
}

/// Speaks in the host's name, in a transaction of its own.
async fn alone<T: Send + 'static>(
    loan: Loan,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, SqlError> {
    SqliteConnection::new(loan).write(move |handle, _, _| handle.as_host(work).map_err(error::statement)).await
}

/// How many rows took the offset: one, or none.
fn store(connection: &Connection, fence: &Fence, next: Offset) -> rusqlite::Result<usize> {
    let statement = if Fault::IgnoreFence.is_on() { offsets::STORE_UNFENCED } else { offsets::STORE };
    let Fence { place, standing } = fence;
    let (group, topic, partition) = (&place.group, &place.topic, place.partition);
    connection.prepare(statement)?.execute(params![next, group, topic, partition, standing.epoch, standing.next])
}

impl Delivery for SqliteTransaction {
    fn commit(mut self: Box<Self>, fence: Fence, next: Offset) -> BoxFuture<'static, Result<bool, SqlError>> {
        let store = move |handle: &Handle, _: &_, _: &_| {
            if handle.as_host(|connection| store(connection, &fence, next)).map_err(error::statement)? == 0 {
                return handle.control("ROLLBACK").map(|()| false).map_err(error::statement);
            }
            handle.control("COMMIT").map(|()| true).map_err(error::commit)
        };
        Box::pin(async move { self.run(store).await })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), SqlError>> {
        Box::pin(async move { Transaction::rollback(self).await.map(drop) })
    }
}
