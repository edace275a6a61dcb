//! Deliveries and their offsets, in a transaction that has the one permit to write.

use futures_util::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tidemill_core::record::Offset;

use super::{
    error,
    pool::{Handle, Loan},
    session::SqliteTransaction,
};
use crate::{
    fault::Fault,
    store::{
        Delivery, RowSet, SqlError, Statements, Transaction, Value,
        offsets::{self, Fence, Place, Standing},
    },
};

/// A delivery's transaction.
pub(super) struct SqliteDelivery(SqliteTransaction);

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
    let mut transaction = SqliteTransaction::begin(loan).await?;
    let done = transaction.run(move |handle, _, _| handle.as_host(work).map_err(error::statement)).await?;
    Box::new(transaction).commit().await?;
    Ok(done)
}

impl SqliteDelivery {
    /// Opens one.
    pub(super) async fn begin(loan: Loan) -> Result<Self, SqlError> {
        Ok(Self(SqliteTransaction::begin(loan).await?))
    }

    async fn end(mut self, fence: Fence, next: Offset) -> Result<bool, SqlError> {
        let store = move |handle: &Handle, _: &_, _: &_| {
            if handle.as_host(|connection| store(connection, &fence, next)).map_err(error::statement)? == 0 {
                return handle.control("ROLLBACK").map(|()| false).map_err(error::statement);
            }
            handle.control("COMMIT").map(|()| true).map_err(error::commit)
        };
        self.0.run(store).await
    }
}

/// How many rows took the offset: one, or none.
fn store(connection: &Connection, fence: &Fence, next: Offset) -> rusqlite::Result<usize> {
    let statement = if Fault::IgnoreFence.is_on() { offsets::STORE_UNFENCED } else { offsets::STORE };
    let Fence { place, standing } = fence;
    let (group, topic, partition) = (&place.group, &place.topic, place.partition);
    connection.prepare(statement)?.execute(params![next, group, topic, partition, standing.epoch, standing.next])
}

impl Statements for SqliteDelivery {
    fn query(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<RowSet, SqlError>> {
        self.0.query(statement, params)
    }

    fn execute(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<u64, SqlError>> {
        self.0.execute(statement, params)
    }

    fn execute_many(&mut self, statement: String, params: Vec<Vec<Value>>) -> BoxFuture<'_, Result<u64, SqlError>> {
        self.0.execute_many(statement, params)
    }
}

impl Delivery for SqliteDelivery {
    fn commit(self: Box<Self>, fence: Fence, next: Offset) -> BoxFuture<'static, Result<bool, SqlError>> {
        Box::pin(self.end(fence, next))
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), SqlError>> {
        Box::pin(async move { Transaction::rollback(Box::new(self.0)).await.map(drop) })
    }
}
