//! Dead letters: byte for byte, never skipped, and sent again when their cause is mended.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::host::{Handler, Host, Setup};
use tests::raw_headers::RawHeader;
use tests::scenario::dead_letters;
use tests::topics::{self, Kept};
use tests::{names, servers};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(90);
/// `limits.deadline` of guests that never return.
const SHORT: &str = "[limits]\ndeadline = \"100ms\"\nmemory = \"16MiB\"\n";

#[test]
fn each_class_of_poison_has_its_letter_byte_for_byte() -> Result<()> {
    let _machine = servers::in_company();
    let (bootstrap, topic) = (servers::kafka(), names::unique("classes"));
    topics::create(&bootstrap, &topic, 1)?;
    let records: Vec<Kept> = [
        (Some(&b"k"[..]), Some(&b"poison"[..]), vec![]),
        (None, Some(b"poison"), vec![RawHeader::new("a", "1"), RawHeader::new("a", b"\xff\x00".as_slice())]),
        (Some(b""), Some(b"poison"), vec![RawHeader { name: b"null".to_vec(), value: None }]),
        (Some(b"\xff"), Some(b"poison"), vec![RawHeader::new(b"\xff\xfe".as_slice(), "no text")]),
        (Some(b"tombstone"), None, vec![RawHeader::new(b"\xfe".as_slice(), "no text")]),
    ]
    .into_iter()
    .enumerate()
    .map(|(number, (key, value, headers))| Kept {
        timestamp: Some(1_600_000_000_000 + number as i64),
        headers,
        ..Kept::new(key, value)
    })
    .collect();
    topics::produce(&bootstrap, &topic, &records)?;

    // The last two records can't be shown to a guest, whoever it is.
    let classes = [
        ("failing", "retry", "attempts_max = 2\ndelay_min = \"10ms\"\ndelay_max = \"10ms\""),
        ("poison", "rejected", "attempts_max = 9"),
        ("trapping", "trap", "attempts_max = 1"),
        ("looping", "deadline", "attempts_max = 1"),
        ("hungry", "memory", "attempts_max = 1"),
        ("store", "unavailable", "attempts_max = 1\nunavailable = \"exhaust\""),
    ];
    // Nobody listens on port 1.
    let mut setup = Setup::on_kafka(&bootstrap, &[]).database("postgres://nobody@127.0.0.1:1/none");
    let mut letters_of = BTreeMap::new();
    for (guest, class, retry) in classes {
        let letters = names::unique(guest);
        topics::create(&bootstrap, &letters, 1)?;
        let grants = if guest == "store" { "[grants]\nsql = [\"main\"]\n" } else { SHORT };
        let manifest = format!(
            "topics = [\"{topic}\"]\ngroup = \"{letters}\"\n[retry]\n{retry}\n[dead_letters]\ntopic = \"{letters}\"\n\
             headers = \"connect\"\n{grants}"
        );
        setup = setup.handler(Handler::new(guest, guest, &manifest));
        letters_of.insert(class, letters);
    }
    let _host = setup.start()?;
    let source = topics::read(&bootstrap, &topic)?;
    for (class, topic) in &letters_of {
        wait::until(&format!("the letters of class {class}"), DEADLINE, || {
            Ok((topics::ends(&bootstrap, topic)? >= vec![5]).then_some(()))
        })?;
        let letters = topics::read(&bootstrap, topic)?;
        assert_eq!(letters.len(), 5, "{class}: one letter a record");
        for original in &source {
            let mut own =
                letters.iter().filter(|letter| letter.as_dead_letter().is_ok_and(|it| it.place == original.place));
            let letter = own.next().with_context(|| format!("{class}: {:?} has a letter", original.place))?;
            let what = format!("{class}: {:?}", original.place);
            assert_eq!((&letter.key, &letter.value), (&original.key, &original.value), "{what}");
            assert_eq!(letter.timestamp, original.timestamp, "{what}");
            assert_eq!(letter.headers[..original.headers.len()], original.headers, "{what}");
            let expected = if original.place.offset >= 3 { "malformed" } else { class };
            assert_eq!(letter.header("tidemill.error.class").as_deref(), Some(expected), "{what}");
            let exception = letter.header("__connect.errors.exception.class.name");
            assert_eq!(exception, Some(format!("tidemill.{expected}")), "{what}");
        }
    }
    Ok(())
}

