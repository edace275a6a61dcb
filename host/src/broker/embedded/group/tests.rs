use super::*;
use crate::broker::embedded::topics::{Partition, Topic};

const DEADLINE: Duration = Duration::from_secs(30);

/// One group on one topic `t`, driven by hand.
struct Bench {
    topics: Topics,
    group: Group,
    start: Instant,
    now: Instant,
}

impl Bench {
    fn new(partitions: i64) -> Self {
        let start = Instant::now();
        let group = Group::new(StartAt::Latest, DEADLINE);
        let bench = Self { topics: Topics::default(), group, start, now: start };
        bench.topic("t", partitions);
        bench
    }

    fn topic(&self, name: &str, partitions: i64) {
        let partitions = (0..partitions).map(|id| Arc::new(Partition::new(id, 0, 7))).collect();
        self.topics.publish(Topic { name: name.into(), partitions });
    }

    fn join(&mut self, member: MemberId) {
        self.group.join(member, BTreeSet::from(["t".into(), "late".into()]), Arc::default());
        self.settle();
    }

    fn leave(&mut self, member: MemberId) {
        self.group.leave(member);
        self.settle();
    }

    fn release(&mut self, member: MemberId, partitions: &[i32]) {
        let partitions: Vec<_> = partitions.iter().map(|number| TopicPartition::new("t", *number)).collect();
        self.group.release(member, &partitions);
        self.settle();
    }

    fn at(&mut self, seconds: u64) {
        self.now = self.start + Duration::from_secs(seconds);
        if self.group.expire(self.now) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.group.settle(&self.topics, self.now);
    }

    /// All that a member is told, such as `+0 +1 -2 !3`.
    fn told(&mut self, member: MemberId) -> String {
        let mut told = Vec::new();
        while let Some(event) = self.group.next_event(member) {
            let (sign, partitions) = match event {
                ConsumerEvent::Assigned(partitions) => ('+', partitions),
                ConsumerEvent::Revoked(partitions) => ('-', partitions),
                ConsumerEvent::Lost(partitions) => ('!', partitions),
                ConsumerEvent::Problem(text) | ConsumerEvent::Fatal(text) => panic!("{text}"),
            };
            told.extend(partitions.iter().map(|partition| format!("{sign}{}", partition.partition)));
        }
        told.join(" ")
    }

    fn holds(&self, member: MemberId, partition: i32) -> bool {
        self.group.holds(member, &TopicPartition::new("t", partition))
    }
}

#[test]
fn only_what_moves_is_revoked_and_it_is_offered_once_it_is_free() {
    let mut bench = Bench::new(4);
    bench.join(1);
    assert_eq!(bench.told(1), "+0 +1 +2 +3");
    bench.join(2);
    assert_eq!((bench.told(1), bench.told(2)), ("-2 -3".to_owned(), String::new()));
    bench.release(1, &[3]);
    assert_eq!(bench.told(2), "+3");
    assert!(bench.holds(1, 2), "it may be committed until it is given back");
    bench.release(1, &[2]);
    assert_eq!((bench.told(1), bench.told(2)), (String::new(), "+2".to_owned()));
    bench.leave(1);
    assert_eq!(bench.told(2), "+0 +1");
}

#[test]
fn what_nobody_was_told_moves_at_once() {
    let mut bench = Bench::new(4);
    bench.join(1);
    bench.join(2);
    assert_eq!((bench.told(1), bench.told(2)), ("+0 +1".to_owned(), "+2 +3".to_owned()));
}

#[test]
fn a_revocation_that_was_not_told_is_taken_back() {
    let mut bench = Bench::new(2);
    bench.join(1);
    assert_eq!(bench.told(1), "+0 +1");
    bench.join(2);
    bench.leave(2);
    assert_eq!(bench.told(1), "");
    assert_eq!(bench.group.deadline(), None);
}

#[test]
fn a_partition_that_is_not_given_back_in_time_is_lost() {
    let mut bench = Bench::new(2);
    bench.join(1);
    assert_eq!(bench.told(1), "+0 +1");
    bench.join(2);
    assert_eq!(bench.told(1), "-1");
    bench.at(29);
    assert_eq!((bench.told(1), bench.told(2)), (String::new(), String::new()));
    bench.at(30);
    assert_eq!((bench.told(1), bench.told(2)), ("!1".to_owned(), "+1".to_owned()));
    assert!(bench.holds(2, 1) && !bench.holds(1, 1));
    bench.leave(2);
    assert_eq!(bench.told(1), "", "it comes back once the old work is dropped");
    bench.release(1, &[1]);
    assert_eq!(bench.told(1), "+1");
}

#[test]
fn a_drained_partition_may_come_back_to_the_same_member() {
    let mut bench = Bench::new(2);
    bench.join(1);
    assert_eq!(bench.told(1), "+0 +1");
    bench.join(2);
    assert_eq!(bench.told(1), "-1");
    bench.leave(2);
    assert_eq!(bench.told(1), "");
    bench.release(1, &[1]);
    assert_eq!(bench.told(1), "+1");
}

#[test]
fn a_member_beyond_the_partitions_waits_for_one() {
    let mut bench = Bench::new(1);
    bench.join(1);
    bench.join(2);
    assert_eq!((bench.told(1), bench.told(2)), ("+0".to_owned(), String::new()));
    bench.leave(1);
    assert_eq!(bench.told(2), "+0");
}

#[test]
fn a_topic_that_is_made_later_begins_at_its_first_record() {
    let mut bench = Bench::new(1);
    bench.join(1);
    let partitions = vec![Arc::new(Partition::new(9, 0, 0))];
    bench.topics.publish(Topic { name: "late".into(), partitions: partitions.clone() });
    bench.settle();
    partitions[0].publish_end(5);
    bench.settle();
    assert_eq!(bench.group.begin(&TopicPartition::new("t", 0)), Some(7));
    assert_eq!(bench.group.begin(&TopicPartition::new("late", 0)), Some(0));
}
