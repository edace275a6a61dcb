//! `tidemill park list` and `tidemill unpark`: keys that a handler's policy holds.

use std::collections::BTreeMap;

use super::client::{ClientError, HostArgs, all_answered};
use super::{say, text};
use crate::admin::{ParkedKeyView, ParkedView, Reach, UnparkRequest, Unparked};
use crate::attempt::short;

/// How more hosts are asked.
const ASK_MORE: &str = "with --admin URL,URL";

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
    /// Shows the parked keys of the partitions that the named hosts have: how many records, since when, and why.
    List {
        /// The handler.
        handler: String,
        /// Prints what the hosts answer together, as JSON.
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
    let (parked, failed) = args.host.ask(|client| client.parked(&handler), ParkedView::and)?;
    say(&if json { serde_json::to_string_pretty(&parked).expect("views have text keys") } else { listed(&parked) })?;
    all_answered(&failed)
}

/// Tries parked keys again, or counts them. It succeeds only if all of them were reached.
pub fn unpark(args: UnparkArgs) -> Result<(), ClientError> {
    let UnparkArgs { host, handler, topic, partition, key, null_key, dry_run } = args;
    let request = UnparkRequest { topic, partition, key, null_key, dry_run };
    let (unparked, failed) = host.ask(|client| client.unpark(&handler, &request), Unparked::and)?;
    say(&told(&handler, dry_run, &unparked))?;
    all_answered(&failed)?;
    if unparked.reach.is_whole() {
        return Ok(());
    }
    let left = "not all partitions were reached, and keys that are parked in the others stay so";
    Err(ClientError::NotAll(format!("{left}; ask again, and all hosts at once, {ASK_MORE}")))
}

fn told(handler: &str, dry_run: bool, Unparked { keys, records, reach }: &Unparked) -> String {
    let verb = if dry_run { "would be" } else { "are" };
    let partitions = reach.partitions;
    let done = format!("{handler}: {keys} keys with {records} records {verb} tried again, in {partitions} partitions");
    std::iter::once(done).chain(left(reach)).collect::<Vec<_>>().join("\n")
}

fn listed(ParkedView { keys, more, reach }: &ParkedView) -> String {
    let mut lines = match keys[..] {
        [] => vec![format!("no key is parked in {} partitions", reach.partitions)],
        _ => table(keys),
    };
    if *more > 0 {
        lines.push(format!("and {more} more keys, which are not shown; `tidemill unpark --dry-run` counts them all"));
    }
    lines.extend(left(reach));
    lines.join("\n")
}

/// What was not reached, and what to do.
fn left(reach: &Reach) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for of in &reach.silent {
        lines.push(format!("{}/{} does not answer: {}", of.topic, of.partition, of.detail));
    }
    let mut owned: BTreeMap<Option<&str>, Vec<String>> = BTreeMap::new();
    for of in reach.elsewhere.iter().flatten() {
        owned.entry(of.owner.as_deref()).or_default().push(format!("{}/{}", of.topic, of.partition));
    }
    lines.extend(owned.into_iter().map(|(owner, places)| {
        let places = places.join(", ");
        match owner {
            Some(owner) => format!("{places}: held by {owner}; ask that host too, {ASK_MORE}"),
            None => format!("{places}: held by another host, or by none just now; ask all hosts, {ASK_MORE}"),
        }
    }));
    if reach.elsewhere.is_none() {
        lines.push(format!("the broker does not say which partitions other hosts hold; ask all hosts, {ASK_MORE}"));
    }
    lines
}

