//! What a guest may do to the world: its imports, linked once, and one [`View`] for each instance.
//!
//! A handler's grants are resolved when it is loaded ([`Granted`]); a host call finds what it may use there and nowhere
//! else. What a call did, and whether something was away, goes back with the attempt as [`Effects`].

mod config;
mod granted;
mod kv;
mod kv_extra;
mod log;
mod produce;
mod secrets;
mod sql;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::grants::{Denied, Kind};
use tidemill_core::record::TopicPartition;
use tokio::time::{Instant, timeout};
use wasmtime::component::{HasSelf, Linker, ResourceTable};

pub use self::granted::{Backends, Granted, Ungranted, is_offered, offered};
pub use self::kv::Bucket;
pub(crate) use self::log::printable;
pub use self::sql::{Connection, OwnTransaction, Transaction};
use crate::attempt::{Effects, Guarantee, Ownership};
use crate::guest::bindings::Platform;
use crate::guest::bindings::tidemill::guest::types;
use crate::metrics::{HandlerMetrics, HostCallResult};

/// Most resources (buckets, connections, transactions) that an instance may hold; one more is a trap, which makes a
/// fresh instance.
const RESOURCES_MAX: usize = 1024;
/// How long host calls may take that a guest makes before its first batch, in `init`.
const INIT_DEADLINE: Duration = Duration::from_secs(10);
/// How long the end of a call waits for the transactions that it left open; after that they are given up, which also
/// rolls them back.
const ROLLBACK_DEADLINE: Duration = Duration::from_secs(1);
/// Most characters of a name or of a store's words that are repeated in a log line or an error.
const TEXT_MAX: usize = 1024;

/// What a store's data must have for [`add_to_linker`].
pub trait CapabilityView: Send {
    /// The instance's view.
    fn capabilities(&mut self) -> &mut View;
}

/// Links every interface of the contract. Which of them a component may import is [`Granted::demands`]' decision.
pub fn add_to_linker<T: CapabilityView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    Platform::add_to_linker::<T, HasSelf<View>>(linker, T::capabilities)
}

/// What one instance sees of the world; the host side of all its imports.
pub struct View {
    granted: Arc<Granted>,
    handler: Arc<str>,
    /// Its first twelve characters.
    revision: Arc<str>,
    metrics: Arc<HandlerMetrics>,
    table: ResourceTable,
    sessions: BTreeMap<Arc<str>, sql::Session>,
    /// Counts calls, so that what belongs to an earlier one is told apart.
    calls: u64,
    call: Call,
}

/// The call that the guest is in.
struct Call {
    from: Option<TopicPartition>,
    guarantee: Guarantee,
    /// Where the delivery's transaction comes from, if it has one.
    owner: Option<Arc<Ownership>>,
    started: Instant,
    deadline: Instant,
    /// How long stores and brokers had it.
    waited: Duration,
    effects: Effects,
}

/// What the host has to know of a backend's error: whether it says that the backend is away.
trait Away: Display {
    fn is_away(&self) -> bool;
}

/// An interface of types alone.
impl types::Host for View {}

impl View {
    /// The view of a fresh instance; until the first [`View::begin`] its guest is in `init`.
    pub fn new(granted: Arc<Granted>, handler: Arc<str>, revision: Arc<str>, metrics: Arc<HandlerMetrics>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        let revision = crate::attempt::short(&revision).into();
        let call = Call::new(None, Guarantee::AtLeastOnce, Instant::now() + INIT_DEADLINE);
        Self { granted, handler, revision, metrics, table, sessions: BTreeMap::new(), calls: 0, call }
    }

    /// Begins a call. Host calls wait for nothing beyond its deadline.
    pub fn begin(
        &mut self,
        from: TopicPartition,
        guarantee: Guarantee,
        owner: Option<Arc<Ownership>>,
        deadline: Instant,
    ) {
        self.calls += 1;
        self.call = Call { owner, ..Call::new(Some(from), guarantee, deadline) };
    }

    /// Ends a call, however it ended: rolls back the guest's own transactions that it left open, gives back its connections
    /// and says what its host calls did; the delivery's transaction, if one is open, goes back with that. Handles that the guest kept stay good: a connection is taken anew when it is used.
    pub async fn end(&mut self) -> Effects {
        let rollbacks = self.sessions.values_mut().map(sql::Session::close);
        if timeout(ROLLBACK_DEADLINE, futures_util::future::join_all(rollbacks)).await.is_err() {
            tracing::warn!(handler = %self.handler, "a transaction that a call left open was not rolled back in time; its connection is given up");
        }
        self.say_dropped_lines();
        std::mem::take(&mut self.call.effects)
    }

    /// Waits for a backend on behalf of the guest, counts the result and notes a backend that is away.
    ///
    /// A backend that takes too long is answered for with `late`.
    async fn ask<T, E: Away>(
        &mut self,
        capability: &'static str,
        work: impl Future<Output = Result<T, E>>,
        late: fn(String) -> E,
    ) -> Result<T, E> {
        let answer = match self.wait(work).await {
            Ok(answer) => answer,
            Err(time) => {
                let text = format!("no answer in {} ms, which is what the call had left for it", time.as_millis());
                self.late(capability, &text);
                return Err(late(text));
            }
        };
        match &answer {
            Ok(_) => self.count(capability, HostCallResult::Ok),
            Err(error) if error.is_away() => self.away(capability, error),
            Err(_) => self.count(capability, HostCallResult::Failed),
        }
        answer
    }

    /// Waits no longer than the call can spare; `Err` is how long that was.
    async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Duration> {
        let started = Instant::now();
        let spare = self.call.spare(started);
        let done = timeout(spare, work).await;
        self.call.waited += started.elapsed();
        done.map_err(|_| spare)
    }

    /// Counts a backend that said that it is away.
    fn away(&mut self, capability: &'static str, error: &dyn Display) {
        self.count(capability, HostCallResult::Unavailable);
        self.call.effects.unavailable.get_or_insert_with(|| log::printable(&error.to_string(), TEXT_MAX));
    }

    /// Counts a backend that did not answer in time. It is taken for away only if waiting took half of the call's time:
    /// a guest that used up its time itself does not get its record back for free.
    fn late(&mut self, capability: &'static str, text: &str) {
        if self.call.waited * 2 >= self.call.deadline - self.call.started {
            self.away(capability, &format_args!("`{capability}`: {text}"));
        } else {
            self.count(capability, HostCallResult::Unavailable);
        }
    }

    fn count(&self, capability: &'static str, result: HostCallResult) {
        self.metrics.host_call(capability, result);
    }

    /// Whether the operator granted `name`; if not, that is counted and said.
    fn check(&mut self, capability: &'static str, kind: Kind, name: &str) -> Result<(), Denied> {
        self.granted.grants.check(kind, name).map_err(|denied| {
            self.count(capability, HostCallResult::Denied);
            let denied = Denied { name: log::printable(&denied.name, TEXT_MAX), ..denied };
            self.warn(&denied);
            denied
        })
    }
}

impl Call {
    fn new(from: Option<TopicPartition>, guarantee: Guarantee, deadline: Instant) -> Self {
        let started = Instant::now();
        let effects = Effects::default();
        Self { from, guarantee, owner: None, started, deadline: deadline.max(started), waited: Duration::ZERO, effects }
    }

    /// How long a host call may wait now: nine tenths of what is left, so that the guest still has time to say what
    /// becomes of its records.
    fn spare(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now) * 9 / 10
    }
}
