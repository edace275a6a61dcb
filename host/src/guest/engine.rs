//! The sandbox of this host: one wasmtime engine, one linker, and a bounded number of instances.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::cache::{Cache, NotPrivate};
use super::clock;
use super::instance::State;
use super::revision::Revision;
use crate::capability;

/// How often running guests look at their deadline and let others run.
const TICK: Duration = Duration::from_millis(10);
/// Idle instances are looked through every so many ticks.
const TICKS_PER_SWEEP: u32 = 100;
/// How long a call waits for an instance when all are in use.
const SHORTAGE_WAIT: Duration = Duration::from_secs(1);
/// The largest linear memory that any handler may have; `limits.memory` of a manifest is at most this.
const MEMORY_BYTES_MAX: usize = 1 << 30;
/// Stack of a guest's own code; what its fiber has beyond is for host functions, whose overflow would end the process.
const GUEST_STACK_BYTES: usize = 512 << 10;
const FIBER_STACK_BYTES: usize = 1 << 20;

/// The sandbox could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("the WebAssembly engine can't be set up: {0}")]
pub struct EngineError(String);

/// The sandbox: compiles guests and holds their instances. One for the whole host.
#[derive(Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    wasm: wasmtime::Engine,
    linker: Linker<State>,
    /// One permit for each instance, idle ones included.
    instances: Arc<Semaphore>,
    /// One permit for each compilation: compiling must not starve the guests that run.
    compilations: Semaphore,
    /// What was compiled before; `None` where no private folder can be had.
    cache: Option<Cache>,
    /// All revisions that may hold idle instances.
    revisions: Mutex<Vec<Weak<Revision>>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("instances", &self.instances.available_permits()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Instances of all handlers together, idle ones included.
    pub const INSTANCES_MAX: u32 = 1000;

    /// Sets the sandbox up; compiled guests are kept in a private folder below `state`.
    pub fn new(state: &Path) -> Result<Self, EngineError> {
        Self::with_instances(state, Self::INSTANCES_MAX)
    }

    /// The same with another number of instances.
    pub fn with_instances(state: &Path, instances_max: u32) -> Result<Self, EngineError> {
        let wasm = pooled_or_on_demand(instances_max)?;
        let linker = link(&wasm).map_err(|error| EngineError(format!("{error:#}")))?;
        let compilers = thread::available_parallelism().map_or(1, usize::from).div_ceil(2);
        let inner = Arc::new(Inner {
            wasm,
            linker,
            instances: Arc::new(Semaphore::new(instances_max as usize)),
            compilations: Semaphore::new(compilers),
            cache: open_cache(state),
            revisions: Mutex::default(),
        });
        let watched = Arc::downgrade(&inner);
        let ticker = thread::Builder::new().name("guest-ticker".to_owned()).spawn(move || tick(&watched));
        ticker.map_err(|error| EngineError(format!("no thread for deadlines: {error}")))?;
        Ok(Self { inner })
    }

    pub(super) fn wasm(&self) -> &wasmtime::Engine {
        &self.inner.wasm
    }

    pub(super) fn linker(&self) -> &Linker<State> {
        &self.inner.linker
    }

    /// Compiles a component off the hot path, or finds it compiled; the outer error is the host's own.
    pub(super) async fn compile(
        &self,
        digest: Arc<str>,
        bytes: Vec<u8>,
    ) -> Result<wasmtime::Result<Component>, tokio::task::JoinError> {
        let _turn = self.inner.compilations.acquire().await.expect("the engine never closes its semaphores");
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.compile(&digest, &bytes)).await
    }

    /// The compiled component of this digest, if it is kept.
    pub(super) fn kept(&self, digest: &str) -> Option<Component> {
        self.inner.cache.as_ref()?.get(&self.inner.wasm, digest)
    }

    /// Lets idle instances of this revision be found when others need room.
    pub(super) fn register(&self, revision: &Arc<Revision>) {
        self.inner.revisions().push(Arc::downgrade(revision));
    }

    /// Room for one more instance: free, taken from an idle one, or waited for a short while.
    pub(super) async fn room(&self, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        let instances = &self.inner.instances;
        if let Ok(permit) = Arc::clone(instances).try_acquire_owned() {
            return Some(permit);
        }
        self.inner.give_up_an_idle_instance();
        let until = deadline.min(Instant::now() + SHORTAGE_WAIT);
        timeout_at(until, Arc::clone(instances).acquire_owned()).await.ok()?.ok()
    }

    /// How many more instances there is room for, those that are idle counted as taken.
    #[cfg(test)]
    pub(super) fn room_left(&self) -> usize {
        self.inner.instances.available_permits()
    }
}

