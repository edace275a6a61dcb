//! One immutable build of a guest with its configuration, and the instances of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidemill_core::retry::Class;
use tokio::time::Instant;

use super::engine::Engine;
use super::entry::Entry;
use super::instance::{Instance, Setup, StartError};
use super::pool::Pool;
use super::succession::Runs;
use super::{CallError, Outcome};
use crate::attempt::Attempt;
use crate::config::manifest::Isolation;

/// A revision: what a call runs on from its beginning to its end (REV-1).
pub(super) struct Revision {
    engine: Arc<Engine>,
    guest: Entry,
    setup: Arc<Setup>,
    isolation: Isolation,
    /// What the component demands, by the names of its imports.
    imports: Vec<String>,
    /// Empty unless instances are used again; closed while another revision is live.
    pool: Pool<Instance>,
    in_flight: AtomicUsize,
}

impl std::fmt::Debug for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revision").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

/// Counts a call while it runs.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Runs for Revision {
    /// The digest of the component's bytes.
    fn digest(&self) -> &Arc<str> {
        &self.setup.revision
    }

    async fn call(&self, attempt: &mut Attempt) -> Result<Vec<Outcome>, CallError> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let _in_flight = InFlight(&self.in_flight);
        let mut instance = match self.pool.take() {
            Some(instance) => instance,
            None => self.start(Instant::now() + attempt.deadline).await.map_err(|error| self.not_started(error))?,
        };
        let outcomes = instance.handle(attempt).await?;
        if self.isolation == Isolation::Reuse {
            self.keep(instance);
        }
        Ok(outcomes)
    }

    fn takes_over(&self) {
        self.pool.open();
        self.setup.metrics.live(self.digest());
    }

    /// What is idle goes, and what runs is dropped when it returns.
    fn retire(&self) {
        self.pool.close();
    }
}

impl Revision {
    pub(super) fn new(
        engine: &Arc<Engine>,
        guest: Entry,
        setup: Setup,
        isolation: Isolation,
        imports: Vec<String>,
    ) -> Arc<Self> {
        let revision = Arc::new(Self {
            engine: Arc::clone(engine),
            guest,
            setup: Arc::new(setup),
            isolation,
            imports,
            pool: Pool::new(),
            in_flight: AtomicUsize::new(0),
        });
        engine.register(&revision);
        revision
    }

    pub(super) fn imports(&self) -> &[String] {
        &self.imports
    }

    /// Calls that run on it now.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Starts an instance only to see whether the guest agrees to run.
    pub(super) async fn try_out(&self) -> Result<(), StartError> {
        let deadline = Instant::now() + self.setup.limits.init_deadline;
        let instance = self.start(deadline).await?;
        if self.isolation == Isolation::Reuse {
            self.keep(instance);
        }
        Ok(())
    }

    /// How many instances are idle.
    pub(super) fn idle(&self) -> usize {
        self.pool.len()
    }

    /// Gives the room of one idle instance to another guest: that of the one idle for longest.
    pub(super) fn drop_an_idle_instance(&self) {
        self.pool.drop_oldest();
    }

    /// Drops the instances that nobody has used for long.
    pub(super) fn sweep(&self) {
        self.pool.drop_if(Instance::is_stale);
    }

    async fn start(&self, deadline: Instant) -> Result<Instance, StartError> {
        let Some(room) = self.engine.room(deadline).await else {
            let detail = format!("all {} instances of the host are in use", Engine::INSTANCES_MAX);
            return Err(StartError::Failed(CallError { class: Class::HostShortage, detail }));
        };
        Instance::start(&self.guest, &self.setup, room).await
    }

    /// The guest agreed when it was loaded: that it does not now is not a record's fault.
    fn not_started(&self, error: StartError) -> CallError {
        let detail = match error {
            StartError::Refused(reason) => {
                format!("a new instance refused in `init`: {}: {}", reason.code, reason.detail)
            }
            StartError::Failed(error) if error.class == Class::HostShortage => error.detail,
            StartError::Failed(error) => format!("a new instance did not start: {error}"),
        };
        tracing::warn!(handler = &*self.setup.handler, detail, "no instance for a call; its records wait");
        CallError { class: Class::HostShortage, detail }
    }

    fn keep(&self, mut instance: Instance) {
        if !instance.is_spent() {
            instance.rest();
            self.pool.keep(instance);
        }
    }
}
