//! Keys that are parked.

use tidemill_core::parked::Count;
use tidemill_core::partition::CallRecord;
use tokio::sync::Semaphore;

use super::*;
use crate::broker::{Position, SendError};
use crate::settle::parked::{Entry, ToPark};

/// The parked topic's partition.
fn place() -> TopicPartition {
    TopicPartition::new(format!("{TOPIC}.h.parked"), 0)
}

/// Lets through what goes to the parked topic only as far as the test allows, one write for each permit.
struct Gate {
    inner: Arc<dyn Producer>,
    permits: Arc<Semaphore>,
}

impl Producer for Gate {
    fn send(&self, records: Vec<Outgoing>, full: WhenFull) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        let (inner, permits) = (Arc::clone(&self.inner), Arc::clone(&self.permits));
        Box::pin(async move {
            if records.iter().any(|record| *record.topic == *place().topic) {
                permits.acquire().await.expect("it is open").forget();
            }
            inner.send(records, full).await
        })
    }

    fn ready(&self) -> bool {
        true
    }
}

impl World {
    /// A member that parks through a gate.
    fn join_gated(&self, writes: usize) -> (Member, Arc<Semaphore>) {
        let permits = Arc::new(Semaphore::new(writes));
        let inner = self.broker.producer(&BTreeMap::new()).expect("a producer");
        let gate = Arc::new(Gate { inner, permits: Arc::clone(&permits) });
        (self.join_through(gate, config(), park(), Arc::default()), permits)
    }

    /// What lies in the parked topic.
    async fn lies(&self) -> Vec<Entry> {
        let admin = self.broker.admin().expect("an admin");
        let chunk = admin.read(&place().topic, 0, 0, 1000).await.expect("it can be read");
        chunk.records().map(|record| Entry::of(&record)).collect()
    }
}

/// What fails once is given up, and parked.
fn park() -> RetryPolicy {
    RetryPolicy::new(1, Duration::ZERO, FOR_EVER).expect("valid").exhausted(Exhausted::Park)
}

fn is_it(_: &TopicPartition) -> bool {
    true
}

impl Member {
    async fn parked(&self) -> Vec<(Option<Vec<u8>>, usize)> {
        let answers = self.membership.parked(is_it).await;
        let keys = answers.into_iter().flat_map(|(_, parked)| parked.expect("the task answers").keys);
        keys.map(|of| (of.key, of.records)).collect()
    }

    async fn unpark(&self, choice: Choice) -> Count {
        let mut answers = self.membership.unpark(is_it, &choice).await;
        answers.pop().expect("there is one partition").1.expect("the task answers")
    }

