//! `tidemill where TOPIC/PARTITION/OFFSET`: where a record is with each handler.
//!
//! A running host knows what is under way. What ended is told by the log: the committed offset says that it did, the
//! dead-letter topic how.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Value, json};
use tidemill_core::record::{Offset, is_topic_name};

use super::client::{ClientError, HostArgs};
use super::dlq::letters::{self, Letter, Search, Wanted};
use super::{ConfigPath, say};
use crate::admin::{WhereState, WhereView};
use crate::broker::{Admin, Broker, BrokerError, PartitionInfo};
use crate::config::manifest::{self, HandlerSpec};

/// Records of a dead-letter topic that are looked through for one letter.
const LETTERS_MAX: usize = 200_000;

/// Flags of `tidemill where`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration: it says where the log is, and which handlers read what.
    #[command(flatten)]
    pub(crate) config: ConfigPath,
    #[command(flatten)]
    host: HostArgs,
    /// The record, such as `orders/3/42`.
    #[arg(value_name = "TOPIC/PARTITION/OFFSET")]
    place: Place,
    /// Prints the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// A record's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    topic: String,
    partition: i32,
    offset: Offset,
}

/// What names no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no record; write TOPIC/PARTITION/OFFSET, such as orders/3/42")]
pub struct NoPlace(String);

/// Why it can't be said where a record is.
#[derive(Debug, thiserror::Error)]
pub enum WhereError {
    /// The broker said so.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The host said so.
    #[error(transparent)]
    Host(#[from] ClientError),
    /// The topic has no such partition.
    #[error("topic `{topic}` has no partition {partition}; it has 0 to {last}")]
    NoSuchPartition {
        /// The topic.
        topic: String,
        /// What was asked for.
        partition: i32,
        /// The last one that there is.
        last: i32,
    },
    /// Nobody reads the topic.
    #[error("no handler reads `{0}`: neither a manifest in the configured folder names it, nor a handler of the host")]
    NobodyReads(String),
    /// The task that asks has ended.
    #[error("the host was not asked: {0}")]
    NotAsked(String),
    /// The answer can't be written.
    #[error("the answer can't be printed: {0}")]
    Output(#[from] std::io::Error),
}

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let read = || {
            let (rest, offset) = text.rsplit_once('/')?;
            let (topic, partition) = rest.rsplit_once('/')?;
            let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
            let is_one = is_topic_name(topic) && partition >= 0 && offset >= 0;
            is_one.then(|| Self { topic: topic.to_owned(), partition, offset })
        };
        read().ok_or_else(|| NoPlace(text.to_owned()))
    }
}

/// Asks the host and the log, and says where the record is.
pub async fn run<B: Broker>(broker: &B, handlers: Option<&Path>, args: Args) -> Result<(), WhereError> {
    let Args { host, place, json, .. } = args;
    let admin = broker.admin()?;
    let kept = kept(&*admin, &place).await?;
    let (views, silent) = asked(host, place.clone()).await?;
    let mut seen = Vec::new();
    for reader in readers(handlers, &place.topic, views) {
        seen.push(reader.look(&*admin, &place, &kept).await?);
    }
    if seen.is_empty() {
        return Err(WhereError::NobodyReads(place.topic));
    }
    let text =
        if json { as_json(&place, &kept, silent.is_none(), &seen) } else { as_text(&place, &kept, silent, &seen) };
    Ok(say(&text)?)
}

/// What the hosts say that are named, and why those say nothing that are away.
async fn asked(host: HostArgs, place: Place) -> Result<(Vec<WhereView>, Option<String>), WhereError> {
    let both = |mut one: Vec<WhereView>, other| {
        one.extend(other);
        one
    };
    let ask = move || host.ask(|client| client.whereabouts(&place.topic, place.partition, place.offset), both);
    let answer = tokio::task::spawn_blocking(ask).await.map_err(|error| WhereError::NotAsked(error.to_string()))?;
    let (views, failed) = match answer {
        Ok(answer) => answer,
        Err(error) => (Vec::new(), vec![error]),
    };
    let mut silent = Vec::new();
    for error in failed {
        if !matches!(error, ClientError::NoHost { .. }) {
            return Err(error.into());
        }
        silent.push(error.to_string());
    }
    Ok((views, (!silent.is_empty()).then(|| silent.join("; "))))
}

