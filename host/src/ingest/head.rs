//! What a request's head says about its records: the documented request headers and the query.

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::broker::Header;

/// The key, as text.
const KEY: &str = "tidemill-key";
/// The key, for any bytes.
const KEY_BASE64: &str = "tidemill-key-base64";
const PARTITION: &str = "tidemill-partition";
const TIMESTAMP: &str = "tidemill-timestamp-ms";
const NULL_VALUE: &str = "tidemill-null-value";
/// Followed by the record header's name.
const HEADER: &str = "tidemill-header-";
/// Followed by the record header's name; the value is base64.
const HEADER_BASE64: &str = "tidemill-base64-header-";
const KEY_FIELD: &str = "tidemill-key-field";
const ENVELOPE: &str = "tidemill-envelope";
/// Record headers that begin so are the host's.
pub(super) const RESERVED: &str = "tidemill.";
/// The request header and the record header that handlers de-duplicate by.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A request's head, read and checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) body: BodyKind,
    pub(super) partition: Option<i32>,
    pub(super) timestamp_ms: Option<i64>,
    /// Without the idempotency key.
    pub(super) headers: Vec<Header>,
    pub(super) idempotency_key: Option<Bytes>,
}

/// What the body is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyKind {
    /// The value of one record.
    Record { key: Option<Bytes>, null_value: bool },
    /// JSON values, one a line.
    Lines(LineForm),
}

/// What a line of a batch is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineForm {
    /// The record's value; there is no key.
    Value,
    /// The record's value; this field of it is also the key.
    Keyed(String),
    /// An object with the record's parts.
    Envelope,
}

/// A head that can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidHead {
    /// A header of our own that does not exist.
    #[error("`{0}` is no header of this endpoint; `GET /` lists them")]
    UnknownHeader(String),
    /// A record header that only the host writes: by some of them records are known again.
    #[error("a record header can't be called `{0}`: names that begin with `tidemill.` are the host's; choose another")]
    Reserved(String),
    /// A header that may be there once.
    #[error("`{0}` is there more than once; send it once")]
    Repeated(&'static str),
    /// A value that does not fit.
    #[error("`{header}` is not {expected}")]
    Value {
        /// The header.
        header: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// Two that exclude each other.
    #[error("`{0}` and `{1}` are both there; send one of them")]
    Both(&'static str, &'static str),
    /// A batch's header on a single record.
    #[error(
        "`{0}` is for a batch; send `Content-Type: application/x-ndjson` with one JSON value a line, or leave it out"
    )]
    OnlyForBatch(&'static str),
    /// A single record's header on a batch.
    #[error("`{0}` is for a single record; in a batch take `?key=FIELD` or `?envelope=true`")]
    OnlyForRecord(&'static str),
    /// A part of the query that does not exist.
    #[error("`{0}` in the query is not known; there are `envelope=true` and `key=FIELD`, both for a batch")]
    UnknownQuery(String),
}

/// Whether the body is encoded (compressed), and how.
pub(super) fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let encoding = headers.get(CONTENT_ENCODING)?;
    (encoding != "identity").then(|| String::from_utf8_lossy(encoding.as_bytes()).into_owned())
}

impl Head {
    /// Reads and checks a head.
    pub(super) fn read(parts: &Parts) -> Result<Self, InvalidHead> {
        let headers = &parts.headers;
        let body = if is_batch(headers) { BodyKind::Lines(line_form(parts)?) } else { record(parts)? };
        Ok(Self {
            body,
            partition: number(headers, PARTITION, "a partition's number, from 0")?,
            timestamp_ms: number(headers, TIMESTAMP, "milliseconds since the Unix epoch, as a whole number")?,
            headers: record_headers(headers)?,
            idempotency_key: text(headers, IDEMPOTENCY_KEY)?,
        })
    }
}

fn is_batch(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    ["application/x-ndjson", "application/ndjson", "application/jsonl"]
        .iter()
        .any(|it| it.eq_ignore_ascii_case(essence))
}

