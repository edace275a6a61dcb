//! wasi:logging: a guest's words in the host's log, under target `guest`; bounded in length and in rate.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::View;
use crate::guest::bindings::wasi::logging::logging::{Host, Level};
use crate::metrics::HostCallResult;

const CAPABILITY: &str = "log";
/// Most bytes of a message; the rest is cut off.
const MESSAGE_MAX: usize = 8 << 10;
/// Most bytes of a context; the rest is cut off.
const CONTEXT_MAX: usize = 256;
/// Lines that a handler may log at once.
const LINES_BURST: u32 = 200;
/// Lines a second that it may log for long.
const LINES_PER_SECOND: u32 = 50;

impl Host for View {
    fn log(&mut self, level: Level, context: String, message: String) -> wasmtime::Result<()> {
        if !enabled(level) {
            return Ok(());
        }
        match self.granted.lines.take(Instant::now()) {
            Some(dropped) => {
                self.count(CAPABILITY, HostCallResult::Ok);
                self.say_dropped(dropped);
                self.line(level, &printable(&context, CONTEXT_MAX), &printable(&message, MESSAGE_MAX));
            }
            None => self.count(CAPABILITY, HostCallResult::Failed),
        }
        Ok(())
    }
}

impl View {
    /// A line of the host's own about this guest, within the guest's budget.
    pub(super) fn warn(&self, text: &dyn std::fmt::Display) {
        if let Some(dropped) = self.granted.lines.take(Instant::now()) {
            self.say_dropped(dropped);
            self.line(Level::Warn, "tidemill", &text.to_string());
        }
    }

    /// Says how many lines were left out, once lines may be logged again.
    pub(super) fn say_dropped_lines(&self) {
        self.say_dropped(self.granted.lines.dropped(Instant::now()));
    }

    fn say_dropped(&self, lines: u64) {
        if lines > 0 {
            let text = format!("{lines} lines were left out: a guest may log {LINES_PER_SECOND} lines a second");
            self.line(Level::Warn, "tidemill", &text);
        }
    }

    fn line(&self, level: Level, context: &str, message: &str) {
        macro_rules! event {
            ($level:ident) => {
                tracing::event!(
                    target: "guest",
                    tracing::Level::$level,
                    handler = &*self.handler,
                    revision = &*self.revision,
                    topic = self.call.from.as_ref().map(|from| &*from.topic),
                    partition = self.call.from.as_ref().map(|from| from.partition),
                    context = (!context.is_empty()).then_some(context),
                    "{message}"
                )
            };
        }
        match level {
            Level::Trace => event!(TRACE),
            Level::Debug => event!(DEBUG),
            Level::Info => event!(INFO),
            Level::Warn => event!(WARN),
            Level::Error | Level::Critical => event!(ERROR),
        }
    }
}

/// Whether anybody listens: what nobody reads costs no budget.
fn enabled(level: Level) -> bool {
    match level {
        Level::Trace => tracing::enabled!(target: "guest", tracing::Level::TRACE),
        Level::Debug => tracing::enabled!(target: "guest", tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(target: "guest", tracing::Level::INFO),
        Level::Warn => tracing::enabled!(target: "guest", tracing::Level::WARN),
        Level::Error | Level::Critical => tracing::enabled!(target: "guest", tracing::Level::ERROR),
    }
}

/// At most `max` bytes of a text, with what would break a line or a terminal escaped.
pub(super) fn printable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for char in text.chars() {
        let before = out.len();
        if breaks_lines(char) {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
        if out.len() > max {
            out.truncate(before);
            out.push('…');
            break;
        }
    }
    out
}

/// Control characters, other line ends, and marks that turn the direction of writing.
fn breaks_lines(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A token bucket: how much a handler may still log.
pub(super) struct Budget(Mutex<Tokens>);

struct Tokens {
    /// Never above `LINES_BURST`.
    left: u32,
    filled: Instant,
    dropped: u64,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Tokens { left: LINES_BURST, filled: Instant::now(), dropped: 0 }))
    }

    /// Takes one line, with how many were left out before it; `None`: this one is left out.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.fill(now);
        if tokens.left == 0 {
            tokens.dropped += 1;
            return None;
        }
        tokens.left -= 1;
        Some(std::mem::take(&mut tokens.dropped))
    }

    /// How many lines were left out and not yet spoken of; 0 while no line may be logged.
    fn dropped(&self, now: Instant) -> u64 {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.dropped == 0 {
            return 0;
        }
        tokens.fill(now);
        if tokens.left == 0 { 0 } else { std::mem::take(&mut tokens.dropped) }
    }
}

impl Tokens {
    fn fill(&mut self, now: Instant) {
        let each = Duration::from_secs(1) / LINES_PER_SECOND;
        let passed = now.saturating_duration_since(self.filled).as_nanos() / each.as_nanos();
        let new = u32::try_from(passed).unwrap_or(u32::MAX).min(LINES_BURST);
        if new == LINES_BURST {
            self.filled = now;
        } else {
            self.filled += each * new;
        }
        self.left = self.left.saturating_add(new).min(LINES_BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_logs_too_much_is_cut_off_and_the_loss_is_counted() {
        let budget = Budget::new();
        let admitted = (0..1000).filter(|_| budget.take(Instant::now()).is_some()).count();
        assert_eq!(admitted, LINES_BURST as usize);
        assert_eq!(budget.dropped(Instant::now()), 0, "nothing can be said yet");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(budget.take(Instant::now()), Some(800), "the next line tells of the lost ones, once");
        let admitted = (0..1000).filter(|_| budget.take(Instant::now()).is_some()).count();
        assert_eq!(admitted, LINES_PER_SECOND as usize - 1);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(budget.dropped(Instant::now()), 951);
        assert_eq!(budget.dropped(Instant::now()), 0);
    }

    #[test]
    fn what_a_guest_logs_stays_one_bounded_line() {
        assert_eq!(printable("a\nERROR forged\u{1b}[2J\u{202e}", 100), "a\\nERROR forged\\u{1b}[2J\\u{202e}");
        assert_eq!(printable("äöü", 4), "äö…");
        assert_eq!(printable("äöü", 6), "äöü");
    }
}
