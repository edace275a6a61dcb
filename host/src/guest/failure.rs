//! What a failed call is called: a trap, its deadline, its memory, or the host's own shortage.

use std::any::Any;
use std::fmt::Write;

use tidemill_core::retry::Class;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::CallError;
use super::output::cut;

/// Frames of a trap that its text shows.
const FRAMES_MAX: usize = 5;

/// What is known about a call beside its error.
pub(super) struct Circumstances {
    /// What the limiter refused during the call.
    pub(super) memory_refused: Option<String>,
    /// The guest's last words on stderr.
    pub(super) last_words: String,
    /// The longest detail.
    pub(super) detail_bytes_max: usize,
}

/// Names the failure of a call that the sandbox ended.
pub(super) fn classify(error: &wasmtime::Error, around: &Circumstances) -> CallError {
    if let Some(shortage) = error.downcast_ref::<PoolConcurrencyLimitError>() {
        return CallError {
            class: Class::HostShortage,
            detail: format!("the host has no room for another instance: {shortage}"),
        };
    }
    if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        return past_deadline();
    }
    let (class, mut detail) = match &around.memory_refused {
        Some(refusal) => (Class::Memory, refusal.clone()),
        None => (Class::Trap, text_of(error)),
    };
    if !around.last_words.is_empty() {
        // Writing to a `String` never fails.
        write!(detail, "; stderr: {}", around.last_words).ok();
    }
    detail.truncate(cut(&detail, around.detail_bytes_max).len());
    CallError { class, detail }
}

/// The guest ran past its deadline.
pub(super) fn past_deadline() -> CallError {
    CallError { class: Class::Deadline, detail: "the guest did not return before its deadline".to_owned() }
}

/// The host panicked beneath a guest. It may be this record that makes it, so the record must not come for ever.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> CallError {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let detail = format!("the host failed beneath the guest: {}", text.unwrap_or("a panic without words"));
    tracing::error!(detail, "a bug of the host; the instance is dropped and the host goes on");
    CallError { class: Class::Trap, detail }
}

fn text_of(error: &wasmtime::Error) -> String {
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return format!("the guest ended itself with exit code {}", exit.0);
    }
    let cause = error.root_cause().to_string();
    let mut text = cause.strip_prefix("wasm trap: ").unwrap_or(&cause).to_owned();
    let backtrace = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::to_string).unwrap_or_default();
    for (position, name) in backtrace.lines().filter_map(frame).take(FRAMES_MAX).enumerate() {
        // Writing to a `String` never fails.
        write!(text, "{} {name}", if position == 0 { " in" } else { " <" }).ok();
    }
    text
}

/// The function's name in a line of a backtrace, such as `  0: 0x1c2f - orders.wasm!orders::handle`; what every panic
/// goes through is left out.
fn frame(line: &str) -> Option<&str> {
    const PANIC: &[&str] =
        &["std::", "core::panicking", "core::option", "core::result", "__rust", "rust_", "abort", "panic"];
    let (_, place) = line.split_once(" - ")?;
    let name = place.split_once('!').map_or(place, |(_, name)| name);
    if PANIC.iter().any(|start| name.starts_with(start)) { None } else { Some(name) }
}
