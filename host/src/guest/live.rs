//! A handler's guest while records flow: which revision runs, swapping it, and going back.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tidemill_core::revisions::{NoRevisionBefore, Revisions, Rollback};
use tokio::time::Instant;

use super::check::{self, LoadError, Plan, digest};
use super::revision::Revision;
use super::{Backends, Called, Engine, Handler};
use crate::attempt::Attempt;
use crate::config::manifest::HandlerSpec;
use crate::metrics::HandlerMetrics;

/// The guest of one handler. Each call takes the live revision once and stays on it (REV-2).
#[derive(Debug)]
pub struct LiveHandler {
    engine: Arc<Engine>,
    plan: Plan,
    metrics: Arc<HandlerMetrics>,
    live: ArcSwap<Revision>,
    /// When the live revision took over.
    since: Mutex<Timestamp>,
    revisions: Mutex<Revisions<Arc<Revision>>>,
    /// One load at a time.
    loading: tokio::sync::Mutex<()>,
}

/// What an operator is shown of a handler's guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The digest of the live revision.
    pub digest: Arc<str>,
    /// When it took over.
    pub since: Timestamp,
    /// What the live revision demands, by the names of its imports.
    pub imports: Vec<String>,
    /// Calls that run on the live revision.
    pub in_flight: usize,
    /// Instances of the live revision that are kept for the next call.
    pub idle: usize,
    /// The revisions to go back to, the nearest first.
    pub before: Vec<Before>,
    /// The digests that an operator went back from, the last one last: those files are not loaded again by themselves.
    pub set_aside: Vec<String>,
}

/// An earlier revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// Its digest.
    pub digest: Arc<str>,
    /// Calls that still run on it.
    pub in_flight: usize,
}

impl LiveHandler {
    /// Checks, compiles and tries out a component, which then is the live revision. It is not counted as live yet: the
    /// handler may still be refused.
    pub async fn load(
        engine: &Arc<Engine>,
        spec: &HandlerSpec,
        backends: &Backends,
        metrics: Arc<HandlerMetrics>,
        bytes: Vec<u8>,
    ) -> Result<Self, LoadError> {
        let plan = Plan::new(spec, backends, &metrics)?;
        Self::with(engine, plan, metrics, bytes).await
    }

    pub(super) async fn with(
        engine: &Arc<Engine>,
        plan: Plan,
        metrics: Arc<HandlerMetrics>,
        bytes: Vec<u8>,
    ) -> Result<Self, LoadError> {
        let revision = check::load(engine, &plan, bytes).await?;
        let mut revisions = Revisions::new();
        revisions.install(revision.digest(), Arc::clone(&revision));
        Ok(Self::new(engine, plan, metrics, revision, revisions))
    }

    /// The same with what an operator went back to, of which the file is gone; `None` if it is not kept compiled either.
    pub async fn load_kept(
        engine: &Arc<Engine>,
        spec: &HandlerSpec,
        backends: &Backends,
        metrics: Arc<HandlerMetrics>,
        rollback: Rollback,
    ) -> Result<Option<Self>, LoadError> {
        let plan = Plan::new(spec, backends, &metrics)?;
        let revision = check::load_kept(engine, &plan, rollback.live.as_str().into()).await?;
        Ok(revision.map(|revision| {
            let revisions = Revisions::after(rollback, Arc::clone(&revision));
            Self::new(engine, plan, metrics, revision, revisions)
        }))
    }

    fn new(
        engine: &Arc<Engine>,
        plan: Plan,
        metrics: Arc<HandlerMetrics>,
        live: Arc<Revision>,
        revisions: Revisions<Arc<Revision>>,
    ) -> Self {
        Self {
            engine: Arc::clone(engine),
            plan,
            metrics,
            live: ArcSwap::new(live),
            since: Mutex::new(Timestamp::now()),
            revisions: Mutex::new(revisions),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// The digest of the live revision.
    pub fn digest(&self) -> Arc<str> {
        Arc::clone(self.live.load().digest())
    }

    /// Whether a file with these bytes should be loaded: it is not live, and nobody went back from it.
    pub fn wants(&self, bytes: &[u8]) -> bool {
        self.revisions().wants(&digest(bytes))
    }

    /// Loads another component and lets it take over: calls in hand end on the revision that they began on. A component
    /// that can't be taken changes nothing (REV-4).
    pub async fn swap(&self, bytes: Vec<u8>) -> Result<(), LoadError> {
        let Ok(()) = self.swap_when(bytes, async { Ok::<(), Infallible>(()) }).await?;
        Ok(())
    }

    /// Like [`Self::swap`], with what has to be done between: `ready` begins once the component is known to be good, and
    /// the component takes over if that succeeds.
    pub async fn swap_when<E>(
        &self,
        bytes: Vec<u8>,
        ready: impl Future<Output = Result<(), E>>,
    ) -> Result<Result<(), E>, LoadError> {
        let _loading = self.loading.lock().await;
        if !self.wants(&bytes) {
            return Ok(Ok(()));
        }
        let revision = check::load(&self.engine, &self.plan, bytes).await?;
        if let Err(cause) = ready.await {
            return Ok(Err(cause));
        }
        self.revisions().install(revision.digest(), Arc::clone(&revision));
        self.take_over(revision);
        self.metrics.swaps.inc();
        Ok(Ok(()))
    }

    /// Goes back to the revision before and sets the live one aside. Returns what `keep` makes of it, before another component
    /// can take over.
    pub async fn roll_back<T>(&self, keep: impl FnOnce(&Rollback) -> T) -> Result<T, NoRevisionBefore> {
        let _loading = self.loading.lock().await;
        let revision = self.revisions().roll_back()?;
        self.take_over(revision);
        self.metrics.rollbacks.inc();
        let rollback = self.rollback().expect("going back sets the live one aside");
        Ok(keep(&rollback))
    }

    /// What an operator went back to and from, as long as no other file has come.
    pub fn rollback(&self) -> Option<Rollback> {
        self.revisions().rollback()
    }

    /// What an operator is shown.
    pub fn view(&self) -> View {
        let live = self.live.load();
        let revisions = self.revisions();
        let before = revisions.before_revisions();
        View {
            digest: Arc::clone(live.digest()),
            since: *self.since.lock().unwrap_or_else(PoisonError::into_inner),
            imports: live.imports().to_vec(),
            in_flight: live.in_flight(),
            idle: live.idle(),
            before: before.map(|old| Before { digest: Arc::clone(old.digest()), in_flight: old.in_flight() }).collect(),
            set_aside: revisions.rollback().map(|rollback| rollback.set_aside).unwrap_or_default(),
        }
    }

    fn take_over(&self, revision: Arc<Revision>) {
        revision.recall();
        self.metrics.live(revision.digest());
        let old = self.live.swap(revision);
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Timestamp::now();
        old.retire();
    }

    fn revisions(&self) -> MutexGuard<'_, Revisions<Arc<Revision>>> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for LiveHandler {
    fn revision(&self) -> Arc<str> {
        self.digest()
    }

    fn call<'a>(&'a self, attempt: &'a mut Attempt) -> BoxFuture<'a, Called> {
        Box::pin(async move {
            let revision = self.live.load_full();
            let start = Instant::now();
            let outcomes = revision.call(attempt).await;
            Called { revision: Arc::clone(revision.digest()), took: start.elapsed(), outcomes }
        })
    }
}
