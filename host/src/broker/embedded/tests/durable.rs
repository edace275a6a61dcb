//! What survives: a close, a `kill -9`, and who may look meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use tidemill_core::record::TopicPartition;

use super::*;
use crate::broker::CommitError;

/// Set in the process that is killed: the log's folder.
const VICTIM: &str = "TIDEMILL_TEST_LOG";

/// This test's name, for the process that is killed.
const TEST: &str = "broker::embedded::tests::durable::what_is_acknowledged_survives_kill_9";

#[test]
fn what_is_acknowledged_survives_kill_9() {
    if let Some(folder) = std::env::var_os(VICTIM) {
        return victim(Path::new(&folder));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (mut acknowledged, mut committed) = (BTreeMap::new(), -1);
    for acks in [1, 50, 400] {
        let mut child = Command::new(std::env::current_exe().expect("this test has a file"))
            .args(["--exact", TEST, "--nocapture"])
            .env(VICTIM, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the victim starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is piped"));
        let (mut line, mut seen) = (String::new(), 0);
        // What it still managed to say after the kill counts too; a line that was cut off does not.
        while lines.read_line(&mut line).expect("its output can be read") > 0 {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["ack", offset, number] if line.ends_with('\n') => {
                    acknowledged
                        .insert(offset.parse::<i64>().expect("a number"), number.parse::<u64>().expect("a number"));
                    seen += 1;
                }
                ["committed", offset] if line.ends_with('\n') => committed = offset.parse().expect("a number"),
                _ => {}
            }
            if seen == acks {
                child.kill().expect("it is killed with SIGKILL");
            }
            line.clear();
        }
        assert!(seen >= acks, "the victim ended by itself");
        child.wait().expect("it has ended");
    }
    survived(folder.path(), &acknowledged, committed);
}

#[tokio::main(flavor = "current_thread")]
async fn survived(folder: &Path, acknowledged: &BTreeMap<i64, u64>, committed: i64) {
    let broker = open(&Config::at("log"), folder);
    let [(0, end)] = bounds(&broker, "t").await[..] else { panic!("one partition keeps all") };
    let admin = broker.admin().expect("it has an admin");
    let mut stored = Vec::new();
    while (stored.len() as i64) < end {
        let chunk = admin.read("t", 0, stored.len() as i64, 1000).await.expect("it can be read");
        assert!(!chunk.is_empty(), "no offset is missing");
        stored.extend(chunk.records());
    }
    for (offset, number) in acknowledged {
        let record = &stored[*offset as usize];
        assert_eq!((record.offset(), number_of(record)), (*offset, *number));
    }
    let kept = admin.committed("group", "t").await.expect("it is known")[0].1;
    assert!(committed > 0 && kept >= Some(committed), "{kept:?} is at least {committed}");
}

/// Appends and commits until it is killed, and says what was acknowledged.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn victim(folder: &Path) {
    let broker = open(&Config { partitions: 1, ..Config::at("log") }, folder);
    store(&broker, vec![numbered("t", None, 0)]).await;
    let (consumer, _readers) = join(&broker, "t", StartAt::Earliest).await;
    let say = |line: String| writeln!(std::io::stdout().lock(), "\n{line}").expect("somebody listens");
    let mut number = 0;
    loop {
        let sends = (0..8).map(|_| {
            number += 1;
            let first = number * 10;
            let sent = store(&broker, (first..first + 3).map(|number| numbered("t", None, number)).collect());
            async move { sent.await.into_iter().zip(first..).collect::<Vec<_>>() }
        });
        for (position, number) in futures_util::future::join_all(sends).await.into_iter().flatten() {
            say(format!("ack {} {number}", position.offset));
            if number % 10 == 0 {
                consumer.commit(vec![(TopicPartition::new("t", 0), position.offset)]).await.expect("it is committed");
                say(format!("committed {}", position.offset));
            }
        }
    }
}

#[tokio::test]
async fn a_log_is_found_again_as_it_was_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { partitions: 2, ..Config::at("log") };
    let broker = open(&config, folder.path());
    store(&broker, (0..10).map(|number| numbered("t", Some(1), number)).collect()).await;
    let (consumer, readers) = join(&broker, "t", StartAt::Earliest).await;
    let partition = TopicPartition::new("t", 1);
    consumer.commit(vec![(partition.clone(), 4)]).await.expect("it is committed");
    drop((consumer, readers, broker));

    let broker = open(&Config { partitions: 7, ..config }, folder.path());
    assert_eq!(bounds(&broker, "t").await, [(0, 0), (0, 10)]);
    let next = store(&broker, vec![numbered("t", Some(1), 10)]).await;
    assert_eq!(next, [Position { partition: 1, offset: 10 }]);
    let (consumer, mut readers) = join(&broker, "t", StartAt::Earliest).await;
    let chunk = readers[1].next(100, 1 << 20).await.expect("it can be read");
    assert_eq!(chunk.records().map(|record| number_of(&record)).collect::<Vec<_>>(), (4..11).collect::<Vec<_>>());
    drop(consumer);
}

