//! What every [`Broker`] promises, as tests over the seam: the same functions run on real Kafka and on the embedded log.
//!
//! [`broker_contract!`](crate::broker_contract) makes one `#[tokio::test]` of each promise. A promise is given a broker,
//! which may be shared with other tests, and a name that no other test uses: its topics and groups begin with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_core::record::{Chunk, HeaderRef, Record, Timestamp};
use tokio::time::timeout;

use super::{
    Admin, Broker, Consumer, Header, Outgoing, Position, Producer, SendError, StartAt, Subscription, WhenFull,
};

mod groups;
mod member;
mod reading;
mod records;
mod topics;
mod transactions;

pub use groups::*;
pub use reading::*;
pub use records::*;
pub use topics::*;
pub use transactions::*;

/// Bounds each wait: a promise that takes longer is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// A value that is larger than any broker of a test may accept.
pub const TOO_LARGE_BYTES: usize = 16 * 1024 * 1024;

/// Makes a test of each promise of the contract.
///
/// `setup` is an async function from the test's name to a broker and whatever has to live as long as it. A prefix keeps
/// two uses apart that share a broker.
#[doc(hidden)]
#[macro_export]
macro_rules! broker_contract {
    ($setup:path) => {
        $crate::broker_contract! { $setup, "" }
    };
    ($setup:path, $prefix:literal) => {
        $crate::broker_contract! { @each $setup, $prefix:
            records_come_back_as_they_were_sent
            a_partition_keeps_its_order
            a_key_meets_its_partition_as_in_java
            a_record_without_a_key_finds_a_partition
            a_record_that_is_too_large_is_refused_alone
            a_send_to_nowhere_names_it
            nothing_is_in_flight_after_a_flush
            a_group_starts_at_the_oldest_record
            a_group_can_start_at_the_next_record
            a_group_goes_on_where_it_committed
            a_partition_starts_where_it_is_told
            a_started_partition_begins_anew_elsewhere
            a_group_without_members_is_moved_and_one_with_members_is_not
            groups_do_not_disturb_each_other
            a_topic_may_be_made_after_the_subscription
            who_has_joined_misses_nothing_of_a_topic_that_is_made_later
            a_member_with_nothing_to_read_hears_that_it_has_joined
            members_share_the_partitions_and_take_over
            a_revoked_partition_goes_on_at_its_committed_offset
            a_dropped_member_leaves_too
            chunks_keep_their_bounds
            a_cancelled_next_takes_nothing
            a_reader_wakes_for_each_record
            an_unread_partition_holds_up_nobody
            an_end_is_known_after_reading
            partitions_are_read_outside_of_groups_from_where_they_are_told
            what_holds_no_record_is_passed_outside_of_groups
            a_range_is_read_to_its_end_and_no_further
            topics_are_listed_with_their_ends
            a_topic_is_made_once
            an_unknown_topic_is_named
            offsets_are_found_by_time
            records_are_read_outside_of_groups
            a_transaction_keeps_records_and_offsets_together_or_neither
            an_earlier_owner_of_an_id_is_fenced
            a_dropped_transaction_leaves_nothing
            a_swept_transaction_leaves_nothing
            a_restored_offset_never_falls
            a_transaction_that_is_given_up_leaves_nothing
            a_member_commits_only_what_it_holds
            a_refused_record_is_named_and_the_rest_can_be_sent_again
        }
    };
    (@each $setup:path, $prefix:literal: $($promise:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let name = concat!($prefix, stringify!($promise));
            let (broker, _guard) = $setup(name).await;
            $crate::broker::contract::$promise(&broker, name).await;
        }
    )* };
}

/// One broker with what nearly each promise needs of it.
struct Bench<'a, B: Broker> {
    broker: &'a B,
    admin: Arc<dyn Admin>,
    producer: Arc<dyn Producer>,
    name: &'a str,
}

