//! What is shown of a partition's parked keys.

use tidemill_core::parked::{Key, OfKey, Parked};

use crate::consumer::asked::{ParkedKey, ParkedKeys};
use crate::settle::parked::Why;

/// Keys that are shown of a partition.
const KEYS_MAX: usize = 1000;
/// Bytes of what is shown of a partition: their keys and why they are parked. The first key is shown whatever its size.
const BYTES_MAX: usize = 64 << 10;

/// The parked keys, as many as are shown, and how many more there are.
pub(super) fn shown(index: &Parked<Why>) -> ParkedKeys {
    let mut answer = ParkedKeys::default();
    let mut bytes = 0;
    for (key, of) in index.keys() {
        if answer.keys.len() == KEYS_MAX || bytes >= BYTES_MAX {
            answer.more += 1;
            continue;
        }
        let one = one(key, of);
        bytes += size(&one);
        answer.keys.push(one);
    }
    answer
}

fn one(key: &Key, of: &OfKey<Why>) -> ParkedKey {
    ParkedKey {
        key: key.as_deref().map(<[u8]>::to_vec),
        records: of.records(),
        first_offset: of.first().map(|first| first.offset),
        is_tried: of.is_tried(),
        why: of.why().cloned(),
    }
}

fn size(ParkedKey { key, why, .. }: &ParkedKey) -> usize {
    let words = why.as_ref().map_or(0, |why| why.code.len() + why.detail.len());
    key.as_ref().map_or(0, Vec::len) + words
}

#[cfg(test)]
mod tests {
    use tidemill_core::parked::{Source, Written};

    use super::*;

    fn check(keys: usize, key_bytes: usize, shows: usize) {
        let mut index = Parked::new(usize::MAX);
        for at in 0..keys as i64 {
            let mut key = at.to_string().into_bytes();
            key.resize(key_bytes, b'.');
            let source = Source { offset: at, millis: 0 };
            index.parked(Some(key.into()), Written { at, source, behind: None, owner: "me".into(), why: None });
        }
        let answer = shown(&index);
        assert_eq!((answer.keys.len(), answer.more), (shows, keys - shows), "{keys} keys of {key_bytes} bytes");
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        check(0, 4, 0);
        check(KEYS_MAX, 4, KEYS_MAX);
        check(KEYS_MAX + 7, 4, KEYS_MAX);
        check(100, BYTES_MAX / 8, 8);
        check(3, 4 * BYTES_MAX, 1);
    }
}