#[test]
fn letters_wait_for_their_topic_and_go_on_by_themselves_once_it_is_made() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::new("")?;
    let host = stage.host()?;
    stage.produce(40, 8)?;
    stage.wait_for_stalled(&host)?;
    wait::until("the neighbours to flow", DEADLINE, || {
        Ok((topics::ends(&stage.bootstrap, &stage.out)?.iter().sum::<i64>() >= 1).then_some(()))
    })?;
    let source = topics::read(&stage.bootstrap, &stage.topic)?;
    let committed = topics::committed(&stage.bootstrap, &stage.group, &stage.topic)?;
    let first = |partition: i32| {
        let mut poison = source.iter().filter(|kept| kept.value.as_deref() == Some(b"poison"));
        poison.find(|kept| kept.place.partition == partition).map_or(i64::MAX, |kept| kept.place.offset)
    };
    for (partition, offset) in (0..).zip(&committed) {
        assert!(offset.unwrap_or(0) <= first(partition), "nothing is skipped: {committed:?}");
    }
    let make = format!("make it: tidemill topic create {} --partitions N", dead_letters(&stage.topic));
    assert!(host.log().contains(&make), "the log says what to do");
    let said = host.log().matches("dead letters can't be written").count();
    assert!(said <= 3, "it is said once in a while, and not for each try: {said} times");

    host.command(&["topic", "create", &dead_letters(&stage.topic), "--partitions", "2"])?;
    stage.wait_until_committed()?;
    assert_eq!(topics::read(&stage.bootstrap, &dead_letters(&stage.topic))?.len(), 8);
    assert_eq!(host.metrics()?.sum("tidemill_settle_dead_letters_waiting", &[]), 0.0);
    assert_eq!(topics::read(&stage.bootstrap, &stage.out)?.len(), 32, "each neighbour was forwarded once");
    Ok(())
}

#[test]
fn letters_that_cannot_be_written_do_not_hold_up_the_end_and_the_next_host_writes_them() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::new("")?;
    let mut host = stage.host()?;
    stage.produce(40, 8)?;
    stage.wait_for_stalled(&host)?;
    let ended = host.terminate(Duration::from_secs(30))?;
    assert_eq!(ended.code, Some(0));
    assert!(ended.took < Duration::from_secs(18), "the drain deadline is 20 s: {ended:?}");

    topics::create(&stage.bootstrap, &dead_letters(&stage.topic), 2)?;
    let _next = stage.host()?;
    stage.wait_until_committed()?;
    let letters = topics::read(&stage.bootstrap, &dead_letters(&stage.topic))?;
    let mut ids: Vec<_> = letters.iter().filter_map(|letter| letter.header("tidemill.error.id")).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 8, "nothing is lost");
    Ok(())
}

#[test]
fn a_letter_that_its_topic_does_not_take_waits_until_it_does() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::new("")?;
    let letters = dead_letters(&stage.topic);
    topics::create(&stage.bootstrap, &letters, 1)?;
    topics::configure(&stage.bootstrap, &letters, "max.message.bytes", "2000")?;
    // Larger than librdkafka's producers send by default, which the broker takes from others.
    topics::configure(&stage.bootstrap, &stage.topic, "max.message.bytes", "3000000")?;
    let mut large = Kept::new(Some(b"large"), Some(b"poison"));
    large.headers = vec![RawHeader::new("filler", vec![b'x'; 1_500_000])];
    let host = stage.host()?;
    topics::produce(&stage.bootstrap, &stage.topic, std::slice::from_ref(&large))?;
    stage.wait_for_stalled(&host)?;
    assert!(host.log().contains("max.message.bytes"), "the log says what to do");

    topics::configure(&stage.bootstrap, &letters, "max.message.bytes", "3000000")?;
    stage.wait_until_committed()?;
    let letter = topics::read(&stage.bootstrap, &letters)?.remove(0);
    assert_eq!((&letter.key, &letter.value, &letter.headers[0]), (&large.key, &large.value, &large.headers[0]));
    Ok(())
}

