//! `tidemill dlq redrive`: sends letters again and notes which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tidemill_core::offset_set::OffsetSet;
use tidemill_core::record::{Offset, Timestamp, redriven};

use super::letters::Letter;
use super::receipt::receipt;
use super::{DlqError, Filter};
use crate::broker::{Admin, Header, Outgoing, Producer, SendError, WhenFull};
use crate::cli::progress;

/// What the names of our own headers about it begin with.
const PREFIX: &[u8] = b"tidemill.redriven.";

/// Flags of `dlq redrive`.
#[derive(Debug, clap::Args)]
pub struct RedriveArgs {
    #[command(flatten)]
    filter: Filter,
    /// Sends them to this topic; by default each to the topic that it came from.
    #[arg(long, value_name = "TOPIC")]
    to: Option<String>,
    /// Ends after so many letters.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Leaves letters whose record was sent again so often already.
    #[arg(long, value_name = "N", default_value_t = 3)]
    redrives_max: u32,
    /// Says what would be sent, and sends nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

/// What becomes of a letter.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Send {
        to: Arc<str>,
    },
    SentBefore,
    TooOften,
    /// Nobody says where to.
    NoOrigin,
}

/// What was done, for the end of a run.
#[derive(Debug, Default)]
struct Report {
    /// Letters sent, by topic.
    sent: BTreeMap<Arc<str>, u64>,
    sent_before: u64,
    too_often: u64,
    no_origin: u64,
    beyond_limit: u64,
}

/// Sends letters, page by page: each page is acknowledged, then noted, before the next one is read.
pub(super) async fn redrive(
    admin: &dyn Admin,
    producer: &dyn Producer,
    named: &BTreeSet<String>,
    args: &RedriveArgs,
    mut print: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), DlqError> {
    let topics = args.topics(admin, named).await?;
    let planned = args.plan(admin, &topics).await?;
    let targets = Targets::of(admin, &planned).await?;
    let bar = progress::bar(planned.total(), "letters");
    let mut report = Report::default();
    let run = async {
        for topic in &topics {
            let mut pages = topic.pages(admin, &args.filter);
            while let Some(letters) = pages.next().await? {
                let chosen = args.choose(letters, &mut report);
                send(producer, &targets, chosen, &mut report).await?;
                bar.set_position(report.total());
            }
        }
        Ok(())
    };
    let done: Result<(), DlqError> = run.await;
    bar.finish_and_clear();
    done?;
    Ok(print(&report.text(args, "were"))?)
}

/// Says what would be sent.
pub(super) async fn dry_run(
    admin: &dyn Admin,
    named: &BTreeSet<String>,
    args: &RedriveArgs,
    mut print: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), DlqError> {
    let topics = args.topics(admin, named).await?;
    let planned = args.plan(admin, &topics).await?;
    Targets::of(admin, &planned).await?;
    Ok(print(&planned.text(args, "would be"))?)
}

impl RedriveArgs {
    async fn topics(
        &self,
        admin: &dyn Admin,
        named: &BTreeSet<String>,
    ) -> Result<Vec<super::letters::Topic>, DlqError> {
        let topics = self.filter.topics(admin, named).await?;
        match &self.to {
            Some(to) if topics.iter().any(|topic| *topic.name == **to) => Err(DlqError::ToItself(to.clone())),
            Some(_) | None => Ok(topics),
        }
    }

    /// Goes through all letters without sending any.
    async fn plan(&self, admin: &dyn Admin, topics: &[super::letters::Topic]) -> Result<Report, DlqError> {
        let mut report = Report::default();
        let bar = progress::spinner("reading the letters");
        for topic in topics {
            let mut pages = topic.pages(admin, &self.filter);
            while let Some(letters) = pages.next().await? {
                for (_, to) in self.choose(letters, &mut report) {
                    *report.sent.entry(to).or_default() += 1;
                }
                bar.tick();
            }
        }
        bar.finish_and_clear();
        Ok(report)
    }

    /// The letters of a page that are sent, with their topic; the others are counted.
    fn choose(&self, letters: Vec<Letter>, report: &mut Report) -> Vec<(Letter, Arc<str>)> {
        let mut chosen = Vec::new();
        let limit = self.limit.unwrap_or(u64::MAX);
        for letter in letters {
            match self.fate(&letter) {
                Fate::Send { .. } if report.total() + chosen.len() as u64 >= limit => report.beyond_limit += 1,
                Fate::Send { to } => chosen.push((letter, to)),
                Fate::SentBefore => report.sent_before += 1,
                Fate::TooOften => report.too_often += 1,
                Fate::NoOrigin => report.no_origin += 1,
            }
        }
        chosen
    }

    fn fate(&self, letter: &Letter) -> Fate {
        if letter.redriven {
            return Fate::SentBefore;
        }
        if letter.times() >= self.redrives_max {
            return Fate::TooOften;
        }
        match self.to.as_deref().or(letter.account.topic.as_deref()) {
            Some(to) => Fate::Send { to: to.into() },
            None => Fate::NoOrigin,
        }
    }
}

/// The topics that are written to, with the number of their partitions.
struct Targets(BTreeMap<Arc<str>, i32>);

