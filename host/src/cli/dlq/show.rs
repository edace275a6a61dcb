//! `tidemill dlq show`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::letters::Letter;
use super::{DlqError, Filter};
use crate::attempt::short;
use crate::broker::Admin;
use crate::cli::text::{shown, time_of, value_of};

/// Flags of `dlq show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    filter: Filter,
    /// Ends after so many letters.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    max: u64,
    /// Shows letters that were sent again as well.
    #[arg(long)]
    all: bool,
    /// Prints one line of JSON for each letter. What is not UTF-8 becomes `{"base64": "..."}`.
    #[arg(long)]
    json: bool,
}

/// Prints letters.
pub(super) async fn show(
    admin: &dyn Admin,
    named: &BTreeSet<String>,
    args: &ShowArgs,
    mut print: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), DlqError> {
    let mut left = args.max;
    for topic in args.filter.topics(admin, named).await? {
        let mut pages = topic.pages(admin, &args.filter);
        while left > 0
            && let Some(letters) = pages.next().await?
        {
            for letter in letters.iter().filter(|letter| args.all || !letter.redriven).take(left as usize) {
                print(&if args.json { json_line(letter) } else { text(letter) })?;
                left -= 1;
            }
        }
    }
    Ok(())
}

fn json_line(letter: &Letter) -> String {
    let Letter { topic, partition, record, account, redriven } = letter;
    let own = letter.own_headers();
    let headers: Vec<Value> = own
        .iter()
        .map(|header| json!({"name": value_of(Some(&header.name)), "value": value_of(header.value.as_deref())}))
        .collect();
    json!({
        "letter": {"topic": **topic, "partition": partition, "offset": record.offset()},
        "error": {
            "id": account.id,
            "topic": account.topic,
            "partition": account.partition,
            "offset": account.offset,
            "handler": account.handler,
            "group": account.group,
            "revision": account.revision,
            "class": account.class,
            "code": account.code,
            "attempts": account.attempts,
            "time": account.time.map(|time| time.to_string()),
            "message": account.message,
        },
        "redriven": redriven,
        "redrives": letter.times(),
        "timestamp": time_of(record),
        "key": value_of(record.key()),
        "headers": headers,
        "value": value_of(record.value()),
    })
    .to_string()
}

/// Several lines: where and why, then the record.
fn text(letter: &Letter) -> String {
    let Letter { record, account, .. } = letter;
    let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut out = format!("{}  {}  {}", letter.place(), said(&account.class), said(&account.code));
    let mut line = |name: &str, value: String| {
        // Writing to a `String` never fails.
        write!(out, "\n  {name:9}{value}").ok();
    };
    if let (Some(topic), Some(partition), Some(offset)) = (&account.topic, account.partition, account.offset) {
        line("from", format!("{topic}/{partition}/{offset}"));
    }
    let time = account.time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"));
    let revision = said(&account.revision);
    let attempts = account.attempts.map_or_else(|| "-".to_owned(), |attempts| attempts.to_string());
    line("failed", format!("{time}, {} on {}, attempts {attempts}", said(&account.handler), short(&revision)));
    if let Some(message) = &account.message {
        line("message", shown(Some(message.as_bytes())));
    }
    if letter.redriven || letter.times() > 0 {
        let now = if letter.redriven { ", and this letter was sent again" } else { "" };
        line("redrives", format!("{} before it failed{now}", letter.times()));
    }
    line("key", shown(record.key()));
    line("value", shown(record.value()));
    for header in letter.own_headers() {
        line("header", format!("{}={}", shown(Some(&header.name)), shown(header.value.as_deref())));
    }
    out
}
