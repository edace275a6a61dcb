//! The offsets that a database keeps for deliveries under `exactly-once`: one row for each group and partition, which has
//! one owner at a time.
//!
//! FENCE-1: an offset is stored only by the row's latest owner, and only on top of the offset that this owner stored last.
//! Whoever is assigned a partition takes its row over, which raises the owner's epoch: from then on nobody else's
//! transaction can commit. The table is the host's: it makes it, and guests may not write it.

use std::fmt;

use tidemill_core::record::Offset;

/// The table's name.
pub const TABLE: &str = "tidemill_offsets";

// The words mean the same to every database. Parameters stand in the order of their numbers: for SQLite `$1` is a name, and
// names are numbered as they come.

/// Makes the table.
pub(super) const CREATE: &str = "CREATE TABLE IF NOT EXISTS tidemill_offsets (
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    topic_partition INTEGER NOT NULL,
    owner_epoch BIGINT NOT NULL,
    next_offset BIGINT,
    PRIMARY KEY (consumer_group, topic, topic_partition)
)";

/// Takes a row over, or makes it: `$1` to `$3` are its place.
pub(super) const OWN: &str = "INSERT INTO tidemill_offsets (consumer_group, topic, topic_partition, owner_epoch)
    VALUES ($1, $2, $3, 1)
    ON CONFLICT (consumer_group, topic, topic_partition)
    DO UPDATE SET owner_epoch = tidemill_offsets.owner_epoch + 1
    RETURNING owner_epoch, next_offset";

/// Stores an offset, `$1`, behind the fence (FENCE-1): changes no row unless `$5` is the owner's epoch and `$6` what the row
/// says.
pub(super) const STORE: &str = "UPDATE tidemill_offsets SET next_offset = $1
    WHERE consumer_group = $2 AND topic = $3 AND topic_partition = $4
    AND owner_epoch = $5 AND next_offset IS NOT DISTINCT FROM $6";

/// [`STORE`] of a host that is broken on purpose: whoever comes last is right.
pub(super) const STORE_UNFENCED: &str = "UPDATE tidemill_offsets SET next_offset = $1
    WHERE consumer_group = $2 AND topic = $3 AND topic_partition = $4
    AND (CAST($5 AS BIGINT) > 0 OR next_offset = $6)";

/// Whose offset it is. A group's name must therefore be one group's only, among all that share a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} of group `{}`", self.topic, self.partition, self.group)
    }
}

/// What a row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Counts the row's owners.
    pub epoch: i64,
    /// The next offset to be handled; `None` before any was stored.
    pub next: Option<Offset>,
}

/// What a row must say for an offset to be stored in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Which row.
    pub place: Place,
    /// What it says as long as nobody else has taken it over or written it.
    pub standing: Standing,
}
