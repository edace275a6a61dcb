//! `tidemill topic produce`: checks the whole file, then sends it.
//!
//! The file is read twice, so that a wrong line stops everything before anything is sent, however large the file is.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, poll};

use super::TopicError;
use super::file::{Entry, Format, InvalidFile, Source};
use crate::broker::{Outgoing, Position, Producer, SendError, WhenFull};
use crate::cli::progress::{self, ProgressBar};

/// So many records are sent together.
const BATCH_RECORDS: usize = 1000;

/// So many bytes are sent together, or one record that is larger.
const BATCH_BYTES: usize = 1 << 20;

/// So many batches wait for their acknowledgement at a time.
const BATCHES_IN_FLIGHT: usize = 4;

/// Flags of `topic produce`.
#[derive(Debug, clap::Args)]
pub struct ProduceArgs {
    /// The topic to write to.
    pub(super) topic: String,
    /// The file: NDJSON (each line is a value as it stands) or CSV (each row becomes a JSON object).
    #[arg(long, value_name = "FILE")]
    pub(super) from: PathBuf,
    /// How the file is written; by default as its extension says.
    #[arg(long)]
    pub(super) format: Option<Format>,
    /// The top-level field or the column that becomes the key; without it, records have none.
    #[arg(long, value_name = "FIELD")]
    pub(super) key: Option<String>,
    /// In CSV, writes numbers, true and false as such and empty values as null; by default all are texts.
    #[arg(long)]
    pub(super) typed: bool,
}

/// Records on their way.
struct Batch<'a> {
    lines: Vec<u64>,
    answered: BoxFuture<'a, Vec<Result<Position, SendError>>>,
}

/// Sends a file's records and returns how many there were.
pub(super) async fn produce(producer: &dyn Producer, args: &ProduceArgs) -> Result<u64, TopicError> {
    let format = match args.format {
        Some(format) => format,
        None => Format::of(&args.from)?,
    };
    let source = Source { path: args.from.clone(), format, key: args.key.clone(), typed: args.typed };
    let checking = {
        let source = source.clone();
        tokio::task::spawn_blocking(move || check(&source))
    };
    let total = checking.await.map_err(std::io::Error::other)??;
    let bar = progress::bar(total, "records");
    let stored = send(producer, &args.topic.as_str().into(), &source, &bar).await;
    bar.finish_and_clear();
    stored
}

/// Reads the whole file, and counts its records if all are right.
fn check(source: &Source) -> Result<u64, InvalidFile> {
    let bar = progress::spinner("checking the file");
    let mut total = 0;
    for entry in source.entries()? {
        entry?;
        total += 1;
        bar.set_position(total);
        bar.tick();
    }
    bar.finish_and_clear();
    Ok(total)
}

async fn send(
    producer: &dyn Producer,
    topic: &Arc<str>,
    source: &Source,
    bar: &ProgressBar,
) -> Result<u64, TopicError> {
    let mut entries = source.entries()?;
    let mut in_flight = VecDeque::new();
    let mut stored = 0;
    let mut first_failure = None;
    loop {
        let batch = match first_failure {
            None => next_batch(&mut entries)?,
            Some(_) => Vec::new(),
        };
        let ended = batch.is_empty();
        if !ended {
            in_flight.push_back(begin(producer, topic, batch).await);
        }
        while in_flight.len() >= if ended { 1 } else { BATCHES_IN_FLIGHT } {
            let Some(Batch { lines, answered }) = in_flight.pop_front() else { break };
            for (line, result) in lines.into_iter().zip(answered.await) {
                match result {
                    Ok(_) => stored += 1,
                    Err(error) => drop(first_failure.get_or_insert((line, error))),
                }
            }
            bar.set_position(stored);
        }
        if ended {
            return match first_failure {
                None => Ok(stored),
                Some((line, error)) => Err(TopicError::NotStored { line, error, stored }),
            };
        }
    }
}

fn next_batch(entries: &mut dyn Iterator<Item = Result<Entry, InvalidFile>>) -> Result<Vec<Entry>, InvalidFile> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
        let Some(entry) = entries.next() else { break };
        let entry = entry?;
        bytes += entry.value.len();
        batch.push(entry);
    }
    Ok(batch)
}

/// Queues a batch, so that batches keep their order, and leaves its answer for later.
async fn begin<'a>(producer: &'a dyn Producer, topic: &Arc<str>, batch: Vec<Entry>) -> Batch<'a> {
    let lines = batch.iter().map(|entry| entry.line).collect();
    let outgoing = |entry: Entry| Outgoing {
        topic: Arc::clone(topic),
        partition: None,
        timestamp_ms: None,
        key: entry.key,
        value: Some(entry.value),
        headers: Vec::new(),
    };
    let mut sending = producer.send(batch.into_iter().map(outgoing).collect(), WhenFull::Wait);
    let answered = match poll!(&mut sending) {
        std::task::Poll::Ready(results) => std::future::ready(results).boxed(),
        std::task::Poll::Pending => sending,
    };
    Batch { lines, answered }
}
