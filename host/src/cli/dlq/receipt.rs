//! Which letters were sent again: noted by records in the dead-letter topic itself, in the letters' own partition.
//!
//! A receipt has no key and no value, and one header with the letters' offsets. It is younger than they are, so that
//! retention never takes it before them. A run that ends between sending and noting repeats one page of letters at most.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_core::record::{Offset, Record};

use crate::broker::{Header, Outgoing};

/// The offsets of letters that were sent again: `5-9,12`.
pub(super) const LETTERS: &str = "tidemill.redriven.letters";

/// A set of offsets, as ranges.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets {
    /// First to last. Invariant: ranges neither overlap nor touch.
    ranges: BTreeMap<Offset, Offset>,
}

impl Offsets {
    pub(super) fn insert(&mut self, first: Offset, last: Offset) {
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

    pub(super) fn contains(&self, offset: Offset) -> bool {
        self.ranges.range(..=offset).next_back().is_some_and(|(_, end)| *end >= offset)
    }

    /// Adds what a receipt notes; returns whether the record is one. What can't be read is passed over: others may write
    /// to the topic too.
    pub(super) fn note(&mut self, record: &Record) -> bool {
        let Some(noted) = record.last_header(LETTERS) else { return false };
        for range in std::str::from_utf8(noted).unwrap_or_default().split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            if let (Ok(first), Ok(last)) = (first.parse::<Offset>(), last.parse::<Offset>())
                && 0 <= first
                && first <= last
                && last < record.offset()
            {
                self.insert(first, last);
            }
        }
        true
    }

    /// The record that notes these offsets.
    pub(super) fn receipt(&self, topic: &Arc<str>, partition: i32) -> Outgoing {
        let range = |(first, last): (&Offset, &Offset)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        let noted = self.ranges.iter().map(range).collect::<Vec<_>>().join(",");
        Outgoing {
            topic: Arc::clone(topic),
            partition: Some(partition),
            timestamp_ms: None,
            key: None,
            value: None,
            headers: vec![Header { name: Bytes::from_static(LETTERS.as_bytes()), value: Some(noted.into()) }],
        }
    }
}

impl FromIterator<Offset> for Offsets {
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
    use tidemill_core::record::{ChunkBuilder, HeaderRef, Timestamp};

    use super::*;

    fn read(offset: Offset, noted: &[u8]) -> Offsets {
        let mut chunk = ChunkBuilder::default();
        chunk.push(offset, Timestamp::None, None, None, [HeaderRef { name: LETTERS.as_bytes(), value: Some(noted) }]);
        let record = Arc::new(chunk.build()).records().next().expect("one record");
        let mut offsets = Offsets::default();
        assert!(offsets.note(&record));
        offsets
    }

    #[test]
    fn what_cannot_be_a_receipt_notes_nothing() {
        for noted in [&b""[..], b"x", b"5-", b"-1", b"9-5", b"3-100", b"\xff", b"1-2-3"] {
            assert_eq!(read(100, noted), Offsets::default(), "{noted:?}");
        }
        assert_eq!(read(100, b"x,7"), Offsets::from_iter([7]));
    }

    proptest! {
        /// What is noted is read back, against a plain set.
        #[test]
        fn what_is_noted_is_read_back(offsets in prop::collection::btree_set(0_i64..60, 0..40), more in prop::collection::btree_set(0_i64..60, 0..40)) {
            let noted = Offsets::from_iter(offsets.iter().copied()).receipt(&"t".into(), 0);
            let mut back = read(1000, noted.headers[0].value.as_deref().expect("a value"));
            prop_assert_eq!(&back, &Offsets::from_iter(offsets.iter().copied()));
            more.iter().for_each(|offset| back.insert(*offset, *offset));
            let all: BTreeSet<i64> = offsets.union(&more).copied().collect();
            for offset in 0..60 {
                prop_assert_eq!(back.contains(offset), all.contains(&offset));
            }
        }
    }
}
