//! A handler's manifest, `handler.toml` in the handler's folder → [`HandlerSpec`], checked.

mod guarantee;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tidemill_core::grants::Grants;
use tidemill_core::lanes::Order;
use tidemill_core::partition::Bounds;
use tidemill_core::record::is_topic_name;
use tidemill_core::retry::{Exhausted, RetryPolicy, Unavailable};

use self::guarantee::{Delivery, Effects, ExactlyOnce};
use super::Problem;
use super::units::{self, Size, Span};
use crate::broker::{StartAt, Subscription};
use crate::consumer;
use crate::settle::letter::HeaderStyle;
use crate::settle::parked::topic_for;

/// The manifest's file name.
pub const FILE: &str = "handler.toml";

/// The handlers' folders by name: those with a manifest, hidden ones left out.
pub fn folders(of: &Path) -> BTreeMap<String, PathBuf> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.to_owned(), entry.path())))
        .filter(|(name, path)| !name.starts_with('.') && path.join(FILE).is_file())
        .collect()
}

/// Everything that the host knows of one handler, checked.
#[derive(Debug, Clone)]
pub struct HandlerSpec {
    /// The folder's name.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
    /// The component's file.
    pub module: PathBuf,
    /// How records are consumed.
    pub consumer: consumer::Config,
    /// How long a guest's state lives.
    pub isolation: Isolation,
    /// Most linear memory of an instance, in bytes.
    pub memory_max: usize,
    /// The granted database whose transaction holds what the guest writes and the offset, if that is the guarantee.
    pub database: Option<String>,
    /// What becomes of failed records.
    pub retry: RetryPolicy,
    /// Records of a partition that may be parked.
    pub parked_max: usize,
    /// Where dead letters go, and how they are written.
    pub dead_letters: DeadLetters,
    /// What the guest may do.
    pub grants: Grants,
    /// What the guest reads through `wasi:config`.
    pub config: BTreeMap<String, String>,
    /// The folder with SQL migrations, for the one granted database.
    pub migrations: Option<PathBuf>,
}

/// A handler's dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetters {
    /// Their topic; `None`: the record's topic with `.dlq` behind it.
    pub topic: Option<String>,
    /// Whose headers a letter has beside our own.
    #[serde(default)]
    pub headers: HeaderStyle,
}

