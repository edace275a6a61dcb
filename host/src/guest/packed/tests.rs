use std::collections::BTreeSet;
use std::sync::Arc;

use tidemill_core::record::redriven::{ID, TO};
use tidemill_core::record::{ChunkBuilder, HeaderRef, Record, TopicPartition};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::attempt::{Attempt, Guarantee};

const DENIED: &str = "access-denied";

/// Asks with the rules of a handler that may produce to `t`, and as many records of no content.
fn read(given: &[u8], records: i64) -> Result<Vec<Outcome>, CallError> {
    let records: Vec<_> = (0..records).map(|offset| call_record(Record::single(offset, None, None), 0)).collect();
    read_of(given, &records)
}

fn read_of(given: &[u8], records: &[CallRecord]) -> Result<Vec<Outcome>, CallError> {
    let topics = BTreeSet::from([Arc::from("t")]);
    let rules = Rules { topics: &topics, reason_bytes_max: 10, something_is_away: false };
    let mut written = Records::default();
    written.write("a", records).expect("they are small");
    outcomes(&rules, given.to_vec(), records, &written)
}

fn call_record(record: Record, tries: u32) -> CallRecord {
    CallRecord { record, lane: 0, tries, charged: 0, age: Duration::ZERO }
}

/// One outcome of each kind; the same bytes as in the SDK's test.
fn each_kind() -> Vec<u8> {
    [
        &[0, 1, 0, 0, 0][..],
        &[1, 0, 0, 0, b't', 1, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, b'v'],
        &[1, 0, 0, 0, 1, 0, 0, 0, b'h', 0xff, 0xff, 0xff, 0xff],
        &[1],
        &[2, 3, 9, 0, 0, 0, 1, 0, 0, 0, b'c', 0, 0, 0, 0],
        &[3, 1, 0, 0, 0, b'c', 0, 0, 0, 0],
        &[4],
    ]
    .concat()
}

#[test]
fn records_are_written_as_the_contract_says() {
    let mut chunk = ChunkBuilder::default();
    let header = HeaderRef { name: b"h", value: Some(&[0xff, 0]) };
    chunk.push(7, Timestamp::Create(5), None, Some(b""), [header]);
    chunk.push(8, Timestamp::None, Some(b"k"), None, []);
    let records: Vec<_> = Arc::new(chunk.build()).records().zip([1, 0]).collect();
    let records: Vec<_> = records.into_iter().map(|(record, tries)| call_record(record, tries)).collect();
    let mut written = Records { bytes: b"what was there".to_vec(), places: vec![Place { key: 1, value: 2 }] };
    written.write("a", &records).expect("they are small");
    let expected = [
        &2_u32.to_le_bytes()[..],
        &[0xff; 4],
        &7_i64.to_le_bytes(),
        &[1],
        &5_i64.to_le_bytes(),
        &2_u32.to_le_bytes(),
        &[0xff; 4],
        &[0, 0, 0, 0],
        &[1, 0, 0, 0, 1, 0, 0, 0, b'h', 2, 0, 0, 0, 0xff, 0],
        &[0xff; 4],
        &8_i64.to_le_bytes(),
        &[0],
        &0_i64.to_le_bytes(),
        &1_u32.to_le_bytes(),
        &[1, 0, 0, 0, b'k'],
        &[0xff; 4],
        &[0, 0, 0, 0],
    ];
    assert_eq!(written.bytes(), expected.concat());
}

#[test]
fn a_redriven_record_is_written_with_its_first_id() {
    let attempt = redriven();
    let mut written = Records::default();
    written.write(&attempt.from.topic, &attempt.records).expect("they are small");
    assert_eq!(written.bytes()[4..][..11], [&[7, 0, 0, 0][..], b"a/9/3/1"].concat());
    let ids = super::super::convert::Ids::new(&attempt);
    assert_eq!((ids.get(0), ids.get(1)), ("a/9/3/1", "a/1/8/6"), "the typed form says the same");
}

/// A record that was sent again, and one that was not.
fn redriven() -> Attempt {
    let mut chunk = ChunkBuilder::default();
    let header = |name: &'static str, value: &'static [u8]| HeaderRef { name: name.as_bytes(), value: Some(value) };
    chunk.push(7, Timestamp::Create(5), None, None, [header(ID, b"a/9/3/1"), header(TO, b"a")]);
    chunk.push(8, Timestamp::Create(6), None, None, []);
    let records = Arc::new(chunk.build()).records().map(|record| call_record(record, 0));
    Attempt::new(
        TopicPartition::new("a", 1),
        1,
        records.collect(),
        Guarantee::AtLeastOnce,
        Duration::from_secs(1),
        CancellationToken::new(),
    )
}

