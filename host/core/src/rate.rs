//! How many records may be read now, where an operator bounds the rate.
//!
//! Each record is paid for with time: whoever has taken some is ahead of the clock by their price, and may take more while
//! that is less than [`Rate::BURST`].

use std::num::NonZeroU32;
use std::time::Duration;

/// A bound of records in a second, on average. `now` is any clock that never goes back.
#[derive(Debug, Clone)]
pub struct Rate {
    /// The price of a record. Invariant: not zero.
    each: Duration,
    /// Up to when everything that was taken is paid.
    paid: Duration,
}

impl Rate {
    /// How far ahead of the clock records may be taken.
    pub const BURST: Duration = Duration::from_millis(100);

    /// Nothing was taken yet.
    pub fn new(records_per_second: NonZeroU32) -> Self {
        let each = Duration::from_secs(1) / records_per_second.get();
        Self { each: each.max(Duration::from_nanos(1)), paid: Duration::ZERO }
    }

    /// How many records may be taken now, at least one; or when to ask again, so that they don't come one by one.
    pub fn room(&self, now: Duration) -> Result<usize, Duration> {
        match Self::BURST.checked_sub(self.paid.saturating_sub(now)).filter(|left| !left.is_zero()) {
            Some(left) => Ok(usize::try_from(left.as_nanos() / self.each.as_nanos()).unwrap_or(usize::MAX).max(1)),
            None => Err(self.paid - Self::BURST / 2),
        }
    }

    /// Notes that so many were taken.
    pub fn took(&mut self, now: Duration, records: usize) {
        let price = self.each.saturating_mul(u32::try_from(records).unwrap_or(u32::MAX));
        self.paid = self.paid.max(now).saturating_add(price);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(records_per_second: u32) -> Rate {
        Rate::new(NonZeroU32::new(records_per_second).expect("not zero"))
    }

    #[test]
    fn a_tenth_of_a_second_may_be_taken_at_once_and_time_fills_it_again() {
        let mut rate = rate(1000);
        let at = Duration::from_secs(7);
        assert_eq!(rate.room(at), Ok(100));
        rate.took(at, 100);
        assert_eq!(rate.room(at), Err(at + Duration::from_millis(50)), "all is taken");
        assert_eq!(rate.room(at + Duration::from_millis(50)), Ok(50));
        assert_eq!(rate.room(at + Duration::from_secs(60)), Ok(100), "what was not taken is not kept");
    }

    #[test]
    fn less_than_one_in_a_burst_is_one() {
        let mut rate = rate(1);
        assert_eq!(rate.room(Duration::ZERO), Ok(1));
        rate.took(Duration::ZERO, 1);
        let next = rate.room(Duration::ZERO).expect_err("one a second");
        assert!(next > Duration::from_millis(800), "{next:?}");
        assert_eq!(rate.room(next), Ok(1));
    }

    proptest! {
        /// However many ask, over a longer time no more are taken than the rate, but for a burst of each of them.
        #[test]
        fn the_rate_is_kept_over_time(per_second in 1_u32..100_000, steps in prop::collection::vec((0_u64..200, 1_usize..500), 1..200)) {
            let mut rate = rate(per_second);
            let (mut now, mut taken) = (Duration::ZERO, 0);
            for (millis, wanted) in steps {
                now += Duration::from_millis(millis);
                if let Ok(room) = rate.room(now) {
                    rate.took(now, room.min(wanted));
                    taken += room.min(wanted);
                }
            }
            let most = f64::from(per_second) * (now + Rate::BURST).as_secs_f64() + 1.0;
            prop_assert!(taken as f64 <= most, "{taken} in {now:?}, at most {most}");
        }
    }
}
