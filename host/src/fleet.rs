//! The handlers that run: those whose folders lie in the handlers' folder, now.
//!
//! A new folder with a manifest and a component becomes a running handler with its own group; a changed manifest is
//! applied or refused whole; a changed component is swapped in; a removed folder drains and stops. What can't be loaded
//! changes nothing.

mod error;
mod hazards;
mod kept;
mod offsets;
mod parked;
mod pauses;
mod rollbacks;
mod roster;
mod stamp;
mod topics;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use tidemill_core::retry::Exhausted;
use tidemill_core::revisions::Rollback;
use tokio_util::sync::CancellationToken;

pub use self::error::HandlerError;
use self::hazards::Lookout;
pub use self::offsets::{Elsewhere, Reset, ResetError, Where, reset};
pub use self::parked::{Reached, parked, unpark};
pub use self::pauses::Pauses;
pub use self::rollbacks::Rollbacks;
pub use self::roster::{Roster, Running, State};
use self::stamp::Stamp;
use self::watch::Watch;
use crate::broker::{Admin, Broker, BrokerError, Producer};
use crate::config::manifest::{self, HandlerSpec};
use crate::consumer::{Budget, Group, OffsetStore, Parking};
use crate::guest::live::LiveHandler;
use crate::guest::{Backends, Engine, digest};
use crate::metrics::Metrics;
use crate::settle::parked::ParkedTopics;
use crate::settle::{DeadLetters, Settler};
use crate::store::migrations::{self, Migrations};

/// A folder that could not be loaded is looked at again this often, since what was missing may lie elsewhere.
const LOOK_AGAIN_INTERVAL: Duration = Duration::from_secs(10);

/// What every handler is built from.
pub struct Parts<B: Broker> {
    /// Where records come from.
    pub broker: B,
    /// Where outputs and dead letters go.
    pub producer: Arc<dyn Producer>,
    /// The sandbox.
    pub engine: Arc<Engine>,
    /// What can be granted.
    pub backends: Backends,
    /// Where it is counted.
    pub metrics: Metrics,
    /// What all handlers together may hold.
    pub budget: Arc<Budget>,
    /// Which of them do not run for now.
    pub pauses: Arc<Pauses>,
    /// Which of them do not run what lies in their folders.
    pub rollbacks: Arc<Rollbacks>,
}

/// The handlers of one host.
pub struct Fleet<B: Broker> {
    folder: PathBuf,
    parts: Parts<B>,
    roster: Arc<Roster>,
    admin: OnceLock<Arc<dyn Admin>>,
    /// What was refused, and what it looked like then: the same is not tried again at once.
    refused: BTreeMap<String, Refused>,
}

struct Refused {
    stamp: Stamp,
    at: tokio::time::Instant,
}

impl<B: Broker> Fleet<B> {
    /// No handler runs yet.
    pub fn new(folder: PathBuf, parts: Parts<B>, roster: Arc<Roster>) -> Self {
        Self { folder, parts, roster, admin: OnceLock::new(), refused: BTreeMap::new() }
    }

    /// Loads every handler and starts none; says all that is wrong.
    pub async fn check(&self) -> Result<Vec<String>, Vec<HandlerError>> {
        let mut loaded = Vec::new();
        let mut errors = Vec::new();
        let mut groups = BTreeMap::new();
        for (name, folder) in manifest::folders(&self.folder) {
            match self.load(&folder, Purpose::Check).await {
                Ok(running) => {
                    let group = running.spec.consumer.subscription.group.clone();
                    if let Some(other) = groups.insert(group.clone(), name.clone()) {
                        errors.push(HandlerError::GroupTaken { handler: name.clone(), group, other });
                    }
                    loaded.push(name);
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(loaded) } else { Err(errors) }
    }

    /// Starts every handler; when one can't be loaded, none runs. One whose database is away does not hold up the others:
    /// it is tried again.
    pub async fn start(&mut self) -> Result<(), Vec<HandlerError>> {
        let mut errors = Vec::new();
        for (name, folder) in manifest::folders(&self.folder) {
            match self.load(&folder, Purpose::Run).await.and_then(|running| self.admit(running)) {
                Ok(running) => self.launch(&name, running),
                Err(error) if error.is_passing() => self.refuse(&name, false, Stamp::of(&folder), &error),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            return Ok(());
        }
        self.stop_all().await;
        Err(errors)
    }

    /// Follows the folder until `stop`; then drains every handler.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut watch = Watch::new(&self.folder);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = watch.changed() => self.follow().await,
            }
        }
        self.stop_all().await;
    }

