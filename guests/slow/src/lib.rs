//! Takes its time for each record: sleeps, and does not compute.
//!
//! Config: `ms`, how long, in milliseconds (default 100); `to`, a topic to forward the record to afterwards (default: none).

use std::time::Duration;

use tidemill_guest::{Context, Record, Result, config, handler};

#[handler]
fn handle(record: Record, ctx: &mut Context) -> Result<()> {
    std::thread::sleep(Duration::from_millis(config::parse_or("ms", 100)?));
    if let Some(to) = config::get("to")? {
        ctx.emit(record.into_output(to));
    }
    Ok(())
}