#[test]
fn after_a_swap_one_command_has_every_letter_handled_exactly_once() -> Result<()> {
    let _machine = servers::in_company();
    let stage = Stage::new("count = \"1\"")?;
    topics::create(&stage.bootstrap, &dead_letters(&stage.topic), 2)?;
    let host = stage.host()?;
    stage.produce(200, 60)?;
    stage.wait_until_committed()?;
    let letters = topics::read(&stage.bootstrap, &dead_letters(&stage.topic))?;
    assert_eq!(letters.len(), 60);
    let listed = host.command(&["dlq", "list", "--topic", &dead_letters(&stage.topic), "--json"])?;
    assert!(listed.contains("\"letters\":60") && listed.contains("\"code\":\"poison\""), "{listed}");

    // From now on it tells the id of each record that it gets.
    host.swap("h", "emitting")?;
    wait::until("the swap", DEADLINE, || {
        Ok((host.metrics()?.sum("tidemill_guest_swaps_total", &[]) >= 1.0).then_some(()))
    })?;
    let redrive = ["dlq", "redrive", "--handler", "h", "--topic", &dead_letters(&stage.topic), "--json"];
    let said = host.command(&redrive)?;
    assert!(said.contains("\"sent\":60"), "{said}");
    let said = host.command(&redrive)?;
    assert!(said.contains("\"sent\":0") && said.contains("\"sent_before\":60"), "{said}");
    stage.wait_until_committed()?;

    let forwarded = topics::read(&stage.bootstrap, &stage.out)?;
    let mut ids: Vec<String> = forwarded
        .iter()
        .filter_map(|kept| String::from_utf8(kept.value.clone()?).ok()?.strip_suffix("#0").map(str::to_owned))
        .collect();
    let mut expected: Vec<String> = letters.iter().filter_map(|letter| letter.header("tidemill.error.id")).collect();
    ids.sort();
    expected.sort();
    assert_eq!(ids, expected, "each letter was handled once, under the id that it had at first");
    assert_eq!(forwarded.len(), 200);
    Ok(())
}

/// A topic whose records with the value `poison` the handler `h` refuses for good; it forwards the others.
struct Stage {
    bootstrap: String,
    topic: String,
    out: String,
    group: String,
    config: String,
}

impl Stage {
    fn new(config: &str) -> Result<Stage> {
        let bootstrap = servers::kafka();
        let (topic, out, group) = (names::unique("letters"), names::unique("out"), names::unique("group"));
        topics::create(&bootstrap, &topic, 3)?;
        topics::create(&bootstrap, &out, 1)?;
        Ok(Stage { bootstrap, topic, out, group, config: config.to_owned() })
    }

    fn host(&self) -> Result<Host> {
        let Stage { bootstrap, topic, out, group, config } = self;
        let manifest = format!(
            "topics = [\"{topic}\"]\ngroup = \"{group}\"\n[grants]\nproduce = [\"{out}\"]\n[config]\n\
             to = \"{out}\"\n{config}\n"
        );
        Setup::on_kafka(bootstrap, &[]).handler(Handler::new("h", "poison", &manifest)).start()
    }

    /// So many records, some of them poison, each with a key of its own.
    fn produce(&self, records: usize, poison: usize) -> Result<()> {
        let step = records / poison;
        let record = |number: usize| {
            let is_poison = number.is_multiple_of(step) && number / step < poison;
            let value: &[u8] = if is_poison { b"poison" } else { b"good" };
            Kept::new(Some(format!("k{number}").as_bytes()), Some(value))
        };
        topics::produce(&self.bootstrap, &self.topic, &(0..records).map(record).collect::<Vec<_>>())
    }

    fn wait_for_stalled(&self, host: &Host) -> Result<()> {
        wait::until("letters that can't be written", DEADLINE, || {
            Ok((host.metrics()?.sum("tidemill_settle_dead_letters_waiting", &[("handler", "h")]) >= 1.0).then_some(()))
        })
    }

    fn wait_until_committed(&self) -> Result<()> {
        let group = topics::Group::new(&self.bootstrap, &self.group, &self.topic)?;
        wait::until("all records to be committed", DEADLINE, || {
            let ends = topics::ends(&self.bootstrap, &self.topic)?;
            let committed = group.committed()?;
            let is_at_end = |(end, offset): (&i64, &Option<i64>)| offset.unwrap_or(0) == *end;
            Ok(ends.iter().zip(&committed).all(is_at_end).then_some(()))
        })
    }
}
