//! What a member of a classic group was assigned, in the format that consumers agreed on: a version, then topics with their
//! partitions.

use std::sync::Arc;

use tidemill_core::record::TopicPartition;

/// The partitions; `None` when it is not in that format.
pub(super) fn assignment(bytes: &[u8]) -> Option<Vec<TopicPartition>> {
    let mut rest = Rest(bytes);
    let _version = rest.number(2)?;
    let mut assigned = Vec::new();
    for _ in 0..rest.number(4)? {
        let length = usize::try_from(rest.number(2)?).ok()?;
        let topic: Arc<str> = str::from_utf8(rest.take(length)?).ok()?.into();
        for _ in 0..rest.number(4)? {
            assigned.push(TopicPartition::new(Arc::clone(&topic), rest.number(4)?));
        }
    }
    Some(assigned)
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// A whole number of so many bytes, the highest first.
    fn number(&mut self, bytes: usize) -> Option<i32> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| (number << 8) | i32::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_partitions_are_read_and_what_is_cut_off_is_nothing() {
        let bytes = b"\0\x01\0\0\0\x02\0\x01a\0\0\0\x02\0\0\0\0\0\0\x01\x02\0\x01b\0\0\0\x01\0\0\0\x07\xff\xff\xff\xff";
        let expected = [("a", 0), ("a", 258), ("b", 7)].map(|(topic, partition)| TopicPartition::new(topic, partition));
        assert_eq!(assignment(bytes).as_deref(), Some(&expected[..]));
        for cut in 0..bytes.len() - 4 {
            assert_eq!(assignment(&bytes[..cut]), None, "{cut}");
        }
    }
}
