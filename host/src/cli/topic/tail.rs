//! `tidemill topic tail`.

use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tidemill_core::record::{Offset, Record};

use crate::broker::Admin;
use crate::cli::say;

/// Flags of `tidemill topic tail`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topic.
    topic: String,
    /// Where to begin: `earliest`, `latest`, an offset, or an RFC 3339 time.
    #[arg(long, default_value = "earliest")]
    from: String,
    /// Only this partition.
    #[arg(long)]
    partition: Option<i32>,
    /// At most so many records.
    #[arg(long)]
    max: Option<usize>,
    /// Goes on when the end is reached.
    #[arg(long, short)]
    follow: bool,
    /// Prints a JSON object a record; keys and values that are not text are base64, under names that say so.
    #[arg(long)]
    json: bool,
}

const READ_RECORDS_MAX: usize = 500;
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

pub(super) async fn tail(admin: &dyn Admin, args: &Args) -> anyhow::Result<()> {
    let mut places = places(admin, args).await?;
    let mut left = args.max.unwrap_or(usize::MAX);
    loop {
        let mut read = 0;
        for (partition, next) in &mut places {
            let chunk = admin.read(&args.topic, *partition, *next, READ_RECORDS_MAX.min(left)).await?;
            for record in chunk.records().take(left) {
                print(args, *partition, &record)?;
                *next = record.offset() + 1;
                left -= 1;
                read += 1;
            }
        }
        if left == 0 || (read == 0 && !args.follow) {
            return Ok(());
        }
        if read == 0 {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
    }
}

/// Where each partition is read from.
async fn places(admin: &dyn Admin, args: &Args) -> anyhow::Result<Vec<(i32, Offset)>> {
    let topics = admin.topics(Some(&args.topic)).await?;
    let topic = topics.first().with_context(|| format!("there is no topic `{}`; `tidemill topic list` shows those that there are", args.topic))?;
    let mut places: Vec<(i32, Offset)> = match args.from.as_str() {
        "earliest" => topic.partitions.iter().map(|partition| (partition.partition, partition.start)).collect(),
        "latest" => topic.partitions.iter().map(|partition| (partition.partition, partition.end)).collect(),
        other => match (other.parse::<Offset>(), other.parse::<jiff::Timestamp>()) {
            (Ok(offset), _) => topic.partitions.iter().map(|partition| (partition.partition, offset.max(partition.start))).collect(),
            (_, Ok(time)) => admin.offsets_for_time(&args.topic, time.as_millisecond()).await?,
            _ => bail!("`--from {other}` is no place; write earliest, latest, an offset, or a time such as 2026-11-21T08:00:00Z"),
        },
    };
    places.retain(|(partition, _)| args.partition.is_none_or(|only| only == *partition));
    if places.is_empty() {
        bail!("topic `{}` has no partition {}", args.topic, args.partition.unwrap_or_default());
    }
    Ok(places)
}

fn print(args: &Args, partition: i32, record: &Record) -> anyhow::Result<()> {
    if !args.json {
        let text = |bytes: Option<&[u8]>| bytes.map_or("null".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned());
        return Ok(say(&format!("{partition}/{}\t{}\t{}", record.offset(), text(record.key()), text(record.value())))?);
    }
    let headers: Vec<Value> = record
        .headers()
        .map(|header| {
            let mut entry = json!({});
            put(&mut entry, "name", Some(header.name));
            put(&mut entry, "value", header.value);
            entry
        })
        .collect();
    let mut entry = json!({ "partition": partition, "offset": record.offset(), "timestamp_ms": record.timestamp().millis(), "headers": headers });
    put(&mut entry, "key", record.key());
    put(&mut entry, "value", record.value());
    Ok(say(&entry.to_string())?)
}

/// Text as it is; other bytes as base64, under a name that says so.
fn put(entry: &mut Value, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => entry[name] = Value::Null,
        Some(Ok(text)) => entry[name] = Value::from(text),
        Some(Err(_)) => entry[format!("{name}_base64")] = Value::from(STANDARD.encode(bytes.unwrap_or_default())),
    }
}
