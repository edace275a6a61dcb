//! What is bounded: the queue, what is kept, and the transactions that many sends share.

use futures_util::{FutureExt, poll};

use super::*;
use crate::broker::SendError;
use crate::config::units::{Size, Span};

#[tokio::test]
async fn writing_to_a_topic_makes_it_for_those_who_wait_for_it() {
    let broker = Embedded::in_memory().expect("it opens");
    let joining = join(&broker, "t", StartAt::Latest);
    let writing = store(&broker, vec![numbered("t", None, 1)]);
    let ((_consumer, mut readers), positions) = futures_util::future::join(joining, writing).await;
    let reader = &mut readers[positions[0].partition as usize];
    let chunk = reader.next(10, 1000).await.expect("it can be read");
    assert_eq!(chunk.len(), 1, "its first record is after the subscription, so it is read");
    let refused = broker
        .producer(&BTreeMap::new())
        .expect("it has one")
        .send(vec![numbered("a/b", None, 1)], WhenFull::Wait)
        .await;
    assert!(matches!(&refused[..], [Err(SendError::NoSuchTopic(name))] if name == "a/b"), "{refused:?}");
}

#[tokio::test]
async fn old_records_go_when_there_are_too_many_and_readers_go_on_behind_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { partitions: 1, retention_bytes: Size(16 << 10), ..Config::at("log") };
    let broker = open(&config, folder.path());
    store(&broker, vec![numbered("t", None, 0)]).await;
    let (consumer, mut readers) = join(&broker, "t", StartAt::Earliest).await;
    for first in (1..2000).step_by(100) {
        store(&broker, (first..first + 100).map(|number| numbered("t", None, number)).collect()).await;
    }
    let [(start, end)] = bounds(&broker, "t").await[..] else { panic!("one partition") };
    assert_eq!(end, 2001);
    // A record takes about 36 bytes here.
    assert!((300..600).contains(&(end - start)), "{} are kept", end - start);
    let chunk = readers[0].next(1, 1000).await.expect("it can be read");
    let first = chunk.records().next().expect("there is one").offset();
    assert_eq!(first, start, "what is gone is passed over");
    assert_eq!([readers[0].skipped(), readers[0].skipped()], [Some(0..start), None], "and told of once");
    drop((consumer, readers, broker));

    let broker = open(&config, folder.path());
    assert_eq!(bounds(&broker, "t").await, [(start, end)]);
    let (_consumer, mut readers) = join(&broker, "t", StartAt::Earliest).await;
    let chunk = readers[0].next(1, 1000).await.expect("it can be read");
    assert_eq!(chunk.records().next().map(|record| record.offset()), Some(start));
}

#[tokio::test]
async fn records_that_are_too_old_go_and_offsets_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { partitions: 1, ..Config::at("log") };
    let broker = open(&config, folder.path());
    // The record's own time is of no account: a replay of old data is not deleted at once.
    store(&broker, vec![Outgoing { timestamp_ms: Some(0), ..numbered("t", None, 1) }]).await;
    drop(broker);
    let broker = open(&config, folder.path());
    store(&broker, vec![numbered("t", None, 2)]).await;
    assert_eq!(bounds(&broker, "t").await, [(0, 2)]);
    drop(broker);

    let short = Config { retention_age: Span(std::time::Duration::ZERO), ..config };
    let broker = open(&short, folder.path());
    // The writer deletes before it does anything else.
    store(&broker, vec![numbered("other", None, 0)]).await;
    assert_eq!(bounds(&broker, "t").await, [(2, 2)]);
    let next = store(&broker, vec![numbered("t", None, 3)]).await;
    assert_eq!(next, [Position { partition: 0, offset: 2 }]);
}

#[tokio::test]
async fn a_full_queue_refuses_or_waits_in_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = open(&Config { queue_bytes_max: Size(100), ..Config::at("log") }, folder.path());
    let admin = broker.admin().expect("it has an admin");
    admin.create_topic("t", 1, None).await.expect("it is made");
    let producer = broker.producer(&BTreeMap::new()).expect("it has a producer");
    let other = rusqlite::Connection::open(folder.path().join("log/log.db")).expect("a second writer");
    other.execute_batch("BEGIN IMMEDIATE").expect("it holds up the first");

    let send = |number: u64, when_full| {
        producer.send(vec![numbered("t", Some(0), number + 10), numbered("t", Some(0), number)], when_full)
    };
    let mut first = send(1, WhenFull::Refuse);
    assert!(poll!(&mut first).is_pending(), "it is queued");
    assert_eq!(send(2, WhenFull::Refuse).await, [Err(SendError::QueueFull), Err(SendError::QueueFull)]);
    let (mut second, mut third) = (send(3, WhenFull::Wait), send(4, WhenFull::Wait));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    assert_eq!(producer.flush(std::time::Duration::ZERO).await, 6);

    other.execute_batch("ROLLBACK").expect("it lets go");
    let results = futures_util::future::join3(third, second, first).map(|(c, b, a)| [a, b, c].concat()).await;
    let offsets: Vec<_> = results.into_iter().map(|result| result.expect("it is stored").offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5], "in the order in which they came");
}

/// Also tells how fast it is: `cargo test -p tidemill --lib many_sends -- --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sends_share_transactions_and_all_is_read_in_order() {
    const SENDS: u64 = 1000;
    const RECORDS: u64 = 100;
    let folder = tempfile::tempdir().expect("a folder");
    let broker = open(&Config { partitions: 4, ..Config::at("log") }, folder.path());
    let producer = broker.producer(&BTreeMap::new()).expect("it has a producer");
    let value = Bytes::from(vec![b'x'; 100]);
    let record = |send: u64, number: u64| Outgoing {
        key: Some((send * RECORDS + number).to_string().into()),
        value: Some(value.clone()),
        ..numbered("t", None, 0)
    };
    let began = std::time::Instant::now();
    let sends = (0..SENDS).map(|send| producer.send((0..RECORDS).map(|n| record(send, n)).collect(), WhenFull::Wait));
    let sent = futures_util::future::join_all(sends).await;
    assert!(sent.iter().flatten().all(Result::is_ok));
    let written = began.elapsed();

    let (_consumer, readers) = join(&broker, "t", StartAt::Earliest).await;
    let began = std::time::Instant::now();
    let read_all = async |mut reader: EmbeddedReader| {
        let (end, mut last, mut count) = (reader.end_offset().expect("it is known"), -1, 0);
        while last + 1 < end {
            for record in reader.next(500, 1 << 20).await.expect("it can be read").records() {
                let key: i64 =
                    std::str::from_utf8(record.key().expect("a key")).expect("text").parse().expect("a number");
                assert!(record.offset() == last + 1 && key >= 0);
                (last, count) = (record.offset(), count + 1);
            }
        }
        count
    };
    let counts: Vec<u64> = futures_util::future::join_all(readers.into_iter().map(read_all)).await;
    let read = began.elapsed();
    assert_eq!(counts.iter().sum::<u64>(), SENDS * RECORDS);
    let rate = |elapsed: std::time::Duration| (SENDS * RECORDS) as f64 / elapsed.as_secs_f64();
    eprintln!("{:.0} records/s written, {:.0} records/s read", rate(written), rate(read));
}