/// How long a guest's state lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A fresh instance for each record; calls have one record.
    Record,
    /// A fresh instance for each call.
    Batch,
    /// Instances are kept and recycled.
    #[default]
    Reuse,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    topics: Vec<String>,
    group: Option<String>,
    module: Option<PathBuf>,
    #[serde(default)]
    delivery: Delivery,
    #[serde(default)]
    exactly_once: ExactlyOnce,
    effects: Option<Effects>,
    order: Option<OrderKey>,
    #[serde(default)]
    isolation: Isolation,
    concurrency: Option<usize>,
    #[serde(default)]
    start: Start,
    #[serde(default)]
    dead_letters: DeadLetters,
    commit_interval: Option<Span>,
    drain_deadline: Option<Span>,
    #[serde(default)]
    batch: Batch,
    #[serde(default)]
    buffer: Buffer,
    #[serde(default)]
    retry: Retry,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    grants: GrantKeys,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "units::properties")]
    consumer_properties: BTreeMap<String, String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum OrderKey {
    Key,
    Partition,
    Unordered,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Start {
    #[default]
    Earliest,
    Latest,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Batch {
    records_max: Option<usize>,
    bytes_max: Option<Size>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Buffer {
    records_max: Option<usize>,
    bytes_max: Option<Size>,
    span_max: Option<usize>,
    ahead_max: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Retry {
    attempts_max: Option<u32>,
    age_max: Option<Span>,
    delay_min: Option<Span>,
    delay_max: Option<Span>,
    #[serde(default)]
    exhausted: ExhaustedKey,
    #[serde(default)]
    unavailable: UnavailableKey,
    parked_max: Option<usize>,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum ExhaustedKey {
    #[default]
    DeadLetter,
    Park,
    Stop,
    Drop,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum UnavailableKey {
    #[default]
    Wait,
    Exhaust,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Limits {
    memory: Option<Size>,
    deadline: Option<Span>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct GrantKeys {
    #[serde(default)]
    kv: BTreeSet<String>,
    #[serde(default)]
    sql: BTreeSet<String>,
    #[serde(default)]
    produce: BTreeSet<String>,
    #[serde(default)]
    secrets: BTreeSet<String>,
}

/// What a topic's name is made of.
const TOPIC_NAME: &str = "take up to 249 letters, digits, `.`, `_` and `-`";
/// Two calls of the usual size: while one runs, the commit of the next is confirmed.
const AHEAD_DEFAULT: usize = 200;
/// A few megabytes of memory in each partition.
const PARKED_DEFAULT: usize = 100_000;
const CONCURRENCY_DEFAULT: usize = 8;
const CONCURRENCY_MAX: usize = 1000;
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
const MEMORY_DEFAULT: usize = 128 << 20;
const MEMORY_LIMIT: usize = 1 << 30;

impl HandlerSpec {
    /// Reads and checks the manifest in a handler's folder. Names of stores and topics are checked by whoever has them.
    pub fn read(folder: &Path) -> Result<Self, Vec<Problem>> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(|cause| vec![Problem::unreadable(&path, &cause)])?;
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        Self::parse(&name, folder, &text)
    }

    fn parse(name: &str, folder: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        let path = folder.join(FILE);
        let manifest: Manifest = toml::from_str(text).map_err(|error| vec![Problem::syntax(&path, text, &error)])?;
        let mut check = Check { path: &path, problems: Vec::new() };
        check.name(name);
        check.manifest(name, &manifest);
        let retry = check.retry(&manifest.retry);
        let module = check.module(folder, manifest.module.as_deref());
        match (retry, module) {
            (Some(retry), Some(module)) if check.problems.is_empty() => Ok(spec(name, folder, module, retry, manifest)),
            _ => Err(check.problems),
        }
    }
}

fn spec(name: &str, folder: &Path, module: PathBuf, retry: RetryPolicy, manifest: Manifest) -> HandlerSpec {
    let concurrency = manifest.concurrency.unwrap_or(CONCURRENCY_DEFAULT);
    let migrations = folder.join("migrations");
    let (guarantee, database) = guarantee::guarantee(&manifest);
    HandlerSpec {
        name: name.to_owned(),
        folder: folder.to_owned(),
        module,
        consumer: consumer::Config {
            subscription: Subscription {
                group: manifest.group.clone().unwrap_or_else(|| name.to_owned()),
                topics: manifest.topics.clone(),
                start_at: match manifest.start {
                    Start::Earliest => StartAt::Earliest,
                    Start::Latest => StartAt::Latest,
                },
                properties: guarantee::properties(&manifest),
            },
            guarantee,
            transaction: guarantee::limits(&manifest),
            order: match guarantee::order(&manifest) {
                OrderKey::Key => Order::Key,
                OrderKey::Partition => Order::Partition,
                OrderKey::Unordered => Order::Unordered,
            },
            ahead_max: manifest.buffer.ahead_max.unwrap_or(AHEAD_DEFAULT),
            bounds: bounds(&manifest, concurrency),
            concurrency,
            call_deadline: manifest.limits.deadline.map_or(DEADLINE_DEFAULT, |span| span.0),
            commit_interval: manifest.commit_interval.map_or(Duration::from_millis(250), |span| span.0),
            drain_deadline: manifest.drain_deadline.map_or(Duration::from_secs(20), |span| span.0),
        },
        database,
        isolation: manifest.isolation,
        memory_max: manifest.limits.memory.map_or(MEMORY_DEFAULT, |size| size.0),
        retry,
        parked_max: manifest.retry.parked_max.unwrap_or(PARKED_DEFAULT),
        dead_letters: manifest.dead_letters,
        grants: Grants {
            kv: manifest.grants.kv,
            sql: manifest.grants.sql,
            produce: manifest.grants.produce,
            secrets: manifest.grants.secrets,
        },
        config: manifest.config,
        migrations: migrations.is_dir().then_some(migrations),
    }
}

/// Calls wait for acknowledgements without an instance, so that a partition may have more of them than run at once: as many
/// as its buffer has records for.
fn bounds(manifest: &Manifest, concurrency: usize) -> Bounds {
    let call_records_max = match manifest.isolation {
        Isolation::Record => 1,
        Isolation::Batch | Isolation::Reuse => manifest.batch.records_max.unwrap_or(100),
    };
    let records_max = manifest.buffer.records_max.unwrap_or(2000);
    Bounds {
        call_records_max,
        call_bytes_max: manifest.batch.bytes_max.map_or(1 << 20, |size| size.0),
        calls_max: concurrency.max(records_max / call_records_max.max(1)),
        records_max,
        bytes_max: manifest.buffer.bytes_max.map_or(16 << 20, |size| size.0),
        span_max: manifest.buffer.span_max.unwrap_or_else(|| guarantee::span_max(manifest)),
    }
}

/// Collects everything that is wrong with one manifest.
struct Check<'a> {
    path: &'a Path,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn wrong(&mut self, key: &str, text: impl Into<String>) {
        self.problems.push(Problem::invalid(self.path, key, text));
    }

    fn name(&mut self, name: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            self.wrong("(folder)", format!("`{name}` names no handler; use 1 to 64 letters, digits, `-` and `_`"));
        }
    }

    fn manifest(&mut self, name: &str, manifest: &Manifest) {
        if manifest.topics.is_empty() {
            self.wrong("topics", "is empty; name at least one topic, such as topics = [\"orders\"]");
        }
        let reads = manifest.topics.iter().map(|topic| ("topics", topic));
        let produces = manifest.grants.produce.iter().map(|topic| ("grants.produce", topic));
        for (key, wrong) in reads.chain(produces).filter(|(_, topic)| !is_topic_name(topic)) {
            self.wrong(key, format!("has `{wrong}`, which is no topic's name; {TOPIC_NAME}"));
        }
        if let Some(wrong) = manifest.dead_letters.topic.as_ref().filter(|topic| !is_topic_name(topic)) {
            self.wrong("dead_letters.topic", format!("is `{wrong}`, which is no topic's name; {TOPIC_NAME}"));
        }
        if manifest.group.as_ref().is_some_and(String::is_empty) {
            self.wrong("group", "is empty; name the consumer group, or leave the key out for the handler's name");
        }
        if manifest.commit_interval.is_some_and(|span| span.0 < Duration::from_millis(1)) {
            self.wrong("commit_interval", "is less than 1ms; commits would leave no time for anything else");
        }
        let own_letters = |topic: &String| manifest.dead_letters.topic.as_ref() == Some(topic);
        if let Some(topic) = manifest.topics.iter().find(|topic| own_letters(topic)) {
            self.wrong("dead_letters.topic", format!("is `{topic}`, which this handler also reads: its dead letters would go round for ever; name another topic"));
        }
        if let Some(topic) = manifest.topics.iter().find(|topic| manifest.grants.produce.contains(*topic)) {
            self.wrong("grants.produce", format!("holds `{topic}`, which this handler also reads: its outputs would go round for ever; name another topic"));
        }
        let positive = [
            ("concurrency", manifest.concurrency),
            ("batch.records_max", manifest.batch.records_max),
            ("buffer.records_max", manifest.buffer.records_max),
            ("buffer.span_max", manifest.buffer.span_max),
            ("buffer.ahead_max", manifest.buffer.ahead_max),
            ("retry.parked_max", manifest.retry.parked_max),
            ("batch.bytes_max", manifest.batch.bytes_max.map(|size| size.0)),
            ("buffer.bytes_max", manifest.buffer.bytes_max.map(|size| size.0)),
        ];
        for (key, value) in positive {
            if value == Some(0) {
                self.wrong(key, "is 0; use at least 1, or leave the key out for the default");
            }
        }
        if manifest.concurrency.is_some_and(|value| value > CONCURRENCY_MAX) {
            self.wrong("concurrency", format!("is more than {CONCURRENCY_MAX}; run more hosts instead"));
        }
        if manifest.isolation == Isolation::Record && manifest.batch.records_max.is_some_and(|records| records > 1) {
            self.wrong(
                "batch.records_max",
                "is more than 1, but isolation = \"record\" calls with one record; leave one of the two out",
            );
        }
        if manifest.buffer.ahead_max.is_some() && manifest.delivery != Delivery::AtMostOnce {
            self.wrong("buffer.ahead_max", "is of use with delivery = \"at-most-once\" only; leave one of the two out");
        }
        if manifest.retry.exhausted == ExhaustedKey::Stop && manifest.delivery == Delivery::AtMostOnce {
            self.wrong(
                "retry.exhausted",
                "is \"stop\", which at most once can't do: the record's offset is committed before its one attempt; \
                 write \"dead-letter\" or \"drop\"",
            );
        }
        self.park(name, manifest);
        self.guarantee(manifest);
        self.limits(&manifest.limits);
    }

    /// Parking holds one key and lets the others go on. What has no keys to hold has other words for it.
    fn park(&mut self, name: &str, manifest: &Manifest) {
        if manifest.retry.exhausted != ExhaustedKey::Park {
            if manifest.retry.parked_max.is_some() {
                self.wrong("retry.parked_max", "is of use with exhausted = \"park\" only; leave one of the two out");
            }
            return;
        }
        let instead = match (manifest.delivery, guarantee::order(manifest)) {
            (Delivery::AtMostOnce, _) => Some(
                "at most once can't do: the record's offset is committed before its one attempt; write \"dead-letter\" or \"drop\"",
            ),
            (Delivery::ExactlyOnce, _) => Some(
                "exactly once can't do: a parked record would be outside of its transaction; write \"stop\", which holds the \
                 record's whole partition, or \"dead-letter\"",
            ),
            (Delivery::AtLeastOnce, OrderKey::Partition) => Some(
                "with order = \"partition\" would hold everything behind the record; write \"stop\", which does that, or order = \"key\"",
            ),
            (Delivery::AtLeastOnce, OrderKey::Unordered) => Some(
                "with order = \"unordered\" has nothing to hold; write \"dead-letter\", after which `tidemill dlq redrive` sends \
                 the record again, or order = \"key\"",
            ),
            (Delivery::AtLeastOnce, OrderKey::Key) => None,
        };
        if let Some(instead) = instead {
            self.wrong("retry.exhausted", format!("is \"park\", which {instead}"));
        }
        for topic in manifest.topics.iter().map(|topic| topic_for(topic, name)).filter(|topic| !is_topic_name(topic)) {
            self.wrong("retry.exhausted", format!("is \"park\", and `{topic}` is no topic's name; {TOPIC_NAME}: shorten the handler's or the topic's name"));
        }
    }

    fn limits(&mut self, limits: &Limits) {
        if limits.memory.is_some_and(|size| size.0 < 1 << 20 || size.0 > MEMORY_LIMIT) {
            self.wrong("limits.memory", "must be between 1MiB and 1GiB");
        }
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(240));
        if limits.deadline.is_some_and(|span| span.0 < least || span.0 > most) {
            self.wrong("limits.deadline", "must be between 10ms and 4m: a longer call would cost the group membership");
        }
    }

    fn retry(&mut self, retry: &Retry) -> Option<RetryPolicy> {
        let attempts_max = retry.attempts_max.unwrap_or(5);
        let delay_min = retry.delay_min.map_or(Duration::from_millis(200), |span| span.0);
        let delay_max = retry.delay_max.map_or(Duration::from_secs(30).max(delay_min), |span| span.0);
        match RetryPolicy::new(attempts_max, delay_min, delay_max) {
            Ok(policy) => {
                let exhausted = match retry.exhausted {
                    ExhaustedKey::DeadLetter => Exhausted::DeadLetter,
                    ExhaustedKey::Park => Exhausted::Park,
                    ExhaustedKey::Stop => Exhausted::Stop,
                    ExhaustedKey::Drop => Exhausted::Drop,
                };
                let unavailable = match retry.unavailable {
                    UnavailableKey::Wait => Unavailable::Wait,
                    UnavailableKey::Exhaust => Unavailable::Exhaust,
                };
                let age_max = retry.age_max.map(|span| span.0);
                Some(policy.aged(age_max).exhausted(exhausted).unavailable(unavailable))
            }
            Err(error) => {
                self.wrong("retry", error.to_string());
                None
            }
        }
    }

    /// The named module, or the only `.wasm` file of the folder.
    fn module(&mut self, folder: &Path, named: Option<&Path>) -> Option<PathBuf> {
        if let Some(named) = named {
            let path = folder.join(named);
            if !path.is_file() {
                self.wrong("module", format!("is `{}`, which is not there; copy the component to it", named.display()));
                return None;
            }
            return Some(path);
        }
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "wasm"))
            .collect();
        match found.len() {
            1 => found.pop(),
            0 => {
                self.wrong("module", "is not set and the folder has no .wasm file; copy a component into the folder");
                None
            }
            _ => {
                self.wrong(
                    "module",
                    "is not set and the folder has several .wasm files; say which with module = \"NAME.wasm\"",
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