impl<'a, B: Broker> Bench<'a, B> {
    fn new(broker: &'a B, name: &'a str) -> Self {
        let admin = broker.admin().expect("a broker has an admin");
        let producer = broker.producer(&Default::default()).expect("a broker has a producer");
        Self { broker, admin, producer, name }
    }

    /// A name for a topic of this promise.
    fn topic_name(&self, suffix: &str) -> Arc<str> {
        format!("{}-{suffix}", self.name).into()
    }

    async fn topic(&self, suffix: &str, partitions: i32) -> Arc<str> {
        let topic = self.topic_name(suffix);
        within(self.admin.create_topic(&topic, partitions, Some(1))).await.expect("the topic is made");
        within(self.producer.warm(&[Arc::clone(&topic)], PATIENCE)).await.expect("the producer reaches the topic");
        topic
    }

    async fn send(&self, records: Vec<Outgoing>) -> Vec<Result<Position, SendError>> {
        within(self.producer.send(records, WhenFull::Wait)).await
    }

    /// Sends records that must all be stored.
    async fn store(&self, records: Vec<Outgoing>) -> Vec<Position> {
        let results = self.send(records).await;
        results.into_iter().map(|result| result.expect("the record is stored")).collect()
    }

    /// Stores the numbers as values in one partition.
    async fn store_numbers(&self, topic: &Arc<str>, partition: i32, numbers: std::ops::Range<u64>) {
        self.store(numbers.map(|number| numbered(topic, partition, number)).collect()).await;
    }

    fn subscription(&self, topics: &[&Arc<str>], start_at: StartAt) -> Subscription {
        Subscription {
            group: format!("{}-group", self.name),
            topics: topics.iter().map(ToString::to_string).collect(),
            start_at,
            properties: Default::default(),
        }
    }

    fn join(&self, subscription: &Subscription) -> B::Consumer {
        self.broker.consumer(subscription).expect("a member joins")
    }

    async fn committed(&self, subscription: &Subscription, topic: &str) -> Vec<(i32, Option<i64>)> {
        within(self.admin.committed(&subscription.group, topic)).await.expect("committed offsets are known")
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("answered in time")
}

fn outgoing(topic: &Arc<str>, partition: Option<i32>, key: Option<&[u8]>, value: Option<&[u8]>) -> Outgoing {
    Outgoing {
        topic: Arc::clone(topic),
        partition,
        timestamp_ms: None,
        key: key.map(Bytes::copy_from_slice),
        value: value.map(Bytes::copy_from_slice),
        headers: Vec::new(),
    }
}

fn numbered(topic: &Arc<str>, partition: i32, number: u64) -> Outgoing {
    outgoing(topic, Some(partition), None, Some(number.to_string().as_bytes()))
}

/// The number that [`numbered`] wrote.
fn number_of(record: &Record) -> u64 {
    let text = std::str::from_utf8(record.value().expect("a number is not null")).expect("a number is text");
    text.parse().expect("a number has digits")
}

fn numbers_of(chunk: &Arc<Chunk>) -> Vec<u64> {
    chunk.records().map(|record| number_of(&record)).collect()
}

/// A record as it was sent or as it came, to compare them.
type Plain = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>, Option<i64>);

fn plain_sent(record: &Outgoing) -> Plain {
    let bytes = |bytes: &Option<Bytes>| bytes.as_deref().map(<[u8]>::to_vec);
    let header = |header: &Header| (header.name.to_vec(), bytes(&header.value));
    (bytes(&record.key), bytes(&record.value), record.headers.iter().map(header).collect(), record.timestamp_ms)
}

fn plain_read(record: &Record) -> Plain {
    let bytes = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let header = |header: HeaderRef<'_>| (header.name.to_vec(), bytes(header.value));
    let Timestamp::Create(millis) = record.timestamp() else { panic!("the producer's time is kept") };
    (bytes(record.key()), bytes(record.value()), record.headers().map(header).collect(), Some(millis))
}
