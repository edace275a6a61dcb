//! What becomes of a failed record: another attempt after a while, or the end that its handler's policy names.

use std::time::Duration;

/// Why a record was not handled. The operator's policy, metrics and dead letters tell these apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The guest asked for another attempt.
    Retry,
    /// The guest said that it is never going to work.
    Rejected,
    /// The guest trapped: a panic, an unreachable instruction, a stack overflow.
    Trap,
    /// The guest ran past its deadline.
    Deadline,
    /// The guest asked for more memory than its limit.
    Memory,
    /// The record can't be shown to a guest, or the guest's answer or output can't be taken.
    Malformed,
    /// Something that the guest needs is away. Nobody's fault: it costs no attempt, unless the policy says so.
    Unavailable,
    /// The host is short of something (instances, queue space). It costs no attempt.
    HostShortage,
}

impl Class {
    /// All of them, in the order of their declaration, so that `class as usize` is the position.
    pub const ALL: [Self; 8] = [
        Self::Retry,
        Self::Rejected,
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::Malformed,
        Self::Unavailable,
        Self::HostShortage,
    ];

    /// Its name in metrics, logs and dead-letter headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Rejected => "rejected",
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Malformed => "malformed",
            Self::Unavailable => "unavailable",
            Self::HostShortage => "host-shortage",
        }
    }

    /// Whether another attempt can't help.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Rejected | Self::Malformed)
    }
}

/// Longest back-off of what costs no attempt. Records that wait for a dependency flow again so soon after it is back, and a
/// lane that asks every other second is no burden to it.
const FREE_DELAY_MAX: Duration = Duration::from_secs(2);

/// What becomes of a record that is not tried again, whether its budget is spent or it was refused for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exhausted {
    /// It goes to the dead-letter topic, and its lane goes on.
    #[default]
    DeadLetter,
    /// It is parked, and later records of its key behind it; the other keys go on.
    Park,
    /// Its partition stops at it until somebody changes something.
    Stop,
    /// It is given up: said and counted, and its lane goes on.
    Drop,
}

/// What a dependency that is away costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unavailable {
    /// Nothing: the record waits for as long as it takes.
    #[default]
    Wait,
    /// An attempt, as any failure does.
    Exhaust,
}

/// How often, for how long and after which delays a failed record is tried again, and what becomes of it then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Calls that a record may be charged for, the first included. Invariant: at least 1.
    attempts_max: u32,
    /// Invariant: not longer than `delay_max`.
    delay_min: Duration,
    delay_max: Duration,
    /// From the first failure that cost an attempt to the last attempt.
    age_max: Option<Duration>,
    exhausted: Exhausted,
    unavailable: Unavailable,
}

/// A retry policy that contradicts itself.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidRetryPolicy {
    /// Not even a first attempt.
    #[error("`attempts_max` is 0; use 1 to never retry")]
    NoAttempts,
    /// The bounds are the wrong way round.
    #[error("`delay_min` ({min:?}) is longer than `delay_max` ({max:?})")]
    DelaysReversed {
        /// The lower bound.
        min: Duration,
        /// The upper bound.
        max: Duration,
    },
}

/// The failure of one record alone, with its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// What kind of failure.
    pub class: Class,
    /// Calls that failed in a row, this one included.
    pub tries: u32,
    /// Those of `tries` that cost an attempt.
    pub charged: u32,
    /// How long it has been failing: zero at the first failure that costs an attempt, and begun anew by one that costs none.
    pub age: Duration,
    /// The delay that the guest asked for.
    pub asked: Option<Duration>,
}

/// What to do with a failed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Call again after this long; until then its lane waits.
    RetryAfter(Duration),
    /// It is not tried again: its budget is spent, or another attempt can't help.
    End(Exhausted),
}

impl RetryPolicy {
    /// Checks the bounds. Failed records are dead-lettered and dependencies waited for, unless the policy is told otherwise.
    pub fn new(attempts_max: u32, delay_min: Duration, delay_max: Duration) -> Result<Self, InvalidRetryPolicy> {
        if attempts_max == 0 {
            return Err(InvalidRetryPolicy::NoAttempts);
        }
        if delay_min > delay_max {
            return Err(InvalidRetryPolicy::DelaysReversed { min: delay_min, max: delay_max });
        }
        let (exhausted, unavailable) = (Exhausted::default(), Unavailable::default());
        Ok(Self { attempts_max, delay_min, delay_max, age_max: None, exhausted, unavailable })
    }

    /// The same, with an end for records that fail for so long.
    pub fn aged(self, age_max: Option<Duration>) -> Self {
        Self { age_max, ..self }
    }

    /// The same, with what becomes of records that are not tried again.
    pub fn exhausted(self, exhausted: Exhausted) -> Self {
        Self { exhausted, ..self }
    }

    /// The same, with what a dependency that is away costs.
    pub fn unavailable(self, unavailable: Unavailable) -> Self {
        Self { unavailable, ..self }
    }

    /// What becomes of a record that is not tried again.
    pub fn end(&self) -> Exhausted {
        self.exhausted
    }

    /// Whether a failure of this class costs the record one of its attempts.
    pub fn charges(&self, class: Class) -> bool {
        match class {
            Class::HostShortage => false,
            Class::Unavailable => self.unavailable == Unavailable::Exhaust,
            Class::Retry | Class::Rejected | Class::Trap | Class::Deadline | Class::Memory | Class::Malformed => true,
        }
    }

    /// Decides after the failure of one record alone.
    ///
    /// The guest's wish is held below `delay_max`, and above `delay_min` where an attempt costs nothing. No attempt begins
    /// later than `age_max`: the delay before the last one is cut. `dice` is in `0.0..1.0` and spreads the delays over the
    /// upper half of the back-off, so that lanes that failed together do not return together.
    pub fn decide(&self, failed: Failed, dice: f64) -> Decision {
        let Failed { class, tries, charged, age, asked } = failed;
        let charges = self.charges(class);
        let spent = charged >= self.attempts_max || self.age_max.is_some_and(|age_max| age >= age_max);
        if class.is_final() || (charges && spent) {
            return Decision::End(self.exhausted);
        }
        let delay = match asked {
            // What costs no attempt has no other end than its delay.
            Some(asked) if !charges => asked.clamp(self.delay_min, self.delay_max),
            Some(asked) => asked.min(self.delay_max),
            None => self.back_off(class, tries).mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0),
        };
        Decision::RetryAfter(match self.age_max {
            Some(age_max) if charges => delay.min(age_max.saturating_sub(age)),
            Some(_) | None => delay,
        })
    }

    /// `delay_min`, doubled with each failure in a row, up to `delay_max`; what costs no attempt does not wait longer than
    /// [`FREE_DELAY_MAX`] for that.
    fn back_off(&self, class: Class, tries: u32) -> Duration {
        let doublings = tries.saturating_sub(1).min(31);
        let cap = if self.charges(class) { self.delay_max } else { FREE_DELAY_MAX.max(self.delay_min) };
        self.delay_min.saturating_mul(1 << doublings).min(cap).min(self.delay_max)
    }
}

#[cfg(test)]
mod tests;