    /// Brings what runs in line with what lies in the folder.
    async fn follow(&mut self) {
        let folders = manifest::folders(&self.folder);
        let names: BTreeSet<&String> = folders.keys().collect();
        for (name, running) in self.roster.running() {
            if !names.contains(&name) {
                tracing::info!(handler = name, "its folder is gone: the handler drains and stops");
                self.roster.remove(&name);
                stop_handler(&running).await;
                self.parts.metrics.remove_handler(&name);
            }
        }
        self.refused.retain(|name, _| folders.contains_key(name));
        self.roster.retain_failed(|name| folders.contains_key(name));
        for (name, folder) in folders {
            self.follow_one(&name, &folder).await;
        }
    }

    async fn follow_one(&mut self, name: &str, folder: &Path) {
        let stamp = Stamp::of(folder);
        let known = self.roster.get(name);
        if known.as_ref().is_some_and(|running| running.seen() == stamp) {
            // What was refused meanwhile is gone from the folder.
            self.accept(name);
            return;
        }
        if self
            .refused
            .get(name)
            .is_some_and(|refused| refused.stamp == stamp && refused.at.elapsed() < LOOK_AGAIN_INTERVAL)
        {
            return;
        }
        let Some(stamp) = Stamp::settled(folder).await else { return };
        let result = match &known {
            Some(running) if running.seen().same_manifest(&stamp) => self.swap(running, folder).await,
            Some(running) => self.replace(name, running, folder).await,
            None => {
                self.load(folder, Purpose::Run).await.and_then(|new| self.admit(new)).map(|new| self.launch(name, new))
            }
        };
        match result {
            Ok(()) => {
                self.accept(name);
                if let Some(running) = self.roster.get(name) {
                    running.saw(stamp);
                }
            }
            Err(error) => self.refuse(name, known.is_some(), stamp, &error),
        }
    }

    fn accept(&mut self, name: &str) {
        self.refused.remove(name);
        self.roster.accepted(name);
    }

    fn refuse(&mut self, name: &str, runs: bool, stamp: Stamp, error: &HandlerError) {
        let before =
            self.refused.insert(name.to_owned(), Refused { stamp: stamp.clone(), at: tokio::time::Instant::now() });
        if before.is_none_or(|before| before.stamp != stamp) {
            let goes_on = if runs { "the revision before goes on" } else { "it does not run" };
            tracing::error!(handler = name, %error, "the handler's folder is refused; {goes_on}");
            self.parts.metrics.handler(name).rejected_loads.inc();
        }
        self.roster.refused(name, error.to_string());
    }

    /// Another component behind the same manifest: swapped while records flow.
    async fn swap(&self, running: &Arc<Running>, folder: &Path) -> Result<(), HandlerError> {
        let handler = &running.spec.name;
        // Read anew: the component may have another name now, and its first migrations may have come with it.
        let spec = HandlerSpec::read(folder).map_err(HandlerError::Manifest)?;
        let bytes = read_module(&spec)?;
        if !running.live.wants(&bytes) {
            // A migration may have come alone.
            return self.migrate(&spec).await;
        }
        let ready = async {
            self.migrate(&spec).await?;
            self.parts.rollbacks.forget(handler);
            Ok(())
        };
        let swapped = running.live.swap_when(bytes, ready).await;
        swapped.map_err(|cause| HandlerError::Load { handler: handler.clone(), cause })??;
        tracing::info!(handler, revision = crate::attempt::short(&running.live.digest()), since = %running.since(), "another revision is live");
        Ok(())
    }

    /// Another manifest: the new handler is loaded whole before the old one drains.
    async fn replace(&mut self, name: &str, old: &Arc<Running>, folder: &Path) -> Result<(), HandlerError> {
        let new = self.load(folder, Purpose::Run).await?;
        let new = self.admit(new)?;
        tracing::info!(handler = name, "its manifest changed: the handler drains and starts anew");
        self.roster.remove(name);
        stop_handler(old).await;
        self.launch(name, new);
        Ok(())
    }

    /// Reads, checks and compiles a handler.
    async fn load(&self, folder: &Path, purpose: Purpose) -> Result<Running, HandlerError> {
        let stamp = Stamp::of(folder);
        self.load_as(HandlerSpec::read(folder).map_err(HandlerError::Manifest)?, stamp, purpose).await
    }

    /// Loads a handler to consume once what its broker gives it, and makes the group that does so. Nobody follows its folder.
    pub async fn once(&self, mut spec: HandlerSpec) -> Result<(Running, Group<B>), HandlerError> {
        if spec.retry.end() == Exhausted::Park {
            // What comes once more is not parked among what is live.
            spec.retry = spec.retry.exhausted(Exhausted::Stop);
        }
        let stamp = Stamp::of(&spec.folder);
        let running = self.load_as(spec, stamp, Purpose::Run).await?;
        let group = self.group(&running, self.dead_letters(&running.spec));
        Ok((running, group))
    }

