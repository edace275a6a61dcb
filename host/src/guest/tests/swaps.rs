//! Instances and revisions over time.

use std::pin::pin;

use futures_util::poll;
use tidemill_core::retry::Class;
use tidemill_core::revisions::{NoRevisionBefore, Rollback};

use super::*;

/// Traps in the second call of one instance.
const ONCE: Odd = Odd {
    imports: "",
    fields: "(global $calls (mut i32) (i32.const 0))",
    init: "",
    handle: "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
             (if (i32.gt_u (global.get $calls) (i32.const 1)) (then unreachable))",
    surplus: 0,
    mark: 0,
};

#[tokio::test]
async fn an_instance_is_used_again_and_a_trap_makes_a_fresh_one() {
    let live = Test::default().load_odd(ONCE).await;
    assert_eq!(call(&live, 1).await, Ok(vec![Outcome::Skip]));
    assert_eq!(failure(&live).await.class, Class::Trap, "the same instance");
    assert_eq!(call(&live, 1).await, Ok(vec![Outcome::Skip]), "a fresh one");
}

#[tokio::test]
async fn isolation_by_batch_and_record_is_a_fresh_instance_for_each_call() {
    for manifest in ["isolation = \"batch\"", "isolation = \"record\""] {
        let live = Test { manifest, ..Test::default() }.load_odd(ONCE).await;
        for _ in 0..3 {
            assert_eq!(call(&live, 1).await, Ok(vec![Outcome::Skip]), "{manifest}");
        }
        assert_eq!(live.view().idle, 0);
    }
}

#[tokio::test]
async fn an_instance_is_replaced_after_its_calls_or_with_much_memory() {
    let limits = Limits { reuse_calls_max: 1, ..Limits::default() };
    let live = Test { limits, ..Test::default() }.load_odd(ONCE).await;
    for _ in 0..3 {
        assert_eq!(call(&live, 1).await, Ok(vec![Outcome::Skip]));
    }
    let grows = Odd { handle: "(drop (memory.grow (i32.const 900)))", ..Odd::default() };
    let live = Test::default().load_odd(grows).await;
    assert_eq!(live.view().idle, 1, "the one of the trial");
    assert_eq!(call(&live, 1).await, Ok(vec![Outcome::Skip]));
    assert_eq!(live.view().idle, 0, "memory never shrinks");
}

#[tokio::test]
async fn a_call_ends_on_the_revision_that_it_began_on() {
    let engine = engine_with(4);
    let test = Test { engine: Arc::clone(&engine), manifest: "config.ms = \"300\"", ..Test::default() };
    let live = test.load(prebuilt("slow")).await.expect("it loads");
    let old = live.digest();
    let mut attempt = attempt(1, Duration::from_secs(60));
    let mut running = pin!(live.call(&mut attempt));
    assert!(poll!(&mut running).is_pending());
    live.swap(Odd::default().build()).await.expect("it loads");
    let new = live.digest();
    assert_ne!(old, new);
    assert_eq!(live.view().before[0].in_flight, 1);
    let quick = live.call(&mut super::attempt(1, Duration::from_secs(60))).await;
    assert_eq!((quick.revision, quick.outcomes), (new, Ok(vec![Outcome::Skip])), "REV-2: new calls go to the new one");
    let called = running.await;
    assert_eq!((called.revision, called.outcomes), (old, Ok(vec![Outcome::Ack(Vec::new())])), "REV-1");
    assert_eq!(live.view().before[0].in_flight, 0);
    assert_eq!(engine.room_left(), 3, "the old one keeps no instance");
}

#[tokio::test]
async fn swapping_under_load_fails_no_call() {
    let live = Arc::new(Test::default().load_odd(Odd::default()).await);
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let live = Arc::clone(&live);
            tokio::spawn(async move {
                for _ in 0..200 {
                    assert_eq!(call(&live, 3).await, Ok(vec![Outcome::Skip; 3]));
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for mark in 1..10 {
        live.swap(Odd { mark, ..Odd::default() }.build()).await.expect("it loads");
    }
    for caller in callers {
        caller.await.expect("no call failed");
    }
    assert_eq!(live.view().before.len(), 3);
}

#[tokio::test]
async fn a_file_that_can_not_be_taken_changes_nothing() {
    let live = Test::default().load_odd(Odd::default()).await;
    let before = live.view();
    for bytes in [b"broken".to_vec(), prebuilt("refusing"), Odd { init: "unreachable", ..Odd::default() }.build()] {
        live.swap(bytes).await.expect_err("it can't be taken");
        assert_eq!(live.view(), before, "REV-4");
    }
    assert_eq!(call(&live, 1).await, Ok(vec![Outcome::Skip]));
}

#[tokio::test]
async fn going_back_sets_the_file_aside_until_another_comes() {
    let [first, second, third] = [1, 2, 3].map(|mark| Odd { mark, ..Odd::default() }.build());
    let live = Test::default().load(first.clone()).await.expect("it loads");
    assert_eq!(live.roll_back(Rollback::clone).await, Err(NoRevisionBefore));
    let old = live.digest();
    assert!(!live.wants(&first), "it is live");
    live.swap(second.clone()).await.expect("it loads");
    let bad = live.digest();
    let rollback = Rollback { live: old.to_string(), set_aside: vec![bad.to_string()] };
    assert_eq!(live.roll_back(Rollback::clone).await, Ok(rollback.clone()));
    assert_eq!((live.rollback(), live.view().set_aside), (Some(rollback), vec![bad.to_string()]));
    assert!(!live.wants(&second));
    live.swap(second).await.expect("nothing is done");
    assert_eq!(live.digest(), old);
    assert_eq!(call(&live, 1).await, Ok(vec![Outcome::Skip]));
    assert_eq!(live.view().idle, 1, "it keeps instances again");
    live.swap(third).await.expect("it loads");
    assert_eq!(live.rollback(), None);
}

#[tokio::test]
async fn idle_instances_make_room_and_without_room_nobody_is_charged() {
    let engine = engine_with(1);
    let test = || Test { engine: Arc::clone(&engine), manifest: "config.ms = \"300\"", ..Test::default() };
    let slow = test().load(prebuilt("slow")).await.expect("it loads");
    let quick = test().load_odd(Odd::default()).await;
    assert_eq!((slow.view().idle, quick.view().idle), (0, 1), "the second took the room of the first, which was idle");
    let mut attempt = attempt(1, Duration::from_secs(60));
    let mut running = pin!(slow.call(&mut attempt));
    assert!(poll!(&mut running).is_pending());
    let error = failure(&quick).await;
    assert_eq!(error.class, Class::HostShortage, "{error}");
    assert!(running.await.outcomes.is_ok());
    assert_eq!(call(&quick, 1).await, Ok(vec![Outcome::Skip]), "and then there is room");
}

#[tokio::test]
async fn a_looping_guest_lets_others_run() {
    let looping = Test::default().load_odd(Odd { handle: "(loop $for_ever (br $for_ever))", ..Odd::default() }).await;
    let quick = Test::default().load_odd(Odd::default()).await;
    let mut attempt = attempt(1, Duration::from_millis(500));
    // On this one thread the quick ones run only because the looping one lets them.
    let (looped, ()) = tokio::join!(looping.call(&mut attempt), async {
        for _ in 0..10 {
            assert_eq!(call(&quick, 1).await, Ok(vec![Outcome::Skip]));
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(looped.outcomes.expect_err("it is stopped").class, Class::Deadline);
}
