//! Books each record to its account, which is the record's key, and counts the account's entries with a plain addition.
//!
//! Nothing here finds out that a record comes again: it rests on `delivery = "exactly-once"` with a transaction of database `main`, where it
//! writes tables `entries` and `accounts`, and refuses to run without. Config: `poison`, a key that is a dead letter after it was booked.

use tidemill_guest::{Guarantee, Record, Refusal, Result, Setup, config, dead_letter, handler, params, sql};

fn ready(setup: &Setup) -> Result<(), Refusal> {
    setup.require(Guarantee::SqlTransaction)
}

#[handler(init = ready)]
fn handle(record: Record) -> Result<()> {
    let account = str::from_utf8(record.key.as_deref().unwrap_or_default())?;
    let tx = sql::current()?;
    tx.execute("INSERT INTO entries (record_id, account) VALUES ($1, $2)", params![record.id(), account])?;
    tx.execute(
        "INSERT INTO accounts (account, entries) VALUES ($1, 1) \
         ON CONFLICT (account) DO UPDATE SET entries = accounts.entries + 1",
        params![account],
    )?;
    if account == config::parse_or("poison", String::new())? && !account.is_empty() {
        return dead_letter("poison", "what was booked for it is rolled back");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
