//! Dead-letters each record whose value is `poison`; settles the others.
//!
//! Config: `to`, a topic to forward the others to (default: none).

use tidemill_guest::{Context, Record, Result, config, dead_letter, handler};

#[handler]
fn handle(record: Record, ctx: &mut Context) -> Result<()> {
    if record.value.as_deref() == Some(b"poison") {
        return dead_letter("poison", "the value is `poison`");
    }
    if let Some(to) = config::get("to")? {
        ctx.emit(record.into_output(to));
    }
    Ok(())
}
