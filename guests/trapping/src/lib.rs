//! Panics, which ends the instance.
//!
//! Config: `when`, to panic only for records with this value (default: all).

use tidemill_guest::{Record, Result, config, handler};

#[handler]
fn handle(record: Record) -> Result<()> {
    if config::get("when")?.is_none_or(|when| record.value.as_deref() == Some(when.as_bytes())) {
        panic!("this guest panics on purpose");
    }
    Ok(())
}
