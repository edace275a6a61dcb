use super::*;

const BOUNDS: Bounds = Bounds { records_max: 100, record_bytes_max: 1000 };

fn head(body: BodyKind) -> Head {
    Head { body, partition: None, timestamp_ms: None, headers: Vec::new(), idempotency_key: None }
}

fn read(head: Head, body: &'static [u8]) -> Result<Batch, Refusal> {
    Batch::read(&"orders".into(), head, &Bytes::from_static(body), BOUNDS)
}

fn lines(form: LineForm, body: &'static str) -> Result<Batch, Refusal> {
    read(head(BodyKind::Lines(form)), body.as_bytes())
}

fn keyed(body: &'static str) -> Result<Batch, Refusal> {
    lines(LineForm::Keyed("id".to_owned()), body)
}

/// The line's number and what is wrong with it.
fn wrong(result: Result<Batch, Refusal>) -> (usize, String) {
    match result {
        Err(Refusal::Line { line, cause }) => (line, cause.to_string()),
        other => panic!("no line was wrong: {other:?}"),
    }
}

fn text(bytes: &Option<Bytes>) -> Option<&str> {
    bytes.as_ref().map(|bytes| std::str::from_utf8(bytes).unwrap())
}

#[test]
fn one_record_is_any_bytes_and_empty_is_not_null() {
    let record = |null_value| head(BodyKind::Record { key: None, null_value });
    let value = |null_value, body| read(record(null_value), body).map(|batch| batch.records[0].value.clone());
    assert_eq!(value(false, b"\x00\xff\n{"), Ok(Some(Bytes::from_static(b"\x00\xff\n{"))));
    assert_eq!(value(false, b""), Ok(Some(Bytes::new())));
    assert_eq!(value(true, b""), Ok(None));
    assert_eq!(value(true, b"x"), Err(Refusal::NullValueWithBody));
}

#[test]
fn lines_are_stored_byte_for_byte_and_blank_ones_are_counted_but_skipped() {
    let batch = lines(LineForm::Value, "{\"b\": 1.10, \"a\":2}\r\n\n  null \n\"text\"").unwrap();
    let values: Vec<_> = batch.records.iter().map(|record| text(&record.value)).collect();
    assert_eq!(values, [Some("{\"b\": 1.10, \"a\":2}"), Some("null"), Some("\"text\"")]);
    assert_eq!(batch.lines, Some(vec![1, 3, 4]));
    assert!(batch.records.iter().all(|record| record.key.is_none()));
}

#[test]
fn the_key_is_the_fields_text_or_how_its_number_is_written() {
    let batch = keyed("{\"id\":\"a\\u00e9\"}\n{\"x\":{\"id\":1},\"id\":1.10}\n{\"id\":true}\n{\"id\":\"\"}").unwrap();
    let keys: Vec<_> = batch.records.iter().map(|record| text(&record.key)).collect();
    assert_eq!(keys, [Some("aé"), Some("1.10"), Some("true"), Some("")]);
}

#[test]
fn a_line_without_its_key_is_named() {
    assert_eq!(wrong(keyed("{\"id\":1}\n\n{\"no\":1}")), (3, "has no field `id` to take the key from".to_owned()));
    for (body, expected) in [
        ("{\"id\":null}", "can't be a key"),
        ("{\"id\":[1]}", "can't be a key"),
        ("{\"id\":{}}", "can't be a key"),
        ("{\"id\":\"\\ud800\"}", "can't be a key"),
        ("{\"id\":1,\"id\":1}", "more than once"),
        ("[1]", "no JSON object"),
        ("{\"id\":1", "no JSON: EOF while parsing an object at column 7"),
    ] {
        let (line, text) = wrong(keyed(body));
        assert!(line == 1 && text.contains(expected), "{body}: {text}");
    }
}

