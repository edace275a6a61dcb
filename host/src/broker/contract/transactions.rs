//! Promises about transactions: records and offsets together or not at all, and nobody commits what is not theirs.

use tidemill_core::record::{Offset, TopicPartition};

use super::*;
use crate::broker::contract::member::{Ending, Member, Seen};
use crate::broker::{Remains, TransactionError, Transactions};

/// One partition that is read, one that is written, and a transactional producer.
struct Stage<'a, B: Broker> {
    bench: Bench<'a, B>,
    from: TopicPartition,
    out: Arc<str>,
    subscription: Subscription,
}

impl<'a, B: Broker> Stage<'a, B> {
    async fn new(broker: &'a B, name: &'a str) -> Self {
        let bench = Bench::new(broker, name);
        let (topic, out) = (bench.topic("in", 1).await, bench.topic("out", 1).await);
        bench.store_numbers(&topic, 0, 0..10).await;
        let subscription = bench.subscription(&[&topic], StartAt::Earliest);
        Self { bench, from: TopicPartition::new(topic, 0), out, subscription }
    }

    /// A transactional producer that has taken the stage's id over.
    async fn transactions(&self) -> B::Transactions {
        let id = format!("{}-id", self.bench.name);
        let mut made = self.bench.broker.transactions(&id, &Default::default()).expect("a producer is made");
        within(made.init()).await.expect("it takes its id over");
        made
    }

    /// A running member that has read what is there, and its name for transactions.
    async fn member(&self) -> (Member, MemberOf<B>) {
        let consumer = self.bench.join(&self.subscription);
        let name = consumer.member();
        let mut member = Member::run(consumer);
        member.until("all is read", |seen| seen.records.len() >= 10).await;
        (member, name)
    }

    fn outputs(&self, numbers: std::ops::Range<u64>) -> Arc<Vec<Outgoing>> {
        Arc::new(numbers.map(|number| numbered(&self.out, 0, number)).collect())
    }

    async fn committed(&self) -> Option<Offset> {
        self.bench.committed(&self.subscription, &self.from.topic).await[0].1
    }

    /// Whoever reads the outputs reads these, in order, and no others before them.
    async fn reads(&self, group: &str, numbers: impl IntoIterator<Item = u64>) {
        let expected: Vec<u64> = numbers.into_iter().collect();
        let subscription = self.bench.subscription(&[&self.out], StartAt::Earliest);
        let subscription = Subscription { group: format!("{}-{group}", subscription.group), ..subscription };
        let mut reader = Member::run(self.bench.join(&subscription));
        let wanted = expected.len();
        let seen = reader.until("the outputs are read", |seen| seen.records.len() >= wanted).await;
        assert_eq!(numbers_in(&seen), expected);
        reader.end(Ending::Close).await;
    }
}

/// What a broker's transactions call a member.
type MemberOf<B> = <<B as Broker>::Consumer as Consumer>::Member;

fn numbers_in(seen: &Seen) -> Vec<u64> {
    seen.records.iter().map(|(_, record)| number_of(record)).collect()
}

/// What is committed is there with its offsets; of what is aborted there is neither.
pub async fn a_transaction_keeps_records_and_offsets_together_or_neither<B: Broker>(broker: &B, name: &str) {
    let stage = Stage::new(broker, name).await;
    let (member, place) = stage.member().await;
    let mut transactions = stage.transactions().await;
    let at = |offset| [(stage.from.clone(), offset)];

    within(transactions.send(stage.outputs(0..2))).await.expect("queued");
    within(transactions.send(stage.outputs(2..5))).await.expect("queued");
    within(transactions.commit(&at(5), &place)).await.expect("committed");
    assert_eq!(stage.committed().await, Some(5));

    within(transactions.send(stage.outputs(5..8))).await.expect("queued");
    within(transactions.abort()).await.expect("aborted");
    assert_eq!(stage.committed().await, Some(5));
    let partitions = [stage.from.clone()];
    assert_eq!(within(transactions.committed(&partitions, &place)).await, Ok(vec![Some(5)]));

    within(transactions.send(stage.outputs(8..10))).await.expect("queued");
    within(transactions.commit(&at(8), &place)).await.expect("committed");
    within(transactions.commit(&at(10), &place)).await.expect("offsets alone are a transaction, too");
    assert_eq!(stage.committed().await, Some(10));
    stage.reads("all", (0..5).chain(8..10)).await;
    member.end(Ending::Drop).await;
}

