//! Which letters were sent again: noted by records in the dead-letter topic itself, in the letters' own partition.
//!
//! A receipt has no key and no value, and one header with the letters' offsets. It is younger than they are, so that
//! retention never takes it before them. A run that ends between sending and noting repeats one page of letters at most.

use std::sync::Arc;

use bytes::Bytes;
use tidemill_core::offset_set::OffsetSet;
use tidemill_core::record::Record;

use crate::broker::{Header, Outgoing};

/// The offsets of letters that were sent again: `5-9,12`.
pub(super) const LETTERS: &str = "tidemill.redriven.letters";

/// Adds what a receipt notes; returns whether the record is one. What can't be read is passed over: others may write to the
/// topic too. A letter is none, whatever headers its record came with: it has more of them.
pub(super) fn note(noted: &mut OffsetSet, record: &Record) -> bool {
    let mut headers = record.headers();
    let (Some(only), None) = (headers.next(), headers.next()) else { return false };
    if only.name != LETTERS.as_bytes() {
        return false;
    }
    noted.read(std::str::from_utf8(only.value.unwrap_or_default()).unwrap_or_default(), record.offset());
    true
}

/// The record that notes these offsets.
pub(super) fn receipt(letters: &OffsetSet, topic: &Arc<str>, partition: i32) -> Outgoing {
    Outgoing {
        topic: Arc::clone(topic),
        partition: Some(partition),
        timestamp_ms: None,
        key: None,
        value: None,
        headers: vec![Header { name: Bytes::from_static(LETTERS.as_bytes()), value: Some(letters.to_string().into()) }],
    }
}

#[cfg(test)]
mod tests {
    use tidemill_core::record::{ChunkBuilder, HeaderRef, Timestamp};

    use super::*;

    #[test]
    fn a_receipt_notes_letters_before_it_and_only_if_it_is_one() {
        let record = |names: &[&'static str]| {
            let mut chunk = ChunkBuilder::default();
            let header = |name: &&'static str| HeaderRef { name: name.as_bytes(), value: Some(b"5-9,12,100") };
            chunk.push(100, Timestamp::None, None, None, names.iter().map(header));
            Arc::new(chunk.build()).records().next().expect("one record")
        };
        let mut noted = OffsetSet::default();
        assert!(!note(&mut noted, &record(&["other"])));
        assert!(!note(&mut noted, &record(&[LETTERS, "tidemill.error.class"])), "a letter with a header of that name");
        assert!(note(&mut noted, &record(&[LETTERS])));
        assert_eq!(noted.to_string(), "5-9,12");
        let back = receipt(&noted, &"t".into(), 3);
        assert_eq!(back.headers[0].value.as_deref(), Some(&b"5-9,12"[..]));
    }
}
