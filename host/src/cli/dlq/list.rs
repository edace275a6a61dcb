//! `tidemill dlq list`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::json;

use super::letters::Letter;
use super::{DlqError, Filter};
use crate::attempt::short;
use crate::broker::Admin;
use crate::cli::text;

/// Kinds that are told apart. Codes are short and few; a handler that puts values into them must not fill the memory.
const KINDS_MAX: usize = 10_000;

/// Flags of `dlq list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// Prints one line of JSON for each kind of letter.
    #[arg(long)]
    json: bool,
}

/// Letters that are counted together: the dead-letter topic, then what the letters say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    letters_in: String,
    handler: String,
    class: String,
    code: String,
    revision: String,
    from: String,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    open: u64,
    redriven: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

/// Prints how many letters there are, by kind.
pub(super) async fn list(
    admin: &dyn Admin,
    named: &BTreeSet<String>,
    args: &ListArgs,
    mut print: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), DlqError> {
    let mut counts: BTreeMap<Kind, Count> = BTreeMap::new();
    for topic in args.filter.topics(admin, named).await? {
        let mut pages = topic.pages(admin, &args.filter);
        while let Some(letters) = pages.next().await? {
            letters.iter().for_each(|letter| count(&mut counts, letter));
        }
    }
    if args.json {
        for (kind, count) in &counts {
            print(&json_line(kind, count))?;
        }
        return Ok(());
    }
    if counts.is_empty() {
        print("no dead letters")?;
        return Ok(());
    }
    Ok(table(&counts).iter().try_for_each(|line| print(line))?)
}

fn count(counts: &mut BTreeMap<Kind, Count>, letter: &Letter) {
    let account = &letter.account;
    let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut kind = Kind {
        letters_in: letter.topic.to_string(),
        handler: said(&account.handler),
        class: said(&account.class),
        code: said(&account.code),
        revision: said(&account.revision),
        from: said(&account.topic),
    };
    if counts.len() >= KINDS_MAX && !counts.contains_key(&kind) {
        kind.code = "(others)".to_owned();
    }
    let count = counts.entry(kind).or_default();
    *(if letter.redriven { &mut count.redriven } else { &mut count.open }) += 1;
    count.first = count.first.into_iter().chain(account.time).min();
    count.last = count.last.max(account.time);
}

fn json_line(kind: &Kind, count: &Count) -> String {
    let known = |text: &String| (text != "-").then(|| text.clone());
    json!({
        "topic": kind.letters_in,
        "handler": known(&kind.handler),
        "class": known(&kind.class),
        "code": known(&kind.code),
        "revision": known(&kind.revision),
        "from": known(&kind.from),
        "letters": count.open,
        "redriven": count.redriven,
        "first": count.first.map(|time| time.to_string()),
        "last": count.last.map(|time| time.to_string()),
    })
    .to_string()
}

fn table(counts: &BTreeMap<Kind, Count>) -> Vec<String> {
    let names = ["LETTERS IN", "HANDLER", "CLASS", "CODE", "REVISION", "FROM", "LETTERS", "REDRIVEN", "FIRST", "LAST"];
    let time = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.0}"));
    let row = |(kind, count): (&Kind, &Count)| {
        [
            kind.letters_in.clone(),
            kind.handler.clone(),
            kind.class.clone(),
            kind.code.clone(),
            short(&kind.revision).to_owned(),
            kind.from.clone(),
            count.open.to_string(),
            count.redriven.to_string(),
            time(count.first),
            time(count.last),
        ]
    };
    let rows: Vec<[String; 10]> = std::iter::once(names.map(str::to_owned)).chain(counts.iter().map(row)).collect();
    text::columns(&rows)
}
