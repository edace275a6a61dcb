//! `tidemill topic produce`: a file's records, in order.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::broker::{Outgoing, Producer, WhenFull};
use crate::cli::say;

/// Flags of `tidemill topic produce`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topic.
    topic: String,
    /// The file: NDJSON (each line is a value as it stands) or CSV (each row becomes a JSON object of texts).
    #[arg(long)]
    from: PathBuf,
    /// What the file holds; by default what its ending says.
    #[arg(long)]
    format: Option<Format>,
    /// The field whose value is the record's key.
    #[arg(long)]
    key: Option<String>,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A JSON value on each line.
    Ndjson,
    /// A header and rows.
    Csv,
}

/// Records that are sent together.
const SEND_RECORDS_MAX: usize = 500;

pub(super) async fn produce(producer: &Arc<dyn Producer>, args: &Args) -> anyhow::Result<()> {
    // The whole file is read once before the first record is sent: a mistake in its last line sends nothing.
    let records = rows(args)?.try_fold(0_u64, |count, row| row.map(|_| count + 1))?;
    let bar = ProgressBar::new(records);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec}").context("a valid template")?);
    let topic: Arc<str> = args.topic.as_str().into();
    let mut rows = rows(args)?.peekable();
    while rows.peek().is_some() {
        let batch: Vec<Outgoing> = rows
            .by_ref()
            .take(SEND_RECORDS_MAX)
            .map(|row| row.map(|(key, value)| outgoing(&topic, key, value)))
            .collect::<anyhow::Result<_>>()?;
        let sent = batch.len() as u64;
        let results = producer.send(batch, WhenFull::Wait).await;
        if let Some((index, error)) = results.into_iter().enumerate().find_map(|(index, result)| Some((index, result.err()?))) {
            let number = bar.position() + index as u64 + 1;
            bail!("record {number} was not stored: {error}; the {} before it are", bar.position());
        }
        bar.inc(sent);
    }
    bar.finish_and_clear();
    Ok(say(&format!("{records} records are in {}", args.topic))?)
}

fn outgoing(topic: &Arc<str>, key: Option<String>, value: String) -> Outgoing {
    Outgoing {
        topic: Arc::clone(topic),
        partition: None,
        timestamp_ms: None,
        key: key.map(Bytes::from),
        value: Some(Bytes::from(value)),
        headers: Vec::new(),
    }
}

type Row = anyhow::Result<(Option<String>, String)>;

fn rows(args: &Args) -> anyhow::Result<Box<dyn Iterator<Item = Row>>> {
    let path = args.from.clone();
    let file = File::open(&path).with_context(|| format!("`{}` can't be read", path.display()))?;
    let key = args.key.clone();
    match args.format.map_or_else(|| format_of(&path), Ok)? {
        Format::Ndjson => {
            let lines = BufReader::new(file).lines().enumerate();
            let filled = lines.filter(|(_, line)| !line.as_ref().is_ok_and(|line| line.trim().is_empty()));
            Ok(Box::new(filled.map(move |(index, line)| {
                let place = || format!("{}:{}", path.display(), index + 1);
                let line = line.with_context(place)?;
                let value: Value = serde_json::from_str(&line).with_context(|| format!("{}: not JSON", place()))?;
                Ok((key_of(&value, key.as_deref()).with_context(place)?, line))
            })))
        }
        Format::Csv => {
            let mut reader = csv::Reader::from_reader(BufReader::new(file));
            let names = reader.headers().with_context(|| format!("{}: no header", path.display()))?.clone();
            Ok(Box::new(reader.into_records().map(move |row| {
                let row = row.with_context(|| path.display().to_string())?;
                let object: serde_json::Map<String, Value> =
                    names.iter().zip(&row).map(|(name, field)| (name.to_owned(), Value::from(field))).collect();
                let line = row.position().map_or(0, csv::Position::line);
                let value = Value::Object(object);
                let key = key_of(&value, key.as_deref()).with_context(|| format!("{}:{line}", path.display()))?;
                Ok((key, value.to_string()))
            })))
        }
    }
}

fn key_of(value: &Value, field: Option<&str>) -> anyhow::Result<Option<String>> {
    let Some(field) = field else { return Ok(None) };
    match value.get(field) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(other.to_string())),
        Some(Value::Null) | None => Err(anyhow!("there is no `{field}` to take the key from; correct the line, or --key")),
        Some(Value::Array(_) | Value::Object(_)) => Err(anyhow!("`{field}` is no text and no number, so it can't be a key")),
    }
}

fn format_of(path: &Path) -> anyhow::Result<Format> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ndjson" | "jsonl" | "json") => Ok(Format::Ndjson),
        Some("csv") => Ok(Format::Csv),
        _ => bail!("`{}` does not say what it holds; add --format ndjson or --format csv", path.display()),
    }
}
