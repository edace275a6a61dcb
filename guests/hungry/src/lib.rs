//! Takes memory, a mebibyte at a time, until there is none.
//!
//! Config: `when`, to do so only for records with this value (default: all).

use tidemill_guest::{Record, Result, config, handler};

#[handler]
fn handle(record: Record) -> Result<()> {
    if config::get("when")?.is_none_or(|when| record.value.as_deref() == Some(when.as_bytes())) {
        let mut taken = Vec::new();
        loop {
            taken.push(std::hint::black_box(vec![1_u8; 1 << 20]));
        }
    }
    Ok(())
}