/// Whoever takes an id over ends what its last owner left open, and the last owner commits no more.
pub async fn an_earlier_owner_of_an_id_is_fenced<B: Broker>(broker: &B, name: &str) {
    let stage = Stage::new(broker, name).await;
    let (member, place) = stage.member().await;
    let mut first = stage.transactions().await;
    within(first.send(stage.outputs(0..3))).await.expect("queued");
    let mut second = stage.transactions().await;
    let late = within(first.commit(&[(stage.from.clone(), 3)], &place)).await;
    assert!(matches!(late, Err(TransactionError::Fenced(_))), "{late:?}");
    drop(first);
    assert_eq!(stage.committed().await, None);

    within(second.send(stage.outputs(3..6))).await.expect("queued");
    within(second.commit(&[(stage.from.clone(), 6)], &place)).await.expect("committed");
    assert_eq!(stage.committed().await, Some(6));
    stage.reads("all", 3..6).await;
    member.end(Ending::Drop).await;
}

/// A transaction that is left open ends with nothing kept, once its id is taken over.
pub async fn a_dropped_transaction_leaves_nothing<B: Broker>(broker: &B, name: &str) {
    let stage = Stage::new(broker, name).await;
    let (member, place) = stage.member().await;
    let mut dropped = stage.transactions().await;
    within(dropped.send(stage.outputs(0..3))).await.expect("queued");
    drop(dropped);
    let mut next = stage.transactions().await;
    within(next.send(stage.outputs(3..4))).await.expect("queued");
    within(next.commit(&[(stage.from.clone(), 1)], &place)).await.expect("committed");
    stage.reads("all", 3..4).await;
    member.end(Ending::Drop).await;
}

/// What was not committed can be ended once more, which leaves nothing either.
pub async fn a_swept_transaction_leaves_nothing<B: Broker>(broker: &B, name: &str) {
    let stage = Stage::new(broker, name).await;
    let (member, place) = stage.member().await;
    let mut transactions = stage.transactions().await;
    let at = |offset| [(stage.from.clone(), offset)];
    within(transactions.send(stage.outputs(0..3))).await.expect("queued");
    within(transactions.abort()).await.expect("aborted");
    within(transactions.sweep(&stage.outputs(0..1), &at(3), &place)).await.expect("swept");
    assert_eq!(stage.committed().await, None);
    within(transactions.sweep(&[], &at(3), &place)).await.expect("swept with nothing to produce");
    within(transactions.send(stage.outputs(3..5))).await.expect("queued");
    within(transactions.commit(&at(2), &place)).await.expect("committed");
    assert_eq!(stage.committed().await, Some(2));
    stage.reads("all", 3..5).await;
    member.end(Ending::Drop).await;
}

/// What was committed is committed once more where the group does not have it, and only there.
pub async fn a_restored_offset_never_falls<B: Broker>(broker: &B, name: &str) {
    let stage = Stage::new(broker, name).await;
    let (member, place) = stage.member().await;
    let mut transactions = stage.transactions().await;
    let at = |offset| [(stage.from.clone(), offset)];
    within(transactions.commit(&at(2), &place)).await.expect("committed");
    for (offset, then) in [(1, 2), (2, 2), (3, 3)] {
        assert!(within(transactions.restore(&at(offset), &place)).await.expect("asked"), "the member has its place");
        assert_eq!(stage.committed().await, Some(then));
    }
    within(transactions.send(stage.outputs(0..1))).await.expect("queued");
    within(transactions.commit(&at(4), &place)).await.expect("committed");
    stage.reads("all", 0..1).await;
    member.end(Ending::Drop).await;
}

/// Whoever gives a transaction up knows what may be left of it: nothing of what was never sent.
pub async fn a_transaction_that_is_given_up_leaves_nothing<B: Broker>(broker: &B, name: &str) {
    let stage = Stage::new(broker, name).await;
    let (member, place) = stage.member().await;
    let mut given_up = stage.transactions().await;
    assert_eq!(within(given_up.give_up()).await, Remains::default());
    drop(given_up);
    let mut given_up = stage.transactions().await;
    within(given_up.send(stage.outputs(0..3))).await.expect("queued");
    let Remains { possible, known } = within(given_up.give_up()).await;
    assert!(possible || known.is_empty(), "what is known is possible");
    drop(given_up);
    let mut next = stage.transactions().await;
    within(next.sweep(&stage.outputs(0..1), &[], &place)).await.expect("swept");
    within(next.send(stage.outputs(3..4))).await.expect("queued");
    within(next.commit(&[(stage.from.clone(), 1)], &place)).await.expect("committed");
    stage.reads("all", 3..4).await;
    member.end(Ending::Drop).await;
}

