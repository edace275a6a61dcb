//! Outputs and offsets in one transaction: nothing of a record twice, nothing missing, whatever goes wrong.

use super::*;
use crate::broker::tests::watched::Mishap;
use crate::broker::{BrokerError, ConsumerEvent, TransactionError};
#[cfg(feature = "fault-injection")]
use crate::fault::tests::choose;
use crate::metrics::TransactionResult;

const OUT: &str = "out";
const LETTERS: &str = "in.dlq";

/// One record in a call, in transactions that close soon.
fn exactly_once() -> Config {
    Config { guarantee: Guarantee::KafkaTransaction, ..config() }
}

/// The same in transactions that close when they must.
fn in_long_transactions() -> Config {
    let transaction = Limits { interval: FOR_EVER, ..config().transaction };
    Config { transaction, ..exactly_once() }
}

/// A topic with records of these keys, and one for outputs.
async fn world(keys: &str) -> World {
    let world = World::with(keys).await;
    let admin = world.broker.admin().expect("an admin");
    for topic in [OUT, LETTERS] {
        admin.create_topic(topic, 1, None).await.expect("the topic is made");
    }
    world
}

impl Open {
    /// Handled, with one output that names the record's offset.
    fn emit(self) {
        self.offsets().into_iter().for_each(|offset| self.ledger.settle(&self.call.from, offset));
        self.emit_again();
    }

    /// The same, for a record that was handled before.
    fn emit_again(self) {
        let outcomes = self.call.records.iter().map(|record| Outcome::Ack(vec![output(record.offset(), 0)])).collect();
        self.answer(Answer::Outcomes(outcomes));
    }
}

fn output(offset: Offset, more_bytes: usize) -> Outgoing {
    let mut value = offset.to_string().into_bytes();
    value.resize(value.len() + more_bytes, b' ');
    Outgoing {
        topic: OUT.into(),
        partition: Some(0),
        timestamp_ms: None,
        key: None,
        value: Some(value.into()),
        headers: vec![],
    }
}

/// What the outputs name, in the order of the log.
async fn outputs(world: &World) -> Vec<Offset> {
    read(world, OUT).await
}

async fn read(world: &World, topic: &str) -> Vec<Offset> {
    let admin = world.broker.admin().expect("an admin");
    let chunk = match admin.read(topic, 0, 0, 1000).await {
        Ok(chunk) => chunk,
        Err(BrokerError::NoSuchTopic(_)) => panic!("the topic is there"),
        Err(_) => return Vec::new(),
    };
    let value = |record: &Record| String::from_utf8_lossy(record.value().unwrap_or_default()).trim().parse();
    chunk.records().map(|record| value(&record).unwrap_or(record.offset())).collect()
}

#[tokio::test]
async fn outputs_enter_when_the_frontier_passes_their_records() {
    let world = world("a b c").await;
    let mut member = world.join(exactly_once());
    let first = member.call_of(&[0]).await;
    member.call_of(&[1]).await.emit();
    member.call_of(&[2]).await.emit();
    // A commit is of all partitions: what had a way to be committed by now would be.
    member.metrics.attempts.get();
    assert_eq!((world.commits(0), outputs(&world).await), (NONE.to_vec(), vec![]));
    first.emit();
    world.committed(0, 3).await;
    assert_eq!(outputs(&world).await, [0, 1, 2], "in the order of the partition");
    member.stop().await;
}

#[tokio::test]
async fn records_without_outputs_are_committed_too() {
    let world = world("a b").await;
    let mut member = world.join(exactly_once());
    member.call_of(&[0]).await.ack();
    member.call_of(&[1]).await.ack();
    world.committed(0, 2).await;
    member.stop().await;
}

#[tokio::test]
async fn a_record_that_waits_holds_no_transaction_open() {
    let world = world("a b").await;
    let mut member = world.join(exactly_once());
    member.call_of(&[0]).await.emit();
    member.call_of(&[1]).await.retry(FOR_EVER);
    world.committed(0, 1).await;
    assert_eq!(outputs(&world).await, [0]);
    assert_eq!(member.metrics.transactions(TransactionResult::Aborted).get(), 0);
    member.stop().await;
}

#[tokio::test]
async fn a_dead_letter_is_part_of_the_transaction() {
    let world = world("a b").await;
    let mut member = world.join(in_long_transactions());
    let dead = member.call_of(&[0]).await;
    dead.ledger.settle(&dead.call.from, 0);
    dead.answer(Answer::Outcomes(vec![Outcome::DeadLetter(Reason::default())]));
    member.call_of(&[1]).await.emit();
    assert_eq!(read(&world, LETTERS).await, NONE);
    let metrics = Arc::clone(&member.metrics);
    member.stop().await;
    assert_eq!((read(&world, LETTERS).await, outputs(&world).await), (vec![0], vec![1]));
    assert_eq!((world.commits(0).last(), metrics.dead_letters(Class::Rejected).get()), (Some(&2), 1));
}

