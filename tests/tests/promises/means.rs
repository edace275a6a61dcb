//! What the other promises stand on: that our servers are real, and that we see what lies in them.

use std::time::Duration;

use anyhow::Result;
use tests::raw_headers::RawHeader;
use tests::sink::Sink;
use tests::topics::{self, Kept};
use tests::{names, servers};
use xtask::lab::kafka::Kafka;
use xtask::lab::postgres::Postgres;
use xtask::lab::wait;

/// How long a cluster may take to agree after a node has gone.
const SETTLED: Duration = Duration::from_secs(30);

#[test]
fn what_is_written_to_a_topic_is_read_from_it_byte_for_byte() -> Result<()> {
    let _machine = servers::in_company();
    let (bootstrap, topic) = (servers::kafka(), names::unique("means"));
    topics::create(&bootstrap, &topic, 1)?;
    let odd = RawHeader::new(b"\xff\xfe".as_slice(), b"\x00".as_slice());
    let headers = vec![odd, RawHeader { name: b"a".to_vec(), value: None }, RawHeader::new("a", "")];
    let written = [
        Kept { headers, timestamp: Some(1_357_020_000_000), ..Kept::new(None, Some(b"")) },
        Kept { timestamp: Some(1_357_020_000_001), ..Kept::new(Some(b""), None) },
    ];
    topics::produce(&bootstrap, &topic, &written)?;
    let bytes = |kept: &Kept| (kept.timestamp, kept.key.clone(), kept.value.clone(), kept.headers.clone());
    let read: Vec<_> = topics::read(&bootstrap, &topic)?.iter().map(bytes).collect();
    assert_eq!(read, written.iter().map(bytes).collect::<Vec<_>>());
    assert_eq!(topics::ends(&bootstrap, &topic)?, [2]);
    assert_eq!(topics::committed(&bootstrap, "nobody", &topic)?, [None]);
    Ok(())
}

#[test]
fn a_cluster_of_three_serves_on_when_a_node_is_killed_and_takes_it_back() -> Result<()> {
    let _machine = servers::in_company();
    let mut kafka = Kafka::start_nodes(3)?;
    let topic = names::unique("means");
    topics::create(&kafka.bootstrap(), &topic, 3)?;
    let records =
        [Kept::new(Some(b"a"), Some(b"1")), Kept::new(Some(b"b"), Some(b"2")), Kept::new(Some(b"c"), Some(b"3"))];
    topics::produce(&kafka.bootstrap(), &topic, &records)?;
    kafka.kill(2)?;
    topics::produce(&kafka.bootstrap(), &topic, &records)?;
    kafka.start(2)?;
    kafka.stop(3)?;
    // A new leader learns only from the others how far the log is stored, and shows no record beyond that.
    wait::until("all records to be there", SETTLED, || {
        Ok((topics::read(&kafka.bootstrap(), &topic)?.len() == 6).then_some(()))
    })?;
    kafka.start(3)?;
    kafka.pause(1)?;
    kafka.resume(1)?;
    topics::produce(&kafka.bootstrap(), &topic, &records)?;
    assert_eq!(topics::ends(&kafka.bootstrap(), &topic)?.iter().sum::<i64>(), 9);
    Ok(())
}

#[test]
fn a_database_keeps_its_rows_when_its_server_is_stopped_and_when_it_is_killed() -> Result<()> {
    let mut postgres = Postgres::start_new()?;
    let sink = Sink::at(postgres.create_database("means")?);
    let rows = || sink.number("SELECT count(*) FROM kept", &[]);
    sink.query("CREATE TABLE kept AS SELECT generate_series(1, 5) AS number", &[])?;
    postgres.stop()?;
    assert!(rows().is_err(), "nobody serves");
    postgres.start()?;
    assert_eq!(rows()?, 5);
    postgres.kill()?;
    assert!(rows().is_err(), "nobody serves");
    postgres.start()?;
    wait::until("the rows", Duration::from_secs(10), || Ok((rows()? == 5).then_some(())))?;
    Ok(())
}
