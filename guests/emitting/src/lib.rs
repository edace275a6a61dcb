//! Emits several outputs for each record: value `RECORD-ID#N`, N from 0, under the record's key.
//!
//! Config: `count`, how many (default 3); `to`, the topic (default `emitting.out`).

use tidemill_guest::{Context, Output, Record, Result, config, handler};

#[handler]
fn handle(record: Record, ctx: &mut Context) -> Result<()> {
    let to = config::parse_or("to", "emitting.out".to_owned())?;
    for number in 0..config::parse_or("count", 3)? {
        let output = Output::bytes(to.clone(), format!("{}#{number}", record.id()));
        ctx.emit(Output { key: record.key.clone(), ..output });
    }
    Ok(())
}
