//! Emits each record as it came: key, value and headers.
//!
//! Config, read once, in `init`: `to`, the topic (default `identity.out`); `new_values`, whether each value is made anew, of the same bytes, as a
//! guest does that changes it (default false).

use std::sync::OnceLock;

use tidemill_guest::{Bytes, Context, Output, Record, Refusal, Setup, config, handler};

static TO: OnceLock<String> = OnceLock::new();
static NEW_VALUES: OnceLock<bool> = OnceLock::new();

fn ready(_: &Setup) -> Result<(), Refusal> {
    let to = config::parse_or("to", "identity.out".to_owned())?;
    let new_values = config::parse_or("new_values", false)?;
    TO.get_or_init(|| to);
    NEW_VALUES.get_or_init(|| new_values);
    Ok(())
}

#[handler(init = ready)]
fn handle(record: Record, ctx: &mut Context) {
    let to = TO.get().expect("the host calls `init` before the first batch");
    let output = record.into_output(to.as_str());
    if NEW_VALUES.get() == Some(&true) {
        let value = output.value.as_deref().map(Bytes::copy_from_slice);
        ctx.emit(Output { value, ..output });
    } else {
        ctx.emit(output);
    }
}