fn record(parts: &Parts) -> Result<BodyKind, InvalidHead> {
    let headers = &parts.headers;
    let Query { envelope, key } = Query::read(parts)?;
    if envelope.is_some() || headers.contains_key(ENVELOPE) {
        return Err(InvalidHead::OnlyForBatch(ENVELOPE));
    }
    if key.is_some() || headers.contains_key(KEY_FIELD) {
        return Err(InvalidHead::OnlyForBatch(KEY_FIELD));
    }
    let key = match (text(headers, KEY)?, once(headers, KEY_BASE64)?) {
        (Some(_), Some(_)) => return Err(InvalidHead::Both(KEY, KEY_BASE64)),
        (Some(text), None) => Some(text),
        (None, Some(encoded)) => Some(decode(KEY_BASE64, encoded)?),
        (None, None) => None,
    };
    Ok(BodyKind::Record { key, null_value: flag(headers, NULL_VALUE)?.unwrap_or(false) })
}

fn line_form(parts: &Parts) -> Result<LineForm, InvalidHead> {
    let headers = &parts.headers;
    for name in [KEY, KEY_BASE64, NULL_VALUE] {
        if headers.contains_key(name) {
            return Err(InvalidHead::OnlyForRecord(name));
        }
    }
    let query = Query::read(parts)?;
    let envelope = either(query.envelope, flag(headers, ENVELOPE)?, ENVELOPE)?.unwrap_or(false);
    let field = text(headers, KEY_FIELD)?.map(|field| String::from_utf8_lossy(&field).into_owned());
    match either(query.key, field, KEY_FIELD)? {
        Some(_) if envelope => Err(InvalidHead::Both(KEY_FIELD, ENVELOPE)),
        Some(field) => Ok(LineForm::Keyed(field)),
        None if envelope => Ok(LineForm::Envelope),
        None => Ok(LineForm::Value),
    }
}

fn either<T>(query: Option<T>, header: Option<T>, name: &'static str) -> Result<Option<T>, InvalidHead> {
    match (query, header) {
        (Some(_), Some(_)) => Err(InvalidHead::Repeated(name)),
        (query, header) => Ok(query.or(header)),
    }
}

#[derive(Default)]
struct Query {
    envelope: Option<bool>,
    key: Option<String>,
}

impl Query {
    fn read(parts: &Parts) -> Result<Self, InvalidHead> {
        let mut query = Self::default();
        let text = parts.uri.query().unwrap_or_default();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("envelope", "true")) if query.envelope.is_none() => query.envelope = Some(true),
                Some(("envelope", "false")) if query.envelope.is_none() => query.envelope = Some(false),
                // A name that a URL can't carry as it stands goes into the header: there is one spelling of each.
                Some(("key", field)) if field.contains(['%', '+']) => {
                    let expected = "a field's name without `%` and `+`; send such a name as `Tidemill-Key-Field`";
                    return Err(InvalidHead::Value { header: "?key".to_owned(), expected });
                }
                Some(("key", field)) if query.key.is_none() && !field.is_empty() => query.key = Some(field.to_owned()),
                Some(_) | None => return Err(InvalidHead::UnknownQuery(part.to_owned())),
            }
        }
        Ok(query)
    }
}

/// The record's headers. Names come in lower case, as HTTP has them; values of a repeated name stay in order.
fn record_headers(headers: &HeaderMap) -> Result<Vec<Header>, InvalidHead> {
    let mut found = Vec::new();
    for (name, value) in headers {
        let name = name.as_str();
        if let Some(name) = name.strip_prefix(HEADER).filter(|name| !name.is_empty()) {
            found.push(header(name, bytes(value)));
        } else if let Some(short) = name.strip_prefix(HEADER_BASE64).filter(|name| !name.is_empty()) {
            found.push(header(short, decode(name, value)?));
        } else if name.starts_with("tidemill-") && !is_known(name) {
            return Err(InvalidHead::UnknownHeader(name.to_owned()));
        }
    }
    match found.iter().find(|header| header.name.starts_with(RESERVED.as_bytes())) {
        Some(header) => Err(InvalidHead::Reserved(String::from_utf8_lossy(&header.name).into_owned())),
        None => Ok(found),
    }
}