#[test]
fn outcomes_are_read_as_the_contract_says() {
    let given = read(&each_kind(), 6).expect("they are as they should be");
    let [Outcome::Ack(outputs), Outcome::Skip, Outcome::Retry { after, reason, unavailable }, dead, rest @ ..] =
        &given[..]
    else {
        panic!("{given:?}")
    };
    let [output] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((&*output.topic, output.partition, output.timestamp_ms), ("t", Some(3), None));
    assert_eq!((output.key.as_deref(), output.value.as_deref()), (None, Some(&b"v"[..])));
    assert_eq!((&output.headers[0].name[..], &output.headers[0].value), (&b"h"[..], &None));
    assert_eq!((*after, reason.code.as_str()), (Some(Duration::from_millis(9)), "c"));
    assert!(!unavailable, "nothing was away, whatever the guest says");
    assert!(matches!(dead, Outcome::DeadLetter(reason) if reason.code == "c"));
    assert!(matches!(rest, [Outcome::Untouched, Outcome::Untouched]), "missing ones are filled up: {rest:?}");
}

#[test]
fn more_outcomes_than_records_are_refused() {
    let error = read(&each_kind(), 4).expect_err("five are too many");
    assert_eq!((error.class, error.detail.as_str()), (Class::Malformed, "the guest gave 5 outcomes for 4 records"));
}

#[test]
fn a_buffer_that_is_cut_off_or_wrong_is_refused_and_nothing_is_allocated_for_its_word() {
    let whole = each_kind();
    let ends = [0, 37, 38, 53, 63, 64];
    assert_eq!(whole.len(), 64);
    for end in 0..whole.len() {
        assert_eq!(read(&whole[..end], 5).is_ok(), ends.contains(&end), "cut off at {end}");
    }
    let wrong: [&[u8]; 6] = [
        &[5],
        // Four thousand million outputs.
        &[0, 0xff, 0xff, 0xff, 0xff],
        // A topic of as many bytes.
        &[0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        // A flag that nobody knows.
        &[2, 4, 0, 0, 0, 0, 0, 0, 0, 0],
        // A code that is no text.
        &[3, 1, 0, 0, 0, 0xff, 0, 0, 0, 0],
        // A header's name that is no text.
        &[
            0, 1, 0, 0, 0, 1, 0, 0, 0, b't', 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0, 0,
            0, 0,
        ],
    ];
    for given in wrong {
        let error = read(given, 1).expect_err("it is refused");
        assert_eq!(error.class, Class::Malformed, "{given:?}");
    }
}

#[test]
fn an_output_that_is_not_granted_ends_its_record_and_no_other() {
    let mut given = vec![0, 2, 0, 0, 0];
    for topic in *b"xt" {
        given.extend([1, 0, 0, 0, topic, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    given.push(1);
    let given = read(&given, 2).expect("it is as it should be");
    assert!(matches!(&given[..], [Outcome::DeadLetter(reason), Outcome::Skip] if reason.code == DENIED), "{given:?}");
}

#[test]
fn what_a_guest_passes_on_is_a_part_of_the_delivered_records() {
    let mut chunk = ChunkBuilder::default();
    chunk.push(7, Timestamp::None, Some(b"key"), Some(b"value"), [HeaderRef { name: b"head", value: Some(b"er") }]);
    chunk.push(8, Timestamp::None, None, Some(b"other"), []);
    let records: Vec<_> = Arc::new(chunk.build()).records().map(|record| call_record(record, 0)).collect();
    let mut written = Records::default();
    written.write("a", &records).expect("they are small");
    let at = |text: &str| {
        let found = written.bytes().windows(text.len()).position(|window| window == text.as_bytes());
        found.expect("the records hold it") as u32
    };
    // An output to `t` whose value is so many bytes from there on.
    let passing = |start: u32, length: u32| {
        let output = [&[0, 1, 0, 0, 0, 1, 0, 0, 0, b't', 0][..], &NONE.to_le_bytes(), &PART.to_le_bytes()].concat();
        let given = [&output[..], &start.to_le_bytes(), &length.to_le_bytes(), &[0; 4], &[1]].concat();
        read_of(&given, &records).map(|outcomes| match &outcomes[..] {
            [Outcome::Ack(outputs), Outcome::Skip] => outputs[0].value.clone().expect("it has a value"),
            other => panic!("{other:?}"),
        })
    };
    let own = |bytes: &Bytes, of: Option<Bytes>| of.is_some_and(|of| bytes.as_ptr() == of.as_ptr());
    let (first, second) = (&records[0].record, &records[1].record);
    let value = passing(at("value"), 5).expect("it is a part");
    assert!(value == "value" && own(&value, first.shared_value()));
    let key = passing(at("key"), 3).expect("it is a part");
    assert!(key == "key" && own(&key, first.shared_key()));
    let other = passing(at("other"), 3).expect("it is a part");
    assert!(other == "oth" && own(&other, second.shared_value()));
    // What lies elsewhere, or over more than one field, is copied.
    assert_eq!(passing(at("er"), 2).expect("it is a part"), "er");
    assert_eq!(passing(0, 4).expect("it is a part"), 2_u32.to_le_bytes()[..]);
    let end = written.bytes().len() as u32;
    assert_eq!(passing(0, end).expect("it is a part"), written.bytes());
    for (start, length) in [(0, end + 1), (end, 1), (u32::MAX, 1), (1, u32::MAX)] {
        assert_eq!(passing(start, length).expect_err("it is beyond").class, Class::Malformed);
    }
}