impl Inner {
    fn compile(&self, digest: &str, bytes: &[u8]) -> wasmtime::Result<Component> {
        let Some(cache) = &self.cache else { return Component::new(&self.wasm, bytes) };
        if let Some(component) = cache.get(&self.wasm, digest) {
            return Ok(component);
        }
        let component = Component::new(&self.wasm, bytes)?;
        cache.put(&self.wasm, digest, &component);
        Ok(component)
    }

    fn revisions(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Revision>>> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up_an_idle_instance(&self) {
        let revisions: Vec<_> = self.revisions().iter().filter_map(Weak::upgrade).collect();
        let most_idle = revisions.iter().max_by_key(|revision| revision.idle());
        if let Some(revision) = most_idle {
            revision.drop_an_idle_instance();
        }
    }

    /// Drops instances that nobody has used for long.
    fn sweep(&self) {
        let mut alive = Vec::new();
        self.revisions().retain(|revision| match revision.upgrade() {
            Some(revision) => {
                alive.push(revision);
                true
            }
            None => false,
        });
        for revision in alive {
            revision.sweep();
        }
    }
}

/// Turns the clock of all guests until the engine is gone.
fn tick(inner: &Weak<Inner>) {
    for ticks in 1_u32.. {
        thread::sleep(TICK);
        let Some(inner) = inner.upgrade() else { return };
        inner.wasm.increment_epoch();
        if ticks.is_multiple_of(TICKS_PER_SWEEP) {
            inner.sweep();
        }
    }
}

fn open_cache(state: &Path) -> Option<Cache> {
    let refused =
        |error: &NotPrivate| tracing::warn!(%error, "compiled components are not kept: each start compiles them anew");
    Cache::open(&state.join("compiled")).inspect_err(refused).ok()
}

/// Everything that a guest can import is linked once; what it may do is decided by its grants.
fn link(wasm: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(wasm);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    clock::add_to_linker(&mut linker)?;
    capability::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Instances from a pool of reserved address space, or, where there is not enough of it, each on its own.
fn pooled_or_on_demand(instances_max: u32) -> Result<wasmtime::Engine, EngineError> {
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances_max)));
    let pooled = wasmtime::Engine::new(&config);
    pooled.or_else(|error| {
        tracing::warn!(
            error = format!("{error:#}"),
            "not enough address space for a pool of instances: fresh ones are slower"
        );
        config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
        wasmtime::Engine::new(&config).map_err(|error| EngineError(format!("{error:#}")))
    })
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        // Calls of sync-typed exports are cheaper without it by half.
        .concurrency_support(false)
        .max_wasm_stack(GUEST_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(20))
        // Shared memories are outside of our limiter, and 64-bit ones outside of the bound on one bulk copy.
        .shared_memory(false)
        .wasm_memory64(false)
        .relaxed_simd_deterministic(true)
        // One thread for each compilation; how many run at once is ours to say.
        .parallel_compilation(false)
        .native_unwind_info(!cfg!(target_env = "musl"));
    config
}

fn pool(instances_max: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances_max)
        // A component is several core instances: adapters and shims count.
        .total_core_instances(instances_max * 8)
        .total_memories(instances_max)
        .total_tables(instances_max * 4)
        .total_stacks(instances_max + 16)
        .max_component_instance_size(10 << 20)
        .max_core_instance_size(10 << 20)
        .max_core_instances_per_component(200)
        .max_memories_per_component(32)
        .max_tables_per_component(64)
        .max_memories_per_module(2)
        .max_tables_per_module(4)
        .table_elements(100_000)
        .max_memory_size(MEMORY_BYTES_MAX)
        .linear_memory_keep_resident(1 << 20)
        .table_keep_resident(64 << 10)
        .max_unused_warm_slots(instances_max.min(100))
        .decommit_batch_size(16);
    pool
}
