//! `tidemill topic`: lists, makes, reads and fills topics, on every broker in the same way.

mod file;
mod list;
mod produce;
mod tail;

use crate::broker::{Broker, BrokerError, SendError};
use crate::cli::say;

pub use self::file::{Format, InvalidFile};
pub use self::produce::ProduceArgs;
pub use self::tail::TailArgs;

/// What `tidemill topic` does.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Lists topics with their partitions and how many records they keep.
    List(ListArgs),
    /// Makes a topic.
    Create(CreateArgs),
    /// Shows records.
    Tail(TailArgs),
    /// Writes the records of a file; nothing is written when a line of it is wrong.
    Produce(ProduceArgs),
}

/// Flags of `topic list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only this topic.
    topic: Option<String>,
    /// Prints one line of JSON for each topic, with the offsets of its partitions.
    #[arg(long)]
    json: bool,
}

/// Flags of `topic create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The topic's name.
    topic: String,
    /// How many partitions it has.
    #[arg(long, short, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
    /// How many brokers hold each; by default as many as the broker says.
    #[arg(long, short, value_parser = clap::value_parser!(i32).range(1..))]
    replicas: Option<i32>,
}

/// Why a topic command failed.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The broker said so.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The file can't be used; nothing was written.
    #[error(transparent)]
    File(#[from] InvalidFile),
    /// A record was not acknowledged.
    #[error("line {line} was not stored: {error}; {stored} other records of the file are")]
    NotStored {
        /// Where it stands in the file.
        line: u64,
        /// Why.
        error: SendError,
        /// How many records were acknowledged.
        stored: u64,
    },
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
    /// The answer can't be written.
    #[error("the answer can't be printed: {0}")]
    Output(#[from] std::io::Error),
}

impl Command {
    /// Whether the command leaves the log as it is, so that it can work beside a running host.
    pub fn only_reads(&self) -> bool {
        match self {
            Self::List(_) | Self::Tail(_) => true,
            Self::Create(_) | Self::Produce(_) => false,
        }
    }
}

/// Does what the command says.
pub async fn run<B: Broker>(broker: &B, command: Command) -> Result<(), TopicError> {
    let admin = broker.admin()?;
    let done = match command {
        Command::List(args) => list::list(&*admin, args.topic.as_deref(), args.json, say).await,
        Command::Create(args) => {
            admin.create_topic(&args.topic, args.partitions, args.replicas).await?;
            say(&format!("topic `{}` is there, with {} partitions", args.topic, args.partitions))
                .map_err(TopicError::from)
        }
        Command::Tail(args) => tail::tail(&*admin, &args, say).await,
        Command::Produce(args) => {
            let producer = broker.producer(&Default::default())?;
            let stored = produce::produce(&*producer, &args).await?;
            say(&format!("{stored} records are stored in topic `{}`", args.topic)).map_err(TopicError::from)
        }
    };
    match done {
        // Whoever read the output has enough, as in `topic tail orders | head`.
        Err(TopicError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests;
