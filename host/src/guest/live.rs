//! A handler's guest while records flow: which revision runs, swapping it, and going back.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tidemill_core::revisions::{NoRevisionBefore, Revisions, Rollback};

use super::check::{self, LoadError, Plan, digest};
use super::revision::Revision;
use super::succession::{Runs, Succession};
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
    succession: Succession<Revision>,
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
        let revision = check::load(engine, &plan, digest(&bytes).into(), bytes).await?;
        let succession = Succession::new(revision);
        Ok(Self { engine: Arc::clone(engine), plan, metrics, succession })
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
            let succession = Succession::after(Revisions::after(rollback, Arc::clone(&revision)), revision);
            Self { engine: Arc::clone(engine), plan, metrics, succession }
        }))
    }

    /// The digest of the live revision.
    pub fn digest(&self) -> Arc<str> {
        self.succession.revision()
    }

    /// Whether a file with these bytes should be loaded: it is not live, and nobody went back from it.
    pub fn wants(&self, bytes: &[u8]) -> bool {
        self.succession.revisions().wants(&digest(bytes))
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
        let digest: Arc<str> = digest(&bytes).into();
        let load = check::load(&self.engine, &self.plan, Arc::clone(&digest), bytes);
        let swapped = self.succession.swap_when(&digest, load, ready).await?;
        if matches!(swapped, Ok(true)) {
            self.metrics.swaps.inc();
        }
        Ok(swapped.map(|_| ()))
    }

    /// Goes back to the revision before and sets the live one aside. Returns what `keep` makes of it, before another component
    /// can take over.
    pub async fn roll_back<T>(&self, keep: impl FnOnce(&Rollback) -> T) -> Result<T, NoRevisionBefore> {
        let kept = self.succession.roll_back(keep).await?;
        self.metrics.rollbacks.inc();
        Ok(kept)
    }

    /// What an operator went back to and from, as long as no other file has come.
    pub fn rollback(&self) -> Option<Rollback> {
        self.succession.revisions().rollback()
    }

    /// What an operator is shown.
    pub fn view(&self) -> View {
        let live = self.succession.live();
        let revisions = self.succession.revisions();
        let before = revisions.before_revisions();
        View {
            digest: Arc::clone(live.digest()),
            since: self.succession.since(),
            imports: live.imports().to_vec(),
            in_flight: live.in_flight(),
            idle: live.idle(),
            before: before.map(|old| Before { digest: Arc::clone(old.digest()), in_flight: old.in_flight() }).collect(),
            set_aside: revisions.rollback().map(|rollback| rollback.set_aside).unwrap_or_default(),
        }
    }
}

impl Handler for LiveHandler {
    fn revision(&self) -> Arc<str> {
        self.digest()
    }

    fn call<'a>(&'a self, attempt: &'a mut Attempt) -> BoxFuture<'a, Called> {
        self.succession.call(attempt)
    }
}
