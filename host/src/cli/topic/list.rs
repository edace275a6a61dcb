//! `tidemill topic list`.

use serde_json::json;

use super::TopicError;
use crate::broker::{Admin, TopicInfo};

/// Prints the topics, or the named one.
pub(super) async fn list(
    admin: &dyn Admin,
    name: Option<&str>,
    as_json: bool,
    mut print: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), TopicError> {
    let topics = admin.topics(name).await?;
    if as_json {
        for topic in &topics {
            print(&line_of(topic))?;
        }
        return Ok(());
    }
    let longest = topics.iter().map(|topic| topic.name.len()).chain([5]).max().unwrap_or_default();
    print(&format!("{:longest$}  {:>10}  {:>12}  {:>8}", "TOPIC", "PARTITIONS", "RECORDS", "REPLICAS"))?;
    for topic in &topics {
        let (name, partitions) = (&topic.name, topic.partitions.len());
        print(&format!("{name:longest$}  {partitions:>10}  {:>12}  {:>8}", records(topic), replicas(topic)))?;
    }
    Ok(())
}

fn line_of(topic: &TopicInfo) -> String {
    let partitions: Vec<_> = topic
        .partitions
        .iter()
        .map(|of| json!({"partition": of.partition, "start": of.start, "end": of.end, "replicas": of.replicas}))
        .collect();
    let (records, replicas) = (records(topic), replicas(topic));
    json!({"topic": topic.name, "records": records, "replicas": replicas, "partitions": partitions}).to_string()
}

/// How many offsets are kept; compaction and transactions may have taken some of them.
fn records(topic: &TopicInfo) -> i64 {
    topic.partitions.iter().map(|partition| partition.end - partition.start).sum()
}

fn replicas(topic: &TopicInfo) -> usize {
    topic.partitions.iter().map(|partition| partition.replicas).min().unwrap_or_default()
}
