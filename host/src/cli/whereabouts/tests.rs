use super::*;
use crate::broker::embedded::Embedded;
use crate::broker::{Header, Outgoing, WhenFull};

#[test]
fn a_place_is_read_from_its_end() {
    let place = |text: &str| text.parse::<Place>();
    let orders = Place { topic: "orders.v1".to_owned(), partition: 3, offset: 42 };
    assert_eq!(place("orders.v1/3/42"), Ok(orders));
    for wrong in ["", "orders", "orders/3", "orders/-1/4", "orders/1/-4", "a/b/1/2", "/1/2", "orders/x/2"] {
        assert_eq!(place(wrong), Err(NoPlace(wrong.to_owned())));
    }
}

#[test]
fn what_the_host_knows_goes_before_what_the_group_has_committed() {
    use WhereState::{Done, NotHere, Retrying, Running, Unknown, Unread};
    let there = Kept::Record(None);
    let gone = Kept::Nothing { oldest: 7 };
    for (host, is_committed, kept, state) in [
        (Some(Running), false, &there, State::Running),
        (Some(Retrying), false, &there, State::Retrying),
        // At most once, what runs is committed.
        (Some(Running), true, &there, State::Running),
        (Some(Done), false, &there, State::Done),
        (Some(Unread), false, &there, State::Unread),
        (Some(NotHere), true, &there, State::Done),
        (Some(NotHere), false, &there, State::Open),
        (Some(Unknown), false, &there, State::Open),
        (None, true, &there, State::Done),
        (None, false, &there, State::Open),
        (None, false, &gone, State::NoRecord),
        (None, true, &gone, State::Done),
        (Some(Unread), false, &Kept::NotWritten { end: 3 }, State::NotWritten),
    ] {
        assert_eq!(State::of(host, is_committed, kept), state, "{host:?} {is_committed} {kept:?}");
    }
}

#[test]
fn of_several_hosts_the_one_counts_that_has_the_partition() {
    use WhereState::{NotHere, Running, Unknown};
    let view = |state| WhereView {
        handler: "h".to_owned(),
        group: "g".to_owned(),
        state,
        tries: 0,
        again_in_ms: None,
        committed: None,
        paused: false,
        parked_at: None,
        stopped: None,
        detail: None,
    };
    for (states, counts) in [
        ([NotHere, Running, NotHere], Running),
        ([Running, NotHere, NotHere], Running),
        ([NotHere, NotHere, Unknown], Unknown),
        ([NotHere, NotHere, NotHere], NotHere),
    ] {
        let readers = readers(None, "orders", states.map(view).to_vec());
        let seen: Vec<_> = readers.iter().filter_map(|reader| Some(reader.view.as_ref()?.state)).collect();
        assert_eq!(seen, [counts]);
    }
}

#[tokio::test]
async fn a_record_that_is_done_is_looked_for_among_the_letters_of_its_handler() {
    let bench = Bench::new().await;
    bench.letter("h", 0).await;
    bench.letter("other", 1).await;
    bench.letter("h", 2).await;
    bench.letter("h", 2).await;
    let found = bench.find("h", 2, 100).await;
    let letter = found.letter.expect("the letter is found");
    assert_eq!((letter.record.offset(), letter.redriven, found.cut), (3, false, false), "the latest of two");
    assert!(bench.find("h", 1, 100).await.letter.is_none(), "that one is another handler's");

    bench.redriven("0-3").await;
    assert!(bench.find("h", 2, 100).await.letter.is_some_and(|letter| letter.redriven));
}

#[tokio::test]
async fn the_search_for_a_letter_ends_at_its_bound_and_says_so() {
    let bench = Bench::new().await;
    for offset in 0..600 {
        bench.letter("h", offset).await;
    }
    let found = bench.find("h", 599, 500).await;
    assert!(found.cut && found.letter.is_none());
    assert!(!bench.find("h", 599, 1000).await.cut);
}

#[tokio::test]
async fn what_the_log_has_at_a_place_is_told_apart() {
    let bench = Bench::new().await;
    bench.letter("h", 0).await;
    let kept = |offset: Offset| {
        let admin = bench.broker.admin().expect("an admin");
        async move { kept(&*admin, &Place { topic: "orders.dlq".to_owned(), partition: 0, offset }).await }
    };
    assert!(matches!(kept(0).await, Ok(Kept::Record(Some(_)))));
    assert!(matches!(kept(1).await, Ok(Kept::NotWritten { end: 1 })));
    let admin = bench.broker.admin().expect("an admin");
    let place = Place { topic: "orders.dlq".to_owned(), partition: 7, offset: 0 };
    let error = super::kept(&*admin, &place).await.expect_err("there is one partition");
    assert_eq!(error.to_string(), "topic `orders.dlq` has no partition 7; it has 0 to 0");
}

/// A log with a dead-letter topic.
struct Bench {
    broker: Embedded,
}

impl Bench {
    async fn new() -> Self {
        let broker = Embedded::in_memory().expect("a log in memory opens");
        let admin = broker.admin().expect("an admin");
        admin.create_topic("orders.dlq", 1, None).await.expect("the topic is made");
        Self { broker }
    }

    /// Writes a letter of `orders/0/OFFSET`.
    async fn letter(&self, handler: &str, offset: Offset) {
        let offset = offset.to_string();
        self.write(&[
            ("tidemill.error.topic", "orders"),
            ("tidemill.error.partition", "0"),
            ("tidemill.error.offset", &offset),
            ("tidemill.error.handler", handler),
        ])
        .await;
    }

    async fn redriven(&self, offsets: &str) {
        self.write(&[("tidemill.redriven.letters", offsets)]).await;
    }

    async fn write(&self, headers: &[(&str, &str)]) {
        let header = |(name, value): &(&str, &str)| Header {
            name: bytes::Bytes::copy_from_slice(name.as_bytes()),
            value: Some(bytes::Bytes::copy_from_slice(value.as_bytes())),
        };
        let record = Outgoing {
            topic: "orders.dlq".into(),
            partition: Some(0),
            timestamp_ms: None,
            key: None,
            value: None,
            headers: headers.iter().map(header).collect(),
        };
        let producer = self.broker.producer(&Default::default()).expect("a producer");
        producer.send(vec![record], WhenFull::Wait).await.remove(0).expect("it is stored");
    }

    async fn find(&self, handler: &str, offset: Offset, records_max: usize) -> Search {
        let admin = self.broker.admin().expect("an admin");
        let info = admin.topics(Some("orders.dlq")).await.expect("it can be asked").remove(0);
        let wanted = Wanted { handler, topic: "orders", partition: 0, offset };
        letters::find(&*admin, info, None, &wanted, records_max).await.expect("it can be read")
    }
}