/// What the log has at the place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kept {
    /// The record, made at this time, in milliseconds since the Unix epoch.
    Record(Option<i64>),
    /// It was deleted, or compacted away, or there never was one.
    Nothing { oldest: Offset },
    /// The partition ends before it.
    NotWritten { end: Offset },
}

async fn kept(admin: &dyn Admin, place: &Place) -> Result<Kept, WhereError> {
    let topics = admin.topics(Some(&place.topic)).await?;
    let partitions: Vec<PartitionInfo> = topics.into_iter().flat_map(|topic| topic.partitions).collect();
    let Some(of) = partitions.iter().find(|of| of.partition == place.partition) else {
        let last = partitions.last().map_or(0, |of| of.partition);
        return Err(WhereError::NoSuchPartition { topic: place.topic.clone(), partition: place.partition, last });
    };
    if place.offset >= of.end {
        return Ok(Kept::NotWritten { end: of.end });
    }
    if place.offset >= of.start {
        let chunk = admin.read(&place.topic, place.partition, place.offset, 1).await?;
        if let Some(record) = chunk.records().next().filter(|record| record.offset() == place.offset) {
            return Ok(Kept::Record(record.timestamp().millis()));
        }
    }
    Ok(Kept::Nothing { oldest: of.start })
}

/// A handler that reads the topic, by its manifest, by what the host says, or by both.
struct Reader {
    handler: String,
    group: String,
    letters: String,
    view: Option<WhereView>,
}

/// A manifest that is wrong is for `tidemill check` to say.
fn readers(handlers: Option<&Path>, topic: &str, views: Vec<WhereView>) -> Vec<Reader> {
    let folders = handlers.map(manifest::folders).unwrap_or_default();
    let specs = folders.into_values().filter_map(|folder| HandlerSpec::read(&folder).ok());
    let usual = format!("{topic}.dlq");
    let mut readers: BTreeMap<String, Reader> = specs
        .filter(|spec| spec.consumer.subscription.topics.iter().any(|read| read == topic))
        .map(|spec| Reader {
            handler: spec.name,
            group: spec.consumer.subscription.group,
            letters: spec.dead_letters.topic.unwrap_or_else(|| usual.clone()),
            view: None,
        })
        .map(|reader| (reader.handler.clone(), reader))
        .collect();
    for view in views {
        let reader = readers.entry(view.handler.clone()).or_insert_with(|| Reader {
            handler: view.handler.clone(),
            group: view.group.clone(),
            letters: usual.clone(),
            view: None,
        });
        // Of several hosts the one counts that has the partition.
        if reader.view.as_ref().is_none_or(|known| known.state == WhereState::NotHere) {
            reader.view = Some(view);
        }
    }
    readers.into_values().collect()
}

/// Where the record is with one handler.
#[derive(Debug)]
struct Seen {
    handler: String,
    group: String,
    state: State,
    tries: u32,
    again_in_ms: Option<u64>,
    committed: Option<Offset>,
    paused: bool,
    /// What else is to be said.
    note: Option<String>,
    letter: Option<Letter>,
    parked_at: Option<Offset>,
}

