//! Dead-letters each record whose value is `poison`, does to each what its header `poison` says, and settles the others.
//!
//! The header: `never` (dead-letters it), `retry` (asks for it again, for ever), `trap` (panics), `deadline` (never returns),
//! `memory` (takes all there is); anything else is no poison.
//!
//! Config: `to`, a topic to forward the others to (default: none); `ms`, how long it takes for each of them (default 0).

use std::time::Duration;

use tidemill_guest::{Context, Record, Result, config, dead_letter, handler, retry};

#[handler]
fn handle(record: Record, ctx: &mut Context) -> Result<()> {
    if record.value.as_deref() == Some(b"poison") {
        return dead_letter("poison", "the value is `poison`");
    }
    let poison =
        record.headers.iter().find(|header| header.name == "poison").and_then(|header| header.value.as_deref());
    match poison {
        Some(b"never") => return dead_letter("poison", "the header says so"),
        Some(b"retry") => return retry("poison", format_args!("attempt {} failed, as each will", record.attempt)),
        Some(b"trap") => panic!("this guest panics on purpose"),
        Some(b"deadline") => run_for_ever(),
        Some(b"memory") => take_all(),
        Some(_) | None => {}
    }
    let millis: u64 = config::parse_or("ms", 0)?;
    if millis > 0 {
        std::thread::sleep(Duration::from_millis(millis));
    }
    if let Some(to) = config::get("to")? {
        ctx.emit(record.into_output(to));
    }
    Ok(())
}

fn run_for_ever() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

fn take_all() -> ! {
    let mut taken = Vec::new();
    loop {
        taken.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}
