//! HTTP in: a request is answered with 2xx once the broker has its records safely, and never before.
//!
//! The path of a request: token, topic, head, a place among those in hand, body, every line checked, produced with
//! `acks=all`, answered. What clients may rely on is in `docs/ingest.md`.

mod answer;
mod batch;
mod body;
mod config;
mod head;
mod json;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, EXPECT, ORIGIN};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::answer::Refusal;
use self::batch::{Batch, Bounds};
use self::body::{Budget, Incoming, Share};
pub use self::config::{Config, InvalidConfig};
use self::head::Head;
use crate::broker::{Position, Producer, SendError, WhenFull};
use crate::http::{self, BindError, Listener, Token};
use crate::metrics::IngestMetrics;

/// The endpoint, bound to its port.
pub struct Ingest(Listener);

/// Ingest could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The port.
    #[error(transparent)]
    Bind(#[from] BindError),
}

impl Ingest {
    /// Checks the configuration and binds the port; a relative secret's file is taken from `folder`.
    pub async fn bind(
        config: &Config,
        folder: &Path,
        producer: Arc<dyn Producer>,
        metrics: Arc<IngestMetrics>,
    ) -> Result<Self, OpenError> {
        let token = config.check(folder)?;
        let bounds = http::Bounds {
            connections_max: config.connections_max,
            head_timeout: config.head_timeout.0,
            drain_deadline: config.drain_deadline.0,
        };
        let router = router(Endpoint::new(config, token, producer, metrics));
        Ok(Self(Listener::bind("ingest", config.listen, router, bounds).await?))
    }

    /// Where it listens; of use when the configuration said port 0.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Serves until `stop`, then answers the requests in hand, at most until the drain deadline. What was given to the
    /// producer is still the producer's to flush.
    pub async fn run(self, stop: CancellationToken) {
        let cut_off = self.0.run(stop).await;
        if cut_off > 0 {
            tracing::warn!(connections = cut_off, "requests were not answered before the drain deadline");
        }
    }
}

/// What a request needs to be answered.
struct Endpoint {
    /// Each offered topic, as it stands in records and labels.
    topics: BTreeMap<String, Arc<str>>,
    /// The label of requests to anything else.
    no_topic: Arc<str>,
    token: Option<Token>,
    places: Semaphore,
    budget: Arc<Budget>,
    bounds: Bounds,
    body_bytes_max: usize,
    body_timeout: Duration,
    send_timeout: Duration,
    retry_after: Duration,
    producer: Arc<dyn Producer>,
    metrics: Arc<IngestMetrics>,
}

impl Endpoint {
    fn new(config: &Config, token: Option<Token>, producer: Arc<dyn Producer>, metrics: Arc<IngestMetrics>) -> Self {
        Self {
            topics: config.topics.iter().map(|topic| (topic.clone(), topic.as_str().into())).collect(),
            no_topic: "".into(),
            token,
            places: Semaphore::new(config.requests_max),
            budget: Budget::new(config.bodies_bytes_max.0),
            bounds: Bounds { records_max: config.batch_records_max, record_bytes_max: config.record_bytes_max.0 },
            body_bytes_max: config.body_bytes_max.0,
            body_timeout: config.body_timeout.0,
            send_timeout: config.send_timeout.0,
            retry_after: config.retry_after.0,
            producer,
            metrics,
        }
    }
}

fn router(endpoint: Endpoint) -> Router {
    Router::new()
        .route("/", get(help).fallback(wrong_method))
        .route("/topics/{topic}", post(take).fallback(wrong_method))
        .fallback(no_such_path)
        .with_state(Arc::new(endpoint))
}

async fn help(State(endpoint): State<Arc<Endpoint>>, headers: HeaderMap) -> Response {
    if let Err(refusal) = endpoint.admit(&headers) {
        return refusal.answer(endpoint.retry_after);
    }
    let mut text = String::from(HELP);
    for topic in endpoint.topics.keys() {
        // Writing to a `String` never fails.
        writeln!(text, "  {topic}").ok();
    }
    text.into_response()
}

const HELP: &str = "\
Tidemill takes records here and answers once they are safe in the log.

  curl -d '{\"id\": 1}' -H 'Tidemill-Key: 1' URL/topics/TOPIC
  curl --data-binary @orders.ndjson -H 'Content-Type: application/x-ndjson' 'URL/topics/TOPIC?key=id'

