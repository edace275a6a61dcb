//! Who runs, for commands and checks: the fleet writes it, everyone reads it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::stamp::Stamp;
use crate::broker::Admin;
use crate::config::manifest::HandlerSpec;
use crate::consumer::Membership;
use crate::guest::live::LiveHandler;

/// A handler that runs.
pub struct Running {
    /// Its manifest.
    pub spec: HandlerSpec,
    /// Its guest.
    pub live: Arc<LiveHandler>,
    /// Its place in its group.
    pub membership: Arc<Membership>,
    /// Tells it to drain and stop.
    pub stop: CancellationToken,
    /// What tells of its topics and its group; `None` where there is no broker to be asked.
    pub admin: Option<Arc<dyn Admin>>,
    task: Mutex<Option<JoinHandle<()>>>,
    /// The live digest and when it was first looked at; the fleet looks after each swap.
    since: Mutex<(Arc<str>, jiff::Timestamp)>,
    /// What its folder looked like when it was last taken.
    seen: Mutex<Stamp>,
}

impl Running {
    pub(super) fn new(spec: HandlerSpec, live: Arc<LiveHandler>, stamp: Stamp) -> Self {
        let since = Mutex::new((live.digest(), jiff::Timestamp::now()));
        Self {
            spec,
            since,
            live,
            membership: Arc::default(),
            stop: CancellationToken::new(),
            admin: None,
            task: Mutex::default(),
            seen: Mutex::new(stamp),
        }
    }

    pub(super) fn seen(&self) -> Stamp {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn saw(&self, stamp: Stamp) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }

    /// When the live revision became so.
    pub fn since(&self) -> jiff::Timestamp {
        let digest = self.live.digest();
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.0 != digest {
            *since = (digest, jiff::Timestamp::now());
        }
        since.1
    }

    pub(super) fn take_task(&self) -> Option<JoinHandle<()>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the host knows of one handler's folder.
#[derive(Clone)]
pub struct State {
    /// The handler, if it runs.
    pub running: Option<Arc<Running>>,
    /// Why the folder as it lies there is refused.
    pub refused: Option<String>,
}

/// All handlers of a host, by name.
#[derive(Default)]
pub struct Roster {
    states: Mutex<BTreeMap<String, State>>,
}

impl Roster {
    /// Every handler's folder, by name.
    pub fn states(&self) -> BTreeMap<String, State> {
        self.with(|states| states.clone())
    }

    /// A running handler.
    pub fn get(&self, name: &str) -> Option<Arc<Running>> {
        self.with(|states| states.get(name)?.running.clone())
    }

    pub(super) fn running(&self) -> Vec<(String, Arc<Running>)> {
        self.with(|states| {
            let running = |(name, state): (&String, &State)| Some((name.clone(), state.running.clone()?));
            states.iter().filter_map(running).collect()
        })
    }

    pub(super) fn insert(&self, name: &str, running: Running, task: JoinHandle<()>) {
        *running.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        let state = State { running: Some(Arc::new(running)), refused: None };
        self.with(|states| states.insert(name.to_owned(), state));
    }

    pub(super) fn accepted(&self, name: &str) {
        self.with(|states| {
            if let Some(state) = states.get_mut(name) {
                state.refused = None;
            }
        });
    }

    pub(super) fn refused(&self, name: &str, why: String) {
        self.with(|states| {
            states.entry(name.to_owned()).or_insert(State { running: None, refused: None }).refused = Some(why);
        });
    }

    pub(super) fn remove(&self, name: &str) {
        self.with(|states| states.remove(name));
    }

    pub(super) fn retain_failed(&self, keep: impl Fn(&str) -> bool) {
        self.with(|states| states.retain(|name, state| state.running.is_some() || keep(name)));
    }

    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<String, State>) -> T) -> T {
        look(&mut self.states.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
