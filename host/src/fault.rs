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
    /// What is committed is one past the highest settled record, whatever lies unsettled below it.
    CommitPastGap,
    /// A record is settled once its dead letter is on its way, not once it is acknowledged.
    LetterNotAwaited,
}

impl Fault {
    /// Whether this host was told to break it.
    #[cfg(feature = "fault-injection")]
    pub(crate) fn is_on(self) -> bool {
        use std::sync::LazyLock;

        static CHOSEN: LazyLock<Option<Fault>> = LazyLock::new(|| {
            let name = std::env::var("TIDEMILL_FAULT").ok()?;
            let all = [
                Fault::CommitBeforeSuccess,
                Fault::IgnoreEpoch,
                Fault::DropOnFull,
                Fault::CommitPastGap,
                Fault::LetterNotAwaited,
            ];
            let chosen = all.into_iter().find(|fault| fault.name() == name);
            tracing::error!(name, known = chosen.is_some(), "this host is broken on purpose");
            chosen
        });
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
        }
    }
}
