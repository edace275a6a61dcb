//! What a client is told: a status, whether its records are stored, and what to do.
//!
//! A status of 2xx says that everything is acknowledged, and nothing else does. The contract for clients is
//! `docs/ingest.md`.

use std::time::Duration;

use axum::Json;
use axum::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::batch::InvalidLine;
use super::head::InvalidHead;
use crate::broker::{Position, SendError};

/// Why a request was refused before anything of it was produced: nothing is stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// No token, or a wrong one.
    #[error("send `Authorization: Bearer TOKEN` with this endpoint's token")]
    Unauthorized,
    /// A page in a browser.
    #[error("requests of web pages (with an `Origin` header) are not taken; send from a server or a command")]
    FromBrowser,
    /// Another path.
    #[error("there is nothing here; records go to `POST /topics/TOPIC`")]
    NoSuchPath,
    /// Another method.
    #[error("records are sent with POST")]
    WrongMethod,
    /// A topic that the configuration does not offer.
    #[error("topic `{0}` is not offered here; `GET /` lists those that are")]
    NotOffered(String),
    /// The body is compressed.
    #[error("`Content-Encoding: {0}` is not taken; send the body as it is")]
    Encoded(String),
    /// The head says something that can't be.
    #[error(transparent)]
    Head(#[from] InvalidHead),
    /// A tombstone with a value.
    #[error("`tidemill-null-value` is true and the body is not empty; a tombstone has no value")]
    NullValueWithBody,
    /// A line of a batch is no record.
    #[error("line {line} {cause}; nothing of the batch is stored")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        cause: InvalidLine,
    },
    /// A batch of blank lines.
    #[error("the batch has no records; send one JSON value a line")]
    NoRecords,
    /// The body is too large.
    #[error("the body is larger than {max} bytes (`body_bytes_max`); send it in parts")]
    BodyTooLarge {
        /// The bound.
        max: usize,
    },
    /// A record is too large.
    #[error("{} is {bytes} bytes large with its key and headers; {max} are allowed (`record_bytes_max`)", of_line(*.line))]
    RecordTooLarge {
        /// Its line, in a batch.
        line: Option<usize>,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A batch is too long.
    #[error("the batch has more than {max} records (`batch_records_max`); send it in parts")]
    TooManyRecords {
        /// The bound.
        max: usize,
    },
    /// The client stopped in the middle.
    #[error("the body ended early: {0}")]
    BodyBroken(String),
    /// The client is too slow.
    #[error("the body did not come within {0:?} (`body_timeout`)")]
    BodyTimeout(Duration),
    /// Too many requests at once.
    #[error("too many requests are in hand (`requests_max`); send again later")]
    TooManyRequests,
    /// Their bodies take too much memory.
    #[error("the bodies in hand take too much memory (`bodies_bytes_max`); send again later")]
    OutOfMemory,
    /// The broker is away, as far as the producer knows.
    #[error("the broker is not available; send again later")]
    BrokerAway,
}

fn of_line(line: Option<usize>) -> String {
    line.map_or_else(|| "the record".to_owned(), |line| format!("line {line}"))
}