Request headers: Tidemill-Key, Tidemill-Key-Base64, Tidemill-Partition, Tidemill-Timestamp-Ms,
Tidemill-Header-NAME, Tidemill-Base64-Header-NAME, Tidemill-Null-Value, Idempotency-Key;
for a batch also Tidemill-Key-Field (?key=) and Tidemill-Envelope (?envelope=true).
2xx: stored. Anything else: `stored` in the answer says whether it is.

Offered topics:
";

async fn wrong_method(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    endpoint.refuse(Refusal::WrongMethod, request.into_body()).await
}

async fn no_such_path(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    endpoint.refuse(Refusal::NoSuchPath, request.into_body()).await
}

async fn take(
    State(endpoint): State<Arc<Endpoint>>,
    topic: Result<UrlPath<String>, PathRejection>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let _in_flight = endpoint.metrics.begin();
    let name = topic.map(|UrlPath(topic)| topic).unwrap_or_default();
    let topic = endpoint.topics.get(&name);
    let (parts, body) = request.into_parts();
    let mut incoming = Incoming::new(body);
    let answer = match endpoint.store(&name, topic, &parts, &mut incoming).await {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::debug!(topic = name, reason = %refusal, "a request was refused");
            // A client that waits for `100 Continue` has sent no body, and must not be asked for it now.
            if !parts.headers.contains_key(EXPECT) {
                incoming.discard().await;
            }
            refusal.answer(endpoint.retry_after)
        }
    };
    let label = topic.unwrap_or(&endpoint.no_topic);
    endpoint.metrics.answered(label, answer.status().as_u16(), started.elapsed());
    answer
}

impl Endpoint {
    async fn refuse(&self, refusal: Refusal, body: Body) -> Response {
        Incoming::new(body).discard().await;
        refusal.answer(self.retry_after)
    }

    /// Whether this client may ask anything at all.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.token.as_ref().is_some_and(|token| !token.allows(headers)) {
            return Err(Refusal::Unauthorized);
        }
        // A page in somebody's browser could reach a listener on loopback with a plain form.
        if headers.contains_key(ORIGIN) { Err(Refusal::FromBrowser) } else { Ok(()) }
    }

    async fn store(
        &self,
        name: &str,
        topic: Option<&Arc<str>>,
        parts: &Parts,
        incoming: &mut Incoming,
    ) -> Result<Response, Refusal> {
        self.admit(&parts.headers)?;
        let topic = topic.ok_or_else(|| Refusal::NotOffered(name.to_owned()))?;
        if let Some(encoding) = head::content_encoding(&parts.headers) {
            return Err(Refusal::Encoded(encoding));
        }
        let head = Head::read(parts)?;
        let _place = self.place()?;
        self.check_length(&parts.headers)?;
        if !self.producer.ready() {
            return Err(Refusal::BrokerAway);
        }
        let mut share = Share::of(&self.budget);
        let body = incoming.read(self.body_bytes_max, self.body_timeout, &mut share).await?;
        let batch = Batch::read(topic, head, &body, self.bounds)?;
        let lines = batch.lines.clone();
        let results = self.send(topic, batch).await;
        Ok(answer::sent(&results, lines.as_deref(), self.retry_after))
    }

    fn place(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        self.places.try_acquire().map_err(|_| Refusal::TooManyRequests)
    }

    /// Refuses a body by its announced length, before any of it is read.
    fn check_length(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.body_bytes_max as u64) {
            return Err(Refusal::BodyTooLarge { max: self.body_bytes_max });
        }
        Ok(())
    }

    /// One result for each record. In a task of its own: that the client or the time is gone does not unsend a record, and
    /// what is stored then is still counted.
    async fn send(&self, topic: &Arc<str>, batch: Batch) -> Vec<Result<Position, SendError>> {
        let Batch { records, sizes, .. } = batch;
        let count = records.len();
        let sending = self.producer.send(records, WhenFull::Refuse);
        let (topic, metrics) = (Arc::clone(topic), Arc::clone(&self.metrics));
        let task = tokio::spawn(async move {
            let results = sending.await;
            assert_eq!(results.len(), count, "a producer returns one result for each record");
            let stored = || results.iter().zip(&sizes).filter(|(result, _)| result.is_ok());
            metrics.stored(&topic, stored().count() as u64, stored().map(|(_, bytes)| bytes).sum());
            results
        });
        let cause = match timeout(self.send_timeout, task).await {
            Ok(Ok(results)) => return results,
            Ok(Err(ended)) => ended.to_string(),
            Err(_) => format!("no answer within {:?} (`send_timeout`)", self.send_timeout),
        };
        vec![Err(SendError::Unknown(cause)); count]
    }
}

#[cfg(test)]
mod tests;