    async fn load_as(&self, spec: HandlerSpec, stamp: Stamp, purpose: Purpose) -> Result<Running, HandlerError> {
        let handler = spec.name.clone();
        let bytes = read_module(&spec)?;
        let (engine, backends) = (&self.parts.engine, &self.parts.backends);
        let metrics = self.parts.metrics.handler(&handler);
        let refused = |cause| HandlerError::Load { handler: handler.clone(), cause };
        // Who checks is told of what lies in the folder.
        let rollback = if purpose == Purpose::Run { self.rollback(&handler, &bytes) } else { None };
        let live = match rollback {
            None => LiveHandler::load(engine, &spec, backends, metrics, bytes).await.map_err(refused)?,
            Some(rollback) => {
                let kept = LiveHandler::load_kept(engine, &spec, backends, metrics, rollback.clone()).await;
                kept.map_err(refused)?.ok_or_else(|| self.rolled_back(&handler, rollback))?
            }
        };
        let refused = |cause| HandlerError::Subscription { handler: spec.name.clone(), cause };
        self.parts.broker.check(&spec.consumer.subscription).map_err(refused)?;
        if purpose == Purpose::Run && spec.retry.end() == Exhausted::Park {
            // What is parked can't be read without one.
            self.admin().map_err(refused)?;
        }
        match purpose {
            Purpose::Run => self.migrate(&spec).await?,
            Purpose::Check => check_migrations(&spec)?,
        }
        Ok(Running::new(spec, Arc::new(live), stamp))
    }

    /// What an operator went back to from the component with these bytes.
    fn rollback(&self, handler: &str, bytes: &[u8]) -> Option<Rollback> {
        let rollback = self.parts.rollbacks.of(handler)?;
        rollback.set_aside.contains(&digest(bytes)).then_some(rollback)
    }

    fn rolled_back(&self, handler: &str, rollback: Rollback) -> HandlerError {
        let file = self.parts.rollbacks.file(handler);
        HandlerError::RolledBack { handler: handler.to_owned(), rollback, file }
    }

    /// A group belongs to one handler.
    fn admit(&self, running: Running) -> Result<Running, HandlerError> {
        let group = &running.spec.consumer.subscription.group;
        for (name, other) in self.roster.running() {
            if name != running.spec.name && other.spec.consumer.subscription.group == *group {
                return Err(HandlerError::GroupTaken {
                    handler: running.spec.name.clone(),
                    group: group.clone(),
                    other: name,
                });
            }
        }
        Ok(running)
    }

    async fn migrate(&self, spec: &HandlerSpec) -> Result<(), HandlerError> {
        let Some((name, folder)) = migrations_of(spec)? else { return Ok(()) };
        let Some(sql) = self.parts.backends.sql.get(name) else { return Ok(()) };
        let failed = |cause| HandlerError::Migrations { handler: spec.name.clone(), cause: Box::new(cause) };
        let applied = migrations::migrate(&**sql, &spec.name, folder).await.map_err(failed)?;
        if !applied.is_empty() {
            tracing::info!(
                handler = spec.name,
                database = name,
                files = applied.join(" "),
                "the schema is brought up to date"
            );
        }
        Ok(())
    }

    fn launch(&self, name: &str, mut running: Running) {
        running.admin = self.admin().ok();
        let spec = &running.spec;
        let metrics = self.parts.metrics.handler(name);
        metrics.live(&running.live.digest());
        let dead_letters = self.dead_letters(spec);
        let membership = Arc::clone(&running.membership);
        if self.parts.pauses.has(name) {
            membership.pause(true);
            tracing::warn!(
                handler = name,
                "the handler is paused, as an operator wants it; `tidemill resume {name}` lets it go on"
            );
        }
        match running.live.rollback() {
            Some(rollback) => tracing::warn!(
                handler = name,
                revision = crate::attempt::short(&rollback.live),
                "what lies in its folder was rolled back from, and is not run; put the good file into the folder"
            ),
            None => self.parts.rollbacks.forget(name),
        }
        let mut group = self.group(&running, dead_letters.clone());
        if let (Exhausted::Park, Some(admin)) = (spec.retry.end(), running.admin.clone()) {
            let topics = ParkedTopics::new(name.into(), Arc::clone(&self.parts.producer));
            group = group.parking(Parking { topics: Arc::new(topics), admin, records_max: spec.parked_max });
        }
        let lookout = Lookout {
            spec: spec.clone(),
            dead_letters,
            membership: Arc::clone(&running.membership),
            metrics: Arc::clone(&metrics),
            told: BTreeMap::new(),
            hidden: BTreeMap::new(),
        };
        // Without one the broker is away, which others report.
        if let Some(admin) = running.admin.clone() {
            tokio::spawn(lookout.run(admin, running.stop.clone()));
        }
        let task = tokio::spawn(group.run(running.stop.clone()));
        tracing::info!(
            handler = name,
            group = spec.consumer.subscription.group,
            topics = spec.consumer.subscription.topics.join(" "),
            revision = crate::attempt::short(&running.live.digest()),
            "the handler runs"
        );
        let membership = Arc::clone(&running.membership);
        self.roster.insert(name, running, task);
        // A command that came in between has found nobody to tell.
        let paused = self.parts.pauses.has(name);
        membership.pause(paused);
        metrics.paused.set(i64::from(paused));
    }

