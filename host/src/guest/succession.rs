//! Which revision of a guest takes calls: one is live until another takes over.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tidemill_core::revisions::{NoRevisionBefore, Revisions, Rollback};
use tokio::time::Instant;

use super::{CallError, Called, Handler, Outcome};
use crate::attempt::Attempt;

/// A revision of a guest, as its succession sees it.
pub(crate) trait Runs: Send + Sync + 'static {
    /// Names it.
    fn digest(&self) -> &Arc<str>;

    /// Calls the guest with a batch.
    fn call(&self, attempt: &mut Attempt) -> impl Future<Output = Result<Vec<Outcome>, CallError>> + Send;

    /// From now on it takes calls: for the first time, or again.
    fn takes_over(&self);

    /// Another one has taken over. Calls may still run on it, and it may be called once more by who has just looked.
    fn retire(&self);
}

/// The revisions of one handler's guest. Each call takes the live one once and stays on it (REV-2).
#[derive(Debug)]
pub(crate) struct Succession<R> {
    live: ArcSwap<R>,
    /// When the live revision took over.
    since: Mutex<Timestamp>,
    revisions: Mutex<Revisions<Arc<R>>>,
    /// One load at a time.
    loading: tokio::sync::Mutex<()>,
}

impl<R: Runs> Succession<R> {
    /// Begins with this one, which is not told so.
    pub(crate) fn new(first: Arc<R>) -> Self {
        let mut revisions = Revisions::new();
        revisions.install(first.digest(), Arc::clone(&first));
        Self::after(revisions, first)
    }

    /// Goes on with this one, which is the live one of these.
    pub(crate) fn after(revisions: Revisions<Arc<R>>, live: Arc<R>) -> Self {
        Self {
            live: ArcSwap::new(live),
            since: Mutex::new(Timestamp::now()),
            revisions: Mutex::new(revisions),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// The live revision.
    pub(crate) fn live(&self) -> Arc<R> {
        self.live.load_full()
    }

    /// When it took over.
    pub(crate) fn since(&self) -> Timestamp {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those before it, and what was gone back from.
    pub(crate) fn revisions(&self) -> MutexGuard<'_, Revisions<Arc<R>>> {
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the revision of this digest take over, once it is loaded and what has to be done before is done. What fails
    /// changes nothing (REV-4). Answers whether it has taken over: one that is not wanted is not loaded.
    pub(crate) async fn swap_when<L, E>(
        &self,
        digest: &str,
        load: impl Future<Output = Result<Arc<R>, L>>,
        ready: impl Future<Output = Result<(), E>>,
    ) -> Result<Result<bool, E>, L> {
        let _loading = self.loading.lock().await;
        if !self.revisions().wants(digest) {
            return Ok(Ok(false));
        }
        let revision = load.await?;
        if let Err(cause) = ready.await {
            return Ok(Err(cause));
        }
        self.revisions().install(revision.digest(), Arc::clone(&revision));
        self.take_over(revision);
        Ok(Ok(true))
    }

    /// Goes back to the revision before and sets the live one aside. Returns what `keep` makes of it, before another one can
    /// take over.
    pub(crate) async fn roll_back<T>(&self, keep: impl FnOnce(&Rollback) -> T) -> Result<T, NoRevisionBefore> {
        let _loading = self.loading.lock().await;
        let revision = self.revisions().roll_back()?;
        self.take_over(revision);
        let rollback = self.revisions().rollback().expect("going back sets the live one aside");
        Ok(keep(&rollback))
    }

    fn take_over(&self, revision: Arc<R>) {
        revision.takes_over();
        let old = self.live.swap(revision);
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Timestamp::now();
        old.retire();
    }
}

impl<R: Runs> Handler for Succession<R> {
    fn call<'a>(&'a self, attempt: &'a mut Attempt) -> BoxFuture<'a, Called> {
        Box::pin(async move {
            let revision = self.live();
            let start = Instant::now();
            let outcomes = revision.call(attempt).await;
            Called { revision: Arc::clone(revision.digest()), took: start.elapsed(), outcomes }
        })
    }

    fn revision(&self) -> Arc<str> {
        Arc::clone(self.live.load().digest())
    }
}