fn is_known(name: &str) -> bool {
    [KEY, KEY_BASE64, PARTITION, TIMESTAMP, NULL_VALUE, KEY_FIELD, ENVELOPE].contains(&name)
}

fn header(name: &str, value: Bytes) -> Header {
    Header { name: Bytes::copy_from_slice(name.as_bytes()), value: Some(value) }
}

fn once<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a HeaderValue>, InvalidHead> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(InvalidHead::Repeated(name)),
    }
}

fn text(headers: &HeaderMap, name: &'static str) -> Result<Option<Bytes>, InvalidHead> {
    let Some(value) = once(headers, name)? else { return Ok(None) };
    if std::str::from_utf8(value.as_bytes()).is_err() {
        return Err(InvalidHead::Value {
            header: name.to_owned(),
            expected: "text in UTF-8; there is a form in base64 for other bytes",
        });
    }
    Ok(Some(bytes(value)))
}

fn number<T: std::str::FromStr + Default + PartialOrd>(
    headers: &HeaderMap,
    name: &'static str,
    expected: &'static str,
) -> Result<Option<T>, InvalidHead> {
    let Some(value) = once(headers, name)? else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|number| *number >= T::default());
    number.map(Some).ok_or_else(|| InvalidHead::Value { header: name.to_owned(), expected })
}

fn flag(headers: &HeaderMap, name: &'static str) -> Result<Option<bool>, InvalidHead> {
    match once(headers, name)?.map(HeaderValue::as_bytes) {
        None => Ok(None),
        Some(b"true") => Ok(Some(true)),
        Some(b"false") => Ok(Some(false)),
        Some(_) => Err(InvalidHead::Value { header: name.to_owned(), expected: "`true` or `false`" }),
    }
}

fn decode(name: &str, value: &HeaderValue) -> Result<Bytes, InvalidHead> {
    let decoded = STANDARD.decode(value.as_bytes());
    let expected = "base64 in the standard alphabet, with padding";
    decoded.map(Bytes::from).map_err(|_| InvalidHead::Value { header: name.to_owned(), expected })
}