    /// Waits until so much is to be tried again, and tries it.
    async fn until_unparked(&self, expected: Count) {
        let wait = async {
            while self.unpark(Choice::default()).await != expected {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("it can be tried again");
    }

    async fn until_parked(&self, expected: &[(&str, usize)]) {
        let expected: Vec<_> = expected.iter().map(|(key, of)| (Some(key.as_bytes().to_vec()), *of)).collect();
        let wait = async {
            while self.parked().await != expected {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("it is parked");
    }
}

#[tokio::test]
async fn a_parked_key_waits_while_the_others_flow_and_a_command_lets_it_go_on_in_order() {
    let world = World::ahead("a b a").await;
    let mut member = world.join_with(config(), park());
    member.call_of(&[0]).await.refuse();
    member.call_of(&[1]).await.ack();
    world.committed(0, 3).await;
    member.until_parked(&[("a", 2)]).await;
    let other = Choice { key: Some(Some(b"b".to_vec())), only_count: false };
    assert_eq!(member.unpark(other).await, Count::default());
    let counted = Choice { key: None, only_count: true };
    assert_eq!(member.unpark(counted).await, Count { keys: 1, records: 2 });

    assert_eq!(member.unpark(Choice::default()).await, Count { keys: 1, records: 2 });
    let first = member.call_of(&[0]).await;
    assert_eq!((first.call.from.clone(), first.key()), (TopicPartition::new(TOPIC, 0), "a".to_owned()));
    world.store(0, "a", 1).await;
    member.until_parked(&[("a", 3)]).await;
    first.ack();
    member.call_of(&[2]).await.ack();
    member.call_of(&[3]).await.ack();
    member.until_parked(&[]).await;
    world.store(0, "a", 1).await;
    member.call_of(&[4]).await.ack();
    world.committed(0, 5).await;
    member.stop().await;
}

#[tokio::test]
async fn whoever_comes_next_knows_what_is_parked_and_what_was_handled_and_another_revision_goes_on() {
    let world = World::ahead("a a b").await;
    let mut first = world.join_with(config(), park());
    first.call_of(&[0]).await.refuse();
    first.call_of(&[2]).await.ack();
    world.committed(0, 3).await;
    first.unpark(Choice::default()).await;
    first.call_of(&[0]).await.ack();
    first.call_of(&[1]).await.refuse();
    first.until_parked(&[("a", 1)]).await;
    first.stop().await;

    let mut second = world.join_with(config(), park());
    world.store(0, "a b", 1).await;
    second.call_of(&[4]).await.ack();
    world.committed(0, 5).await;
    second.until_parked(&[("a", 2)]).await;
    *second.guest.revision.lock().expect("not poisoned") = "beef".into();
    second.call_of(&[1]).await.ack();
    second.call_of(&[3]).await.ack();
    second.until_parked(&[]).await;
    second.stop().await;
}

#[tokio::test]
async fn a_key_that_goes_on_while_later_ones_are_read_loses_nothing() {
    let world = World::ahead("a b").await;
    let mut member = world.join_with(config(), park());
    member.call_of(&[0]).await.refuse();
    member.call_of(&[1]).await.refuse();
    world.committed(0, 2).await;
    member.until_parked(&[("a", 1), ("b", 1)]).await;
    let only = |key: &str| Choice { key: Some(Some(key.as_bytes().to_vec())), only_count: false };
    // The second answer comes before the page that the first one asks for.
    let counts = tokio::join!(member.unpark(only("b")), member.unpark(only("a")));
    assert_eq!(counts, (Count { keys: 1, records: 1 }, Count { keys: 1, records: 1 }));
    member.call_of(&[0]).await.ack();
    member.call_of(&[1]).await.ack();
    member.until_parked(&[]).await;
    member.stop().await;
}

#[tokio::test]
async fn without_room_to_park_nothing_of_the_key_is_called_or_committed() {
    let world = World::ahead("a a a a a a b").await;
    let mut member = world.join_with(config(), park());
    member.call_of(&[0]).await.refuse();
    member.call_of(&[6]).await.ack();
    member.until_parked(&[("a", 5)]).await;
    world.committed(0, 5).await;
    world.store(0, "b", 1).await;
    member.call_of(&[7]).await.ack();
    member.unpark(Choice::default()).await;
    for offset in 0..5 {
        member.call_of(&[offset]).await.ack();
    }
    member.call_of(&[5]).await.ack();
    world.committed(0, 8).await;
    member.stop().await;
}

#[tokio::test]
async fn nothing_is_committed_before_the_parked_topic_has_acknowledged_it() {
    let world = World::ahead("a b b b").await;
    let (mut member, permits) = world.join_gated(1);
    member.call_of(&[0]).await.refuse();
    for offset in 1..4 {
        member.call_of(&[offset]).await.ack();
    }
    world.store(0, "a b", 1).await;
    member.call_of(&[5]).await.ack();
    assert_eq!(world.commits(0), NONE, "the notice is written, and nothing else");
    permits.add_permits(10);
    world.committed(0, 6).await;
    member.until_parked(&[("a", 2)]).await;
    member.stop().await;
}

#[tokio::test]
async fn a_key_flows_again_only_when_its_last_receipt_is_acknowledged() {
    let world = World::ahead("a").await;
    let (mut member, permits) = world.join_gated(2);
    member.call_of(&[0]).await.refuse();
    member.until_parked(&[("a", 1)]).await;
    member.unpark(Choice::default()).await;
    member.call_of(&[0]).await.ack();
    world.store(0, "a b", 1).await;
    member.call_of(&[2]).await.ack();
    member.until_parked(&[("a", 1)]).await;
    assert_eq!(world.commits(0), [1], "what came meanwhile waits behind it");
    permits.add_permits(10);
    member.call_of(&[1]).await.ack();
    world.committed(0, 3).await;
    member.until_parked(&[]).await;
    member.stop().await;
}

#[tokio::test]
async fn what_is_parked_and_not_committed_is_not_parked_twice() {
    let world = World::ahead("a a").await;
    let mut first = world.join_with(Config { commit_interval: FOR_EVER, ..config() }, park());
    first.call_of(&[0]).await.refuse();
    first.until_parked(&[("a", 2)]).await;
    first.task.abort();
    let mut second = world.join_with(config(), park());
    world.committed(0, 2).await;
    second.until_parked(&[("a", 2)]).await;
    let parked = world.lies().await.into_iter().filter(|lies| matches!(lies, Entry::Parked(_)));
    assert_eq!(parked.count(), 2, "each lies there once");
    world.store(0, "b", 1).await;
    second.call_of(&[2]).await.ack();
    second.stop().await;
}

#[tokio::test]
async fn what_a_host_that_was_left_behind_parks_does_not_count() {
    let world = World::ahead("a a").await;
    let mut first = world.join_with(config(), park());
    first.call_of(&[0]).await.refuse();
    first.until_parked(&[("a", 2)]).await;
    world.committed(0, 2).await;
    first.stop().await;
    let second = world.join_with(config(), park());
    second.until_parked(&[("a", 2)]).await;

    let lies = world.lies().await;
    let Some(Entry::Notice(left_behind)) = lies.first() else { panic!("an assignment begins with a notice: {lies:?}") };
    let topics = ParkedTopics::new("h".into(), world.broker.producer(&BTreeMap::new()).expect("a producer"));
    let late = [("a", 0), ("b", 1)].map(|(key, lane)| {
        let record = Record::single(7 + i64::from(lane), Some(key.as_bytes()), None);
        ToPark { record: CallRecord { record, lane, tries: 0, charged: 0, age: Duration::ZERO }, failure: None }
    });
    let from = TopicPartition::new(TOPIC, 0);
    topics.park(&from, left_behind, &late, &CancellationToken::new()).await;
    second.stop().await;
    let third = world.join_with(config(), park());
    third.until_parked(&[("a", 2)]).await;
    third.stop().await;
}

#[tokio::test]
async fn a_notice_that_comes_late_takes_nothing_from_who_has_the_partition() {
    let world = World::ahead("a").await;
    let mut first = world.join_with(config(), park());
    let failing = first.call_of(&[0]).await;
    let topics = ParkedTopics::new("h".into(), world.broker.producer(&BTreeMap::new()).expect("a producer"));
    let place = topics.place_of(&TopicPartition::new(TOPIC, 0));
    topics.claim(&place, &"who had it before".into()).await.expect("it is written");
    failing.refuse();
    first.until_parked(&[("a", 1)]).await;
    world.committed(0, 1).await;
    first.stop().await;
    let second = world.join_with(config(), park());
    second.until_parked(&[("a", 1)]).await;
    second.stop().await;
}

#[tokio::test]
async fn a_key_that_fails_again_waits_until_it_is_told_to_go_on_again() {
    let world = World::ahead("a a").await;
    let mut member = world.join_with(config(), park());
    member.call_of(&[0]).await.refuse();
    member.until_parked(&[("a", 2)]).await;
    for _ in 0..2 {
        member.until_unparked(Count { keys: 1, records: 2 }).await;
        member.call_of(&[0]).await.refuse();
    }
    member.until_unparked(Count { keys: 1, records: 2 }).await;
    member.call_of(&[0]).await.ack();
    member.call_of(&[1]).await.ack();
    member.until_parked(&[]).await;
    member.stop().await;
}
