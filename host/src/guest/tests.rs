//! Guests that keep to the contract and guests that break it, called through the seam.

mod calls;
mod loads;
pub(crate) mod odd;
mod sdk;
mod swaps;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tempfile::TempDir;
use tidemill_core::partition::CallRecord;
use tidemill_core::record::{Record, TopicPartition};
use tokio_util::sync::CancellationToken;

use self::odd::Odd;
use super::check::Plan;
use super::live::LiveHandler;
use super::*;
use crate::attempt::Guarantee;
use crate::broker::{Position, Producer, SendError, WhenFull};
use crate::config::manifest::HandlerSpec;
use crate::metrics::Metrics;
use crate::store::Sql;

/// How a test's handler is set up.
struct Test {
    engine: Arc<Engine>,
    manifest: &'static str,
    limits: Limits,
    sql: Option<Arc<dyn Sql>>,
}

impl Default for Test {
    fn default() -> Self {
        let limits = Limits { memory_bytes_max: 64 << 20, ..Limits::default() };
        Self { engine: engine(), manifest: "", limits, sql: None }
    }
}

impl Test {
    async fn load(self, bytes: Vec<u8>) -> Result<LiveHandler, LoadError> {
        let metrics = Metrics::new().handler("h");
        let backends = Backends {
            kv: BTreeMap::new(),
            sql: self.sql.map(|sql| ("main".to_owned(), sql)).into_iter().collect(),
            secrets: BTreeMap::new(),
            producer: Arc::new(NoProducer),
        };
        let mut plan = Plan::new(&spec(self.manifest), &backends, &metrics)?;
        plan.limits = self.limits;
        LiveHandler::with(&self.engine, plan, metrics, bytes).await
    }

    async fn load_odd(self, odd: Odd) -> LiveHandler {
        self.load(odd.build()).await.expect("it loads")
    }
}

/// One engine for all tests that do not count instances.
pub(crate) fn engine() -> Arc<Engine> {
    static ENGINE: OnceLock<(TempDir, Arc<Engine>)> = OnceLock::new();
    let make = || {
        let state = tempfile::tempdir().expect("a folder");
        let engine = Engine::with_instances(state.path(), 64).expect("an engine");
        (state, Arc::new(engine))
    };
    Arc::clone(&ENGINE.get_or_init(make).1)
}

/// An engine with so much room.
fn engine_with(instances: u32) -> Arc<Engine> {
    let state = tempfile::tempdir().expect("a folder");
    Arc::new(Engine::with_instances(state.path(), instances).expect("an engine"))
}

pub(crate) fn prebuilt(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/prebuilt").join(name).with_extension("wasm");
    std::fs::read(&path).expect("guests are checked in")
}

/// The name of a component's revision.
fn spec(manifest: &str) -> HandlerSpec {
    let folder = tempfile::tempdir().expect("a folder");
    let own = folder.path().join("h");
    std::fs::create_dir(&own).expect("a folder");
    std::fs::write(own.join("h.wasm"), "").expect("written");
    std::fs::write(own.join("handler.toml"), format!("topics = [\"orders\"]\n{manifest}")).expect("written");
    HandlerSpec::read(&own).expect("a valid manifest")
}

fn attempt(records: usize, deadline: Duration) -> Attempt {
    let record = |offset| {
        let record = Record::single(offset, Some(b"key"), Some(b"value"));
        CallRecord { record, lane: 0, tries: 0, charged: 0, age: Duration::ZERO }
    };
    let records = (0..records as i64).map(record).collect();
    Attempt::new(
        TopicPartition::new("orders", 0),
        1,
        records,
        Guarantee::AtLeastOnce,
        deadline,
        CancellationToken::new(),
    )
}

/// Calls with so many records and plenty of time.
async fn call(live: &LiveHandler, records: usize) -> Result<Vec<Outcome>, CallError> {
    live.call(&mut attempt(records, Duration::from_secs(60))).await.outcomes
}

/// The class of the failure of a call of one record within a short deadline.
async fn failure(live: &LiveHandler) -> CallError {
    live.call(&mut attempt(1, Duration::from_millis(100))).await.outcomes.expect_err("the call fails")
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
}
