//! Ways to break the host on purpose, which the tests of its promises must catch.
//!
//! Compiled in by the feature `fault-injection`, which no release has, and chosen by `TIDEMILL_FAULT`. Without the feature
//! every question is answered with a constant `false`.

/// A promise that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Offsets are committed when records are received, not when they are settled.
    CommitBeforeSuccess,
    /// What calls of an earlier assignment come to is committed like that of the current one.
    IgnoreEpoch,
    /// Records that come while the partition's queue is full are dropped.
    DropOnFull,
    /// Offsets are committed up to the highest settled record, past records that are not settled.
    CommitPastGap,
    /// A record is settled once its dead letter is on its way, not once it is acknowledged.
    LetterNotAwaited,
    /// A record is settled once it is on its way to the parked topic, not once that is acknowledged.
    ParkedNotAwaited,
    /// Offsets are committed beside the transaction that their outputs are in, and before it.
    OffsetsOutsideTransaction,
    /// What a transaction held is sent again at once when nobody knows whether it was committed.
    NewTransactionAfterUnknown,
    /// A delivery's offset is stored beside its transaction, and a moment later.
    OffsetApart,
    /// An offset is stored in the database whoever owns its row.
    IgnoreFence,
}

/// All of them.
#[cfg(feature = "fault-injection")]
const ALL: [Fault; 10] = [
    Fault::CommitBeforeSuccess,
    Fault::IgnoreEpoch,
    Fault::DropOnFull,
    Fault::CommitPastGap,
    Fault::LetterNotAwaited,
    Fault::ParkedNotAwaited,
    Fault::OffsetsOutsideTransaction,
    Fault::NewTransactionAfterUnknown,
    Fault::OffsetApart,
    Fault::IgnoreFence,
];

impl Fault {
    /// Whether this host was told to break it.
    #[cfg(feature = "fault-injection")]
    pub(crate) fn is_on(self) -> bool {
        use std::sync::LazyLock;

        static CHOSEN: LazyLock<Option<Fault>> = LazyLock::new(|| {
            let name = std::env::var("TIDEMILL_FAULT").ok()?;
            let chosen = ALL.into_iter().find(|fault| fault.name() == name);
            tracing::error!(name, known = chosen.is_some(), "this host is broken on purpose");
            chosen
        });
        #[cfg(test)]
        if tests::CHOSEN.get() == Some(self) {
            return true;
        }
        *CHOSEN == Some(self)
    }

    /// Whether this host was told to break it: never, in this build.
    #[cfg(not(feature = "fault-injection"))]
    pub(crate) const fn is_on(self) -> bool {
        false
    }

    #[cfg(feature = "fault-injection")]
    fn name(self) -> &'static str {
        match self {
            Fault::CommitBeforeSuccess => "commit-before-success",
            Fault::IgnoreEpoch => "ignore-epoch",
            Fault::DropOnFull => "drop-on-full",
            Fault::CommitPastGap => "commit-past-gap",
            Fault::LetterNotAwaited => "letter-not-awaited",
            Fault::ParkedNotAwaited => "parked-not-awaited",
            Fault::OffsetsOutsideTransaction => "offsets-outside-transaction",
            Fault::NewTransactionAfterUnknown => "new-transaction-after-unknown",
            Fault::OffsetApart => "offset-apart",
            Fault::IgnoreFence => "ignore-fence",
        }
    }
}

/// A test on a runtime of one thread breaks its own host only.
#[cfg(all(test, feature = "fault-injection"))]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::Fault;

    thread_local! {
        pub(super) static CHOSEN: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// Breaks this thread's host from now on.
    pub(crate) fn choose(fault: Option<Fault>) {
        CHOSEN.set(fault);
    }
}