fn table(keys: &[ParkedKeyView]) -> Vec<String> {
    let names = ["PARTITION", "KEY", "RECORDS", "FROM OFFSET", "STATE", "SINCE", "WHY"].map(str::to_owned);
    let dash = || "-".to_owned();
    let in_one_line = |text: &str| text::shown(Some(text.as_bytes()));
    let row = |of: &ParkedKeyView| {
        let why = of.class.as_ref().map(|class| {
            let said = |text: &Option<String>| text.clone().unwrap_or_default();
            let text = format!("{class} on {}: {}: {}", short(&said(&of.revision)), said(&of.code), said(&of.detail));
            in_one_line(&text)
        });
        [
            format!("{}/{}", of.topic, of.partition),
            of.key.as_str().map_or_else(|| of.key.to_string(), in_one_line),
            of.records.to_string(),
            of.first_offset.map_or_else(dash, |offset| offset.to_string()),
            if of.tried { "tried again" } else { "parked" }.to_owned(),
            of.since.clone().unwrap_or_else(dash),
            why.unwrap_or_else(dash),
        ]
    };
    let rows: Vec<[String; 7]> = std::iter::once(names).chain(keys.iter().map(row)).collect();
    text::columns(&rows)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::admin::{Elsewhere, Silent};

    fn key() -> ParkedKeyView {
        ParkedKeyView {
            topic: "orders".to_owned(),
            partition: 3,
            key: "customer-7".into(),
            records: 12,
            first_offset: Some(42),
            tried: false,
            since: Some("2026-01-01T00:00:00Z".to_owned()),
            class: Some("rejected".to_owned()),
            code: Some("bad-amount".to_owned()),
            detail: Some("the amount\nis -1".to_owned()),
            revision: Some("0123456789abcdef".to_owned()),
        }
    }

    /// A host that has four of six partitions, of which one does not answer.
    fn reach() -> Reach {
        let away = |partition, owner: Option<&str>| Elsewhere {
            topic: "orders".to_owned(),
            partition,
            owner: owner.map(str::to_owned),
        };
        let silent = Silent { topic: "orders".to_owned(), partition: 1, detail: "busy; ask again".to_owned() };
        let elsewhere = vec![away(4, Some("10.0.0.2 (b)")), away(5, Some("10.0.0.2 (b)")), away(2, None)];
        Reach { partitions: 3, silent: vec![silent], elsewhere: Some(elsewhere) }
    }

    #[test]
    fn parked_keys_are_aligned_and_say_why_and_what_is_not_shown() {
        let null = ParkedKeyView { key: serde_json::Value::Null, tried: true, class: None, since: None, ..key() };
        expect![[r#"
            PARTITION  KEY         RECORDS  FROM OFFSET  STATE        SINCE                 WHY
            orders/3   customer-7  12       42           parked       2026-01-01T00:00:00Z  rejected on 0123456789ab: bad-amount: the amount\nis -1
            orders/3   null        12       42           tried again  -                     -
            and 7 more keys, which are not shown; `tidemill unpark --dry-run` counts them all
            orders/1 does not answer: busy; ask again
            orders/2: held by another host, or by none just now; ask all hosts, with --admin URL,URL
            orders/4, orders/5: held by 10.0.0.2 (b); ask that host too, with --admin URL,URL"#]]
        .assert_eq(&listed(&ParkedView { keys: vec![key(), null], more: 7, reach: reach() }));
        let nothing = Reach { elsewhere: None, silent: Vec::new(), partitions: 4 };
        expect![[r#"
            no key is parked in 4 partitions
            the broker does not say which partitions other hosts hold; ask all hosts, with --admin URL,URL"#]]
        .assert_eq(&listed(&ParkedView { reach: nothing, ..ParkedView::default() }));
    }

    #[test]
    fn what_hosts_reach_together_is_whole_once_nothing_is_silent_or_held_by_another() {
        assert!(!reach().is_whole());
        let all = |elsewhere| Reach { partitions: 2, silent: Vec::new(), elsewhere: Some(elsewhere) };
        let away = |partition| Elsewhere { topic: "orders".to_owned(), partition, owner: None };
        let (one, other) = (all(vec![away(2), away(3)]), all(vec![away(0), away(1)]));
        assert!(!one.is_whole());
        let both = one.clone().and(other.clone());
        assert!(both.is_whole() && both.partitions == 4, "{both:?}");
        let third = all(vec![away(0), away(1), away(2), away(3)]);
        assert!(third.clone().and(one.clone()).and(other.clone()).is_whole());
        // One that has moved on while they were asked was asked nowhere.
        assert!(!one.clone().and(all(vec![away(0), away(2)])).is_whole());
        assert!(!one.and(Reach { elsewhere: None, ..other }).is_whole());
        expect![[r#"
            orders: 2 keys with 9 records are tried again, in 3 partitions
            orders/1 does not answer: busy; ask again
            orders/2: held by another host, or by none just now; ask all hosts, with --admin URL,URL
            orders/4, orders/5: held by 10.0.0.2 (b); ask that host too, with --admin URL,URL"#]]
        .assert_eq(&told("orders", false, &Unparked { keys: 2, records: 9, reach: reach() }));
    }
}
