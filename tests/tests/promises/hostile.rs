//! A bad record or a bad guest costs nobody else anything.

use std::time::Duration;

use anyhow::Result;
use tests::client::Load;
use tests::host::Handler;
use tests::raw_headers::RawHeader;
use tests::scenario::{Scenario, dead_letters};
use tests::topics::Kept;
use tests::{names, servers, topics};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn a_poison_record_is_dead_lettered_and_its_neighbours_flow() -> Result<()> {
    let _machine = servers::in_company();
    let bootstrap = servers::kafka();
    let (topic, out, group) = (names::unique("poison"), names::unique("out"), names::unique("group"));
    topics::create(&bootstrap, &topic, 2)?;
    topics::create(&bootstrap, &dead_letters(&topic), 1)?;
    topics::create(&bootstrap, &out, 2)?;
    let manifest = format!(
        "topics = [\"{topic}\"]\ngroup = \"{group}\"\n[grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\n"
    );
    let records: Vec<Kept> = (0..200).map(record).collect();
    topics::produce(&bootstrap, &topic, &records)?;
    let setup = tests::host::Setup::on_kafka(&bootstrap, &[]).handler(Handler::new("poison", "poison", &manifest));
    let _host = setup.start()?;
    wait::until("all to be forwarded", DEADLINE, || Ok((sum(&topics::ends(&bootstrap, &out)?) >= 190).then_some(())))?;
    wait::until("all letters", DEADLINE, || {
        Ok((sum(&topics::ends(&bootstrap, &dead_letters(&topic))?) >= 10).then_some(()))
    })?;

    let letters = topics::read(&bootstrap, &dead_letters(&topic))?;
    let source = topics::read(&bootstrap, &topic)?;
    assert_eq!(letters.len(), 10);
    for letter in &letters {
        let place = letter.as_dead_letter()?.place;
        let original = source.iter().find(|kept| kept.place == place).expect("a letter names its record");
        assert_eq!((&letter.key, &letter.value), (&original.key, &original.value));
        assert_eq!(letter.headers[..original.headers.len()], original.headers, "headers, duplicates too, in order");
        assert_eq!(letter.timestamp, original.timestamp);
        assert_eq!(letter.header("tidemill.error.code").as_deref(), Some("poison"));
        assert_eq!(letter.header("tidemill.error.attempts").as_deref(), Some("1"));
    }
    let forwarded = topics::read(&bootstrap, &out)?;
    let mut values: Vec<_> = forwarded.iter().filter_map(|kept| kept.value.clone()).collect();
    let mut expected: Vec<_> =
        records.iter().filter_map(|kept| kept.value.clone()).filter(|value| value != b"poison").collect();
    values.sort();
    expected.sort();
    assert_eq!(values, expected, "each neighbour was forwarded once");
    Ok(())
}

#[test]
fn a_trapping_guest_leaves_other_handlers_untouched() -> Result<()> {
    beside("trapping", "[retry]\nattempts_max = 1", "trap", 200)
}

#[test]
fn a_guest_that_loops_for_ever_leaves_other_handlers_untouched() -> Result<()> {
    beside("looping", "[retry]\nattempts_max = 1\n[limits]\ndeadline = \"100ms\"", "deadline", 20)
}

#[test]
fn a_guest_that_eats_memory_leaves_other_handlers_untouched() -> Result<()> {
    beside("hungry", "[retry]\nattempts_max = 1\n[limits]\nmemory = \"16MiB\"", "memory", 50)
}

/// Runs a bad guest beside a good one on the same topic: the good one stores everything once and commits, while the bad one's
/// records become dead letters of this class, at least so many.
fn beside(guest: &str, manifest: &str, class: &str, letters_min: i64) -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(4)?;
    let (group, letters) = (names::unique(guest), names::unique("letters"));
    topics::create(&scenario.bootstrap, &letters, 1)?;
    let manifest = format!(
        "topics = [\"{}\"]\ngroup = \"{group}\"\ndead_letters.topic = \"{letters}\"\n{manifest}\n",
        scenario.topic
    );
    let bad = Handler::new("bad", guest, &manifest);
    let host = scenario.setup().handler(scenario.handler("")).handler(bad).start()?;
    let commits = scenario.watch_commits()?;
    let report = scenario.send(&host, &Load::batches("load", 3_000))?;
    assert_eq!(report.accepted_share(), 1.0, "{report:?}");
    scenario.wait_until_committed(DEADLINE)?;
    wait::until("the bad guest's dead letters", DEADLINE, || {
        Ok((sum(&topics::ends(&scenario.bootstrap, &letters)?) >= letters_min).then_some(()))
    })?;
    let letter = topics::read(&scenario.bootstrap, &letters)?.remove(0);
    assert_eq!(letter.header("tidemill.error.class").as_deref(), Some(class));
    assert_eq!(host.admin("/healthz")?.0, 200);
    let summary = scenario.judge(commits.stop()?, 0)??;
    assert_eq!((summary.stored, summary.dead), (3_000, 0));
    Ok(())
}

/// One in twenty is poison; each has headers, some of them twice.
fn record(number: usize) -> Kept {
    let value = if number % 20 == 7 { "poison".to_owned() } else { format!("value {number}") };
    let key = format!("k{}", number % 5);
    let mut kept = Kept::new(Some(key.as_bytes()), Some(value.as_bytes()));
    kept.timestamp = Some(1_600_000_000_000 + i64::try_from(number).expect("a small number"));
    kept.headers = vec![
        RawHeader::new("a", "1"),
        RawHeader::new("b", format!("{number}")),
        RawHeader::new("a", b"\xff\x00".as_slice()),
    ];
    kept
}

fn sum(ends: &[i64]) -> i64 {
    ends.iter().sum()
}