    fn dead_letters(&self, spec: &HandlerSpec) -> DeadLetters {
        DeadLetters {
            handler: spec.name.as_str().into(),
            group: spec.consumer.subscription.group.as_str().into(),
            topic: spec.dead_letters.topic.as_deref().map(Into::into),
            headers: spec.dead_letters.headers,
        }
    }

    /// What consumes for a handler.
    fn group(&self, running: &Running, dead_letters: DeadLetters) -> Group<B> {
        let spec = &running.spec;
        let metrics = self.parts.metrics.handler(&spec.name);
        let producer = Arc::clone(&self.parts.producer);
        let settler = Settler::new(producer, spec.retry.clone(), dead_letters, Arc::clone(&metrics));
        let group = Group::new(
            self.parts.broker.clone(),
            spec.consumer.clone(),
            Arc::clone(&running.live) as Arc<dyn crate::guest::Handler>,
            settler,
            metrics,
            Arc::clone(&running.membership),
            Arc::clone(&self.parts.budget),
        );
        match self.offsets(spec) {
            Some(offsets) => group.keeping_offsets_in(offsets),
            None => group,
        }
    }

    /// One for all handlers: it has connections of its own.
    fn admin(&self) -> Result<Arc<dyn Admin>, BrokerError> {
        if let Some(admin) = self.admin.get() {
            return Ok(Arc::clone(admin));
        }
        let made = self.parts.broker.admin()?;
        Ok(Arc::clone(self.admin.get_or_init(|| made)))
    }

    /// Where the handler's offsets are kept beside its group. That the database is there was checked with the grants.
    fn offsets(&self, spec: &HandlerSpec) -> Option<OffsetStore> {
        let database = spec.database.as_deref()?;
        let sql = self.parts.backends.sql.get(database)?;
        Some(OffsetStore::new(database, Arc::clone(sql)))
    }

    async fn stop_all(&self) {
        let all = self.roster.running();
        for (_, running) in &all {
            running.stop.cancel();
        }
        join_all(all.iter().map(|(_, running)| stop_handler(running))).await;
    }
}

/// Why a handler is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To say what is wrong: nothing outside changes.
    Check,
    /// To run.
    Run,
}

/// The database of a handler's migrations, and their folder.
fn migrations_of(spec: &HandlerSpec) -> Result<Option<(&str, &Path)>, HandlerError> {
    let Some(folder) = &spec.migrations else { return Ok(None) };
    let mut granted = spec.grants.sql.iter();
    match (granted.next(), granted.next()) {
        (Some(name), None) => Ok(Some((name, folder))),
        _ => Err(HandlerError::MigrationsWhere { handler: spec.name.clone(), granted: spec.grants.sql.len() }),
    }
}

/// Reads the migrations and applies none.
fn check_migrations(spec: &HandlerSpec) -> Result<(), HandlerError> {
    let Some((_, folder)) = migrations_of(spec)? else { return Ok(()) };
    let wrong = |cause| HandlerError::Migrations { handler: spec.name.clone(), cause: Box::new(cause) };
    Migrations::read(&spec.name, folder).map(drop).map_err(wrong)
}

fn read_module(spec: &HandlerSpec) -> Result<Vec<u8>, HandlerError> {
    std::fs::read(&spec.module).map_err(|cause| HandlerError::Unreadable {
        handler: spec.name.clone(),
        path: spec.module.clone(),
        cause,
    })
}

/// Drains a handler and waits until it has left its group.
async fn stop_handler(running: &Arc<Running>) {
    running.stop.cancel();
    if let Some(task) = running.take_task()
        && let Err(error) = task.await
    {
        tracing::error!(handler = running.spec.name, %error, "the handler's task ended badly");
    }
}

#[cfg(test)]
mod tests;
