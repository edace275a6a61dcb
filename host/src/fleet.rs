//! The handlers that run: those whose folders lie in the handlers' folder, now.
//!
//! A new folder with a manifest and a component becomes a running handler with its own group; a changed manifest is
//! applied or refused whole; a changed component is swapped in; a removed folder drains and stops. What can't be loaded
//! changes nothing.

mod roster;
mod stamp;
mod topics;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

pub use self::roster::{Roster, Running, State};
use self::stamp::Stamp;
use self::watch::Watch;
use crate::broker::{Broker, Producer};
use crate::config::Problem;
use crate::config::manifest::{self, HandlerSpec};
use crate::consumer::Group;
use crate::guest::live::LiveHandler;
use crate::guest::{Backends, Engine, LoadError};
use crate::metrics::Metrics;
use crate::settle::{DeadLetters, Settler};
use crate::store::migrations;

/// A folder that could not be loaded is looked at again this often, since what was missing may lie elsewhere.
const LOOK_AGAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Why a handler does not run, or does not run as its folder says.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The manifest is wrong.
    #[error("{}", lines(.0))]
    Manifest(Vec<Problem>),
    /// The component can't be taken.
    #[error("handler `{handler}`: {cause}")]
    Load {
        /// The handler.
        handler: String,
        /// Why.
        cause: LoadError,
    },
    /// The component's file can't be read.
    #[error("handler `{handler}`: `{path}` can't be read: {cause}")]
    Unreadable {
        /// The handler.
        handler: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Its schema could not be brought up to date.
    #[error("handler `{handler}`: {cause}")]
    Migrations {
        /// The handler.
        handler: String,
        /// Why.
        cause: Box<migrations::MigrationError>,
    },
    /// Migrations without a database to apply them to.
    #[error(
        "handler `{handler}`: has migrations and {granted} granted databases; grant exactly one under `grants.sql`"
    )]
    MigrationsWhere {
        /// The handler.
        handler: String,
        /// How many it has.
        granted: usize,
    },
    /// Two handlers name one group.
    #[error(
        "handler `{handler}`: group `{group}` is `{other}`'s already; a group belongs to one handler, choose another name"
    )]
    GroupTaken {
        /// The handler.
        handler: String,
        /// The group.
        group: String,
        /// Whose it is.
        other: String,
    },
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

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
}

/// The handlers of one host.
pub struct Fleet<B: Broker> {
    folder: PathBuf,
    parts: Parts<B>,
    roster: Arc<Roster>,
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
        Self { folder, parts, roster, refused: BTreeMap::new() }
    }

    /// Loads every handler and starts none; says all that is wrong.
    pub async fn check(&self) -> Result<Vec<String>, Vec<HandlerError>> {
        let mut loaded = Vec::new();
        let mut errors = Vec::new();
        let mut groups = BTreeMap::new();
        for (name, folder) in self.folders() {
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

    /// Starts every handler; when one can't be loaded, none runs.
    pub async fn start(&mut self) -> Result<(), Vec<HandlerError>> {
        let mut errors = Vec::new();
        for (name, folder) in self.folders() {
            match self.load(&folder, Purpose::Run).await.and_then(|running| self.admit(running)) {
                Ok(running) => self.launch(&name, running),
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
        let folders = self.folders();
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
            return Ok(());
        }
        let swapped = running.live.swap_when(bytes, self.migrate(&spec)).await;
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
        let spec = HandlerSpec::read(folder).map_err(HandlerError::Manifest)?;
        let handler = spec.name.clone();
        let bytes = read_module(&spec)?;
        let metrics = self.parts.metrics.handler(&handler);
        let loaded = LiveHandler::load(&self.parts.engine, &spec, &self.parts.backends, Arc::clone(&metrics), bytes);
        let live = loaded.await.map_err(|cause| HandlerError::Load { handler, cause })?;
        if purpose == Purpose::Run {
            self.migrate(&spec).await?;
        }
        Ok(Running::new(spec, Arc::new(live), stamp))
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
        let Some(folder) = &spec.migrations else { return Ok(()) };
        let handler = spec.name.clone();
        let mut granted = spec.grants.sql.iter();
        let (Some(name), None) = (granted.next(), granted.next()) else {
            return Err(HandlerError::MigrationsWhere { handler, granted: spec.grants.sql.len() });
        };
        let Some(sql) = self.parts.backends.sql.get(name) else { return Ok(()) };
        let applied = migrations::migrate(&**sql, &spec.name, folder).await;
        let applied = applied.map_err(|cause| HandlerError::Migrations { handler, cause: Box::new(cause) })?;
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

    fn launch(&self, name: &str, running: Running) {
        let spec = &running.spec;
        let metrics = self.parts.metrics.handler(name);
        metrics.live(&running.live.digest());
        let dead_letters = DeadLetters {
            handler: name.into(),
            group: spec.consumer.subscription.group.as_str().into(),
            topic: spec.dead_letter_topic.as_deref().map(Into::into),
        };
        let settler = Settler::new(
            Arc::clone(&self.parts.producer),
            spec.retry.clone(),
            dead_letters.clone(),
            Arc::clone(&metrics),
        );
        let membership = Arc::clone(&running.membership);
        let group = Group::new(
            self.parts.broker.clone(),
            spec.consumer.clone(),
            Arc::clone(&running.live) as Arc<dyn crate::guest::Handler>,
            settler,
            metrics,
            membership,
        );
        tokio::spawn(topics::look(self.parts.broker.clone(), spec.clone(), dead_letters, running.stop.clone()));
        let task = tokio::spawn(group.run(running.stop.clone()));
        tracing::info!(
            handler = name,
            group = spec.consumer.subscription.group,
            topics = spec.consumer.subscription.topics.join(" "),
            revision = crate::attempt::short(&running.live.digest()),
            "the handler runs"
        );
        self.roster.insert(name, running, task);
    }

    async fn stop_all(&self) {
        let all = self.roster.running();
        for (_, running) in &all {
            running.stop.cancel();
        }
        join_all(all.iter().map(|(_, running)| stop_handler(running))).await;
    }

    /// The handlers' folders by name: those with a manifest, hidden ones left out.
    fn folders(&self) -> BTreeMap<String, PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Some((entry.file_name().to_str()?.to_owned(), entry.path())))
            .filter(|(name, path)| !name.starts_with('.') && path.join(manifest::FILE).is_file())
            .collect()
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
