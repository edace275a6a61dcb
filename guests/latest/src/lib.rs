//! Keeps the latest value of each key in the key-value store `main`; a record without a value removes its key, one without a key is skipped.

use tidemill_guest::{Record, Result, handler, kv, skip};

#[handler]
fn handle(record: Record) -> Result<()> {
    let Some(key) = record.key.as_deref() else { return skip() };
    let (key, latest) = (str::from_utf8(key)?, kv::open("main")?);
    match record.value.as_deref() {
        Some(value) => latest.set(key, value)?,
        None => latest.delete(key)?,
    }
    Ok(())
}
