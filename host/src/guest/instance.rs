//! One instance of a guest, in a store of its own: started by `init`, called with batches, dropped after any failure.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tidemill_core::lanes::Order;
use tidemill_core::retry::Class;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use wasmtime::component::ResourceTable;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::bindings::tidemill::guest::types::{self, Batch};
use super::clock::Clock;
use super::convert::{Ids, Rules, lower_headers, lower_records};
use super::entry::{Entered, Entry};
use super::failure::{self, Circumstances, classify, panicked};
use super::limits::{Limiter, Limits};
use super::output::{Sink, Speaker, Stream, Voice};
use super::{CallError, Outcome, Reason, packed};
use crate::attempt::{Attempt, Guarantee};
use crate::capability::{self, CapabilityView, Granted};
use crate::metrics::HandlerMetrics;

/// Random bytes that a guest gets at once.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

/// What a guest is started with; the same for all instances of a revision.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) handler: Arc<str>,
    pub(super) group: String,
    pub(super) revision: Arc<str>,
    pub(super) guarantee: Guarantee,
    pub(super) order: Order,
    pub(super) limits: Limits,
    pub(super) speaker: Arc<Speaker>,
    pub(super) granted: Arc<Granted>,
    /// The topics that are granted.
    pub(super) topics: BTreeSet<Arc<str>>,
    pub(super) metrics: Arc<HandlerMetrics>,
}

/// What the host keeps for one instance.
pub(super) struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    limiter: Limiter,
    deadline: Instant,
    /// The guest's monotonic clock counts from here.
    origin: Instant,
    voice: Arc<Voice>,
    capabilities: capability::View,
}

impl CapabilityView for State {
    fn capabilities(&mut self) -> &mut capability::View {
        &mut self.capabilities
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl State {
    fn new(setup: &Setup) -> Self {
        let voice = Arc::new(Voice::new(Arc::clone(&setup.speaker)));
        let sink = |stream| Sink { voice: Arc::clone(&voice), stream };
        // No environment, arguments, folders or network: what a guest may do comes from its grants alone.
        let wasi = WasiCtxBuilder::new()
            .stdout(sink(Stream::Stdout))
            .stderr(sink(Stream::Stderr))
            .max_random_size(RANDOM_BYTES_MAX)
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(setup.limits.handles_max);
        let capabilities = capability::View::new(
            Arc::clone(&setup.granted),
            Arc::clone(&setup.handler),
            Arc::clone(&setup.revision),
            Arc::clone(&setup.metrics),
        );
        let now = Instant::now();
        Self { wasi, table, limiter: Limiter::new(&setup.limits), deadline: now, origin: now, voice, capabilities }
    }

    pub(super) fn clock(&mut self) -> Clock<'_> {
        Clock { table: &mut self.table, origin: self.origin.into_std() }
    }
}

/// Why an instance did not start.
#[derive(Debug)]
pub(super) enum StartError {
    /// `init` answered with `err`.
    Refused(Reason),
    /// Anything else.
    Failed(CallError),
}

/// A started guest.
pub(super) struct Instance {
    store: Store<State>,
    guest: Entered,
    /// Records on their way into the guest.
    records: packed::Records,
    setup: Arc<Setup>,
    calls_left: u32,
    expires: Instant,
    idle_since: Instant,
    _room: OwnedSemaphorePermit,
}

impl Instance {
    /// Instantiates a guest and calls its `init`.
    pub(super) async fn start(
        guest: &Entry,
        setup: &Arc<Setup>,
        room: OwnedSemaphorePermit,
    ) -> Result<Self, StartError> {
        let limits = &setup.limits;
        let mut store = Store::new(guest.engine(), State::new(setup));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(limits.transfer_bytes_max);
        store.set_max_component_handles(limits.handles_max);
        store.epoch_deadline_callback(|store| {
            if Instant::now() >= store.data().deadline {
                return Ok(UpdateDeadline::Interrupt);
            }
            Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
        });
        let deadline = Instant::now() + limits.init_deadline;
        arm(&mut store, deadline);
        let start = async {
            let guest = guest.enter(&mut store).await?;
            let answer = guest.handler.tidemill_guest_handler().call_init(&mut store, setup.lower()).await?;
            wasmtime::error::Ok((guest, answer))
        };
        let started = guarded(deadline, start).await;
        let words = store.data().voice.end_call();
        store.data_mut().capabilities.end().await;
        let rules =
            Rules { topics: &setup.topics, reason_bytes_max: limits.reason_bytes_max, something_is_away: false };
        match started {
            Ok(Ok((guest, Ok(())))) => {
                let now = Instant::now();
                let calls_left = spread(limits.reuse_calls_max);
                let age = Duration::from_millis(u64::from(spread(
                    limits.reuse_age_max.as_millis().try_into().unwrap_or(u32::MAX),
                )));
                Ok(Self {
                    store,
                    guest,
                    records: packed::Records::default(),
                    setup: Arc::clone(setup),
                    calls_left,
                    expires: now + age,
                    idle_since: now,
                    _room: room,
                })
            }
            Ok(Ok((_, Err(reason)))) => Err(StartError::Refused(rules.reason(reason))),
            Ok(Err(error)) => Err(StartError::Failed(classify(&error, &around(&store, limits, words)))),
            Err(error) => Err(StartError::Failed(error)),
        }
    }

