//! What becomes of a record that is given up, as its handler's policy says.

use std::time::Duration;

use anyhow::Result;
use tests::host::{Handler, Host, Setup};
use tests::ledger::Place;
use tests::topics::{self, Kept};
use tests::{names, servers};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn a_partition_that_stops_leaves_the_others_alone_and_goes_on_after_a_swap() -> Result<()> {
    let _machine = servers::in_company();
    let place = Stage::new(2, "exhausted = \"stop\"")?;
    let stopped: Vec<Kept> = ["a", "b", "poison", "c", "d"].map(|value| kept(0, value)).into();
    let flowing: Vec<Kept> = ["e", "f", "g"].map(|value| kept(1, value)).into();
    topics::produce(&place.bootstrap, &place.topic, &[stopped, flowing].concat())?;
    let host = place.host()?;
    wait::until("the other partition to be done", DEADLINE, || {
        Ok((place.committed()? == [Some(2), Some(3)]).then_some(()))
    })?;
    let stands = |partition: &str| {
        Ok::<_, anyhow::Error>(host.metrics()?.sum("tidemill_admit_stopped", &[("partition", partition)]))
    };
    wait::until("the gauge", DEADLINE, || Ok((stands("0")? == 1.0).then_some(())))?;
    assert_eq!(stands("1")?, 0.0);
    assert_eq!(host.admin("/readyz")?.0, 200, "the host goes on working");
    let (_, handlers) = host.admin("/handlers")?;
    assert!(handlers.contains("\"offset\":2") && handlers.contains("the value is `poison`"), "{handlers}");
    assert!(host.log().contains("the partition stands still at this record"));
    // More records come in both partitions: the one flows, the other stands.
    topics::produce(&place.bootstrap, &place.topic, &[kept(0, "h"), kept(1, "i")])?;
    wait::until("the other partition to flow", DEADLINE, || {
        Ok((place.committed()? == [Some(2), Some(4)]).then_some(()))
    })?;

    host.swap("h", "identity")?;
    wait::until("the partition to go on", DEADLINE, || Ok((place.committed()? == [Some(6), Some(4)]).then_some(())))?;
    wait::until("the gauge to fall", DEADLINE, || Ok((stands("0")? == 0.0).then_some(())))?;
    let mut values = place.forwarded()?;
    values.sort();
    assert_eq!(values, ["a", "b", "c", "d", "e", "f", "g", "h", "i", "poison"], "each was handled once");
    Ok(())
}

#[test]
fn dropped_records_are_counted_and_their_neighbours_are_handled() -> Result<()> {
    let _machine = servers::in_company();
    // There is no topic for letters: none is written.
    let place = Stage::new(1, "exhausted = \"drop\"")?;
    let values = ["a", "poison", "b", "poison", "c"];
    topics::produce(&place.bootstrap, &place.topic, &values.map(|value| kept(0, value)))?;
    let host = place.host()?;
    wait::until("all to be committed", DEADLINE, || Ok((place.committed()? == [Some(5)]).then_some(())))?;
    assert_eq!(place.forwarded()?, ["a", "b", "c"]);
    let dropped = [("handler", "h"), ("class", "rejected")];
    assert_eq!(host.metrics()?.sum("tidemill_settle_dropped_records_total", &dropped), 2.0);
    assert_eq!(host.log().matches("a record is dropped").count(), 2, "each is said");
    Ok(())
}

/// A topic whose records with the value `poison` the handler `h` refuses for good; it forwards the others.
struct Stage {
    bootstrap: String,
    topic: String,
    out: String,
    group: String,
    manifest: String,
}

impl Stage {
    fn new(partitions: i32, policy: &str) -> Result<Stage> {
        let bootstrap = servers::kafka();
        let (topic, out, group) = (names::unique("policy"), names::unique("out"), names::unique("group"));
        topics::create(&bootstrap, &topic, partitions)?;
        topics::create(&bootstrap, &out, 1)?;
        let manifest = format!(
            "topics = [\"{topic}\"]\ngroup = \"{group}\"\norder = \"partition\"\n[retry]\n{policy}\n\
             [batch]\nrecords_max = 1\n[grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\n"
        );
        Ok(Stage { bootstrap, topic, out, group, manifest })
    }

    fn host(&self) -> Result<Host> {
        Setup::on_kafka(&self.bootstrap, &[]).handler(Handler::new("h", "poison", &self.manifest)).start()
    }

    fn committed(&self) -> Result<Vec<Option<i64>>> {
        topics::committed(&self.bootstrap, &self.group, &self.topic)
    }

    fn forwarded(&self) -> Result<Vec<String>> {
        let read = topics::read(&self.bootstrap, &self.out)?;
        let text = |kept: Kept| String::from_utf8(kept.value.unwrap_or_default());
        Ok(read.into_iter().map(text).collect::<Result<_, _>>()?)
    }
}

fn kept(partition: i32, value: &str) -> Kept {
    Kept { place: Place { partition, offset: -1 }, ..Kept::new(None, Some(value.as_bytes())) }
}
