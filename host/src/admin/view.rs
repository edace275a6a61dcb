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
    /// The digest that was rolled back from; this file is not loaded again by itself.
    pub set_aside: Option<String>,
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
    pub set_aside: Option<String>,
}
