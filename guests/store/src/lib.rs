//! Stores the key and value of each record under the record's id, once.
//!
//! Writes table `seen` of database `main`, all the records of a call in one transaction.

use tidemill_guest::sql::{self, ToValue};
use tidemill_guest::{Batch, Result, handler};

#[handler]
fn handle(batch: &mut Batch) -> Result<()> {
    let rows: Vec<_> = batch
        .records()
        .iter()
        .map(|record| vec![record.id().to_value(), record.key.to_value(), record.value.to_value()])
        .collect();
    let tx = sql::open("main")?.begin()?;
    tx.execute_many(
        "INSERT INTO seen (record_id, key, value) VALUES ($1, $2, $3) ON CONFLICT (record_id) DO NOTHING",
        &rows,
    )?;
    tx.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests;