impl Targets {
    /// Looks for all of them before anything is sent.
    async fn of(admin: &dyn Admin, planned: &Report) -> Result<Self, DlqError> {
        let mut targets = BTreeMap::new();
        for to in planned.sent.keys() {
            let found = admin.topics(Some(to)).await?;
            targets.insert(Arc::clone(to), found.iter().map(|topic| topic.partitions.len() as i32).sum());
        }
        Ok(Self(targets))
    }

    /// The record that a letter is about, as it was, with headers that say that it comes again.
    fn outgoing(&self, letter: &Letter, to: &Arc<str>) -> Outgoing {
        let Letter { record, account, .. } = letter;
        let header = |name: &'static str, value: String| Header {
            name: Bytes::from_static(name.as_bytes()),
            value: Some(value.into()),
        };
        let mut headers = letter.own_headers();
        headers.retain(|own| !own.name.starts_with(PREFIX));
        if let Some(id) = &account.id {
            headers.push(header(redriven::ID, id.clone()));
        }
        headers.push(header(redriven::TO, to.to_string()));
        headers.push(header(redriven::TIMES, (letter.times() + 1).to_string()));
        // Where it came from, its partition is known, whoever chose it.
        let comes_home = account.topic.as_deref() == Some(&**to);
        let partitions = self.0.get(to).copied().unwrap_or(0);
        Outgoing {
            topic: Arc::clone(to),
            partition: account.partition.filter(|partition| comes_home && (0..partitions).contains(partition)),
            timestamp_ms: made_at(letter),
            key: record.shared_key(),
            value: record.shared_value(),
            headers,
        }
    }
}

/// When the letter's record was made. Where the broker dates letters itself, the record's id knows.
fn made_at(letter: &Letter) -> Option<i64> {
    let known = match letter.record.timestamp() {
        Timestamp::Create(millis) => Some(millis),
        Timestamp::None | Timestamp::LogAppend(_) => {
            letter.account.id.as_ref().and_then(|id| id.rsplit('/').next()?.parse().ok())
        }
    };
    known.filter(|millis| *millis >= 0)
}

/// Sends the chosen letters of one page and notes those that are stored.
async fn send(
    producer: &dyn Producer,
    targets: &Targets,
    chosen: Vec<(Letter, Arc<str>)>,
    report: &mut Report,
) -> Result<(), DlqError> {
    let Some((first, _)) = chosen.first() else { return Ok(()) };
    let (topic, partition) = (Arc::clone(&first.topic), first.partition);
    let records = chosen.iter().map(|(letter, to)| targets.outgoing(letter, to)).collect();
    let results = producer.send(records, WhenFull::Wait).await;
    let mut stored: Vec<Offset> = Vec::with_capacity(chosen.len());
    let mut failed = None;
    for ((letter, to), result) in chosen.into_iter().zip(results) {
        match result {
            Ok(_) => {
                stored.push(letter.record.offset());
                *report.sent.entry(to).or_default() += 1;
            }
            Err(error) => drop(failed.get_or_insert((letter.place(), to.to_string(), error))),
        }
    }
    note(producer, &topic, partition, stored).await?;
    match failed {
        None => Ok(()),
        Some((letter, to, error)) => Err(DlqError::NotSent { letter, to, error, sent: report.total() }),
    }
}

async fn note(producer: &dyn Producer, topic: &Arc<str>, partition: i32, stored: Vec<Offset>) -> Result<(), DlqError> {
    if stored.is_empty() {
        return Ok(());
    }
    let letters = stored.len();
    let receipt = receipt(&OffsetSet::from_iter(stored), topic, partition);
    let silent = || Err(SendError::Unknown("the producer gave no answer".to_owned()));
    let noted = producer.send(vec![receipt], WhenFull::Wait).await.pop().unwrap_or_else(silent);
    noted.map(drop).map_err(|error| DlqError::NotNoted { topic: topic.to_string(), letters, error })
}

impl Report {
    fn total(&self) -> u64 {
        self.sent.values().sum()
    }

    fn text(&self, args: &RedriveArgs, verb: &str) -> String {
        if args.json {
            return json!({
                "sent": self.total(),
                "to": self.sent.iter().map(|(to, count)| (to.to_string(), *count)).collect::<BTreeMap<_, _>>(),
                "sent_before": self.sent_before,
                "too_often": self.too_often,
                "no_origin": self.no_origin,
                "beyond_limit": self.beyond_limit,
                "dry_run": args.dry_run,
            })
            .to_string();
        }
        let mut lines = vec![format!("{} letters {verb} sent again", self.total())];
        lines.extend(self.sent.iter().map(|(to, count)| format!("  {count} to {to}")));
        let left = [
            (self.sent_before, "sent again by an earlier run".to_owned()),
            (self.too_often, format!("{} redrives have not helped; --redrives-max takes more", args.redrives_max)),
            (self.no_origin, "nothing says where they came from; --to names a topic".to_owned()),
            (self.beyond_limit, "beyond --limit".to_owned()),
        ];
        let left = left.iter().filter(|(count, _)| *count > 0);
        lines.extend(left.map(|(count, why)| format!("  {count} left: {why}")));
        lines.join("\n")
    }
}
