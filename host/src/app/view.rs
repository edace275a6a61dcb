//! What the admin and the ready file are told about the running host.

mod parked;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tidemill_core::partition::Stage;
use tidemill_core::record::{Offset, TopicPartition};

use crate::admin::{
    self, Elsewhere, HandlerState, HandlerView, Missing, MoveBody, MoveRefused, MoveView, MovedView, ParkedError,
    ParkedView, PartitionView, PauseError, Readiness, RollBackError, RolledBack, StoppedView, UnparkRequest, Unparked,
    WhereState, WhereView,
};
use crate::broker::{NotFound, Producer, Selection};
use crate::consumer::Moved;
use crate::fleet::{self, Pauses, Reset, ResetError, Rollbacks, Roster, Running, State, Where};
use crate::metrics::Metrics;
use crate::settle::Stop;

/// How often the host looks whether it has become ready.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Reads the roster for the admin.
pub(super) struct View {
    roster: Arc<Roster>,
    producers: Vec<Arc<dyn Producer>>,
    metrics: Metrics,
    pauses: Arc<Pauses>,
    rollbacks: Arc<Rollbacks>,
    started: AtomicBool,
    stopping: AtomicBool,
}

impl View {
    pub(super) fn new(
        roster: Arc<Roster>,
        producers: Vec<Arc<dyn Producer>>,
        metrics: Metrics,
        pauses: Arc<Pauses>,
        rollbacks: Arc<Rollbacks>,
    ) -> Self {
        let (started, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { roster, producers, metrics, pauses, rollbacks, started, stopping }
    }

    /// From now on the host can be ready: everything that it was told to start is started.
    pub(super) fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// From now on the host is not ready: it drains.
    pub(super) fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn handler(&self, name: &str, state: &State) -> HandlerView {
        match &state.running {
            Some(running) => self.running(name, running, state.refused.clone()),
            None => HandlerView {
                name: name.to_owned(),
                group: String::new(),
                topics: Vec::new(),
                state: HandlerState::Failed,
                reason: state.refused.clone(),
                revision: None,
                since: None,
                previous: Vec::new(),
                set_aside: Vec::new(),
                partitions: Vec::new(),
                lag_records: None,
                in_flight_records: 0,
            },
        }
    }

    fn running(&self, name: &str, running: &Running, refused: Option<String>) -> HandlerView {
        let guest = running.live.view();
        let subscription = &running.spec.consumer.subscription;
        let partitions: Vec<PartitionView> = running
            .membership
            .partitions()
            .into_iter()
            .map(|view| PartitionView {
                topic: view.from.topic.to_string(),
                partition: view.from.partition,
                committed: view.committable,
                lag_records: view.lag.map(i64::unsigned_abs),
                stopped: view.stopped.map(stopped),
                parked_records: view.parked,
            })
            .collect();
        let state = match (running.stop.is_cancelled(), running.membership.is_paused()) {
            (true, _) => HandlerState::Draining,
            (false, true) => HandlerState::Paused,
            (false, false) => HandlerState::Running,
        };
        HandlerView {
            name: name.to_owned(),
            group: subscription.group.clone(),
            topics: subscription.topics.clone(),
            state,
            reason: refused.or_else(|| running.membership.failure()),
            revision: Some(guest.digest.to_string()),
            since: Some(running.since().to_string()),
            previous: guest.before.iter().map(|before| before.digest.to_string()).collect(),
            set_aside: guest.set_aside,
            // Of no partitions nothing is known: another host may be behind.
            lag_records: if partitions.is_empty() { None } else { partitions.iter().map(|of| of.lag_records).sum() },
            partitions,
            in_flight_records: self.metrics.handler(name).in_flight.get().unsigned_abs(),
        }
    }
}

fn stopped(stop: Stop) -> StoppedView {
    StoppedView {
        offset: stop.offset,
        class: stop.class.name().to_owned(),
        code: stop.reason.code,
        detail: stop.reason.detail,
        revision: stop.revision.to_string(),
    }
}

/// Where a record stands with one handler.
async fn whereabouts(name: String, running: &Running, from: &TopicPartition, offset: Offset) -> WhereView {
    let membership = &running.membership;
    let mut view = WhereView {
        handler: name,
        group: running.spec.consumer.subscription.group.clone(),
        state: WhereState::NotHere,
        tries: 0,
        again_in_ms: None,
        committed: None,
        paused: membership.is_paused(),
        parked_at: None,
        stopped: None,
        detail: None,
    };
    let standing = match membership.standing(from, offset).await {
        Ok(Some(standing)) => standing,
        Ok(None) => return view,
        Err(error) => return WhereView { state: WhereState::Unknown, detail: Some(error.to_string()), ..view },
    };
    (view.state, view.tries) = match standing.stage {
        Stage::Ahead => (WhereState::Unread, 0),
        Stage::Waiting => (WhereState::Waiting, 0),
        Stage::Running { tries } => (WhereState::Running, tries),
        Stage::Retrying { tries, .. } => (WhereState::Retrying, tries),
        Stage::Stopped => (WhereState::Stopped, 0),
        Stage::Settled => (WhereState::Done, 0),
        Stage::Absent => (WhereState::Absent, 0),
    };
    view.again_in_ms = standing.again_in.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    view.committed = standing.committed;
    view.parked_at = standing.parked_at;
    let of_it = membership.partitions().into_iter().find(|of| of.from == *from);
    view.stopped = of_it.and_then(|of| of.stopped).map(stopped);
    view
}

impl admin::Host for View {
    fn readiness(&self) -> Readiness {
        let mut missing = Vec::new();
        let mut lacks =
            |part: &str, detail: &str| missing.push(Missing { part: part.to_owned(), detail: detail.to_owned() });
        if self.stopping.load(Ordering::Relaxed) {
            lacks("host", "it drains and ends");
        } else if !self.started.load(Ordering::Relaxed) {
            lacks("host", "it starts");
        }
        if !self.producers.iter().all(|producer| producer.ready()) {
            lacks("producer", "the broker is not reached");
        }
        for (name, state) in self.roster.states() {
            // A folder that is refused while the host runs is the operator's news, not a reason to send no traffic.
            if let Some(running) = state.running.filter(|running| !running.membership.is_joined()) {
                let cause = running.membership.failure();
                lacks(
                    &format!("handler {name}"),
                    cause.as_deref().unwrap_or("the group has given it no partitions yet"),
                );
            }
        }
        Readiness::waiting_for(missing)
    }

