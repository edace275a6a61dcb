//! Fails twice for each record, then succeeds. It counts by the record's attempt number.
//!
//! Config: `times`, how often to fail (default 2); `to`, a topic to forward the record to once it succeeds (default: none).

use tidemill_guest::{Context, Record, Result, config, handler, retry};

#[handler]
fn handle(record: Record, ctx: &mut Context) -> Result<()> {
    if record.attempt <= config::parse_or("times", 2)? {
        return retry("flaky", format_args!("attempt {} fails", record.attempt));
    }
    if let Some(to) = config::get("to")? {
        ctx.emit(record.into_output(to));
    }
    Ok(())
}
