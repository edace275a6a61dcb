//! The modes of delivery, as data: how a handler asks for one, where its results are read, what it promises.

use crate::checker::Allowed;

/// One mode of delivery.
#[derive(Debug)]
pub struct Mode {
    /// Its name in the table.
    pub name: &'static str,
    /// What a manifest says for it, in keys of the top level.
    pub manifest: &'static str,
    /// Where its results are; `None`: where the fault wants them.
    pub results: Option<Kind>,
    /// What it promises.
    pub promise: Promise,
}

/// Where results are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A table that the guest `store` writes.
    Table,
    /// A topic that a guest forwards to.
    Topic,
    /// The books of the guest `ledger`.
    Books(Engine),
}

/// What keeps books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The stage's server.
    Postgres,
    /// A file that all hosts of the stage use.
    Sqlite,
}

/// What becomes of records that were in hand when a fault came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// They may come again.
    NothingLost,
    /// They may be lost.
    NothingRepeated,
    /// Neither.
    Exact,
}

/// The default.
pub const AT_LEAST_ONCE: Mode =
    Mode { name: "at-least-once", manifest: "", results: None, promise: Promise::NothingLost };

/// Committed first, called once.
pub const AT_MOST_ONCE: Mode = Mode {
    name: "at-most-once",
    manifest: "delivery = \"at-most-once\"\n",
    results: None,
    promise: Promise::NothingRepeated,
};

/// Outputs and offsets in one Kafka transaction.
pub const EXACTLY_ONCE_KAFKA: Mode = Mode {
    name: "exactly-once (kafka)",
    manifest: "delivery = \"exactly-once\"\n",
    results: Some(Kind::Topic),
    promise: Promise::Exact,
};

/// What the guest writes and the offset in one transaction of PostgreSQL. A dead or frozen host's transaction holds its locks
/// for no longer than its calls may take, and 5 s.
pub const EXACTLY_ONCE_POSTGRES: Mode = Mode {
    name: "exactly-once (postgresql)",
    manifest: "delivery = \"exactly-once\"\nexactly_once.transaction = \"sql.main\"\nlimits.deadline = \"2s\"\n",
    results: Some(Kind::Books(Engine::Postgres)),
    promise: Promise::Exact,
};

/// The same with SQLite.
pub const EXACTLY_ONCE_SQLITE: Mode = Mode {
    name: "exactly-once (sqlite)",
    manifest: "delivery = \"exactly-once\"\nexactly_once.transaction = \"sql.main\"\nlimits.deadline = \"2s\"\n",
    results: Some(Kind::Books(Engine::Sqlite)),
    promise: Promise::Exact,
};

impl Promise {
    /// What it allows when so many records were in hand at the faults.
    pub fn allows(self, in_hand: usize) -> Allowed {
        match self {
            Promise::NothingLost => Allowed { repeats: in_hand, ..Allowed::default() },
            Promise::NothingRepeated => Allowed { repeats: 0, losses: in_hand, commits_ahead: true },
            Promise::Exact => Allowed::default(),
        }
    }
}