    fn handlers(&self) -> Vec<HandlerView> {
        self.roster.states().iter().map(|(name, state)| self.handler(name, state)).collect()
    }

    fn pause(&self, handler: &str, paused: bool) -> Result<(), PauseError> {
        let known = self.roster.states().contains_key(handler);
        if !known {
            return Err(PauseError::NoSuchHandler(handler.to_owned()));
        }
        self.pauses.set(handler, paused).map_err(|cause| PauseError::NotKept(handler.to_owned(), cause.to_string()))?;
        // Looked up behind the file: a handler that starts just now has read it, or is found.
        if let Some(running) = self.roster.get(handler) {
            running.membership.pause(paused);
        }
        self.metrics.handler(handler).paused.set(i64::from(paused));
        Ok(())
    }

    fn whereabouts(&self, from: TopicPartition, offset: Offset) -> BoxFuture<'_, Vec<WhereView>> {
        async move {
            let reads =
                |running: &Running| running.spec.consumer.subscription.topics.iter().any(|it| **it == *from.topic);
            let states = self.roster.states().into_iter();
            let reading = states.filter_map(|(name, state)| Some((name, state.running.filter(|it| reads(it))?)));
            let asked = reading.map(|(name, running)| {
                let from = from.clone();
                async move { whereabouts(name, &running, &from, offset).await }
            });
            join_all(asked).await
        }
        .boxed()
    }

    fn parked<'a>(&'a self, handler: &'a str) -> BoxFuture<'a, Result<ParkedView, ParkedError>> {
        async move {
            let running = self.roster.get(handler).ok_or_else(|| ParkedError::NotRunning(handler.to_owned()))?;
            parked::list(&running).await
        }
        .boxed()
    }

