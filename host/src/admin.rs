//! Health, readiness, metrics, and what an operator may ask of a running host: on a listener of its own.
//!
//! Liveness and readiness answer without the token, since probes have none, but say then no more than yes or no.

mod config;
mod view;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequestParts, Path as UrlPath, State};
use axum::http::header::{CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use tidemill_core::record::{Offset, TopicPartition};
use tokio_util::sync::CancellationToken;

pub use self::config::{Config, InvalidConfig};
pub use self::view::{
    Elsewhere, ErrorView, HandlerState, HandlerView, Missing, MoveBody, MoveView, MovedView, ParkedKeyView, ParkedView,
    PartitionView, PauseView, Reach, Readiness, RolledBack, Silent, StoppedView, UnparkRequest, Unparked, WhereState,
    WhereView,
};
use crate::http::{self, BindError, Listener, Token};
use crate::metrics::{self, Metrics};

/// What admin asks of the host.
pub trait Host: Send + Sync + 'static {
    /// What is not ready yet.
    fn readiness(&self) -> Readiness;

    /// Every handler whose folder is there, by name.
    fn handlers(&self) -> Vec<HandlerView>;

    /// Lets a handler start no more calls, or go on; outlives the host.
    fn pause(&self, handler: &str, paused: bool) -> Result<(), PauseError>;

    /// Where a record stands with each handler of this host that reads its topic.
    fn whereabouts(&self, from: TopicPartition, offset: Offset) -> BoxFuture<'_, Vec<WhereView>>;

    /// A handler's parked keys, of the partitions of this host.
    fn parked<'a>(&'a self, handler: &'a str) -> BoxFuture<'a, Result<ParkedView, ParkedError>>;

    /// Tries parked keys of a handler again, of the partitions of this host.
    fn unpark<'a>(&'a self, handler: &'a str, request: UnparkRequest) -> BoxFuture<'a, Result<Unparked, ParkedError>>;

    /// Lets partitions of a handler begin elsewhere, for whoever reads them from now on.
    fn move_offsets<'a>(&'a self, handler: &'a str, wish: &'a MoveBody)
    -> BoxFuture<'a, Result<MoveView, MoveRefused>>;

    /// Makes the revision before the live one of a handler live again.
    fn roll_back<'a>(&'a self, handler: &'a str) -> BoxFuture<'a, Result<RolledBack, RollBackError>>;
}

/// Why nobody was asked for parked keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParkedError {
    /// The handler does not run.
    #[error("no handler `{0}` runs here; `tidemill guests list` shows those that do")]
    NotRunning(String),
    /// It has no such partitions.
    #[error("{0}")]
    Invalid(String),
}

/// Why a handler's offsets were not moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveRefused {
    /// There is no such handler.
    #[error("there is no handler `{0}`; `tidemill guests list` shows those that there are")]
    NoSuchHandler(String),
    /// The handler does not run.
    #[error("handler `{0}` does not run; correct its folder, `tidemill check` says what is wrong")]
    NotRunning(String),
    /// What was asked for can't be.
    #[error("{0}")]
    Invalid(String),
    /// Something failed.
    #[error("{0}")]
    Failed(String),
}

/// Why a handler was not rolled back; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RollBackError {
    /// There is no such handler.
    #[error("there is no handler `{0}`; `tidemill guests list` shows those that there are")]
    NoSuchHandler(String),
    /// No revision is kept to go back to.
    #[error("handler `{0}` has no revision before this one; drop in the file that you want to run")]
    NothingBefore(String),
    /// The handler does not run.
    #[error("handler `{0}` does not run; correct its folder, `tidemill check` says what is wrong")]
    NotRunning(String),
}

/// Why a handler was not paused, or does not go on; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// There is no such handler.
    #[error("there is no handler `{0}`; `tidemill guests list` shows those that there are")]
    NoSuchHandler(String),
    /// The host could not keep it, so that a restart would not know of it.
    #[error("handler `{0}` is as it was: the host's folder `state` can't be written ({1}); mend that, and try again")]
    NotKept(String, String),
}

/// The endpoint, bound to its port.
pub struct Admin(Listener);

/// Admin could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration can't work, or is not safe.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The port.
    #[error(transparent)]
    Bind(#[from] BindError),
}

impl Admin {
    /// Checks the configuration and binds the port; a relative secret's file is taken from `folder`.
    pub async fn bind(
        config: &Config,
        folder: &Path,
        host: Arc<dyn Host>,
        metrics: Metrics,
    ) -> Result<Self, OpenError> {
        let token = config.check(folder)?;
        let bounds = http::Bounds {
            connections_max: config.connections_max,
            head_timeout: config.head_timeout.0,
            drain_deadline: config.drain_deadline.0,
        };
        let router = router(Endpoint { token, host, metrics });
        Ok(Self(Listener::bind("admin", config.listen, router, bounds).await?))
    }