/// Where the record is, by all that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    NotWritten,
    NoRecord,
    Unread,
    Waiting,
    Running,
    Retrying,
    Stopped,
    /// Another host has the partition, or none: what is not committed is not known.
    Open,
    Done,
    Parked,
    DeadLettered,
    Redriven,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::NotWritten => "not-written",
            Self::NoRecord => "no-record",
            Self::Unread => "unread",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Stopped => "stopped",
            Self::Open => "open",
            Self::Done => "done",
            Self::Parked => "parked",
            Self::DeadLettered => "dead-lettered",
            Self::Redriven => "redriven",
        }
    }

    /// What the host and the committed offset say together; a letter may say more of what is done.
    fn of(host: Option<WhereState>, is_committed: bool, kept: &Kept) -> Self {
        match (host, kept) {
            (_, Kept::NotWritten { .. }) => Self::NotWritten,
            (Some(WhereState::Waiting), _) => Self::Waiting,
            (Some(WhereState::Running), _) => Self::Running,
            (Some(WhereState::Retrying), _) => Self::Retrying,
            (Some(WhereState::Stopped), _) => Self::Stopped,
            (Some(WhereState::Done), _) => Self::Done,
            (Some(WhereState::Absent), _) => Self::NoRecord,
            (Some(WhereState::NotHere | WhereState::Unread | WhereState::Unknown) | None, _) if is_committed => {
                Self::Done
            }
            (Some(WhereState::NotHere | WhereState::Unread | WhereState::Unknown) | None, Kept::Nothing { .. }) => {
                Self::NoRecord
            }
            (Some(WhereState::Unread), Kept::Record(_)) => Self::Unread,
            (Some(WhereState::NotHere | WhereState::Unknown) | None, Kept::Record(_)) => Self::Open,
        }
    }
}

impl Reader {
    async fn look(self, admin: &dyn Admin, place: &Place, kept: &Kept) -> Result<Seen, WhereError> {
        let Self { handler, group, letters, view } = self;
        let by_group = admin.committed(&group, &place.topic).await?;
        let by_group = by_group.into_iter().find(|(partition, _)| *partition == place.partition);
        // What the host has heard of may be ahead of what the broker has told, or the other way round.
        let committed = by_group.and_then(|(_, offset)| offset).max(view.as_ref().and_then(|view| view.committed));
        let is_committed = committed.is_some_and(|committed| place.offset < committed);
        let parked_at = view.as_ref().and_then(|view| view.parked_at);
        let state = match parked_at {
            Some(_) => State::Parked,
            None => State::of(view.as_ref().map(|view| view.state), is_committed, kept),
        };
        let mut seen = Seen {
            state,
            tries: view.as_ref().map_or(0, |view| view.tries),
            again_in_ms: view.as_ref().and_then(|view| view.again_in_ms),
            committed,
            paused: view.as_ref().is_some_and(|view| view.paused),
            note: None,
            letter: None,
            parked_at,
            handler,
            group,
        };
        match (state, view) {
            (State::Stopped, Some(WhereView { stopped: Some(stop), .. })) => {
                seen.note = Some(format!("at offset {} ({}): {}: {}", stop.offset, stop.class, stop.code, stop.detail));
            }
            (State::Open, Some(WhereView { detail: Some(detail), .. })) => seen.note = Some(detail),
            (State::Done, _) => seen.look_for_letter(admin, place, kept, &letters).await?,
            _ => {}
        }
        Ok(seen)
    }
}

impl Seen {
    async fn look_for_letter(
        &mut self,
        admin: &dyn Admin,
        place: &Place,
        kept: &Kept,
        topic: &str,
    ) -> Result<(), BrokerError> {
        let info = match admin.topics(Some(topic)).await {
            Ok(topics) => topics.into_iter().next(),
            Err(BrokerError::NoSuchTopic(_)) => None,
            Err(error) => return Err(error),
        };
        let Some(info) = info else { return Ok(()) };
        let since = if let Kept::Record(millis) = kept { *millis } else { None };
        let Place { topic: from, partition, offset } = place;
        let wanted = Wanted { handler: &self.handler, topic: from, partition: *partition, offset: *offset };
        let Search { letter, cut } = letters::find(admin, info, since, &wanted, LETTERS_MAX).await?;
        if let Some(letter) = &letter {
            self.state = if letter.redriven { State::Redriven } else { State::DeadLettered };
        } else if cut {
            self.note = Some(format!(
                "or dead-lettered: there are more than {LETTERS_MAX} records in `{topic}` since then, \
                 `tidemill dlq show --topic {topic}` looks through all of them"
            ));
        }
        self.letter = letter;
        Ok(())
    }

