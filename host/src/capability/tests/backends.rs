//! What the tests grant: stores that work, hang or are away, and a broker that follows a script.

use std::io::Write;
use std::sync::{Mutex, MutexGuard};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending};
use tracing_subscriber::fmt::MakeWriter;

use super::super::*;
use crate::broker::{Outgoing, Position, Producer, SendError, WhenFull};
use crate::config::units::Secret;
use crate::metrics::Metrics;
use crate::store::memory::{self, MemoryKeyValue};
use crate::store::{KeyPage, KeyValue, KeyValueError};
use tidemill_core::grants::Grants;

pub(super) fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// A view with everything granted that [`configured`] has.
pub(super) fn view() -> View {
    let grants = Grants {
        kv: ["totals".to_owned()].into(),
        secrets: ["token".to_owned()].into(),
        produce: ["out".to_owned()].into(),
        ..Grants::default()
    };
    with(grants, &Script::default(), &Metrics::new())
}

pub(super) fn with(grants: Grants, script: &Script, metrics: &Metrics) -> View {
    granted(grants, &configured(script), metrics)
}

/// A view in a call that has ten seconds.
pub(super) fn granted(grants: Grants, backends: &Backends, metrics: &Metrics) -> View {
    let config = BTreeMap::from([("currency".to_owned(), "EUR".to_owned())]);
    let granted = Granted::resolve("orders", &grants, &config, backends).expect("configured");
    let mut view = View::new(Arc::new(granted), "orders".into(), "0123456789abcdef".into(), metrics.handler("orders"));
    view.begin(
        TopicPartition::new("orders", 0),
        Guarantee::AtLeastOnce,
        None,
        Instant::now() + Duration::from_secs(10),
    );
    view
}

pub(super) fn configured(script: &Script) -> Backends {
    let totals: Arc<dyn KeyValue> = Arc::new(MemoryKeyValue::new(memory::Config::default()));
    Backends {
        kv: BTreeMap::from([("totals".to_owned(), totals)]),
        sql: BTreeMap::new(),
        secrets: BTreeMap::from([("token".to_owned(), Secret::new("hunter2"))]),
        producer: Arc::new(script.clone()),
    }
}

/// A broker that numbers what it gets, or answers every record with the same error, or never.
#[derive(Clone, Default)]
pub(super) struct Script {
    sent: Arc<Mutex<Vec<Outgoing>>>,
    error: Option<SendError>,
    hangs: bool,
}

impl Script {
    pub(super) fn failing(error: SendError) -> Self {
        Self { error: Some(error), ..Self::default() }
    }

    pub(super) fn hanging() -> Self {
        Self { hangs: true, ..Self::default() }
    }

    pub(super) fn sent(&self) -> usize {
        self.log().len()
    }

    fn log(&self) -> MutexGuard<'_, Vec<Outgoing>> {
        self.sent.lock().expect("not poisoned")
    }
}

impl Producer for Script {
    fn send(
        &self,
        records: Vec<Outgoing>,
        when_full: WhenFull,
    ) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        assert_eq!(when_full, WhenFull::Wait);
        if self.hangs {
            return pending().boxed();
        }
        let mut log = self.log();
        let answer = |record| {
            log.push(record);
            let at = Position { partition: 0, offset: log.len() as i64 - 1 };
            self.error.clone().map_or(Ok(at), Err)
        };
        let answers = records.into_iter().map(answer).collect();
        async { answers }.boxed()
    }

    fn ready(&self) -> bool {
        true
    }
}

/// A store that fails every call in the same way: with the error, or by never answering.
#[derive(Debug)]
pub(super) struct Broken(pub(super) Option<KeyValueError>);

impl Broken {
    fn answer<T: Send + 'static>(&self) -> BoxFuture<'_, Result<T, KeyValueError>> {
        match self.0.clone() {
            Some(error) => async { Err(error) }.boxed(),
            None => pending().boxed(),
        }
    }
}

impl KeyValue for Broken {
    fn get(&self, _: String) -> BoxFuture<'_, Result<Option<Vec<u8>>, KeyValueError>> {
        self.answer()
    }
    fn set(&self, _: String, _: Vec<u8>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        self.answer()
    }
    fn set_with_ttl(&self, _: String, _: Vec<u8>, _: Duration) -> BoxFuture<'_, Result<(), KeyValueError>> {
        self.answer()
    }
    fn delete(&self, _: String) -> BoxFuture<'_, Result<(), KeyValueError>> {
        self.answer()
    }
    fn exists(&self, _: String) -> BoxFuture<'_, Result<bool, KeyValueError>> {
        self.answer()
    }
    fn list_keys(&self, _: Option<u64>) -> BoxFuture<'_, Result<KeyPage, KeyValueError>> {
        self.answer()
    }
    fn increment(&self, _: String, _: u64) -> BoxFuture<'_, Result<u64, KeyValueError>> {
        self.answer()
    }
    fn get_many(&self, _: Vec<String>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, KeyValueError>> {
        self.answer()
    }
    fn set_many(&self, _: Vec<(String, Vec<u8>)>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        self.answer()
    }
    fn delete_many(&self, _: Vec<String>) -> BoxFuture<'_, Result<(), KeyValueError>> {
        self.answer()
    }
    fn claim(&self, _: String, _: String, _: Option<Duration>) -> BoxFuture<'_, Result<bool, KeyValueError>> {
        self.answer()
    }
}

/// What was logged.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("text")
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