    /// Where it listens; of use when the configuration said port 0.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Serves until `stop`. Stop it last, so that probes see the rest of the host drain.
    pub async fn run(self, stop: CancellationToken) {
        let cut_off = self.0.run(stop).await;
        if cut_off > 0 {
            tracing::warn!(connections = cut_off, "admin requests were not answered before the drain deadline");
        }
    }
}

struct Endpoint {
    token: Option<Token>,
    host: Arc<dyn Host>,
    metrics: Metrics,
}

impl Endpoint {
    fn has_token(&self, headers: &HeaderMap) -> bool {
        self.token.as_ref().is_none_or(|token| token.allows(headers))
    }
}

/// The client may ask; otherwise it is told why not, before anything else of the request is read.
struct Admitted;

impl FromRequestParts<Arc<Endpoint>> for Admitted {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, endpoint: &Arc<Endpoint>) -> Result<Self, Response> {
        if !endpoint.has_token(&parts.headers) {
            let detail = "send `Authorization: Bearer TOKEN` with admin's token";
            let mut answer = error(StatusCode::UNAUTHORIZED, "unauthorized", detail);
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Err(answer);
        }
        // A page in somebody's browser could reach a listener on loopback with a plain form.
        if parts.headers.contains_key(ORIGIN) {
            let detail = "requests of web pages (with an `Origin` header) are not taken";
            return Err(error(StatusCode::FORBIDDEN, "from-browser", detail));
        }
        Ok(Self)
    }
}

fn router(endpoint: Endpoint) -> Router {
    Router::new()
        .route("/", get(async || HELP))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .route("/handlers", get(list))
        .route("/where/{topic}/{partition}/{offset}", get(whereabouts))
        .route("/handlers/{name}/rollback", post(roll_back))
        .route("/handlers/{name}/parked", get(parked))
        .route("/handlers/{name}/unpark", post(unpark))
        .route("/handlers/{name}/pause", post(async |endpoint, admitted, name| pause(endpoint, admitted, name, true)))
        .route("/handlers/{name}/resume", post(async |endpoint, admitted, name| pause(endpoint, admitted, name, false)))
        .route("/handlers/{name}/offsets", post(move_offsets))
        .fallback(async || error(StatusCode::NOT_FOUND, "no-such-path", "there is nothing here; `GET /` lists what is"))
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "`GET /` lists the methods")
        })
        .with_state(Arc::new(endpoint))
}

const HELP: &str = "\
GET  /healthz                  200 while the process answers
GET  /readyz                   200 once the host is ready, 503 with what is missing until then
GET  /metrics                  for Prometheus
GET  /handlers                 what runs, as JSON
GET  /where/TOPIC/PARTITION/OFFSET   where a record stands with each handler, as JSON
POST /handlers/NAME/rollback   goes back to the revision before
GET  /handlers/NAME/parked     which keys are parked, as JSON
POST /handlers/NAME/unpark     tries parked keys again
POST /handlers/NAME/pause      starts no more calls, also after a restart
POST /handlers/NAME/resume     goes on where it stood
POST /handlers/NAME/offsets    begins elsewhere, also after a restart; JSON with `to`, as `offsets reset` takes it
";

async fn readyz(State(endpoint): State<Arc<Endpoint>>, headers: HeaderMap) -> Response {
    let mut readiness = endpoint.host.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if !endpoint.has_token(&headers) {
        readiness.missing.clear();
    }
    (status, Json(readiness)).into_response()
}

async fn render_metrics(State(endpoint): State<Arc<Endpoint>>, _: Admitted) -> Response {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], endpoint.metrics.render()).into_response()
}

async fn list(State(endpoint): State<Arc<Endpoint>>, _: Admitted) -> Response {
    Json(endpoint.host.handlers()).into_response()
}

async fn whereabouts(
    State(endpoint): State<Arc<Endpoint>>,
    _: Admitted,
    UrlPath((topic, partition, offset)): UrlPath<(String, String, String)>,
) -> Response {
    let (Ok(partition @ 0..), Ok(offset @ 0..)) = (partition.parse::<i32>(), offset.parse::<Offset>()) else {
        let detail = "a partition and an offset are numbers from 0 on, as in /where/orders/3/42";
        return error(StatusCode::BAD_REQUEST, "bad-place", detail);
    };
    Json(endpoint.host.whereabouts(TopicPartition::new(topic, partition), offset).await).into_response()
}

