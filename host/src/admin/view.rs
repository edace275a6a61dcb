//! What admin answers: the JSON that the command line and other clients read.

use serde::{Deserialize, Serialize};

/// The answer of `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether nothing is missing.
    pub ready: bool,
    /// What the host waits for.
    pub missing: Vec<Missing>,
}

impl Readiness {
    /// Ready when nothing is missing.
    pub fn waiting_for(missing: Vec<Missing>) -> Self {
        Self { ready: missing.is_empty(), missing }
    }
}

/// One thing that the host waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which part of the host: `producer`, or `handler NAME`.
    pub part: String,
    /// What it waits for, in words.
    pub detail: String,
}

/// What an answer other than 2xx says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// For machines.
    pub code: String,
    /// For people.
    pub detail: String,
}

/// One handler in the answer of `GET /handlers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerView {
    /// Its name: its folder's.
    pub name: String,
    /// Its consumer group.
    pub group: String,
    /// Its topics.
    pub topics: Vec<String>,
    /// Whether it runs.
    pub state: HandlerState,
    /// Why it failed; or, beside `running`, why what lies in its folder now is refused.
    pub reason: Option<String>,
    /// The digest of the revision that takes new records.
    pub revision: Option<String>,
    /// Since when it is live, as RFC 3339.
    pub since: Option<String>,
    /// The digests to go back to, the nearest first.
    pub previous: Vec<String>,
    /// The digests that were rolled back from, the last one last; these files are not loaded again by themselves.
    pub set_aside: Vec<String>,
    /// The partitions that are assigned to this host.
    pub partitions: Vec<PartitionView>,
    /// Records of all of them that are behind the end; `None` while that is not known.
    pub lag_records: Option<u64>,
    /// Records in a call that has not returned.
    pub in_flight_records: u64,
}

/// Whether a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandlerState {
    /// It takes records.
    Running,
    /// An operator has paused it: it keeps its place and starts no calls.
    Paused,
    /// It finishes what it has and then stops.
    Draining,
    /// It does not run; the reason says why.
    Failed,
}

impl HandlerState {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// An assigned partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionView {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The offset that is committed.
    pub committed: Option<i64>,
    /// Records behind the end.
    pub lag_records: Option<u64>,
    /// The record at which it stands still, if it does.
    #[serde(default)]
    pub stopped: Option<StoppedView>,
    /// Records that are parked, as the handler's policy says.
    #[serde(default)]
    pub parked_records: u64,
}

/// Which of a handler's partitions an answer speaks of, and which it does not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reach {
    /// How many partitions have answered.
    pub partitions: usize,
    /// Partitions of this host that did not answer.
    pub silent: Vec<Silent>,
    /// Those that this host does not have, and which others are to be asked for; `None` while the broker does not say.
    pub elsewhere: Option<Vec<Elsewhere>>,
}

impl Reach {
    /// Whether all that is meant has answered.
    pub fn is_whole(&self) -> bool {
        self.silent.is_empty() && self.elsewhere.as_ref().is_some_and(Vec::is_empty)
    }

    /// What two hosts reach together.
    pub fn and(mut self, other: Self) -> Self {
        self.partitions += other.partitions;
        self.silent.extend(other.silent);
        self.elsewhere = self.elsewhere.zip(other.elsewhere).map(|(mut here, there)| {
            let is_it = |one: &Elsewhere, it: &Elsewhere| (&one.topic, one.partition) == (&it.topic, it.partition);
            here.retain(|of| there.iter().any(|it| is_it(of, it)));
            here
        });
        self
    }
}

/// A partition that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// Why, and what to do.
    pub detail: String,
}

/// The answer of `GET /handlers/NAME/parked`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ParkedView {
    /// The parked keys of each partition, at most so many as are shown of one.
    pub keys: Vec<ParkedKeyView>,
    /// How many more are parked.
    pub more: usize,
    /// Where.
    #[serde(flatten)]
    pub reach: Reach,
}

impl ParkedView {
    /// What two hosts answer together.
    pub fn and(mut self, other: Self) -> Self {
        self.keys.extend(other.keys);
        Self { keys: self.keys, more: self.more + other.more, reach: self.reach.and(other.reach) }
    }
}

/// A parked key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedKeyView {
    /// The source's topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// The key: a text, `{"base64": "..."}`, or null.
    pub key: serde_json::Value,
    /// How many records of it are parked.
    pub records: usize,
    /// The offset in the source of the first of them.
    pub first_offset: Option<i64>,
    /// Whether they are tried again just now.
    pub tried: bool,
    /// When it was parked, or failed again last, as RFC 3339.
    pub since: Option<String>,
    /// The class of that failure.
    pub class: Option<String>,
    /// For machines.
    pub code: Option<String>,
    /// For people.
    pub detail: Option<String>,
    /// The digest of the revision on which it failed.
    pub revision: Option<String>,
}

