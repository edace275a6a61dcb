//! `tidemill topic`: lists, makes, reads and fills topics, on Kafka and on the embedded log.

mod produce;
mod tail;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;

use super::say;
use crate::broker::{Admin, Broker, TopicInfo};

/// What to do with topics.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Shows each topic, its partitions and how many records it holds.
    List {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Makes a topic.
    Create {
        /// Its name.
        topic: String,
        /// How many partitions it has.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10_000))]
        partitions: i32,
        /// How many replicas each partition has; by default what the broker says.
        #[arg(long)]
        replicas: Option<i32>,
    },
    /// Shows a topic's records.
    Tail(tail::Args),
    /// Writes a file's records to a topic, and returns once the broker has them.
    Produce(produce::Args),
}

impl Command {
    /// Whether it can be done beside a running host that holds the embedded log.
    pub fn only_reads(&self) -> bool {
        match self {
            Self::List { .. } | Self::Tail(_) => true,
            Self::Create { .. } | Self::Produce(_) => false,
        }
    }
}

/// Does it.
pub async fn run<B: Broker>(broker: &B, command: Command) -> anyhow::Result<()> {
    let admin = broker.admin()?;
    match command {
        Command::List { json } => list(&*admin, json).await,
        Command::Create { topic, partitions, replicas } => {
            admin.create_topic(&topic, partitions, replicas).await?;
            Ok(say(&format!("{topic} is there, with {partitions} partitions"))?)
        }
        Command::Tail(args) => tail::tail(&*admin, &args).await,
        Command::Produce(args) => {
            let producer = broker.producer(&BTreeMap::new())?;
            produce::produce(&Arc::clone(&producer), &args).await
        }
    }
}

async fn list(admin: &dyn Admin, json: bool) -> anyhow::Result<()> {
    let topics = admin.topics(None).await.context("the topics can't be listed")?;
    if json {
        let list: Vec<_> = topics.iter().map(entry).collect();
        return Ok(say(&serde_json::to_string_pretty(&list)?)?);
    }
    say(&format!("{:<40} {:>10} {:>12} {:>9}", "TOPIC", "PARTITIONS", "RECORDS", "REPLICAS"))?;
    for topic in &topics {
        say(&format!("{:<40} {:>10} {:>12} {:>9}", topic.name, topic.partitions.len(), records(topic), replicas(topic)))?;
    }
    Ok(())
}

fn entry(topic: &TopicInfo) -> serde_json::Value {
    json!({ "name": topic.name, "partitions": topic.partitions.len(), "records": records(topic), "replicas": replicas(topic) })
}

/// The offsets from the oldest to the newest: compacted topics and transaction markers make the real count smaller.
fn records(topic: &TopicInfo) -> i64 {
    topic.partitions.iter().map(|partition| partition.end - partition.start).sum()
}

fn replicas(topic: &TopicInfo) -> usize {
    topic.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0)
}
