//! Notes every record of the orders topic once, good or bad: a second handler beside `orders`, with a group of its own.
//!
//! Writes table `audit` of database `main`, one row a record, found by the record's id when it comes again.

use tidemill_guest::{Record, Result, handler, params, sql};

#[handler]
fn handle(record: Record) -> Result<()> {
    let value_bytes = record.value.as_ref().map(|value| i64::try_from(value.len())).transpose()?;
    sql::open("main")?.execute(
        "INSERT INTO audit (record_id, value_bytes) VALUES ($1, $2) ON CONFLICT (record_id) DO NOTHING",
        params![record.id(), value_bytes],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
