//! `tidemill dlq`: counts dead letters, shows them, and sends them again, on every broker in the same way.
//!
//! What was sent again is remembered in the dead-letter topic itself ([`receipt`]), letter by letter: letters are chosen by
//! filters, which leaves holes that no committed offset could tell.

pub(super) mod letters;
mod list;
mod receipt;
mod redrive;
mod show;

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use tidemill_core::record::Offset;

use self::letters::Letter;
pub use self::list::ListArgs;
pub use self::redrive::RedriveArgs;
pub use self::show::ShowArgs;
use crate::broker::{Admin, Broker, BrokerError, SendError};
use crate::cli::say;
use crate::config::manifest::{self, HandlerSpec};

/// What `tidemill dlq` does.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Counts letters by handler, class, code, revision and topic.
    List(ListArgs),
    /// Shows letters that were not sent again yet, the oldest first.
    Show(ShowArgs),
    /// Sends letters that were not sent again yet to where they came from, each with the id that it had.
    Redrive(RedriveArgs),
}

/// Which letters are meant: all that fit every flag.
#[derive(Debug, Default, clap::Args)]
pub struct Filter {
    /// Only letters in this dead-letter topic; may be given several times. By default those in all topics that end with
    /// `.dlq` or that a manifest names.
    #[arg(long = "topic", short, value_name = "TOPIC")]
    topics: Vec<String>,
    /// Only letters of this handler.
    #[arg(long)]
    handler: Option<String>,
    /// Only letters of this class, such as `rejected` or `trap`.
    #[arg(long)]
    class: Option<String>,
    /// Only letters with this code.
    #[arg(long)]
    code: Option<String>,
    /// Only letters whose record has this key.
    #[arg(long)]
    key: Option<String>,
    /// Only what failed at this time or later, such as `2026-11-21T09:00:00Z`.
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only what failed before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Only letters in this partition of the dead-letter topic.
    #[arg(long, short)]
    partition: Option<i32>,
    /// Only the letter at this offset of it.
    #[arg(long, requires = "partition")]
    offset: Option<Offset>,
}

/// Why a command about dead letters failed.
#[derive(Debug, thiserror::Error)]
pub enum DlqError {
    /// The broker said so.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// There is nowhere to look.
    #[error("there is no dead-letter topic: none ends with `.dlq` and no manifest names one; name it with --topic")]
    NoTopic,
    /// Letters would come back to where they are.
    #[error("`{0}` is the dead-letter topic itself; name another topic with --to")]
    ToItself(String),
    /// A letter was not acknowledged. The others of the same step may be stored behind it.
    #[error(
        "the letter {letter} was not sent to `{to}`: {error}; {sent} others were, and are not sent again by the next run"
    )]
    NotSent {
        /// Its place.
        letter: String,
        /// Where to.
        to: String,
        /// Why.
        error: SendError,
        /// How many letters were sent and noted.
        sent: u64,
    },
    /// Letters were sent, and that could not be noted.
    #[error(
        "{letters} letters of `{topic}` were sent and that could not be noted there: {error}; the next run sends them \
         again, with the same ids: first let this command write to `{topic}`"
    )]
    NotNoted {
        /// The dead-letter topic.
        topic: String,
        /// How many.
        letters: usize,
        /// Why.
        error: SendError,
    },
    /// The answer can't be written.
    #[error("the answer can't be printed: {0}")]
    Output(#[from] std::io::Error),
}

impl Command {
    /// Whether the command leaves the log as it is, so that it can work beside a running host.
    pub fn only_reads(&self) -> bool {
        match self {
            Self::List(_) | Self::Show(_) => true,
            Self::Redrive(args) => args.dry_run,
        }
    }
}

/// Does what the command says. `handlers` is the folder of handlers, whose manifests may name dead-letter topics.
pub async fn run<B: Broker>(broker: &B, handlers: Option<&Path>, command: Command) -> Result<(), DlqError> {
    let admin = broker.admin()?;
    let named = handlers.map(named_topics).unwrap_or_default();
    let done = match command {
        Command::List(args) => list::list(&*admin, &named, &args, say).await,
        Command::Show(args) => show::show(&*admin, &named, &args, say).await,
        Command::Redrive(args) if args.dry_run => redrive::dry_run(&*admin, &named, &args, say).await,
        Command::Redrive(args) => {
            let producer = broker.producer(&Default::default())?;
            redrive::redrive(&*admin, &*producer, &named, &args, say).await
        }
    };
    match done {
        // Whoever read the output has enough, as in `dlq show | head`.
        Err(DlqError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// The dead-letter topics that manifests name. A manifest that is wrong is for `tidemill check` to say.
fn named_topics(handlers: &Path) -> BTreeSet<String> {
    let folders = manifest::folders(handlers).into_values();
    folders.filter_map(|folder| HandlerSpec::read(&folder).ok()?.dead_letters.topic).collect()
}

impl Filter {
    /// The topics that are looked into.
    async fn topics(&self, admin: &dyn Admin, named: &BTreeSet<String>) -> Result<Vec<letters::Topic>, DlqError> {
        let mut topics = Vec::new();
        // A topic that is named twice is looked into once.
        for name in self.topics.iter().collect::<BTreeSet<_>>() {
            topics.extend(admin.topics(Some(name)).await?);
        }
        if self.topics.is_empty() {
            let all = admin.topics(None).await?;
            topics.extend(all.into_iter().filter(|of| of.name.ends_with(".dlq") || named.contains(&of.name)));
            if topics.is_empty() {
                return Err(DlqError::NoTopic);
            }
        }
        let mut opened = Vec::with_capacity(topics.len());
        for mut topic in topics {
            topic.partitions.retain(|of| self.partition.is_none_or(|partition| partition == of.partition));
            opened.push(letters::Topic::open(admin, topic).await?);
        }
        Ok(opened)
    }

    fn fits(&self, letter: &Letter) -> bool {
        let account = &letter.account;
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        is(&self.handler, &account.handler)
            && is(&self.class, &account.class)
            && is(&self.code, &account.code)
            && self.key.as_ref().is_none_or(|key| letter.record.key() == Some(key.as_bytes()))
            && self.since.is_none_or(|since| account.time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| account.time.is_some_and(|time| time < until))
            && self.offset.is_none_or(|offset| letter.record.offset() == offset)
    }
}

#[cfg(test)]
mod tests;
