//! `tidemill guests`: what runs in a host, and going back to the revision before.

use std::fmt::Write as _;

use super::client::{Client, ClientError, HostArgs, all_answered};
use crate::admin::{HandlerView, PartitionView, PauseView, RolledBack, StoppedView};

/// Flags of `tidemill guests`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    host: HostArgs,
    #[command(subcommand)]
    command: Command,
}

/// Flags of `tidemill pause` and `tidemill resume`.
#[derive(Debug, clap::Args)]
pub struct HandlerArgs {
    #[command(flatten)]
    host: HostArgs,
    /// The handler.
    handler: String,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows each handler: its revision, its partitions, how far it is behind.
    List {
        /// Prints what the host answers, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Goes back to the revision before the live one. The file that was live is not loaded again by itself.
    Rollback {
        /// The handler.
        handler: String,
    },
}

/// Does what the command says and prints the answer.
pub fn run(args: Args) -> Result<(), ClientError> {
    match args.command {
        Command::List { json: true } => Ok(super::say(&json(&args.host.client()?.list()?))?),
        Command::List { json: false } => each(args.host, |client| Ok(table(&client.list()?))),
        Command::Rollback { handler } => {
            each(args.host, |client| Ok(rolled_back(&handler, &client.roll_back(&handler)?)))
        }
    }
}

/// Pauses a handler, or lets it go on, and says so.
pub fn pause(args: HandlerArgs, paused: bool) -> Result<(), ClientError> {
    each(args.host, |client| {
        let PauseView { handler, paused } = client.pause(&args.handler, paused)?;
        Ok(if paused {
            format!("{handler}: paused, also after a restart; `tidemill resume {handler}` lets it go on")
        } else {
            format!("{handler}: goes on")
        })
    })
}

/// Does it with each host that is named, and prints the answers, each below its host's address if there are several. It
/// succeeds only if all have answered well.
fn each(hosts: HostArgs, action: impl Fn(&Client) -> Result<String, ClientError>) -> Result<(), ClientError> {
    let several = hosts.are_several();
    let answer = |client: &Client| {
        let text = action(client)?;
        Ok(if several { format!("{}\n{text}", client.url()) } else { text })
    };
    let (text, failed) = hosts.ask(answer, |before, text| format!("{before}\n{text}"))?;
    super::say(&text)?;
    all_answered(&failed)
}

fn rolled_back(handler: &str, RolledBack { revision, set_aside, not_kept }: &RolledBack) -> String {
    let (live, aside) = (short(revision), short(set_aside));
    let kept = match not_kept {
        None => ", also after a restart".to_owned(),
        Some(error) => format!(", but not after a restart: the host's folder `state` can't be written ({error})"),
    };
    format!("{handler}: {live} is live again; {aside} is set aside until another file comes{kept}")
}

fn json(handlers: &[HandlerView]) -> String {
    serde_json::to_string_pretty(handlers).expect("views have text keys and no maps")
}

/// The handlers as aligned columns, with what is wrong below each.
fn table(handlers: &[HandlerView]) -> String {
    if handlers.is_empty() {
        return "no handlers: put a folder with a handler.toml and a component into the handlers' folder".to_owned();
    }
    let mut rows = vec![
        ["HANDLER", "STATE", "REVISION", "LIVE SINCE", "GROUP", "TOPICS", "PARTITIONS", "LAG", "IN FLIGHT"]
            .map(str::to_owned),
    ];
    rows.extend(handlers.iter().map(row));
    let mut text = String::new();
    for (at, line) in super::text::columns(&rows).iter().enumerate() {
        let below = at.checked_sub(1).map(|at| &handlers[at]);
        // Writing to a `String` never fails.
        writeln!(text, "{line}").ok();
        for line in below.into_iter().flat_map(notes) {
            writeln!(text, "  {line}").ok();
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn row(handler: &HandlerView) -> [String; 9] {
    let dash = || "-".to_owned();
    [
        handler.name.clone(),
        handler.state.name().to_owned(),
        handler.revision.as_deref().map_or_else(dash, |digest| short(digest).to_owned()),
        handler.since.clone().unwrap_or_else(dash),
        handler.group.clone(),
        handler.topics.join(","),
        handler.partitions.len().to_string(),
        handler.lag_records.map_or_else(dash, |lag| lag.to_string()),
        handler.in_flight_records.to_string(),
    ]
}

fn notes(handler: &HandlerView) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(reason) = &handler.reason {
        notes.extend(reason.lines().map(str::to_owned));
    }
    for PartitionView { topic, partition, stopped, parked_records, .. } in &handler.partitions {
        if *parked_records > 0 {
            notes.push(format!(
                "{topic}/{partition} has {parked_records} parked records; `tidemill park list {}` shows their keys",
                handler.name
            ));
        }
        if let Some(StoppedView { offset, class, code, detail, revision }) = stopped {
            notes.push(format!(
                "{topic}/{partition} stands still at offset {offset} ({class} on {}): {code}: {detail}",
                short(revision)
            ));
        }
    }
    let aside = handler.set_aside.iter().rev();
    notes.extend(aside.map(|digest| format!("{} was rolled back from and is set aside", short(digest))));
    if !handler.previous.is_empty() {
        let digests: Vec<&str> = handler.previous.iter().map(|digest| short(digest)).collect();
        notes.push(format!("can go back to {}", digests.join(", ")));
    }
    notes
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::admin::HandlerState;

    fn handler(name: &str, state: HandlerState) -> HandlerView {
        HandlerView {
            name: name.to_owned(),
            group: name.to_owned(),
            topics: vec!["orders".to_owned()],
            state,
            reason: None,
            revision: None,
            since: None,
            previous: Vec::new(),
            set_aside: Vec::new(),
            partitions: Vec::new(),
            lag_records: None,
            in_flight_records: 0,
        }
    }

    #[test]
    fn the_list_is_aligned_and_says_below_a_handler_what_is_wrong() {
        let orders = HandlerView {
            revision: Some("0123456789abcdef".to_owned()),
            since: Some("2026-01-01T00:00:00Z".to_owned()),
            previous: vec!["aaaaaaaaaaaaaaaa".to_owned(), "bbbbbbbbbbbbbbbb".to_owned()],
            set_aside: vec!["cccccccccccccccc".to_owned()],
            lag_records: Some(12),
            in_flight_records: 3,
            ..handler("orders", HandlerState::Running)
        };
        let stopped = StoppedView {
            offset: 42,
            class: "rejected".to_owned(),
            code: "bad-amount".to_owned(),
            detail: "the amount is -1".to_owned(),
            revision: "0123456789abcdef".to_owned(),
        };
        let partition = PartitionView {
            topic: "orders".to_owned(),
            partition: 3,
            committed: Some(42),
            lag_records: Some(9),
            stopped: Some(stopped),
            parked_records: 5,
        };
        let orders = HandlerView { partitions: vec![partition], ..orders };
        let audit = HandlerView { reason: Some("one\ntwo".to_owned()), ..handler("audit", HandlerState::Failed) };
        expect![[r#"
            HANDLER  STATE    REVISION      LIVE SINCE            GROUP   TOPICS  PARTITIONS  LAG  IN FLIGHT
            orders   running  0123456789ab  2026-01-01T00:00:00Z  orders  orders  1           12   3
              orders/3 has 5 parked records; `tidemill park list orders` shows their keys
              orders/3 stands still at offset 42 (rejected on 0123456789ab): bad-amount: the amount is -1
              cccccccccccc was rolled back from and is set aside
              can go back to aaaaaaaaaaaa, bbbbbbbbbbbb
            audit    failed   -             -                     audit   orders  0           -    0
              one
              two"#]]
        .assert_eq(&table(&[orders, audit]));
    }

    #[test]
    fn an_empty_list_says_what_to_do() {
        assert!(table(&[]).contains("put a folder"));
    }
}
