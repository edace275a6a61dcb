//! The log changes under a handler: partitions are added, records are deleted before they are read, a topic is made again.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::scenario::{Scenario, dead_letters};
use tests::topics::{self, Kept};
use tests::{host::Host, servers};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(60);
/// Changes of topics are seen soon.
const PROMPT: &str =
    "commit_interval = \"20ms\"\n[consumer_properties]\n\"topic.metadata.refresh.interval.ms\" = 1000\n";

#[test]
fn partitions_that_are_added_are_read_from_their_beginning() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(1)?;
    produce(&scenario, 0, 0..10)?;
    // Whoever starts at the next record skips what was there, and nothing that comes later.
    let host = scenario.setup().handler(scenario.handler(&format!("start = \"latest\"\n{PROMPT}"))).start()?;
    topics::add_partitions(&scenario.bootstrap, &scenario.topic, 3)?;
    produce(&scenario, 1, 10..20)?;
    produce(&scenario, 2, 20..30)?;
    scenario.wait_until_stored(20, DEADLINE)?;
    let partitions: Vec<i32> = scenario.sink.stored()?.iter().map(|stored| stored.place.partition).collect();
    ensure!(
        partitions.iter().all(|partition| *partition > 0),
        "what was there at the start is not read: {partitions:?}"
    );
    drop(host);
    Ok(())
}

#[test]
fn records_that_were_deleted_before_they_were_read_are_counted_and_the_rest_is_read() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(1)?;
    let setup = scenario.setup().handler(scenario.handler(PROMPT));
    produce(&scenario, 0, 0..100)?;
    let mut first = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(first.terminate(DEADLINE)?.code, Some(0));

    produce(&scenario, 0, 100..300)?;
    topics::delete_before(&scenario.bootstrap, &scenario.topic, 0, 150)?;
    let second = setup.start()?;
    scenario.wait_until_stored(250, DEADLINE)?;
    assert_eq!(skipped(&second)?, 50.0);
    ensure!(second.log().contains("records were deleted before this handler has read them"), "the log says so");
    scenario.wait_until_committed(DEADLINE)?;
    Ok(())
}

#[test]
fn a_topic_that_is_deleted_and_made_again_is_read_from_its_beginning() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(1)?;
    let host = scenario.setup().handler(scenario.handler(PROMPT)).start()?;
    produce(&scenario, 0, 0..100)?;
    scenario.wait_until_stored(100, DEADLINE)?;
    scenario.wait_until_committed(DEADLINE)?;
    topics::delete(&scenario.bootstrap, &scenario.topic)?;
    wait::until("the topic to be made again", DEADLINE, || {
        Ok(topics::create(&scenario.bootstrap, &scenario.topic, 1).is_ok().then_some(()))
    })?;
    produce(&scenario, 0, 200..230)?;
    // Offsets begin anew, and ids do not: a record's id has its time.
    scenario.wait_until_stored(130, DEADLINE)?;
    scenario.wait_until_committed(DEADLINE)?;
    drop(host);
    ensure!(topics::ends(&scenario.bootstrap, &dead_letters(&scenario.topic))? == [0], "nothing failed");
    Ok(())
}

#[test]
fn a_topic_of_one_copy_is_told_of_before_it_hurts() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(1)?;
    let host = scenario.setup().handler(scenario.handler("")).start()?;
    wait::until("the hazards", DEADLINE, || {
        let hazards = host.metrics()?;
        let of = |kind| hazards.sum("tidemill_receive_hazards", &[("kind", kind)]);
        // The topic and its dead letters.
        Ok((of("replication") == 2.0 && of("min-insync") == 2.0 && of("retention") == 0.0).then_some(()))
    })?;
    ensure!(host.log().contains("has 1 replica of a partition"), "the log says so");
    Ok(())
}

fn produce(scenario: &Scenario, partition: i32, numbers: std::ops::Range<usize>) -> Result<()> {
    let record = |number: usize| {
        let mut kept = Kept::new(Some(b"k"), Some(number.to_string().as_bytes()));
        kept.place.partition = partition;
        kept
    };
    topics::produce(&scenario.bootstrap, &scenario.topic, &numbers.map(record).collect::<Vec<_>>())
}

fn skipped(host: &Host) -> Result<f64> {
    Ok(host.metrics()?.sum("tidemill_receive_skipped_offsets_total", &[]))
}
