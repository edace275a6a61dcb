//! What a guest writes to stdout and stderr: lines of the host's log, bounded in length and rate.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidemill_core::record::TopicPartition;
use tokio::time::Instant;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::limits::Limits;
use crate::attempt;
use crate::capability::printable;

/// Who speaks: one handler's revision, with the budget of lines that all of its instances share.
#[derive(Debug)]
pub(crate) struct Speaker {
    handler: Arc<str>,
    revision: Arc<str>,
    line_bytes_max: usize,
    lines_per_second: u32,
    spent: Mutex<Spent>,
}

#[derive(Debug)]
struct Spent {
    since: Instant,
    lines: u32,
    dropped: u64,
}

impl Speaker {
    pub(crate) fn new(handler: Arc<str>, revision: Arc<str>, limits: &Limits) -> Self {
        let spent = Mutex::new(Spent { since: Instant::now(), lines: 0, dropped: 0 });
        Self {
            handler,
            revision,
            line_bytes_max: limits.log_line_bytes_max,
            lines_per_second: limits.log_lines_per_second,
            spent,
        }
    }

    /// Whether one more line may be logged, and how many were dropped before it.
    fn may_speak(&self) -> Option<u64> {
        let mut spent = unpoisoned(&self.spent);
        if spent.since.elapsed() >= Duration::from_secs(1) {
            spent.since = Instant::now();
            spent.lines = 0;
        }
        if spent.lines >= self.lines_per_second {
            spent.dropped += 1;
            return None;
        }
        spent.lines += 1;
        Some(std::mem::take(&mut spent.dropped))
    }
}

/// The voice of one instance.
#[derive(Debug)]
pub(crate) struct Voice {
    speaker: Arc<Speaker>,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    /// Whose records the instance has; `None` while it starts.
    from: Option<TopicPartition>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// The last that went to stderr in this call: a panic's message, for the trap's text.
    last_words: String,
}

/// Which of a guest's streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Voice {
    /// Bytes of stderr that a trap's text shows.
    const LAST_WORDS_MAX: usize = 400;

    pub(crate) fn new(speaker: Arc<Speaker>) -> Self {
        Self { speaker, now: Mutex::default() }
    }

    /// Says whose records the next lines are about.
    pub(crate) fn begin_call(&self, from: &TopicPartition) {
        let mut now = unpoisoned(&self.now);
        now.last_words.clear();
        if now.from.as_ref() != Some(from) {
            now.from = Some(from.clone());
        }
    }

    /// Ends unfinished lines, and tells the last words on stderr.
    pub(crate) fn end_call(&self) -> String {
        let mut now = unpoisoned(&self.now);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = std::mem::take(now.pending(stream));
            if !line.is_empty() {
                self.line(&mut now, stream, &line);
            }
        }
        std::mem::take(&mut now.last_words)
    }

    fn write(&self, stream: Stream, mut bytes: &[u8]) {
        let mut now = unpoisoned(&self.now);
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let mut line = std::mem::take(now.pending(stream));
            append(&mut line, &bytes[..end], self.speaker.line_bytes_max);
            self.line(&mut now, stream, &line);
            line.clear();
            *now.pending(stream) = line;
            bytes = &bytes[end + 1..];
        }
        append(now.pending(stream), bytes, self.speaker.line_bytes_max);
    }

    fn line(&self, now: &mut Now, stream: Stream, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        self.emit(now, stream, &line);
        let words = &mut now.last_words;
        let is_advice = line.starts_with("note: run with `RUST_BACKTRACE");
        if stream == Stream::Stderr && words.len() < Self::LAST_WORDS_MAX && !is_advice {
            words.push_str(if words.is_empty() { "" } else { " " });
            words.push_str(cut(line.trim(), Self::LAST_WORDS_MAX - words.len()));
        }
    }

    fn emit(&self, now: &Now, stream: Stream, line: &str) {
        let Some(dropped) = self.speaker.may_speak() else { return };
        let handler = &*self.speaker.handler;
        let revision = attempt::short(&self.speaker.revision);
        let topic = now.from.as_ref().map(|from| &*from.topic);
        let partition = now.from.as_ref().map(|from| from.partition);
        if dropped > 0 {
            tracing::warn!(target: "guest", handler, revision, dropped, "lines were dropped: more than `log_lines_per_second`");
        }
        let line = printable(line, self.speaker.line_bytes_max);
        match stream {
            Stream::Stdout => {
                tracing::info!(target: "guest", handler, revision, topic, partition, context = "stdout", "{line}")
            }
            Stream::Stderr => {
                tracing::warn!(target: "guest", handler, revision, topic, partition, context = "stderr", "{line}")
            }
        }
    }
}

impl Now {
    fn pending(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// Adds bytes up to the longest line; the rest of the line is dropped.
fn append(line: &mut Vec<u8>, bytes: &[u8], line_bytes_max: usize) {
    let room = line_bytes_max.saturating_sub(line.len());
    line.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// A text's beginning, of at most that many bytes, whole characters only.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// A panic elsewhere must not silence the others: what these locks hold is whole at any moment.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of a guest's two output streams, as WASI wants it.
#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) voice: Arc<Voice>,
    pub(crate) stream: Stream,
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for it, which is not linked.
        Box::new(tokio::io::sink())
    }
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.voice.write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice(limits: &Limits) -> Voice {
        Voice::new(Arc::new(Speaker::new("h".into(), "r".into(), limits)))
    }

    #[tokio::test(start_paused = true)]
    async fn lines_beyond_the_rate_are_dropped_and_counted() {
        let voice = voice(&Limits { log_lines_per_second: 2, ..Limits::default() });
        let may = || voice.speaker.may_speak();
        assert_eq!([may(), may(), may(), may()], [Some(0), Some(0), None, None]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([may(), may()], [Some(2), Some(0)]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_and_never_grows() {
        let voice = voice(&Limits { log_line_bytes_max: 4, ..Limits::default() });
        for _ in 0..1000 {
            voice.write(Stream::Stdout, b"abcdef");
        }
        assert_eq!(unpoisoned(&voice.now).stdout, b"abcd");
    }

    #[tokio::test]
    async fn the_last_words_are_the_panic_without_advice() {
        let voice = voice(&Limits::default());
        voice.begin_call(&TopicPartition::new("t", 0));
        voice.write(
            Stream::Stderr,
            b"thread panicked at src/lib.rs:1:\nno such order\nnote: run with `RUST_BACKTRACE=1`\n",
        );
        voice.write(Stream::Stderr, b"unfinished");
        assert_eq!(voice.end_call(), "thread panicked at src/lib.rs:1: no such order unfinished");
        assert_eq!(voice.end_call(), "");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("a\u{e9}", 2), "a");
    }
}
