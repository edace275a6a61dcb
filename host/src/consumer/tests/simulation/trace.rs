//! What happened in a story, as seen from outside of the hosts: by the guest, the broker and the database.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::time::Duration;

use tidemill_core::record::Offset;

use super::parked::Lies;

/// One life of a host: a host that comes back after a crash is another one.
pub(super) type Host = u32;

/// A record of the input: its partition and its offset.
pub(super) type Source = (i32, Offset);

/// What a host leaves behind for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Sent {
    /// One of its outputs, by its place.
    Output(usize),
    /// Its dead letter.
    Letter,
    /// Itself, to be parked.
    Parked,
}

/// What a guest says of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Said {
    /// Done, with so many outputs.
    Ack(usize),
    Skip,
    Retry,
    /// Something that it needs is away.
    Away,
    /// It is never going to work.
    Never,
    Untouched,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum What {
    Started(Host),
    Stopping(Host),
    Ended(Host),
    Crashed(Host),
    /// It does not reach the broker any more.
    Cut(Host),
    Healed(Host),
    /// It does nothing, and then goes on.
    Frozen(Host),
    Thawed(Host),
    /// The group goes on without it.
    Evicted(Host),
    Paused(Host, bool),
    /// Another revision is live on a host.
    Swapped(Host, u32),
    /// There are so many partitions.
    Added(i32),
    /// Of a partition only what begins here is kept.
    Deleted(i32, Offset),
    /// A host finds that offsets were deleted before it has read them.
    Skipped(Host, i32, Range<Offset>),
    /// How many offsets a host has told of by its end that were deleted unread.
    ToldOfSkipped(Host, u64),
    /// Something that hosts need is away, or is back.
    Away(&'static str, bool),
    /// From here on nothing goes wrong.
    AllIsWell,
    /// A record of the input.
    Written(Source, u8),
    /// A member hears of partitions.
    Told(Host, &'static str, Vec<i32>),
    /// A member reads a partition from here on.
    Assigned(Host, i32, Offset),
    /// A member has given a partition back, or was told that it has lost it.
    Released(Host, i32, Ending),
    Called {
        host: Host,
        call: u64,
        partition: i32,
        offsets: Vec<Offset>,
        revision: u32,
    },
    /// A call's records with what was said of each, or the class of its failure.
    Returned {
        call: u64,
        said: Result<Vec<Said>, &'static str>,
    },
    /// A host hears what became of something that it sent.
    Answered(Host, Source, Sent, Answer),
    /// The log holds it, outside of a transaction.
    Stored(Source, Sent),
    /// Who has a partition of the parked topic from here on, by a name of its own.
    Noticed(i32, String),
    /// A record is written to the parked topic.
    Parked(Host, Lies),
    /// What lies at these places of the parked topic was handled, or does not count.
    Handled(Host, i32, Vec<Offset>),
    /// The group's offset.
    Committed(Host, i32, Offset),
    /// A host hears that a commit failed, whether it did or not.
    CommitFailed(Host, &'static str),
    /// What one transaction has brought about.
    Transaction {
        host: Host,
        stored: Vec<(Source, Sent)>,
        offsets: Vec<(i32, Offset)>,
    },
    /// A host has taken the row of a partition over.
    Owned(Host, i32),
    /// A delivery's transaction in the database: what the guest wrote, and where its partition stands.
    Booked {
        host: Host,
        place: String,
        partition: i32,
        rows: Vec<Source>,
        next: Offset,
    },
}

/// How a member comes to read a partition no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Ending {
    /// It was asked to give it back, or stops.
    Orderly,
    /// It had lost it, or failed.
    Violent,
}

/// What became of something that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Stored,
    /// Certainly not stored, or nobody knows: it may be sent again.
    Failed,
    /// No broker will take it.
    Refused,
}

/// Something, and when.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) at: Duration,
    pub(super) what: What,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8.3} {:?}", self.at.as_secs_f64(), self.what)
    }
}

/// A number that two runs of one story agree on.
pub(super) fn fingerprint(trace: &[Entry]) -> u64 {
    let mut hasher = DefaultHasher::new();
    trace.hash(&mut hasher);
    hasher.finish()
}
