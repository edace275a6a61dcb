//! What the policy `stop` does to a partition, and what lets it go on.

use tidemill_core::retry::Exhausted;

use super::*;

fn stops() -> RetryPolicy {
    RetryPolicy::new(1, Duration::ZERO, FOR_EVER).expect("valid").exhausted(Exhausted::Stop)
}

#[tokio::test]
async fn a_stopped_partition_stands_at_its_record_says_so_and_goes_on_with_another_revision() {
    let world = World::with("a b c").await;
    let mut member = world.join_with(one_by_one(), stops());
    member.call_of(&[0]).await.ack();
    member.call_of(&[1]).await.refuse();
    world.committed(0, 1).await;
    let stopped = member.stopped_at(1).await;
    assert_eq!((stopped.class, &*stopped.reason.code, &*stopped.revision), (Class::Rejected, "never", "cafe"));
    assert!(member.membership.is_joined(), "it stays in its group");
    assert_eq!(member.metrics.dead_letters(Class::Rejected).get(), 0);

    *member.guest.revision.lock().expect("not poisoned") = "beef".into();
    member.call_of(&[1]).await.ack();
    member.call_of(&[2]).await.ack();
    world.committed(0, 3).await;
    assert_eq!(world.commits(0).iter().max(), Some(&3));
    member.stop().await;
}

#[tokio::test]
async fn a_stopped_partition_leaves_the_others_alone_and_does_not_hold_up_the_end() {
    let world = World::new(2).await;
    world.store(0, "a b", 1).await;
    let mut member = world.join_with(one_by_one(), stops());
    member.call_of(&[0]).await.refuse();
    member.stopped_at(0).await;
    world.store(1, "a b", 1).await;
    member.call_of(&[0]).await.ack();
    member.call_of(&[1]).await.ack();
    world.committed(1, 2).await;
    assert_eq!(world.commits(0), NONE, "nothing was settled there");
    member.stop().await;
}

impl Member {
    /// Waits until the partition is shown to stand still at this record.
    async fn stopped_at(&self, offset: Offset) -> crate::settle::Stop {
        let look = async {
            loop {
                let stopped = self.membership.partitions().into_iter().find_map(|partition| partition.stopped);
                if let Some(stop) = stopped.filter(|stop| stop.offset == offset) {
                    return stop;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, look).await.expect("the partition stops")
    }
}
