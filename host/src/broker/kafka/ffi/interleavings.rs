//! Reports of deliveries, in the orders that threads may bring them in.

#[path = "produce.rs"]
#[allow(clippy::duplicate_mod, dead_code, reason = "compiled once more, for what is tested of it")]
mod produce;

use std::sync::Arc;

use rdkafka::types::RDKafkaErrorCode as Code;
use shuttle::future::block_on;
use shuttle::thread;

use self::produce::Batch;
use super::{Event, Native, Queue};
use crate::broker::Outgoing;
use crate::sync::tests as sync;

/// Whoever waits for a batch hears of its end once, and then finds what became of each record: a report that is missed would
/// be taken for none, and one that comes late for a record that is stored.
#[test]
fn the_end_of_a_batch_is_heard_and_all_of_it_is_known_then() {
    let record = || Outgoing {
        topic: "out".into(),
        partition: None,
        timestamp_ms: None,
        key: None,
        value: None,
        headers: Vec::new(),
    };
    sync::in_any_order(move || {
        let batch = Batch::new(Arc::new(vec![record(), record(), record()]));
        let reports = [0, 1].map(|at| {
            let batch = Arc::clone(&batch);
            thread::spawn(move || batch.refuse(at, Code::MessageSizeTooLarge))
        });
        batch.refuse(2, Code::QueueFull);
        block_on(batch.reported());
        assert!(!batch.is_stored(), "a record is refused");
        let codes = [0, 1, 2].map(|at| batch.report(at).map(|report| report.code));
        assert_eq!(codes, [Code::MessageSizeTooLarge, Code::MessageSizeTooLarge, Code::QueueFull].map(Some));
        reports.into_iter().for_each(|report| report.join().expect("it ends"));
        assert_eq!(Arc::strong_count(&batch), 1, "nobody else holds it any more");
    });
}