#[tokio::test]
async fn one_process_writes_and_others_may_look() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { partitions: 1, ..Config::at("log") };
    let missing = Embedded::open_read_only(&config, folder.path()).err().expect("there is none").to_string();
    assert!(missing.starts_with("there is no embedded log in"), "{missing}");

    let broker = open(&config, folder.path());
    store(&broker, vec![numbered("t", None, 1)]).await;
    let refused = Embedded::open(&config, folder.path()).err().expect("it is in use").to_string();
    assert!(refused.contains(&format!("is in use by process {};", std::process::id())), "{refused}");

    let other = Embedded::open_read_only(&config, folder.path()).expect("it may look");
    assert_eq!(bounds(&other, "t").await, [(0, 1)]);
    store(&broker, vec![numbered("t", None, 2)]).await;
    let chunk = other.admin().expect("it has an admin").read("t", 0, 0, 10).await.expect("it can be read");
    assert_eq!(chunk.records().map(|record| number_of(&record)).collect::<Vec<_>>(), [1, 2]);
    assert!(
        other.producer(&BTreeMap::new()).is_err() && other.consumer(&subscription("t", StartAt::Earliest)).is_err()
    );
    assert!(other.admin().expect("it has an admin").create_topic("u", 1, None).await.is_err());

    drop(broker);
    open(&config, folder.path());
}

#[tokio::test]
async fn declared_topics_are_there_and_keep_their_partitions() {
    let folder = tempfile::tempdir().expect("a folder");
    let declared = |partitions| {
        let topic = TopicConfig { partitions, ..TopicConfig::default() };
        Config { topics: BTreeMap::from([("orders".to_owned(), topic)]), ..Config::at("log") }
    };
    assert_eq!(bounds(&open(&declared(Some(3)), folder.path()), "orders").await.len(), 3);
    assert_eq!(bounds(&open(&declared(None), folder.path()), "orders").await.len(), 3);
    let refused = Embedded::open(&declared(Some(5)), folder.path()).err().expect("it can't be changed").to_string();
    assert!(refused.starts_with("`topics.orders.partitions` is 5, and the topic has 3;"), "{refused}");
}

#[tokio::test]
async fn a_group_that_starts_at_the_next_record_has_a_place_from_then_on() {
    let broker = Embedded::in_memory().expect("it opens");
    store(&broker, vec![numbered("t", Some(0), 1)]).await;
    let (consumer, readers) = join(&broker, "t", StartAt::Latest).await;
    drop((readers, consumer));
    store(&broker, vec![numbered("t", Some(0), 2)]).await;
    let (_consumer, mut readers) = join(&broker, "t", StartAt::Latest).await;
    let chunk = readers[0].next(10, 1000).await.expect("it can be read");
    assert_eq!(chunk.records().map(|record| number_of(&record)).collect::<Vec<_>>(), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_let_go_loses_its_place_and_may_not_commit() {
    let broker = Embedded::in_memory().expect("it opens");
    let admin = broker.admin().expect("it has an admin");
    admin.create_topic("t", 2, None).await.expect("it is made");
    let (mut first, _readers) = join(&broker, "t", StartAt::Earliest).await;
    let mut second = broker.consumer(&subscription("t", StartAt::Earliest)).expect("it joins");
    let ConsumerEvent::Revoked(moving) = first.next_event().await else { panic!("one of two moves") };
    let commit = vec![(moving[0].clone(), 0)];
    first.commit(commit.clone()).await.expect("it is still its own");

    assert!(matches!(second.next_event().await, ConsumerEvent::Assigned(none) if none.is_empty()), "it has joined");
    let before = tokio::time::Instant::now();
    let ConsumerEvent::Assigned(taken) = second.next_event().await else { panic!("it is taken over") };
    assert_eq!((&taken, before.elapsed().as_secs()), (&moving, 30));
    assert!(matches!(first.next_event().await, ConsumerEvent::Lost(lost) if lost == moving));
    assert!(matches!(first.commit(commit.clone()).await, Err(CommitError::Fenced(_))));
    second.commit(commit).await.expect("it is its own now");
}
