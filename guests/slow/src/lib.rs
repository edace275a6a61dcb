//! Takes its time for each record: sleeps, and does not compute.
//!
//! Config, read once, in `init`: `ms`, how long, in milliseconds (default 100), or `value`: as many microseconds as the record's value begins
//! with; `to`, a topic to forward the record to afterwards (default: none).

use std::sync::OnceLock;
use std::time::Duration;

use tidemill_guest::{Context, Record, Refusal, Result, Setup, config, dead_letter, handler};

static TIME: OnceLock<Time> = OnceLock::new();
static TO: OnceLock<Option<String>> = OnceLock::new();

enum Time {
    Always(Duration),
    AsTheValueSays,
}

fn ready(_: &Setup) -> Result<(), Refusal> {
    let time = match config::get("ms")?.as_deref() {
        Some("value") => Time::AsTheValueSays,
        _ => Time::Always(Duration::from_millis(config::parse_or("ms", 100)?)),
    };
    let to = config::get("to")?;
    TIME.get_or_init(|| time);
    TO.get_or_init(|| to);
    Ok(())
}

#[handler(init = ready)]
fn handle(record: Record, ctx: &mut Context) -> Result<()> {
    std::thread::sleep(match TIME.get().expect("the host calls `init` before the first batch") {
        Time::Always(time) => *time,
        Time::AsTheValueSays => match micros(&record) {
            Some(micros) => Duration::from_micros(micros),
            None => return dead_letter("value", "it does not begin with a number of microseconds"),
        },
    });
    if let Some(Some(to)) = TO.get() {
        ctx.emit(record.into_output(to.as_str()));
    }
    Ok(())
}

fn micros(record: &Record) -> Option<u64> {
    str::from_utf8(record.value.as_deref()?).ok()?.split(' ').next()?.parse().ok()
}