    fn text(&self) -> String {
        let committed = self.committed.map_or_else(|| "nothing".to_owned(), |offset| format!("up to {offset}"));
        let mut text = match self.state {
            State::NotWritten | State::NoRecord => format!("nothing to do (committed {committed})"),
            State::Unread => format!("not read yet (committed {committed})"),
            State::Waiting => "waits for the records before it, or for a call".to_owned(),
            State::Running if self.tries > 0 => format!("runs, after {} failures", self.tries),
            State::Running => "runs".to_owned(),
            State::Retrying => {
                let wait = self.again_in_ms.unwrap_or(0) as f64 / 1000.0;
                format!("failed {} times in a row and is tried again in {wait:.1} s", self.tries)
            }
            State::Stopped => "its partition stands still".to_owned(),
            State::Open => {
                format!("not done: this host does not have the partition; its group has committed {committed}")
            }
            State::Done => format!("done (committed {committed})"),
            State::Parked => format!("parked, with its key (at {} of the parked topic)", self.parked_at.unwrap_or(0)),
            State::DeadLettered => "dead-lettered".to_owned(),
            State::Redriven => "dead-lettered, and sent again".to_owned(),
        };
        if let Some(letter) = &self.letter {
            let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            // Writing to a `String` never fails.
            write!(text, ": {} ({}, {})", letter.place(), said(&letter.account.class), said(&letter.account.code)).ok();
        }
        if let Some(note) = &self.note {
            write!(text, "; {note}").ok();
        }
        if self.paused {
            text += "; the handler is paused";
        }
        text
    }

    fn json(&self) -> Value {
        json!({
            "handler": self.handler,
            "group": self.group,
            "state": self.state.name(),
            "tries": self.tries,
            "again_in_ms": self.again_in_ms,
            "committed": self.committed,
            "paused": self.paused,
            "parked_at": self.parked_at,
            "note": self.note,
            "letter": self.letter.as_ref().map(|letter| json!({
                "topic": &*letter.topic,
                "partition": letter.partition,
                "offset": letter.record.offset(),
                "class": letter.account.class,
                "code": letter.account.code,
            })),
        })
    }
}

fn as_text(place: &Place, kept: &Kept, silent: Option<String>, seen: &[Seen]) -> String {
    let Place { topic, partition, offset } = place;
    let mut lines = vec![match kept {
        Kept::Record(_) => format!("{topic}/{partition}/{offset}"),
        Kept::Nothing { oldest } => {
            format!("{topic}/{partition}/{offset}: no record is kept at this offset; the oldest is at {oldest}")
        }
        Kept::NotWritten { end } => {
            format!("{topic}/{partition}/{offset}: not written yet; the partition ends at {end}")
        }
    }];
    let width = seen.iter().map(|of| of.handler.chars().count()).max().unwrap_or(0);
    lines.extend(seen.iter().map(|of| format!("  {:width$}  {}", of.handler, of.text())));
    lines.extend(silent.map(|why| format!("  what runs is not known: {why}")));
    lines.join("\n")
}

fn as_json(place: &Place, kept: &Kept, asked: bool, seen: &[Seen]) -> String {
    let record = match kept {
        Kept::Record(_) => "kept",
        Kept::Nothing { .. } => "nothing",
        Kept::NotWritten { .. } => "not-written",
    };
    json!({
        "topic": place.topic,
        "partition": place.partition,
        "offset": place.offset,
        "record": record,
        "host_asked": asked,
        "handlers": seen.iter().map(Seen::json).collect::<Vec<_>>(),
    })
    .to_string()
}

#[cfg(test)]
mod tests;
