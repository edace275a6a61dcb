//! What becomes of a failed record: another attempt after a while, or the dead-letter topic.

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
    /// Something that the guest needs is away. Nobody's fault: it costs no attempt.
    Unavailable,
    /// The host is short of something (instances, queue space). It costs no attempt.
    HostShortage,
}

impl Class {
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

    /// Whether a failure of this class costs the record one of its attempts.
    pub fn charges(self) -> bool {
        !matches!(self, Self::Unavailable | Self::HostShortage)
    }

    /// Whether another attempt can't help.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Rejected | Self::Malformed)
    }
}

/// How often, and after which delays, a failed record is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Calls that a record may be charged for, the first included. Invariant: at least 1.
    attempts_max: u32,
    /// Invariant: not longer than `delay_max`.
    delay_min: Duration,
    delay_max: Duration,
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

/// What to do with a failed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Call again after this long; until then its lane waits.
    RetryAfter(Duration),
    /// Its budget is spent, or another attempt can't help.
    DeadLetter,
}

impl RetryPolicy {
    /// Checks the bounds.
    pub fn new(attempts_max: u32, delay_min: Duration, delay_max: Duration) -> Result<Self, InvalidRetryPolicy> {
        if attempts_max == 0 {
            return Err(InvalidRetryPolicy::NoAttempts);
        }
        if delay_min > delay_max {
            return Err(InvalidRetryPolicy::DelaysReversed { min: delay_min, max: delay_max });
        }
        Ok(Self { attempts_max, delay_min, delay_max })
    }

    /// Decides after the failure of one record alone.
    ///
    /// `tries` counts the calls that failed in a row, this one included, `charged` those of them that cost an attempt.
    /// `asked` is the guest's wish, held below `delay_max`, and above `delay_min` where an attempt costs nothing. `dice` is
    /// in `0.0..1.0` and spreads the delays over the upper half of the back-off, so that lanes that failed together do not
    /// return together.
    pub fn decide(&self, class: Class, tries: u32, charged: u32, asked: Option<Duration>, dice: f64) -> Decision {
        if class.is_final() || (class.charges() && charged >= self.attempts_max) {
            return Decision::DeadLetter;
        }
        let delay = match asked {
            // What costs no attempt has no other end than its delay.
            Some(asked) if !class.charges() => asked.clamp(self.delay_min, self.delay_max),
            Some(asked) => asked.min(self.delay_max),
            None => self.back_off(tries).mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0),
        };
        Decision::RetryAfter(delay)
    }

    /// `delay_min`, doubled with each failure in a row, up to `delay_max`.
    fn back_off(&self, tries: u32) -> Duration {
        let doublings = tries.saturating_sub(1).min(31);
        self.delay_min.saturating_mul(1 << doublings).min(self.delay_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(attempts_max: u32) -> RetryPolicy {
        RetryPolicy::new(attempts_max, Duration::from_millis(100), Duration::from_secs(1)).expect("valid")
    }

    #[test]
    fn contradictions_are_refused_with_the_cure() {
        let second = Duration::from_secs(1);
        let error = RetryPolicy::new(0, second, second).expect_err("no attempt");
        assert_eq!(error.to_string(), "`attempts_max` is 0; use 1 to never retry");
        let error = RetryPolicy::new(1, 2 * second, second).expect_err("reversed");
        assert_eq!(error.to_string(), "`delay_min` (2s) is longer than `delay_max` (1s)");
    }

    #[test]
    fn delays_double_up_to_the_cap_and_jitter_stays_in_the_upper_half() {
        let delays = |dice| {
            (1..=6)
                .map(|tries| match policy(10).decide(Class::Trap, tries, tries, None, dice) {
                    Decision::RetryAfter(delay) => delay.as_millis(),
                    Decision::DeadLetter => 0,
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(delays(1.0), [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(delays(0.0), [50, 100, 200, 400, 500, 500]);
    }

    #[test]
    fn a_spent_budget_is_a_dead_letter() {
        assert!(matches!(policy(3).decide(Class::Retry, 2, 2, None, 0.5), Decision::RetryAfter(_)));
        assert_eq!(policy(3).decide(Class::Retry, 3, 3, None, 0.5), Decision::DeadLetter);
    }

    #[test]
    fn an_unavailable_dependency_costs_nothing_however_long() {
        assert_eq!(
            policy(1).decide(Class::Unavailable, 1_000_000, 1, None, 1.0),
            Decision::RetryAfter(Duration::from_secs(1))
        );
    }

    #[test]
    fn what_can_never_work_is_not_tried_again() {
        for class in [Class::Rejected, Class::Malformed] {
            assert_eq!(policy(100).decide(class, 1, 1, None, 0.5), Decision::DeadLetter);
        }
    }

    #[test]
    fn a_guest_chooses_its_delay_within_the_operators_cap() {
        let asked = |millis| policy(9).decide(Class::Retry, 1, 1, Some(Duration::from_millis(millis)), 0.5);
        assert_eq!(asked(7), Decision::RetryAfter(Duration::from_millis(7)));
        let free = policy(9).decide(Class::Unavailable, 1, 0, Some(Duration::ZERO), 0.5);
        assert_eq!(
            free,
            Decision::RetryAfter(Duration::from_millis(100)),
            "what costs nothing is not tried in a circle"
        );
        assert_eq!(asked(70_000), Decision::RetryAfter(Duration::from_secs(1)));
    }
}
