//! Guests that keep to the contract and guests that break it.

mod odd;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::grants::Grants;
use tidemill_core::partition::CallRecord;
use tidemill_core::record::{Record, TopicPartition};
use tidemill_core::retry::Class;

use self::odd::Odd;
use super::live::LiveHandler;
use super::*;
use crate::broker::{Position, Producer, SendError, WhenFull};
use crate::config::manifest::HandlerSpec;
use crate::metrics::Metrics;

#[tokio::test]
async fn a_guest_answers_for_each_record() {
    let live = load(Odd::default()).await.expect("it loads");
    let called = call(&live, 3).await;
    assert_eq!(called.outcomes, Ok(vec![Outcome::Skip; 3]));
    assert_eq!(called.revision, live.digest());
}

#[tokio::test]
async fn the_identity_guest_gives_back_what_it_got() {
    let grants = Grants { produce: ["identity.out".to_owned()].into(), ..Grants::default() };
    let live = load_bytes(prebuilt("identity"), grants).await.expect("it loads");
    let outcomes = call(&live, 2).await.outcomes.expect("it answers");
    let [Outcome::Ack(outputs), Outcome::Ack(_)] = &outcomes[..] else { panic!("two acks, not {outcomes:?}") };
    assert_eq!(outputs.len(), 1);
    assert_eq!(&*outputs[0].topic, "identity.out");
    assert_eq!((outputs[0].key.as_deref(), outputs[0].value.as_deref()), (Some(&b"key"[..]), Some(&b"value"[..])));
}

#[tokio::test]
async fn missing_outcomes_are_untouched_and_surplus_ones_an_error() {
    let short = load(Odd { surplus: -1, ..Odd::default() }).await.expect("it loads");
    assert_eq!(call(&short, 2).await.outcomes, Ok(vec![Outcome::Skip, Outcome::Untouched]));
    let long = load(Odd { surplus: 1, ..Odd::default() }).await.expect("it loads");
    assert_eq!(class(&long).await, Class::Malformed);
}

#[tokio::test]
async fn each_way_to_fail_has_its_class_and_the_next_call_a_fresh_instance() {
    let first_record_only = "(if (i32.eq (i32.load (local.get 0)) (i32.load (local.get 0))) (then unreachable))";
    for (handle, fields, expected) in [
        (first_record_only, "", Class::Trap),
        ("(loop $for_ever (br $for_ever))", "", Class::Deadline),
        ("(call $deeper)", "(func $deeper (call $deeper) (call $deeper))", Class::Trap),
        ("(if (i32.eq (memory.grow (i32.const 60000)) (i32.const -1)) (then unreachable))", "", Class::Memory),
        ("(if (i32.eq (memory.grow (i32.const 100)) (i32.const -1)) (then unreachable))", "", Class::Retry),
    ] {
        let live = load(Odd { handle, fields, ..Odd::default() }).await.expect("it loads");
        let outcomes = call_within(&live, 1, Duration::from_millis(200)).await.outcomes;
        match outcomes {
            Ok(_) => assert_eq!(expected, Class::Retry, "only the last obeys its limit: {handle}"),
            Err(error) => assert_eq!(error.class, expected, "{handle}: {error}"),
        }
    }
}

async fn class(live: &LiveHandler) -> Class {
    call(live, 1).await.outcomes.expect_err("the call fails").class
}

async fn call(live: &LiveHandler, records: usize) -> Called {
    call_within(live, records, Duration::from_secs(10)).await
}

async fn call_within(live: &LiveHandler, records: usize, deadline: Duration) -> Called {
    let record = |offset| {
        let record = Record::single(offset, Some(b"key"), Some(b"value"));
        CallRecord { record, lane: 0, tries: 0, charged: 0 }
    };
    let records = (0..records as i64).map(record).collect();
    let mut attempt = Attempt::new(TopicPartition::new("orders", 0), 1, records, deadline);
    live.call(&mut attempt).await
}

async fn load(odd: Odd) -> Result<LiveHandler, LoadError> {
    load_bytes(odd.build(), Grants::default()).await
}

async fn load_bytes(bytes: Vec<u8>, grants: Grants) -> Result<LiveHandler, LoadError> {
    let engine = Arc::new(Engine::with_instances(Path::new("."), 8).expect("an engine"));
    let metrics = Metrics::new().handler("h");
    LiveHandler::load(&engine, &spec(grants), &backends(), metrics, bytes).await
}

fn prebuilt(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/prebuilt").join(name).with_extension("wasm");
    std::fs::read(&path).expect("guests are checked in")
}

fn spec(grants: Grants) -> HandlerSpec {
    let folder = tempfile::tempdir().expect("a folder");
    let own = folder.path().join("h");
    std::fs::create_dir(&own).expect("a folder");
    std::fs::write(own.join("h.wasm"), "").expect("written");
    std::fs::write(own.join("handler.toml"), "topics = [\"orders\"]\nlimits.memory = \"64MiB\"").expect("written");
    HandlerSpec { grants, ..HandlerSpec::read(&own).expect("a valid manifest") }
}

fn backends() -> Backends {
    Backends { kv: BTreeMap::new(), sql: BTreeMap::new(), secrets: BTreeMap::new(), producer: Arc::new(NoProducer) }
}

/// Nothing can be sent.
struct NoProducer;

impl Producer for NoProducer {
    fn send(&self, records: Vec<Outgoing>, _: WhenFull) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        Box::pin(async move { records.iter().map(|_| Err(SendError::QueueFull)).collect() })
    }

    fn ready(&self) -> bool {
        false
    }

    fn warm<'a>(&'a self, _: &'a [Arc<str>], _: Duration) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async { Ok(()) })
    }

    fn flush(&self, _: Duration) -> BoxFuture<'_, usize> {
        Box::pin(async { 0 })
    }
}