/// What `POST /handlers/NAME/unpark` is asked: all that is given has to fit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnparkRequest {
    /// Only keys of this topic.
    pub topic: Option<String>,
    /// Only keys of this partition.
    pub partition: Option<i32>,
    /// Only this key.
    pub key: Option<String>,
    /// Only the null key.
    pub null_key: bool,
    /// Counts, and changes nothing.
    pub dry_run: bool,
}

/// The answer of `POST /handlers/NAME/unpark`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unparked {
    /// Keys that are tried again from now on, or would be.
    pub keys: usize,
    /// Their records.
    pub records: usize,
    /// Where.
    #[serde(flatten)]
    pub reach: Reach,
}

impl Unparked {
    /// What two hosts have done together.
    pub fn and(self, other: Self) -> Self {
        Self { keys: self.keys + other.keys, records: self.records + other.records, reach: self.reach.and(other.reach) }
    }
}

/// The record at which a partition stands still, as the handler's policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedView {
    /// Its offset.
    pub offset: i64,
    /// The class of the failure.
    pub class: String,
    /// For machines.
    pub code: String,
    /// For people.
    pub detail: String,
    /// The digest of the revision on which it failed.
    pub revision: String,
}

/// One handler in the answer of `GET /where/TOPIC/PARTITION/OFFSET`: where that record stands with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhereView {
    /// The handler.
    pub handler: String,
    /// Its consumer group.
    pub group: String,
    /// Where the record stands.
    pub state: WhereState,
    /// Calls that failed on it alone, while it runs or is to be tried again.
    pub tries: u32,
    /// When it is tried again, in milliseconds from now on.
    pub again_in_ms: Option<u64>,
    /// The committed offset of its partition, as far as this host knows.
    pub committed: Option<i64>,
    /// Whether an operator has paused the handler.
    pub paused: bool,
    /// Where it lies in the parked topic, if it is parked.
    #[serde(default)]
    pub parked_at: Option<i64>,
    /// The record at which the partition stands still, if it does.
    pub stopped: Option<StoppedView>,
    /// Why nothing is known.
    pub detail: Option<String>,
}

/// Where a record stands with one handler of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhereState {
    /// The partition is not assigned to this host.
    NotHere,
    /// It was not received yet.
    Unread,
    /// It waits for the records before it, or for a call.
    Waiting,
    /// It is in a call.
    Running,
    /// It failed and waits to be tried again.
    Retrying,
    /// The partition stands still, at it or before it.
    Stopped,
    /// It is settled: handled, skipped, dead-lettered or dropped.
    Done,
    /// There is no record at this offset.
    Absent,
    /// The host could not say.
    Unknown,
}

/// The answer of `POST /handlers/NAME/pause` and of `POST /handlers/NAME/resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseView {
    /// The handler.
    pub handler: String,
    /// Whether it is paused now.
    pub paused: bool,
}

/// The body of `POST /handlers/NAME/offsets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveBody {
    /// Where to begin: `earliest`, `latest`, an offset, or a time as RFC 3339.
    pub to: String,
    /// Only this topic.
    #[serde(default)]
    pub topic: Option<String>,
    /// Only this partition.
    #[serde(default)]
    pub partition: Option<i32>,
    /// Says what would be done, and does nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// The answer of `POST /handlers/NAME/offsets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveView {
    /// The handler.
    pub handler: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The partitions that begin elsewhere.
    pub moved: Vec<MovedView>,
    /// Those that another member holds, and which therefore are where they were.
    pub elsewhere: Vec<Elsewhere>,
}

impl MoveView {
    /// Both answers in one: what one host has moved, another one does not hold.
    pub(crate) fn and(mut self, other: MoveView) -> MoveView {
        let key = |of: &Elsewhere| (of.topic.clone(), of.partition);
        let others: Vec<_> = other.elsewhere.iter().map(key).collect();
        self.elsewhere.retain(|of| others.contains(&key(of)));
        self.moved.extend(other.moved);
        self
    }
}

/// A partition that begins elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedView {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// Where it stood, if that was known.
    pub from: Option<i64>,
    /// Where it begins.
    pub to: i64,
}

/// A partition that another member holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// Whose it is, as far as the broker tells.
    pub owner: Option<String>,
}

/// The answer of `POST /handlers/NAME/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The digest that is live now.
    pub revision: String,
    /// The digest that was live before.
    pub set_aside: String,
    /// Why a restart would not know of it: the host's folder `state` can't be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<String>,
}
