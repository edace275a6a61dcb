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
        None => (class_of(error), text_of(error)),
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

fn class_of(error: &wasmtime::Error) -> Class {
    // Neither a trap nor the guest's exit: its answer broke the rules of the contract.
    let by_guest = error.is::<Trap>() || error.is::<I32Exit>();
    if by_guest { Class::Trap } else { Class::Malformed }
}

fn text_of(error: &wasmtime::Error) -> String {
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return format!("the guest ended itself with exit code {}", exit.0);
    }
    let mut text = error.root_cause().to_string();
    let frames = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default();
    for (position, frame) in frames.iter().take(FRAMES_MAX).enumerate() {
        let name = frame
            .func_name()
            .map(|name| wasmtime_demangled(name))
            .unwrap_or_else(|| format!("function {}", frame.func_index()));
        write!(text, "{} {name}", if position == 0 { " in" } else { " <" }).ok();
    }
    text
}

/// A function's name without the compiler's hash.
fn wasmtime_demangled(name: &str) -> String {
    name.to_owned()
}
