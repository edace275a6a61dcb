//! Deliveries and their offsets: the row's lock is what makes an old owner wait for a new one, or the other way round.

use deadpool_postgres::ClientWrapper;
use futures_util::future::BoxFuture;
use tidemill_core::record::Offset;
use tokio_postgres::{Row, error::SqlState};

use super::{
    lease::{Bounds, Failure, Lease, prepare},
    session::PostgresTransaction,
};
use crate::{
    fault::Fault,
    store::{
        Delivery, SqlError, Transaction,
        offsets::{self, Fence, Place, Standing},
    },
};

/// Lets one host at a time make the table: `IF NOT EXISTS` alone fails for the slower of two that make it together.
const ALONE: &str = "SELECT pg_advisory_xact_lock(hashtextextended('tidemill_offsets', 0))";

/// Waits until nobody is amid changing the row.
const STANDING: &str = "SELECT owner_epoch, next_offset FROM tidemill_offsets
    WHERE consumer_group = $1 AND topic = $2 AND topic_partition = $3 FOR UPDATE";

/// Takes a row over.
pub(super) async fn own(lease: Lease, place: &Place) -> Result<Standing, SqlError> {
    let row = ask_of_table(lease, true, place, offsets::OWN).await?;
    row.map(|row| standing_of(&row)).ok_or_else(|| SqlError::Unavailable("the database gave no row".to_owned()))
}

/// Reads a row.
pub(super) async fn standing(lease: Lease, place: &Place) -> Result<Option<Standing>, SqlError> {
    Ok(ask_of_table(lease, false, place, STANDING).await?.map(|row| standing_of(&row)))
}

fn standing_of(row: &Row) -> Standing {
    Standing { epoch: row.get(0), next: row.get(1) }
}

/// Runs a statement about one row, in the second try after making the table.
async fn ask_of_table(
    mut lease: Lease,
    committing: bool,
    place: &Place,
    statement: &str,
) -> Result<Option<Row>, SqlError> {
    let bounds = lease.bounds;
    let question = async |client: &ClientWrapper| match about(client, place, statement, bounds).await {
        Err(Failure::Server(error)) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
            client.batch_execute(&format!("{ALONE}; {}", offsets::CREATE)).await?;
            about(client, place, statement, bounds).await
        }
        answer => answer,
    };
    lease.ask(committing, question).await
}

async fn about(client: &ClientWrapper, place: &Place, statement: &str, bounds: Bounds) -> Result<Option<Row>, Failure> {
    let prepared = prepare(client, statement, bounds).await?;
    Ok(client.query_opt(&prepared, &[&place.group, &place.topic, &place.partition]).await?)
}

/// How many rows took the offset: one, or none.
async fn store(lease: &mut Lease, fence: &Fence, next: Offset) -> Result<u64, SqlError> {
    let statement = if Fault::IgnoreFence.is_on() { offsets::STORE_UNFENCED } else { offsets::STORE };
    let Fence { place, standing } = fence;
    let bounds = lease.bounds;
    let question = async |client: &ClientWrapper| {
        let prepared = prepare(client, statement, bounds).await?;
        let (group, topic, partition) = (&place.group, &place.topic, &place.partition);
        Ok(client.execute(&prepared, &[&next, group, topic, partition, &standing.epoch, &standing.next]).await?)
    };
    lease.ask(false, question).await
}

impl Delivery for PostgresTransaction {
    fn commit(mut self: Box<Self>, fence: Fence, next: Offset) -> BoxFuture<'static, Result<bool, SqlError>> {
        Box::pin(async move {
            if self.run(async |lease: &mut Lease| store(lease, &fence, next).await).await? == 0 {
                Transaction::rollback(self).await?;
                return Ok(false);
            }
            Transaction::commit(self).await.map(|_| true)
        })
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), SqlError>> {
        Box::pin(async move { Transaction::rollback(self).await.map(drop) })
    }
}
