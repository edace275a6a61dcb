//! `tidemill topic tail`.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::json;
use tidemill_core::record::{Offset, Record};

use super::TopicError;
use crate::broker::{Admin, PartitionInfo, Point};
use crate::cli::text::{shown, time_of, value_of};

/// So many records are fetched at a time.
const FETCH_RECORDS: usize = 500;

/// How often new records are looked for with `--follow`.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Flags of `topic tail`.
#[derive(Debug, clap::Args)]
pub struct TailArgs {
    /// The topic.
    pub(super) topic: String,
    /// Where to begin: `earliest`, `latest`, an offset, or a time such as `2026-11-21T09:00:00Z`. By default `latest`
    /// with --follow and `earliest` without.
    #[arg(long, value_name = "WHERE")]
    pub(super) from: Option<Point>,
    /// Only this partition.
    #[arg(long, short)]
    pub(super) partition: Option<i32>,
    /// Ends after so many records.
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) max: Option<u64>,
    /// Goes on with new records until it is stopped.
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Prints one line of JSON for each record. What is not UTF-8 becomes `{"base64": "..."}`.
    #[arg(long)]
    pub(super) json: bool,
}

/// How far one partition is read.
struct Cursor {
    partition: i32,
    next: Offset,
    end: Offset,
    fetched: VecDeque<Record>,
}

/// Prints records, the oldest of all partitions first as far as they are known.
pub(super) async fn tail(
    admin: &dyn Admin,
    args: &TailArgs,
    mut print: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), TopicError> {
    let mut cursors = cursors(admin, args).await?;
    let mut left = args.max.unwrap_or(u64::MAX);
    while left > 0 {
        for cursor in &mut cursors {
            cursor.fetch(admin, &args.topic).await?;
        }
        let time = |cursor: &Cursor| cursor.fetched.front().map(|record| record.timestamp().millis());
        let oldest = cursors.iter_mut().filter(|cursor| !cursor.fetched.is_empty()).min_by_key(|cursor| time(cursor));
        match oldest.and_then(|cursor| Some((cursor.partition, cursor.fetched.pop_front()?))) {
            Some((partition, record)) => {
                print(&if args.json { json_line(partition, &record) } else { text_line(partition, &record) })?;
                left -= 1;
            }
            None if args.follow => {
                tokio::time::sleep(FOLLOW_INTERVAL).await;
                refresh(admin, &args.topic, &mut cursors).await?;
            }
            None => break,
        }
    }
    Ok(())
}

async fn cursors(admin: &dyn Admin, args: &TailArgs) -> Result<Vec<Cursor>, TopicError> {
    let mut partitions = partitions(admin, &args.topic).await?;
    if let Some(partition) = args.partition {
        let last = partitions.len() as i32 - 1;
        partitions.retain(|of| of.partition == partition);
        if partitions.is_empty() {
            return Err(TopicError::NoSuchPartition { topic: args.topic.clone(), partition, last });
        }
    }
    let default = if args.follow { Point::Latest } else { Point::Earliest };
    let places = args.from.unwrap_or(default).find(admin, &args.topic, &partitions).await?;
    let cursor = |(of, next): (PartitionInfo, Offset)| Cursor {
        partition: of.partition,
        next: next.max(of.start),
        end: of.end,
        fetched: VecDeque::new(),
    };
    Ok(partitions.into_iter().zip(places).map(cursor).collect())
}

async fn partitions(admin: &dyn Admin, topic: &str) -> Result<Vec<PartitionInfo>, TopicError> {
    let topics = admin.topics(Some(topic)).await?;
    Ok(topics.into_iter().flat_map(|topic| topic.partitions).collect())
}

async fn refresh(admin: &dyn Admin, topic: &str, cursors: &mut [Cursor]) -> Result<(), TopicError> {
    let partitions = partitions(admin, topic).await?;
    for cursor in cursors {
        if let Some(now) = partitions.iter().find(|now| now.partition == cursor.partition) {
            cursor.end = now.end;
        }
    }
    Ok(())
}

impl Cursor {
    /// Has the next records at hand, if there are any up to the end.
    async fn fetch(&mut self, admin: &dyn Admin, topic: &str) -> Result<(), TopicError> {
        if !self.fetched.is_empty() || self.next >= self.end {
            return Ok(());
        }
        let chunk = admin.read(topic, self.partition, self.next, FETCH_RECORDS).await?;
        self.fetched.extend(chunk.records());
        // Without records up to the end there is only what a transaction or compaction left.
        self.next = self.fetched.back().map_or(self.end, |last| last.offset() + 1);
        Ok(())
    }
}

fn json_line(partition: i32, record: &Record) -> String {
    let headers: Vec<_> = record
        .headers()
        .map(|header| json!({"name": value_of(Some(header.name)), "value": value_of(header.value)}))
        .collect();
    json!({
        "partition": partition,
        "offset": record.offset(),
        "timestamp": time_of(record),
        "key": value_of(record.key()),
        "headers": headers,
        "value": value_of(record.value()),
    })
    .to_string()
}

fn text_line(partition: i32, record: &Record) -> String {
    let time = time_of(record).unwrap_or_else(|| "-".to_owned());
    let mut line = format!("{partition}/{} {time} {} {}", record.offset(), shown(record.key()), shown(record.value()));
    for header in record.headers() {
        line.push_str(&format!(" {}={}", shown(Some(header.name)), shown(header.value)));
    }
    line
}
