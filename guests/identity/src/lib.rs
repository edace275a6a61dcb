//! Emits each record as it came: key, value and headers.
//!
//! Config: `to`, the topic (default `identity.out`); read once, in `init`.

use std::sync::OnceLock;

use tidemill_guest::{Context, Record, Refusal, Setup, config, handler};

static TO: OnceLock<String> = OnceLock::new();

fn ready(_: &Setup) -> Result<(), Refusal> {
    let to = config::parse_or("to", "identity.out".to_owned())?;
    TO.get_or_init(|| to);
    Ok(())
}

#[handler(init = ready)]
fn handle(record: Record, ctx: &mut Context) {
    let to = TO.get().expect("the host calls `init` before the first batch");
    ctx.emit(record.into_output(to));
}
