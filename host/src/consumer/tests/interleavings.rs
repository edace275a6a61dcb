//! What threads share in these rooms, in the orders that they may come in: a wake-up that is missed stops a partition for good.

#[path = "../budget.rs"]
#[allow(clippy::duplicate_mod, dead_code, unreachable_pub, reason = "compiled once more, for what is tested of it")]
mod budget;
#[path = "../commit/outbox.rs"]
#[allow(clippy::duplicate_mod, dead_code, reason = "compiled once more, for what is tested of it")]
mod outbox;
#[path = "../progress.rs"]
#[allow(clippy::duplicate_mod, dead_code, unreachable_pub, reason = "compiled once more, for what is tested of it")]
mod progress;

use std::sync::Arc;
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::thread;
use tidemill_core::partition::Bounds;
use tidemill_core::record::TopicPartition;
use tidemill_core::transaction::{Filling, Limits};
use tokio::sync::mpsc;

use self::budget::Budget;
use self::outbox::Outbox;
use self::progress::{Membership, Progress};
use crate::consumer::{asked, moving};
use crate::metrics::Metrics;
use crate::sync::tests as sync;

fn from() -> TopicPartition {
    TopicPartition::new("in", 0)
}

/// A partition that reads nothing because the host holds too much hears of it when others give back, whenever that is; and
/// what is given back by several at once is all counted.
#[test]
fn room_in_the_budget_is_heard_of_and_counted() {
    sync::in_any_order(|| {
        let budget = Budget::new(10, Metrics::new().held_bytes());
        let (mut one, mut other, waiting) = (budget.share(1), budget.share(1), budget.share(8));
        one.set(6);
        other.set(4);
        let giving = thread::spawn(move || one.set(1));
        let going = thread::spawn(move || drop(other));
        block_on(waiting.freed());
        assert!(waiting.room() > 0, "it was told of room that there is");
        giving.join().expect("it ends");
        going.join().expect("it ends");
        // All that was held is given back, or this waits for good.
        block_on(budget.share(10).freed());
    });
}

/// At most once, records run when their commit is confirmed: the last confirmation is heard, however many come at once.
#[test]
fn the_last_confirmation_is_heard() {
    sync::in_any_order(|| {
        let progress = Arc::new(Progress::new(from(), 1));
        let confirming = {
            let progress = Arc::clone(&progress);
            thread::spawn(move || (1..=3).for_each(|offset| progress.confirm(offset)))
        };
        let mut heard = 0;
        while heard < 3 {
            let offset = block_on(progress.confirmation());
            assert!(offset >= heard, "OFF-2: a confirmation falls from {heard} to {offset}");
            heard = offset;
        }
        confirming.join().expect("it ends");
    });
}

/// An operator pauses a handler while it is given a partition.
#[test]
fn an_assignment_hears_of_each_pause() {
    sync::in_any_order(|| {
        let membership = Arc::<Membership>::default();
        let progress = Arc::new(Progress::new(from(), 1));
        let pausing = {
            let membership = Arc::clone(&membership);
            thread::spawn(move || membership.pause(true))
        };
        let (questions, _asked) = mpsc::channel(1);
        membership.assigned(Arc::clone(&progress), questions);
        while !progress.is_paused() {
            block_on(progress.pausing());
        }
        pausing.join().expect("it ends");
        assert!(progress.is_paused() && membership.is_paused());
    });
}

/// Exactly once: what a partition settles comes into transactions, and a partition that stands still until something is
/// committed goes on then.
#[test]
fn an_outbox_is_emptied_and_its_partition_goes_on() {
    const SETTLED: i64 = 3;
    let bounds = || Bounds {
        call_records_max: 1,
        call_bytes_max: 1,
        calls_max: 1,
        records_max: 1,
        bytes_max: 1,
        // One record that waits for its commit fills it.
        span_max: 1,
    };
    sync::in_any_order(move || {
        let filled = Arc::<sync::Notify>::default();
        let progress = Arc::new(crate::consumer::Progress::new(from(), 1));
        let outbox = Arc::new(Outbox::new(Arc::clone(&progress), Arc::clone(&filled)));
        outbox.begin(0);
        let committing = {
            let outbox = Arc::clone(&outbox);
            thread::spawn(move || {
                let limits = Limits { interval: Duration::ZERO, records_max: 10, bytes_max: 10 };
                while outbox.committed() != Some(SETTLED) {
                    let mut filling = Filling::new(limits.clone());
                    match outbox.enter(Duration::ZERO, &mut filling) {
                        Some(entry) => outbox.confirmed(entry.upto, 0),
                        None => block_on(filled.notified()),
                    }
                }
            })
        };
        for offset in 0..SETTLED {
            outbox.advance(offset + 1);
            while outbox.is_full(&bounds()) {
                block_on(outbox.emptied());
            }
        }
        committing.join().expect("it ends");
        assert!(outbox.is_done() && !outbox.has_entered());
        assert_eq!(progress.frontier().map(|frontier| frontier.offset), Some(SETTLED));
    });
}
