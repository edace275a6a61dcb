//! `tidemill park list` and `tidemill unpark`: keys that a handler's policy holds.

use std::fmt::Write as _;

use super::guests::{ClientError, HostArgs};
use super::{say, text};
use crate::admin::{ParkedView, UnparkRequest, Unparked};
use crate::attempt::short;

/// Flags of `tidemill park`.
#[derive(Debug, clap::Args)]
pub struct ParkArgs {
    #[command(flatten)]
    host: HostArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows the parked keys of the partitions that this host has: how many records, since when, and why.
    List {
        /// The handler.
        handler: String,
        /// Prints what the host answers, as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Flags of `tidemill unpark`. All that is given has to fit.
#[derive(Debug, clap::Args)]
pub struct UnparkArgs {
    #[command(flatten)]
    host: HostArgs,
    /// The handler.
    handler: String,
    /// Only keys of this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Only keys of this partition.
    #[arg(long, short)]
    partition: Option<i32>,
    /// Only this key.
    #[arg(long)]
    key: Option<String>,
    /// Only the null key.
    #[arg(long, conflicts_with = "key")]
    null_key: bool,
    /// Counts, and changes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Shows parked keys.
pub fn park(args: ParkArgs) -> Result<(), ClientError> {
    let Command::List { handler, json } = args.command;
    let parked = args.host.client()?.parked(&handler)?;
    let text = if json { serde_json::to_string_pretty(&parked).expect("views have text keys") } else { table(&parked) };
    Ok(say(&text)?)
}

/// Tries parked keys again, or counts them.
pub fn unpark(args: UnparkArgs) -> Result<(), ClientError> {
    let UnparkArgs { host, handler, topic, partition, key, null_key, dry_run } = args;
    let request = UnparkRequest { topic, partition, key, null_key, dry_run };
    let unparked = host.client()?.unpark(&handler, &request)?;
    Ok(say(&told(&handler, dry_run, &unparked))?)
}

fn told(handler: &str, dry_run: bool, unparked: &Unparked) -> String {
    let Unparked { keys, records, partitions, silent } = unparked;
    let verb = if dry_run { "would be" } else { "are" };
    let mut text = format!(
        "{handler}: {keys} keys with {records} records {verb} tried again, in {partitions} partitions of this host; ask \
         the other hosts for theirs"
    );
    for partition in silent {
        // Writing to a `String` never fails.
        write!(text, "\n  no answer from {partition}").ok();
    }
    text
}

fn table(parked: &[ParkedView]) -> String {
    if parked.is_empty() {
        return "no key is parked in the partitions of this host".to_owned();
    }
    let names = ["PARTITION", "KEY", "RECORDS", "FROM OFFSET", "STATE", "SINCE", "WHY"].map(str::to_owned);
    let dash = || "-".to_owned();
    let row = |of: &ParkedView| {
        let why = of.class.as_ref().map(|class| {
            let said = |text: &Option<String>| text.clone().unwrap_or_default();
            format!("{class} on {}: {}: {}", short(&said(&of.revision)), said(&of.code), said(&of.detail))
        });
        [
            format!("{}/{}", of.topic, of.partition),
            of.key.as_str().map_or_else(|| of.key.to_string(), str::to_owned),
            of.records.to_string(),
            of.first_offset.map_or_else(dash, |offset| offset.to_string()),
            if of.tried { "tried again" } else { "parked" }.to_owned(),
            of.since.clone().unwrap_or_else(dash),
            why.unwrap_or_else(dash),
        ]
    };
    let rows: Vec<[String; 7]> = std::iter::once(names).chain(parked.iter().map(row)).collect();
    text::columns(&rows).join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn parked_keys_are_aligned_and_say_why() {
        let parked = ParkedView {
            topic: "orders".to_owned(),
            partition: 3,
            key: "customer-7".into(),
            records: 12,
            first_offset: Some(42),
            tried: false,
            since: Some("2026-01-01T00:00:00Z".to_owned()),
            class: Some("rejected".to_owned()),
            code: Some("bad-amount".to_owned()),
            detail: Some("the amount is -1".to_owned()),
            revision: Some("0123456789abcdef".to_owned()),
        };
        let null = ParkedView { key: serde_json::Value::Null, tried: true, class: None, since: None, ..parked.clone() };
        expect![[r#"
            PARTITION  KEY         RECORDS  FROM OFFSET  STATE        SINCE                 WHY
            orders/3   customer-7  12       42           parked       2026-01-01T00:00:00Z  rejected on 0123456789ab: bad-amount: the amount is -1
            orders/3   null        12       42           tried again  -                     -"#]]
        .assert_eq(&table(&[parked, null]));
    }
}
