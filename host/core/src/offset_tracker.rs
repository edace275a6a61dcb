//! How far a partition may be committed.
//!
//! OFF-1: nothing unsettled is below the committable offset.
//! OFF-2: the committable offset never falls within an assignment.
//! OFF-3: when all is settled it equals the position.

use std::collections::VecDeque;

use crate::record::Offset;

/// Tracks one assignment of a partition: which delivered offsets are settled.
///
/// It knows only offsets that were delivered: compaction and transaction markers leave gaps, and a gap is never waited for.
#[derive(Debug, Clone)]
pub struct OffsetTracker {
    /// Delivered, in order, from the first that is not settled. Invariant: offsets rise; the first is not settled.
    delivered: VecDeque<Delivered>,
    /// One past the highest delivered offset, or where reading will go on. Invariant: above every delivered offset.
    position: Offset,
    /// Not yet settled. Invariant: the entries of `delivered` that are not settled.
    pending: usize,
}

/// How an offset stands in one assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Below the committable offset: settled, now or in an earlier assignment, or nothing was there.
    Below,
    /// Delivered and settled, above one that is not.
    Settled,
    /// Delivered and not settled.
    Pending,
    /// Between delivered offsets: there is no record.
    Absent,
    /// Not delivered yet.
    Ahead,
}

#[derive(Debug, Clone, Copy)]
struct Delivered {
    offset: Offset,
    settled: bool,
}

impl OffsetTracker {
    /// Starts at the offset that will be read next.
    pub fn new(position: Offset) -> Self {
        Self { delivered: VecDeque::new(), position, pending: 0 }
    }

    /// Notes a delivered record.
    ///
    /// # Panics
    /// When offsets do not rise: a reader delivers a partition in order.
    pub fn received(&mut self, offset: Offset) {
        assert!(offset >= self.position, "OFF-2: a partition is delivered in order");
        self.delivered.push_back(Delivered { offset, settled: false });
        self.position = offset + 1;
        self.pending += 1;
    }

    /// Notes that a record is settled. Twice is as good as once.
    pub fn settled(&mut self, offset: Offset) {
        let Some(index) = self.index_of(offset) else { return };
        let entry = &mut self.delivered[index];
        if !entry.settled {
            entry.settled = true;
            self.pending -= 1;
        }
        while self.delivered.front().is_some_and(|entry| entry.settled) {
            self.delivered.pop_front();
        }
    }

    fn index_of(&self, offset: Offset) -> Option<usize> {
        // Without gaps in between an offset stands as far from the first as it is above it.
        let first = self.delivered.front()?.offset;
        let expected = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.delivered.get(expected).is_some_and(|entry| entry.offset == offset) {
            return Some(expected);
        }
        self.delivered.binary_search_by_key(&offset, |entry| entry.offset).ok()
    }

    /// The offset to commit: the lowest one that would still have to be redelivered.
    pub fn committable(&self) -> Offset {
        self.delivered.front().map_or(self.position, |entry| entry.offset)
    }

    /// How an offset stands.
    pub fn standing(&self, offset: Offset) -> Standing {
        if offset < self.committable() {
            return Standing::Below;
        }
        if offset >= self.position {
            return Standing::Ahead;
        }
        match self.index_of(offset) {
            Some(index) if self.delivered[index].settled => Standing::Settled,
            Some(_) => Standing::Pending,
            None => Standing::Absent,
        }
    }

    /// One past the highest delivered offset.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// How many records were delivered and are not settled.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// How many delivered records a crash now would deliver again, settled ones behind the first unsettled included.
    pub fn span(&self) -> usize {
        self.delivered.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gaps_are_not_waited_for() {
        let mut tracker = OffsetTracker::new(3);
        for offset in [5, 9, 20] {
            tracker.received(offset);
        }
        tracker.settled(5);
        assert_eq!(tracker.committable(), 9);
        tracker.settled(20);
        assert_eq!((tracker.committable(), tracker.span()), (9, 2));
        let stand = [5, 9, 10, 20, 21].map(|offset| tracker.standing(offset));
        assert_eq!(stand, [Standing::Below, Standing::Pending, Standing::Absent, Standing::Settled, Standing::Ahead]);
        tracker.settled(9);
        assert_eq!((tracker.committable(), tracker.position()), (21, 21));
    }

    proptest! {
        /// OFF-1, OFF-2 and OFF-3 against a set of unsettled offsets.
        #[test]
        fn agrees_with_a_set_of_unsettled_offsets(steps in prop::collection::vec((1_i64..4, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
            let mut tracker = OffsetTracker::new(0);
            let mut unsettled = BTreeSet::new();
            let (mut next, mut before) = (0, 0);
            for (gap, pick, receive) in steps {
                if receive || unsettled.is_empty() {
                    let offset = next + gap - 1;
                    tracker.received(offset);
                    unsettled.insert(offset);
                    next = offset + 1;
                } else {
                    let offset = *unsettled.iter().nth(pick.index(unsettled.len())).expect("not empty");
                    tracker.settled(offset);
                    unsettled.remove(&offset);
                }
                let committable = tracker.committable();
                prop_assert!(unsettled.range(..committable).next().is_none(), "OFF-1");
                prop_assert!(committable >= before, "OFF-2");
                prop_assert!(!unsettled.is_empty() || committable == tracker.position(), "OFF-3");
                prop_assert_eq!(tracker.pending(), unsettled.len());
                before = committable;
            }
        }
    }
}