async fn parked(State(endpoint): State<Arc<Endpoint>>, _: Admitted, UrlPath(handler): UrlPath<String>) -> Response {
    match endpoint.host.parked(&handler).await {
        Ok(parked) => Json(parked).into_response(),
        Err(cause) => not_asked(&cause),
    }
}

async fn unpark(
    State(endpoint): State<Arc<Endpoint>>,
    _: Admitted,
    UrlPath(handler): UrlPath<String>,
    body: Bytes,
) -> Response {
    let request: UnparkRequest = match serde_json::from_slice(if body.is_empty() { b"{}" } else { &body }) {
        Ok(request) => request,
        Err(cause) => {
            return error(StatusCode::BAD_REQUEST, "bad-request", &format!("the body can't be read: {cause}"));
        }
    };
    if request.null_key && request.key.is_some() {
        return error(StatusCode::BAD_REQUEST, "bad-request", "give `key` or `null_key`, not both");
    }
    let is_dry = request.dry_run;
    match endpoint.host.unpark(&handler, request).await {
        Ok(done) => {
            if !is_dry {
                tracing::warn!(handler, keys = done.keys, records = done.records, "unparked");
            }
            Json(done).into_response()
        }
        Err(cause) => not_asked(&cause),
    }
}

fn not_asked(cause: &ParkedError) -> Response {
    let (status, code) = match cause {
        ParkedError::NotRunning(_) => (StatusCode::NOT_FOUND, "no-such-handler"),
        ParkedError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
    };
    error(status, code, &cause.to_string())
}

async fn roll_back(State(endpoint): State<Arc<Endpoint>>, _: Admitted, UrlPath(handler): UrlPath<String>) -> Response {
    match endpoint.host.roll_back(&handler).await {
        Ok(rolled_back) => {
            let RolledBack { revision, set_aside, not_kept } = &rolled_back;
            tracing::warn!(handler, revision, set_aside, "rolled back");
            if let Some(error) = not_kept {
                tracing::error!(
                    handler,
                    error,
                    "the rollback can't be kept in the host's folder `state`: a restart does not know of it"
                );
            }
            Json(rolled_back).into_response()
        }
        Err(cause) => {
            let (status, code) = match cause {
                RollBackError::NoSuchHandler(_) => (StatusCode::NOT_FOUND, "no-such-handler"),
                RollBackError::NothingBefore(_) => (StatusCode::CONFLICT, "nothing-before"),
                RollBackError::NotRunning(_) => (StatusCode::CONFLICT, "not-running"),
            };
            error(status, code, &cause.to_string())
        }
    }
}

async fn move_offsets(
    State(endpoint): State<Arc<Endpoint>>,
    _: Admitted,
    UrlPath(handler): UrlPath<String>,
    body: Result<Json<MoveBody>, JsonRejection>,
) -> Response {
    let wish = match body {
        Ok(Json(wish)) => wish,
        Err(rejected) => return error(rejected.status(), "invalid", &rejected.body_text()),
    };
    match endpoint.host.move_offsets(&handler, &wish).await {
        Ok(view) => Json(view).into_response(),
        Err(cause) => {
            let (status, code) = match cause {
                MoveRefused::NoSuchHandler(_) => (StatusCode::NOT_FOUND, "no-such-handler"),
                MoveRefused::NotRunning(_) => (StatusCode::CONFLICT, "not-running"),
                MoveRefused::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
                MoveRefused::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
            };
            error(status, code, &cause.to_string())
        }
    }
}

fn pause(
    State(endpoint): State<Arc<Endpoint>>,
    _: Admitted,
    UrlPath(handler): UrlPath<String>,
    paused: bool,
) -> Response {
    match endpoint.host.pause(&handler, paused) {
        Ok(()) => {
            tracing::warn!(handler, "{}", if paused { "paused" } else { "resumed" });
            Json(PauseView { handler, paused }).into_response()
        }
        Err(cause) => {
            let (status, code) = match cause {
                PauseError::NoSuchHandler(_) => (StatusCode::NOT_FOUND, "no-such-handler"),
                PauseError::NotKept(..) => (StatusCode::INTERNAL_SERVER_ERROR, "not-kept"),
            };
            error(status, code, &cause.to_string())
        }
    }
}

fn error(status: StatusCode, code: &str, detail: &str) -> Response {
    (status, Json(ErrorView { code: code.to_owned(), detail: detail.to_owned() })).into_response()
}

#[cfg(test)]
mod tests;