#[tokio::test]
async fn a_stop_commits_what_is_drained_in_one_last_transaction() {
    let world = world("a b c").await;
    let mut member = world.join(in_long_transactions());
    for offset in 0..3 {
        member.call_of(&[offset]).await.emit();
    }
    member.stop().await;
    assert_eq!((world.commits(0), outputs(&world).await), (vec![3], vec![0, 1, 2]));
}

#[tokio::test]
async fn a_transaction_that_fails_is_sent_again_and_no_guest_is_called_again() {
    let errors = [
        TransactionError::Aborted("a broker".to_owned()),
        TransactionError::StaleMember("a rebalance".to_owned()),
        TransactionError::Unavailable("no broker".to_owned()),
        TransactionError::Fenced("a time-out".to_owned()),
        TransactionError::Fatal("a client".to_owned()),
        TransactionError::Unknown("a time-out".to_owned()),
    ];
    let world = world("a b").await;
    world.broker.mishaps(errors.map(Mishap::Before));
    let mut member = world.join(exactly_once());
    // The ledger takes each record once.
    member.call_of(&[0]).await.emit();
    member.call_of(&[1]).await.emit();
    world.committed(0, 2).await;
    assert_eq!(outputs(&world).await, [0, 1]);
    assert_eq!(member.metrics.transactions(TransactionResult::Aborted).get(), 5);
    assert_eq!(member.metrics.transactions(TransactionResult::Unknown).get(), 1);
    assert_eq!(world.broker.sweeps(), 5, "where a broker had trouble, what it may have left open is ended once more");
    member.stop().await;
}

#[tokio::test]
async fn what_never_reached_a_broker_is_not_ended_there() {
    let world = world("a b").await;
    let mut member = world.join(Config { concurrency: 1, ..exactly_once() });
    member.call_of(&[0]).await.emit();
    world.committed(0, 1).await;
    assert_eq!(world.broker.restored(), [], "while all goes well nothing is made sure of");
    world.broker.mishaps([Mishap::Unsent(TransactionError::Aborted("no broker".to_owned()))]);
    member.call_of(&[1]).await.emit();
    world.committed(0, 2).await;
    member.stop().await;
    assert_eq!((outputs(&world).await, world.broker.sweeps()), (vec![0, 1], 0));
    let first = (TopicPartition::new(TOPIC, 0), 1);
    assert_eq!(world.broker.restored(), [first], "what was committed before may not be there");
}

#[tokio::test]
async fn who_has_lost_partitions_makes_sure_of_what_was_committed() {
    let world = world("a b").await;
    let mut member = world.join(Config { concurrency: 1, ..exactly_once() });
    member.call_of(&[0]).await.emit();
    world.committed(0, 1).await;
    let in_hand = member.call_of(&[1]).await;
    world.broker.tell(ConsumerEvent::Lost(vec![TopicPartition::new(TOPIC, 0)]));
    in_hand.stopped().await;
    member.call_of(&[1]).await.emit();
    world.committed(0, 2).await;
    member.stop().await;
    assert_eq!(
        (outputs(&world).await, world.broker.restored()),
        (vec![0, 1], vec![(TopicPartition::new(TOPIC, 0), 1)])
    );
}

#[tokio::test]
async fn a_transaction_whose_end_is_unknown_counts_as_committed_if_the_group_has_its_offsets() {
    assert_eq!(after_an_unknown_end().await, (vec![0, 1], 0), "and it is not ended another way");
}

#[cfg(feature = "fault-injection")]
#[tokio::test]
async fn a_host_that_begins_anew_after_an_unknown_end_is_caught() {
    choose(Some(Fault::NewTransactionAfterUnknown));
    assert_eq!(after_an_unknown_end().await.0, [0, 0, 1]);
}

/// The outputs of two records, of which the first one's transaction is committed and the answer is lost; and how often what
/// it may have left open was ended once more.
async fn after_an_unknown_end() -> (Vec<Offset>, usize) {
    let world = world("a b").await;
    world.broker.mishaps([Mishap::After(TransactionError::Unknown("a time-out".to_owned()))]);
    let mut member = world.join(Config { concurrency: 1, ..exactly_once() });
    member.call_of(&[0]).await.emit();
    world.committed(0, 1).await;
    member.call_of(&[1]).await.emit();
    world.committed(0, 2).await;
    member.stop().await;
    (outputs(&world).await, world.broker.sweeps())
}

#[tokio::test]
async fn offsets_are_committed_by_transactions_alone() {
    assert_eq!(committed_while_transactions_fail().await, NONE);
}

#[cfg(feature = "fault-injection")]
#[tokio::test]
async fn a_host_that_commits_offsets_outside_of_the_transaction_is_caught() {
    choose(Some(Fault::OffsetsOutsideTransaction));
    assert_eq!(committed_while_transactions_fail().await, [1]);
}

