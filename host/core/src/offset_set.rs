//! Offsets of one partition as ranges, and as the text by which receipts name them: `5-9,12`.

use std::collections::BTreeMap;
use std::fmt;

use crate::record::Offset;

/// A set of offsets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OffsetSet {
    /// First to last. Invariant: ranges neither overlap nor touch.
    ranges: BTreeMap<Offset, Offset>,
}

impl OffsetSet {
    /// Adds a range, its last offset included.
    pub fn insert(&mut self, first: Offset, last: Offset) {
        let (mut first, mut last) = (first, last);
        // Takes in what it overlaps or touches, from the last such range on.
        while let Some((&start, &end)) = self.ranges.range(..=last.saturating_add(1)).next_back()
            && end.saturating_add(1) >= first
        {
            self.ranges.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.ranges.insert(first, last);
    }

    /// Whether it has this offset.
    pub fn contains(&self, offset: Offset) -> bool {
        self.ranges.range(..=offset).next_back().is_some_and(|(_, end)| *end >= offset)
    }

    /// Its ranges, first to last, in order.
    pub fn ranges(&self) -> impl Iterator<Item = (Offset, Offset)> {
        self.ranges.iter().map(|(first, last)| (*first, *last))
    }

    /// Adds what a text names below an offset. What can't be read is passed over.
    pub fn read(&mut self, text: &str, below: Offset) {
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            if let (Ok(first), Ok(last)) = (first.parse::<Offset>(), last.parse::<Offset>())
                && 0 <= first
                && first <= last
                && last < below
            {
                self.insert(first, last);
            }
        }
    }
}

impl fmt::Display for OffsetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.ranges.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

impl FromIterator<Offset> for OffsetSet {
    fn from_iter<I: IntoIterator<Item = Offset>>(offsets: I) -> Self {
        let mut set = Self::default();
        offsets.into_iter().for_each(|offset| set.insert(offset, offset));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> OffsetSet {
        let mut set = OffsetSet::default();
        set.read(text, 100);
        set
    }

    #[test]
    fn what_names_no_offset_adds_nothing() {
        for text in ["", "x", "5-", "-1", "9-5", "3-100", "1-2-3"] {
            assert_eq!(read(text), OffsetSet::default(), "{text:?}");
        }
        assert_eq!(read("x,7"), OffsetSet::from_iter([7]));
    }

    proptest! {
        /// What is written is read back, against a plain set.
        #[test]
        fn what_is_written_is_read_back(offsets in prop::collection::btree_set(0_i64..60, 0..40), more in prop::collection::btree_set(0_i64..60, 0..40)) {
            let set = OffsetSet::from_iter(offsets.iter().copied());
            let mut back = read(&set.to_string());
            prop_assert_eq!(&back, &set);
            more.iter().for_each(|offset| back.insert(*offset, *offset));
            let all: BTreeSet<i64> = offsets.union(&more).copied().collect();
            for offset in 0..60 {
                prop_assert_eq!(back.contains(offset), all.contains(&offset));
            }
            let ranged: Vec<i64> = back.ranges().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(ranged, all.into_iter().collect::<Vec<_>>());
        }
    }
}