    fn unpark<'a>(&'a self, handler: &'a str, request: UnparkRequest) -> BoxFuture<'a, Result<Unparked, ParkedError>> {
        async move {
            let running = self.roster.get(handler).ok_or_else(|| ParkedError::NotRunning(handler.to_owned()))?;
            parked::unpark(&running, request).await
        }
        .boxed()
    }

    fn move_offsets<'a>(
        &'a self,
        handler: &'a str,
        wish: &'a MoveBody,
    ) -> BoxFuture<'a, Result<MoveView, MoveRefused>> {
        async move {
            let states = self.roster.states();
            let state = states.get(handler).ok_or_else(|| MoveRefused::NoSuchHandler(handler.to_owned()))?;
            let running = state.running.clone().ok_or_else(|| MoveRefused::NotRunning(handler.to_owned()))?;
            let MoveBody { to, topic, partition, dry_run } = wish.clone();
            let to = to.parse().map_err(|cure| MoveRefused::Invalid(format!("`to` is `{to}`; {cure}")))?;
            let reset = Reset { to, which: Selection { topic, partition }, dry_run };
            let came_to = fleet::reset(&running, &reset).await.map_err(|error| match error {
                ResetError::NotFound(NotFound::Broker(_)) | ResetError::NoAdmin | ResetError::Move(_) => {
                    MoveRefused::Failed(error.to_string())
                }
                ResetError::NotFound(_) => MoveRefused::Invalid(error.to_string()),
            })?;
            Ok(move_view(handler, dry_run, came_to))
        }
        .boxed()
    }

    fn roll_back<'a>(&'a self, handler: &'a str) -> BoxFuture<'a, Result<RolledBack, RollBackError>> {
        async move {
            let states = self.roster.states();
            let state = states.get(handler).ok_or_else(|| RollBackError::NoSuchHandler(handler.to_owned()))?;
            let running = state.running.clone().ok_or_else(|| RollBackError::NotRunning(handler.to_owned()))?;
            let rolled_back = running.live.roll_back(|rollback| RolledBack {
                revision: rollback.live.clone(),
                set_aside: rollback.set_aside.last().cloned().unwrap_or_default(),
                not_kept: self.rollbacks.keep(handler, rollback).err().map(|error| error.to_string()),
            });
            rolled_back.await.map_err(|_| RollBackError::NothingBefore(handler.to_owned()))
        }
        .boxed()
    }
}

/// What a reset came to, as it is answered.
pub(super) fn move_view(handler: &str, dry_run: bool, Where { moved, elsewhere }: Where) -> MoveView {
    let moved_view =
        |Moved { of, from, to }: Moved| MovedView { topic: of.topic.to_string(), partition: of.partition, from, to };
    MoveView {
        handler: handler.to_owned(),
        dry_run,
        moved: moved.into_iter().map(moved_view).collect(),
        elsewhere: held_by(elsewhere),
    }
}

/// Partitions of others, as they are answered.
fn held_by(elsewhere: fleet::Elsewhere) -> Vec<Elsewhere> {
    let view = |(of, owner): (TopicPartition, _)| {
        let (topic, partition) = (of.topic.to_string(), of.partition);
        Elsewhere { topic, partition, owner }
    };
    elsewhere.into_iter().map(view).collect()
}

/// Where the host listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) ingest: Option<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
}

/// Waits until the host is ready, says so, and writes the ready file.
pub(super) async fn announce(view: Arc<View>, addresses: Addresses, ready_file: Option<PathBuf>) {
    while !admin::Host::readiness(&*view).ready {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    tracing::info!("the host is ready");
    let Some(path) = ready_file else { return };
    let text = serde_json::json!({
        "ingest": addresses.ingest.map(|address| address.to_string()),
        "admin": addresses.admin.map(|address| address.to_string()),
    })
    .to_string();
    // Renamed into place: whoever waits for the file finds it whole.
    let half = path.with_extension("tmp");
    let written = async {
        tokio::fs::write(&half, text).await?;
        tokio::fs::rename(&half, &path).await
    };
    if let Err(error) = written.await {
        tracing::error!(path = %path.display(), %error, "the ready file can't be written");
    }
}