impl Refusal {
    /// The status, and a name for machines.
    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::FromBrowser => (StatusCode::FORBIDDEN, "from-browser"),
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "no-such-path"),
            Self::WrongMethod => (StatusCode::METHOD_NOT_ALLOWED, "wrong-method"),
            Self::NotOffered(_) => (StatusCode::NOT_FOUND, "topic-not-offered"),
            Self::Encoded(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoded"),
            Self::Head(_) | Self::NullValueWithBody => (StatusCode::BAD_REQUEST, "bad-header"),
            Self::Line { .. } => (StatusCode::BAD_REQUEST, "bad-line"),
            Self::NoRecords => (StatusCode::BAD_REQUEST, "no-records"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large"),
            Self::RecordTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "record-too-large"),
            Self::TooManyRecords { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-many-records"),
            Self::BodyBroken(_) => (StatusCode::BAD_REQUEST, "body-broken"),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, "body-timeout"),
            Self::TooManyRequests => (StatusCode::SERVICE_UNAVAILABLE, "too-many-requests"),
            Self::OutOfMemory => (StatusCode::SERVICE_UNAVAILABLE, "out-of-memory"),
            Self::BrokerAway => (StatusCode::SERVICE_UNAVAILABLE, "broker-away"),
        }
    }

    fn line(&self) -> Option<usize> {
        match self {
            Self::Line { line, .. } => Some(*line),
            Self::RecordTooLarge { line, .. } => *line,
            Self::Unauthorized
            | Self::FromBrowser
            | Self::NoSuchPath
            | Self::WrongMethod
            | Self::NotOffered(_)
            | Self::Encoded(_)
            | Self::Head(_)
            | Self::NullValueWithBody
            | Self::NoRecords
            | Self::BodyTooLarge { .. }
            | Self::TooManyRecords { .. }
            | Self::BodyBroken(_)
            | Self::BodyTimeout(_)
            | Self::TooManyRequests
            | Self::OutOfMemory
            | Self::BrokerAway => None,
        }
    }

    /// The answer; `retry_after` goes with a 503.
    pub(super) fn answer(&self, retry_after: Duration) -> Response {
        let (status, code) = self.kind();
        let error = Some(Error { code, detail: self.to_string() });
        let mut response =
            respond(status, &Body { stored: Stored::No, error, line: self.line(), ..Body::default() }, retry_after);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

/// Whether records are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "lowercase")]
enum Stored {
    /// Acknowledged.
    Yes,
    /// Certainly not.
    #[default]
    No,
    /// Some are and the others are certainly not: each line says.
    Partly,
    /// They may be or not.
    Unknown,
}

/// An answer's body.
#[derive(Debug, Default, Serialize)]
struct Body {
    stored: Stored,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
    /// The first line that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// One for each record of a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<Line>>,
}

#[derive(Debug, Serialize)]
struct Error {
    code: &'static str,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Line {
    line: usize,
    stored: Stored,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
}

type Sent = Result<Position, SendError>;

/// The answer once the records were sent: one result for each, and their lines when it was a batch.
pub(super) fn sent(results: &[Sent], lines: Option<&[usize]>, retry_after: Duration) -> Response {
    let status = results.iter().map(|result| status(result.as_ref().err())).max_by_key(|status| severity(*status));
    let status = status.unwrap_or(StatusCode::OK);
    let body = match (lines, results) {
        (None, [result]) => single(result),
        (lines, results) => batch(results, lines.unwrap_or_default()),
    };
    respond(status, &body, retry_after)
}

fn single(result: &Sent) -> Body {
    match result {
        Ok(Position { partition, offset }) => {
            Body { stored: Stored::Yes, partition: known(*partition), offset: known(*offset), ..Body::default() }
        }
        Err(error) => Body { stored: stored(error), error: Some(explained(error)), ..Body::default() },
    }
}

fn batch(results: &[Sent], lines: &[usize]) -> Body {
    let records: Vec<Line> = results.iter().zip(lines).map(|(result, line)| line_of(*line, result)).collect();
    let has = |stored| records.iter().any(|record| record.stored == stored);
    let stored = match (has(Stored::Unknown), has(Stored::Yes), has(Stored::No)) {
        (true, _, _) => Stored::Unknown,
        (false, true, true) => Stored::Partly,
        (false, true, false) => Stored::Yes,
        (false, false, _) => Stored::No,
    };
    let worst =
        results.iter().filter_map(|result| result.as_ref().err()).max_by_key(|error| severity(status(Some(error))));
    Body { stored, error: worst.map(explained), records: Some(records), ..Body::default() }
}

fn line_of(line: usize, result: &Sent) -> Line {
    match result {
        Ok(Position { partition, offset }) => {
            Line { line, stored: Stored::Yes, partition: known(*partition), offset: known(*offset), error: None }
        }
        Err(error) => {
            Line { line, stored: stored(error), partition: None, offset: None, error: Some(explained(error)) }
        }
    }
}

/// A number of a position, unless nobody said it ([`Position::UNKNOWN`]).
fn known<T: PartialOrd + From<i8>>(number: T) -> Option<T> {
    Some(number).filter(|number| *number >= T::from(0))
}

fn stored(error: &SendError) -> Stored {
    match error {
        SendError::Unknown(_) => Stored::Unknown,
        SendError::NoSuchTopic(_)
        | SendError::TooLarge(_)
        | SendError::Denied(_)
        | SendError::QueueFull
        | SendError::Unavailable(_)
        | SendError::Rejected(_) => Stored::No,
    }
}

fn status(error: Option<&SendError>) -> StatusCode {
    match error {
        None => StatusCode::OK,
        Some(SendError::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
        Some(SendError::NoSuchTopic(_) | SendError::Denied(_) | SendError::Rejected(_)) => StatusCode::BAD_GATEWAY,
        Some(SendError::QueueFull | SendError::Unavailable(_)) => StatusCode::SERVICE_UNAVAILABLE,
        Some(SendError::Unknown(_)) => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// Which status a batch gets whose lines ended differently: the one that says least about what is stored.
fn severity(status: StatusCode) -> u16 {
    match status {
        StatusCode::OK => 0,
        StatusCode::PAYLOAD_TOO_LARGE => 1,
        StatusCode::BAD_GATEWAY => 2,
        StatusCode::SERVICE_UNAVAILABLE => 3,
        _ => 4,
    }
}

fn explained(error: &SendError) -> Error {
    let code = match error {
        SendError::NoSuchTopic(_) => "no-such-topic-or-partition",
        SendError::TooLarge(_) => "record-too-large",
        SendError::Denied(_) => "denied",
        SendError::QueueFull => "queue-full",
        SendError::Unavailable(_) => "broker-away",
        SendError::Unknown(_) => "not-confirmed",
        SendError::Rejected(_) => "rejected",
    };
    Error { code, detail: error.to_string() }
}

fn respond(status: StatusCode, body: &Body, retry_after: Duration) -> Response {
    let mut response = (status, Json(body)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
