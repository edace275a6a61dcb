//! Health, readiness, metrics, and what an operator may ask of a running host: on a listener of its own.
//!
//! Liveness and readiness answer without the token, since probes have none, but say then no more than yes or no.

mod config;
mod view;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path as UrlPath, State};
use axum::http::header::{CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use self::config::{Config, InvalidConfig};
pub use self::view::{
    Elsewhere, ErrorView, HandlerState, HandlerView, Missing, MoveBody, MoveView, MovedView, PartitionView, PauseView,
    Readiness, RolledBack, StoppedView,
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

    /// Lets partitions of a handler begin elsewhere, for whoever reads them from now on.
    fn move_offsets<'a>(&'a self, handler: &'a str, wish: &'a MoveBody)
    -> BoxFuture<'a, Result<MoveView, MoveRefused>>;

    /// Makes the revision before the live one of a handler live again.
    fn roll_back<'a>(&'a self, handler: &'a str) -> BoxFuture<'a, Result<RolledBack, RollBackError>>;
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

    /// Whether this client may ask; otherwise what it is told.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        if !self.has_token(headers) {
            let detail = "send `Authorization: Bearer TOKEN` with admin's token";
            let mut answer = error(StatusCode::UNAUTHORIZED, "unauthorized", detail);
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Err(answer.into());
        }
        // A page in somebody's browser could reach a listener on loopback with a plain form.
        if headers.contains_key(ORIGIN) {
            let detail = "requests of web pages (with an `Origin` header) are not taken";
            return Err(error(StatusCode::FORBIDDEN, "from-browser", detail).into());
        }
        Ok(())
    }
}

fn router(endpoint: Endpoint) -> Router {
    Router::new()
        .route("/", get(async || HELP))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .route("/handlers", get(list))
        .route("/handlers/{name}/rollback", post(roll_back))
        .route("/handlers/{name}/pause", post(async |endpoint, name, headers| pause(endpoint, name, headers, true)))
        .route("/handlers/{name}/resume", post(async |endpoint, name, headers| pause(endpoint, name, headers, false)))
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
POST /handlers/NAME/rollback   goes back to the revision before
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

async fn render_metrics(State(endpoint): State<Arc<Endpoint>>, headers: HeaderMap) -> Response {
    match endpoint.admit(&headers) {
        Ok(()) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], endpoint.metrics.render()).into_response(),
        Err(refused) => *refused,
    }
}

async fn list(State(endpoint): State<Arc<Endpoint>>, headers: HeaderMap) -> Response {
    match endpoint.admit(&headers) {
        Ok(()) => Json(endpoint.host.handlers()).into_response(),
        Err(refused) => *refused,
    }
}

async fn roll_back(
    State(endpoint): State<Arc<Endpoint>>,
    UrlPath(handler): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    if let Err(refused) = endpoint.admit(&headers) {
        return *refused;
    }
    match endpoint.host.roll_back(&handler).await {
        Ok(rolled_back) => {
            tracing::info!(handler, revision = rolled_back.revision, set_aside = rolled_back.set_aside, "rolled back");
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
    UrlPath(handler): UrlPath<String>,
    headers: HeaderMap,
    body: Result<Json<MoveBody>, JsonRejection>,
) -> Response {
    if let Err(refused) = endpoint.admit(&headers) {
        return *refused;
    }
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
    UrlPath(handler): UrlPath<String>,
    headers: HeaderMap,
    paused: bool,
) -> Response {
    if let Err(refused) = endpoint.admit(&headers) {
        return *refused;
    }
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