fn bytes(value: &HeaderValue) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn read(query: &str, headers: &[(&str, &str)]) -> Result<Head, InvalidHead> {
        let mut request = Request::post(format!("/topics/orders{query}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Head::read(&request.body(()).unwrap().into_parts().0)
    }

    fn error(query: &str, headers: &[(&str, &str)]) -> String {
        read(query, headers).expect_err("it can't be taken").to_string()
    }

    #[test]
    fn a_record_takes_its_parts_from_the_documented_headers() {
        let head = read(
            "",
            &[
                ("Content-Type", "application/json"),
                ("Tidemill-Key", "k"),
                ("Tidemill-Partition", "3"),
                ("Tidemill-Timestamp-Ms", "1700000000000"),
                ("Tidemill-Header-Trace", "1"),
                ("Tidemill-Header-Trace", "2"),
                ("Tidemill-Base64-Header-Bin", "/w=="),
                ("Idempotency-Key", "abc"),
            ],
        )
        .unwrap();
        assert_eq!(head.body, BodyKind::Record { key: Some("k".into()), null_value: false });
        assert_eq!((head.partition, head.timestamp_ms), (Some(3), Some(1_700_000_000_000)));
        assert_eq!(head.idempotency_key, Some("abc".into()));
        let trace: Vec<_> =
            head.headers.iter().filter(|it| it.name == "trace").filter_map(|it| it.value.clone()).collect();
        assert_eq!(trace, ["1", "2"]);
        assert!(head.headers.contains(&Header { name: "bin".into(), value: Some(Bytes::from_static(b"\xff")) }));
    }

    #[test]
    fn no_key_is_null_and_an_empty_key_is_empty() {
        let key = |headers: &[_]| read("", headers).map(|head| head.body);
        let record = |key| Ok(BodyKind::Record { key, null_value: false });
        assert_eq!(key(&[]), record(None));
        assert_eq!(key(&[("Tidemill-Key", "")]), record(Some(Bytes::new())));
        assert_eq!(key(&[("Tidemill-Key-Base64", "")]), record(Some(Bytes::new())));
        assert_eq!(key(&[("Tidemill-Key-Base64", "AP8=")]), record(Some(Bytes::from_static(b"\x00\xff"))));
    }

    #[test]
    fn a_batch_says_what_its_lines_are() {
        let ndjson = ("Content-Type", "Application/X-NDJSON; charset=utf-8");
        let form = |query, headers: &[_]| read(query, headers).map(|head| head.body);
        assert_eq!(form("", &[ndjson]), Ok(BodyKind::Lines(LineForm::Value)));
        assert_eq!(form("?envelope=true", &[ndjson]), Ok(BodyKind::Lines(LineForm::Envelope)));
        assert_eq!(form("", &[ndjson, ("Tidemill-Envelope", "true")]), Ok(BodyKind::Lines(LineForm::Envelope)));
        let keyed = Ok(BodyKind::Lines(LineForm::Keyed("id".to_owned())));
        assert_eq!(form("?key=id", &[ndjson]), keyed);
        assert_eq!(form("", &[ndjson, ("Tidemill-Key-Field", "id")]), keyed);
    }

    #[test]
    fn a_wrong_head_is_named_with_what_to_send_instead() {
        let ndjson = ("Content-Type", "application/x-ndjson");
        type Headers<'a> = &'a [(&'a str, &'a str)];
        let cases: &[(&str, Headers, &str)] = &[
            ("", &[("Tidemill-Ky", "a")], "`tidemill-ky` is no header"),
            ("", &[("Tidemill-Header-", "a")], "`tidemill-header-` is no header"),
            ("", &[("Tidemill-Header-Tidemill.Redriven.Id", "a")], "can't be called `tidemill.redriven.id`"),
            ("", &[("Tidemill-Base64-Header-Tidemill.x", "YQ==")], "can't be called `tidemill.x`"),
            ("", &[("Tidemill-Key", "a"), ("Tidemill-Key", "b")], "more than once"),
            ("", &[("Tidemill-Key", "a"), ("Tidemill-Key-Base64", "YQ==")], "send one of them"),
            ("", &[("Tidemill-Key-Base64", "*")], "not base64"),
            ("", &[("Tidemill-Base64-Header-X", "*")], "`tidemill-base64-header-x` is not base64"),
            ("", &[("Tidemill-Partition", "-1")], "from 0"),
            ("", &[("Tidemill-Partition", "one")], "from 0"),
            ("", &[("Tidemill-Timestamp-Ms", "1.5")], "whole number"),
            ("", &[("Tidemill-Null-Value", "yes")], "`true` or `false`"),
            ("", &[("Tidemill-Key-Field", "id")], "is for a batch"),
            ("?key=id", &[], "is for a batch"),
            ("?envelope=true", &[], "is for a batch"),
            ("?kee=id", &[ndjson], "`kee=id` in the query"),
            ("?key=a%20b", &[ndjson], "without `%`"),
            ("?key=id", &[ndjson, ("Tidemill-Key-Field", "id")], "more than once"),
            ("?key=id&envelope=true", &[ndjson], "send one of them"),
            ("", &[ndjson, ("Tidemill-Key", "a")], "is for a single record"),
        ];
        for (query, headers, expected) in cases {
            let text = error(query, headers);
            assert!(text.contains(expected), "{query} {headers:?}: {text}");
        }
    }
}