/// The offsets that are committed while no transaction is.
async fn committed_while_transactions_fail() -> Vec<Offset> {
    let world = world("a").await;
    world.broker.mishaps(vec![Mishap::Before(TransactionError::Aborted("a broker".to_owned())); 3]);
    let mut member = world.join(exactly_once());
    member.call_of(&[0]).await.emit();
    let aborted = member.metrics.transactions(TransactionResult::Aborted).clone();
    timeout(PATIENCE, async {
        while aborted.get() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("they fail");
    world.commits(0)
}

#[cfg(feature = "fault-injection")]
#[tokio::test]
async fn a_host_that_commits_past_a_gap_is_caught() {
    choose(Some(Fault::CommitPastGap));
    let world = World::unruled("a b").await;
    let mut member = world.join(config());
    let _first = member.call_of(&[0]).await;
    member.call_of(&[1]).await.ack();
    world.committed(0, 2).await;
}

#[tokio::test]
async fn nothing_of_a_lost_partition_is_committed_and_its_records_come_again() {
    let world = world("a b").await;
    let mut member = world.join(in_long_transactions());
    let first = member.call_of(&[0]).await;
    first.emit_again();
    let in_hand = member.call_of(&[1]).await;
    world.broker.tell(ConsumerEvent::Lost(vec![TopicPartition::new(TOPIC, 0)]));
    in_hand.stopped().await;
    member.call_of(&[0]).await.emit();
    member.call_of(&[1]).await.emit();
    member.stop().await;
    assert_eq!((world.commits(0), outputs(&world).await), (vec![2], vec![0, 1]));
}

#[tokio::test]
async fn a_revoked_partition_is_committed_before_it_is_given_back() {
    let world = World::new(2).await;
    let admin = world.broker.admin().expect("an admin");
    admin.create_topic(OUT, 1, None).await.expect("the topic is made");
    for partition in 0..2 {
        world.store(partition, "a b c", 1).await;
    }
    let mut first = world.join(in_long_transactions());
    for _ in 0..6 {
        first.call().await.emit();
    }
    let second = world.join(in_long_transactions());
    world.broker.revoked(1).await;
    timeout(PATIENCE, async {
        while (0..2).all(|partition| world.commits(partition).is_empty()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the last transaction of the partition is committed");
    first.stop().await;
    assert!(second.calls.is_empty(), "nothing is left to the second");
    second.stop().await;
    let mut all = outputs(&world).await;
    all.sort_unstable();
    assert_eq!(all, [0, 0, 1, 1, 2, 2]);
}

#[tokio::test]
async fn an_output_that_no_broker_takes_is_a_dead_letter_and_costs_its_neighbours_nothing() {
    let world = world("a b c").await;
    let mut member = world.join(in_long_transactions());
    member.call_of(&[0]).await.emit();
    let large = member.call_of(&[1]).await;
    large.ledger.settle(&large.call.from, 1);
    large.answer(Answer::Outcomes(vec![Outcome::Ack(vec![output(1, 20 << 20)])]));
    member.call_of(&[2]).await.emit();
    member.stop().await;
    assert_eq!((outputs(&world).await, read(&world, LETTERS).await), (vec![0, 2], vec![0]));
    assert_eq!(world.commits(0).last(), Some(&3));
}

#[tokio::test]
async fn what_waits_for_its_transaction_is_bounded_and_closes_it() {
    let keys: Vec<String> = (0..6).map(|key| key.to_string()).collect();
    let world = world(&keys.join(" ")).await;
    world.broker.mishaps(vec![Mishap::Before(TransactionError::Unavailable("no broker".to_owned())); 1000]);
    let config = in_long_transactions();
    let bounds = Bounds { span_max: 5, calls_max: 1, ..config.bounds.clone() };
    let mut member = world.join(Config { bounds, ..config });
    for offset in 0..5 {
        member.call_of(&[offset]).await.emit();
    }
    assert!(timeout(Duration::from_millis(50), member.calls.recv()).await.is_err(), "no more than a crash may repeat");
    world.broker.no_more_mishaps();
    member.call_of(&[5]).await.emit();
    assert_eq!(world.commits(0), [5], "it was not waited for the interval");
    member.stop().await;
    assert_eq!(world.commits(0).last(), Some(&6));
}

#[tokio::test]
async fn outputs_that_fill_the_buffer_do_not_keep_the_record_from_running_that_they_wait_for() {
    let world = world("a b").await;
    let config = exactly_once();
    let bounds = Bounds { bytes_max: 8, ..config.bounds.clone() };
    let mut member = world.join(Config { bounds, ..config });
    let first = member.call_of(&[0]).await;
    let large = member.call_of(&[1]).await;
    large.ledger.settle(&large.call.from, 1);
    large.answer(Answer::Outcomes(vec![Outcome::Ack(vec![output(1, 100)])]));
    first.retry(Duration::from_millis(1));
    member.call_of(&[0]).await.emit();
    world.committed(0, 2).await;
    assert_eq!(outputs(&world).await, [0, 1]);
    member.stop().await;
}
