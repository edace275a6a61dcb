//! Never returns.
//!
//! Config: `when`, to loop only for records with this value (default: all).

use tidemill_guest::{Record, Result, config, handler};

#[handler]
fn handle(record: Record) -> Result<()> {
    if config::get("when")?.is_none_or(|when| record.value.as_deref() == Some(when.as_bytes())) {
        let mut turns = 0_u64;
        loop {
            turns = std::hint::black_box(turns.wrapping_add(1));
        }
    }
    Ok(())
}