/// A member commits in transactions what it holds, in each generation of its group, and not what went to another member.
pub async fn a_member_commits_only_what_it_holds<B: Broker>(broker: &B, name: &str) {
    let bench = Bench::new(broker, name);
    let (topic, out) = (bench.topic("in", 2).await, bench.topic("out", 1).await);
    for partition in 0..2 {
        bench.store_numbers(&topic, partition, 0..10).await;
    }
    let subscription = bench.subscription(&[&topic], StartAt::Earliest);
    let stage = Stage { bench, from: TopicPartition::new(Arc::clone(&topic), 0), out, subscription };
    let first = stage.bench.join(&stage.subscription);
    let first_place = first.member();
    let mut first = Member::run_with(first, |_, _| 4);
    first.until("one member has all", |seen| seen.assigned.len() == 2 && seen.records.len() == 20).await;
    let mut transactions = stage.transactions().await;
    let both: Vec<_> = (0..2).map(|partition| (TopicPartition::new(Arc::clone(&topic), partition), 3)).collect();
    within(transactions.commit(&both, &first_place)).await.expect("both are its own");

    let second = stage.bench.join(&stage.subscription);
    let second_place = second.member();
    let mut second = Member::run(second);
    second.until("the second has its share", |seen| seen.assigned.len() == 1 && seen.records.len() == 6).await;
    first.until("the first keeps one", |seen| seen.assigned.len() == 1).await;
    let held = |member: &Member| member.seen().assigned.into_iter().next().expect("it holds one");
    let (kept, gone) = (held(&first), held(&second));

    within(transactions.send(stage.outputs(0..1))).await.expect("queued");
    let zombie = within(transactions.commit(&[(kept.clone(), 9), (gone.clone(), 9)], &first_place)).await;
    assert!(matches!(zombie, Err(TransactionError::StaleMember(_))), "{zombie:?}");
    within(transactions.abort()).await.expect("aborted");
    // A generation may just be beginning, for the moment of which its members are refused.
    for (partition, place, number) in [(kept.clone(), &first_place, 1), (gone.clone(), &second_place, 2)] {
        let committed = async {
            loop {
                within(transactions.send(stage.outputs(number..number + 1))).await.expect("queued");
                match within(transactions.commit(&[(partition.clone(), 5)], place)).await {
                    Ok(()) => return,
                    Err(TransactionError::StaleMember(_)) => within(transactions.abort()).await.expect("aborted"),
                    Err(error) => panic!("{error}"),
                }
            }
        };
        within(committed).await;
    }
    assert_eq!(stage.bench.committed(&stage.subscription, &topic).await, [(0, Some(5)), (1, Some(5))]);
    stage.reads("all", 1..3).await;
    first.end(Ending::Drop).await;
    second.end(Ending::Drop).await;
}

/// A record that can't be stored keeps the transaction from being committed, and is named; without it the rest is.
pub async fn a_refused_record_is_named_and_the_rest_can_be_sent_again<B: Broker>(broker: &B, name: &str) {
    let stage = Stage::new(broker, name).await;
    let (member, place) = stage.member().await;
    let mut transactions = stage.transactions().await;
    let at = [(stage.from.clone(), 4)];
    let large = outgoing(&stage.out, Some(0), None, Some(&vec![0; TOO_LARGE_BYTES]));
    let nowhere = numbered(&stage.bench.topic_name("nowhere"), 0, 7);
    for refused in [large, nowhere] {
        within(transactions.send(stage.outputs(0..2))).await.expect("queued");
        within(transactions.send(Arc::new(vec![refused]))).await.expect("queued");
        within(transactions.send(stage.outputs(2..4))).await.expect("queued");
        let error = within(transactions.commit(&at, &place)).await.expect_err("one of them can't be stored");
        let TransactionError::Refused(which) = error else { panic!("{error:?}") };
        assert_eq!(which.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [2]);
        let named = matches!(&which[0].1, SendError::TooLarge(_) | SendError::NoSuchTopic(_));
        assert!(named, "{which:?}");
        // Whoever has taken too long until then is shut out by the broker, and takes its id over anew.
        if within(transactions.abort()).await.is_err() {
            transactions = stage.transactions().await;
        }
    }
    assert_eq!(stage.committed().await, None);
    within(transactions.send(stage.outputs(0..4))).await.expect("queued");
    within(transactions.commit(&at, &place)).await.expect("committed");
    stage.reads("all", 0..4).await;
    member.end(Ending::Drop).await;
}