#[test]
fn an_envelope_has_every_part_of_a_record() {
    let body = r#"{"key":"k","value":{"n": 1.0},"partition":2,"timestamp_ms":5,"headers":{"a":"1","b":["2",null,"3"],"c":null},"idempotency_key":"once"}"#;
    let batch = lines(LineForm::Envelope, body).unwrap();
    let record = &batch.records[0];
    assert_eq!((text(&record.key), text(&record.value)), (Some("k"), Some(r#"{"n": 1.0}"#)));
    assert_eq!((record.partition, record.timestamp_ms), (Some(2), Some(5)));
    let headers: Vec<_> =
        record.headers.iter().map(|it| (std::str::from_utf8(&it.name).unwrap(), text(&it.value))).collect();
    let expected = [
        ("a", Some("1")),
        ("b", Some("2")),
        ("b", None),
        ("b", Some("3")),
        ("c", None),
        ("idempotency-key", Some("once")),
    ];
    assert_eq!(headers, expected);
}

#[test]
fn an_envelope_tells_null_from_empty_and_carries_any_bytes() {
    let body = "{\"value\":null}\n{\"key\":null,\"value\":\"\"}\n{\"key\":\"\",\"value_base64\":\"\"}\n{\"key_base64\":\"AP8=\",\"value_base64\":\"/w==\"}";
    let batch = lines(LineForm::Envelope, body).unwrap();
    let parts: Vec<_> = batch.records.into_iter().map(|record| (record.key, record.value)).collect();
    let bytes = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
    assert_eq!(
        parts,
        [(None, None), (None, bytes(b"\"\"")), (bytes(b""), bytes(b"")), (bytes(b"\x00\xff"), bytes(b"\xff"))]
    );
}

#[test]
fn a_wrong_envelope_is_named() {
    for (body, expected) in [
        ("{}", "has no `value`; write null"),
        ("{\"key\":\"a\"}", "has no `value`"),
        ("{\"value\":1,\"vlue\":1}", "has `vlue`, which is no part"),
        ("{\"value\":1,\"value\":2}", "`value` more than once"),
        ("{\"value\":1,\"value_base64\":\"\"}", "both `value` and `value_base64`"),
        ("{\"value\":1,\"key\":\"\",\"key_base64\":\"\"}", "both `key` and `key_base64`"),
        ("{\"value\":1,\"key\":1}", "`key` that is not a text"),
        ("{\"value_base64\":\"*\"}", "`value_base64` that is not a text in base64"),
        ("{\"value\":1,\"partition\":-1}", "`partition` that is not a partition's number"),
        ("{\"value\":1,\"partition\":\"1\"}", "`partition` that is not a partition's number"),
        ("{\"value\":1,\"timestamp_ms\":1.5}", "`timestamp_ms` that is not milliseconds"),
        ("{\"value\":1,\"headers\":{\"a\":1}}", "`headers` that is not an object of texts"),
        ("{\"value\":1,\"headers\":{\"tidemill.redriven.id\":\"a\"}}", "a header `tidemill.redriven.id`"),
        ("{\"value\":1,\"headers\":[]}", "`headers` that is not an object of texts"),
        ("1", "no JSON object"),
    ] {
        let (_, text) = wrong(lines(LineForm::Envelope, body));
        assert!(text.contains(expected), "{body}: {text}");
    }
}

#[test]
fn records_of_a_batch_do_not_look_like_repetitions_of_each_other() {
    let head = Head { idempotency_key: Some("req".into()), ..head(BodyKind::Lines(LineForm::Value)) };
    let batch = read(head, b"1\n\n2").unwrap();
    let keys: Vec<_> = batch.records.iter().map(|record| text(&record.headers[0].value)).collect();
    assert_eq!(keys, [Some("req:1"), Some("req:3")]);
}

#[test]
fn what_the_line_says_goes_before_what_the_head_says() {
    let header = |name: &'static str| Header { name: name.into(), value: Some("x".into()) };
    let head = Head {
        partition: Some(1),
        timestamp_ms: Some(1),
        headers: vec![header("of-head")],
        ..head(BodyKind::Lines(LineForm::Envelope))
    };
    let batch = read(head, b"{\"value\":1,\"partition\":2,\"headers\":{\"of-line\":\"x\"}}\n{\"value\":1}").unwrap();
    let places: Vec<_> = batch.records.iter().map(|record| (record.partition, record.timestamp_ms)).collect();
    assert_eq!(places, [(Some(2), Some(1)), (Some(1), Some(1))]);
    assert_eq!(batch.records[0].headers, [header("of-head"), header("of-line")]);
    assert_eq!(batch.records[1].headers, [header("of-head")]);
}

#[test]
fn sizes_and_counts_are_bounded() {
    let long = Box::leak(format!("1\n\"{}\"", "x".repeat(1000)).into_boxed_str());
    assert_eq!(
        lines(LineForm::Value, long).err(),
        Some(Refusal::RecordTooLarge { line: Some(2), bytes: 1002, max: 1000 })
    );
    let many = Box::leak("1\n".repeat(101).into_boxed_str());
    assert_eq!(lines(LineForm::Value, many).err(), Some(Refusal::TooManyRecords { max: 100 }));
    assert_eq!(lines(LineForm::Value, " \n\r\n").err(), Some(Refusal::NoRecords));
}

#[test]
fn a_line_nested_a_million_deep_is_refused_or_taken_and_never_a_crash() {
    let deep: &'static [u8] = Box::leak(vec![b'['; 1_000_000].into_boxed_slice());
    assert!(read(head(BodyKind::Lines(LineForm::Value)), deep).is_err());
    let closed = ["{\"id\":1,\"x\":", &"[".repeat(400), &"]".repeat(400), "}"].concat();
    assert!(keyed(Box::leak(closed.into_boxed_str())).is_ok());
}

#[test]
fn bytes_that_are_no_text_are_refused_in_a_batch() {
    assert_eq!(wrong(read(head(BodyKind::Lines(LineForm::Value)), b"1\n\"\xff\"")), (2, "is not UTF-8".to_owned()));
}
