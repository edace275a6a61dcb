//! Does not go live: refuses in `init`.
//!
//! Config: `because`, the reason it gives (default `this guest always refuses`).

use tidemill_guest::{Record, Refusal, Setup, config, handler};

fn ready(_: &Setup) -> Result<(), Refusal> {
    Err(Refusal::new("refusing", config::parse_or("because", "this guest always refuses".to_owned())?))
}

#[handler(init = ready)]
fn handle(_: Record) {}