    /// Calls the guest. After an error the instance must be dropped.
    pub(super) async fn handle(&mut self, attempt: &mut Attempt) -> Result<Vec<Outcome>, CallError> {
        let deadline = Instant::now() + attempt.deadline;
        arm(&mut self.store, deadline);
        let state = self.store.data_mut();
        state.voice.begin_call(&attempt.from);
        state.capabilities.begin(attempt.from.clone(), attempt.guarantee, attempt.owner.clone(), deadline);
        self.calls_left = self.calls_left.saturating_sub(1);

        let answer = match &self.guest.packed {
            Some(packed) => {
                self.records.write(&attempt.from.topic, &attempt.records)?;
                let (topic, partition) = (&*attempt.from.topic, attempt.from.partition);
                let (millis, records) = (millis(attempt.deadline), self.records.bytes());
                let packed = packed.tidemill_guest_packed_handler();
                let call = packed.call_handle(&mut self.store, topic, partition, millis, attempt.delivery, records);
                guarded(deadline, call).await.map(|answer| answer.map(|given| given.map(Given::Packed)))
            }
            None => {
                let ids = Ids::new(attempt);
                let headers = lower_headers(&attempt.records)?;
                let records = lower_records(&attempt.records, &ids, &headers);
                let batch = Batch {
                    topic: &attempt.from.topic,
                    partition: attempt.from.partition,
                    deadline_ms: millis(attempt.deadline),
                    delivery: attempt.delivery,
                    records: &records,
                    attributes: &[],
                };
                let call = self.guest.handler.tidemill_guest_handler().call_handle(&mut self.store, batch);
                guarded(deadline, call).await.map(|answer| answer.map(|given| given.map(Given::Typed)))
            }
        };
        let state = self.store.data_mut();
        let words = state.voice.end_call();
        attempt.effects = state.capabilities.end().await;
        let limits = &self.setup.limits;
        let rules = Rules {
            topics: &self.setup.topics,
            reason_bytes_max: limits.reason_bytes_max,
            something_is_away: attempt.effects.unavailable.is_some(),
        };
        let error = match answer {
            Ok(Ok(Ok(Given::Typed(outcomes)))) => return rules.lift(outcomes, attempt.records.len()),
            Ok(Ok(Ok(Given::Packed(buffer)))) => {
                return packed::outcomes(&rules, buffer, &attempt.records, &self.records);
            }
            Ok(Ok(Err(reason))) => {
                let Reason { code, detail } = rules.reason(reason);
                CallError { class: Class::Retry, detail: format!("{code}: {detail}") }
            }
            Ok(Err(error)) => classify(&error, &around(&self.store, limits, words)),
            Err(error) => error,
        };
        match &attempt.effects.unavailable {
            // It waited for what is away: that is nobody's fault.
            Some(away) if error.class == Class::Deadline => {
                Err(CallError { class: Class::Unavailable, detail: format!("{}; {away}", error.detail) })
            }
            Some(_) | None => Err(error),
        }
    }

    /// Whether the instance may be used again, or has reached one of its recycling limits.
    pub(super) fn is_spent(&self) -> bool {
        self.calls_left == 0 || self.store.data().limiter.is_high() || Instant::now() >= self.expires
    }

    /// Notes that nobody uses the instance now.
    pub(super) fn rest(&mut self) {
        self.idle_since = Instant::now();
    }

    /// Whether nobody has used it for long.
    pub(super) fn is_stale(&self) -> bool {
        self.idle_since.elapsed() >= self.setup.limits.reuse_idle_max
    }
}

impl Setup {
    fn lower(&self) -> types::Setup<'_> {
        types::Setup {
            handler: &self.handler,
            group: &self.group,
            revision: &self.revision,
            guarantee: match self.guarantee {
                Guarantee::AtMostOnce => types::Guarantee::AtMostOnce,
                Guarantee::AtLeastOnce => types::Guarantee::AtLeastOnce,
                Guarantee::KafkaTransaction => types::Guarantee::KafkaTransaction,
                Guarantee::SqlTransaction => types::Guarantee::SqlTransaction,
            },
            order: match self.order {
                Order::Partition => types::Order::Partition,
                Order::Key => types::Order::Key,
                Order::Unordered => types::Order::Unordered,
            },
            attributes: &[],
        }
    }
}

/// What a guest answered, in either form.
enum Given {
    Typed(Vec<types::Outcome>),
    Packed(Vec<u8>),
}

fn millis(deadline: Duration) -> u32 {
    deadline.as_millis().try_into().unwrap_or(u32::MAX)
}

/// Prepares a store for a call that ends at the deadline.
fn arm(store: &mut Store<State>, deadline: Instant) {
    store.set_epoch_deadline(1);
    let state = store.data_mut();
    state.deadline = deadline;
    state.limiter.begin_call();
}

/// Runs a call of the guest: it ends at the deadline even while it waits, and a panic beneath it ends only the call.
async fn guarded<T>(deadline: Instant, call: impl Future<Output = T>) -> Result<T, CallError> {
    match timeout_at(deadline, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(panic)) => Err(panicked(&*panic)),
        Err(_elapsed) => Err(failure::past_deadline()),
    }
}

fn around(store: &Store<State>, limits: &Limits, last_words: String) -> Circumstances {
    let memory_refused = store.data().limiter.refusal();
    Circumstances { memory_refused, last_words, detail_bytes_max: limits.reason_bytes_max }
}

/// A bound give or take a tenth, so that instances that started together are not replaced together.
fn spread(bound: u32) -> u32 {
    let fifth = bound / 5;
    bound - fifth / 2 + fastrand::u32(0..=fifth)
}
