//! Asks for each record to come again, for ever.
//!
//! Config: `when`, to do so only for records with this value (default: all).

use tidemill_guest::{Record, Result, config, handler, retry};

#[handler]
fn handle(record: Record) -> Result<()> {
    if config::get("when")?.is_none_or(|when| record.value.as_deref() == Some(when.as_bytes())) {
        return retry("failing", format_args!("attempt {} failed, as each will", record.attempt));
    }
    Ok(())
}
