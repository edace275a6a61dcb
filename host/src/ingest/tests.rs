//! Over real HTTP, against a producer that answers as each test says.

mod fake;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use axum::http::Request as HttpRequest;
use axum::http::header::CONTENT_TYPE;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, spawn_blocking};

use self::fake::{Fake, Sent};
use super::*;
use crate::config::units::{SecretRef, Size, Span};
use crate::metrics::Metrics;

fn config() -> Config {
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        topics: vec!["orders".to_owned()],
        body_bytes_max: Size(10_000),
        record_bytes_max: Size(2_000),
        batch_records_max: 100,
        ..Config::default()
    }
}

/// A running endpoint.
struct Running {
    address: SocketAddr,
    producer: Arc<Fake>,
    metrics: Metrics,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(config: Config, producer: Arc<Fake>) -> Self {
        let metrics = Metrics::new();
        let shared: Arc<dyn Producer> = Arc::clone(&producer) as _;
        let ingest = Ingest::bind(&config, Path::new("."), shared, metrics.ingest()).await.unwrap();
        let address = ingest.address();
        let stop = CancellationToken::new();
        let task = tokio::spawn(ingest.run(stop.clone()));
        Self { address, producer, metrics, stop, task }
    }

    /// Sends a request in a thread of its own.
    fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> JoinHandle<Answer> {
        let url = format!("http://{}{path}", self.address);
        let headers: Vec<(String, String)> = headers.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let body = body.into();
        spawn_blocking(move || {
            let mut request = ureq::post(&url).config().http_status_as_error(false).build();
            for (name, value) in &headers {
                request = request.header(name, value);
            }
            Answer::of(request.send(&body[..]).unwrap())
        })
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Answer {
    fn of(mut response: ureq::http::Response<ureq::Body>) -> Self {
        let text = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        let headers = response.headers().iter().map(text).collect();
        let body = response.body_mut().read_to_string().unwrap();
        Self {
            status: response.status().as_u16(),
            headers,
            body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
        }
    }

    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

/// The clients' guide has a row for this answer.
fn check_guide(status: u16, code: &str) {
    let guide = include_str!("../../../docs/ingest.md");
    let (status, code) = (format!("| {status} |"), format!("`{code}`"));
    let row = guide.lines().find(|line| line.starts_with(&status) && line.contains(&code));
    assert!(row.is_some(), "the guide has no row for {status} {code}");
}

type Headers<'a> = &'a [(&'a str, &'a str)];

const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_answered_with_its_place_once_it_is_acknowledged() {
    let endpoint = Running::start(config(), Fake::answering(vec![Ok(Position { partition: 3, offset: 42 })])).await;
    let headers = [("Tidemill-Key", "k"), ("Tidemill-Header-Trace", "1"), ("Idempotency-Key", "once")];
    let answer = endpoint.post("/topics/orders", &headers, *b"\x00\xff").await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, json!({"stored": "yes", "partition": 3, "offset": 42}));

    let records = endpoint.producer.records();
    assert_eq!(records.len(), 1);
    assert_eq!((&*records[0].topic, records[0].partition, records[0].timestamp_ms), ("orders", None, None));
    assert_eq!(records[0].key.as_deref(), Some(&b"k"[..]));
    assert_eq!(records[0].value.as_deref(), Some(&b"\x00\xff"[..]));
    let headers: Vec<_> = records[0].headers.iter().map(|it| (&it.name[..], it.value.as_deref().unwrap())).collect();
    assert_eq!(headers, [(&b"trace"[..], &b"1"[..]), (b"idempotency-key", b"once")]);

    let text = endpoint.metrics.render();
    assert!(text.contains(r#"tidemill_ingest_requests_total{topic="orders",status="200"} 1"#), "{text}");
    assert!(text.contains(r#"tidemill_ingest_stored_records_total{topic="orders"} 1"#), "{text}");
    assert!(text.contains("tidemill_ingest_in_flight_requests 0"), "{text}");
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_a_batch_is_answered_with_its_place_in_order() {
    let endpoint = Running::start(config(), Fake::new()).await;
    let answer = endpoint.post("/topics/orders?key=id", &[NDJSON], "{\"id\":1}\n\n{\"id\":2}\n").await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        json!({"stored": "yes", "records": [
            {"line": 1, "stored": "yes", "partition": 0, "offset": 0},
            {"line": 3, "stored": "yes", "partition": 0, "offset": 1},
        ]})
    );
    let keys: Vec<_> = endpoint.producer.records().into_iter().filter_map(|record| record.key).collect();
    assert_eq!(keys, ["1", "2"]);
    assert_eq!(endpoint.producer.sends.load(Ordering::SeqCst), 1);
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_says_is_told_with_whether_it_is_stored() {
    let text = || "x".to_owned();
    let cases = [
        (SendError::NoSuchTopic(text()), 502, "no", "no-such-topic-or-partition"),
        (SendError::TooLarge(text()), 413, "no", "record-too-large"),
        (SendError::Denied(text()), 502, "no", "denied"),
        (SendError::QueueFull, 503, "no", "queue-full"),
        (SendError::Unavailable(text()), 503, "no", "broker-away"),
        (SendError::Unknown(text()), 504, "unknown", "not-confirmed"),
        (SendError::Rejected(text()), 502, "no", "rejected"),
    ];
    let results = cases.iter().map(|(error, ..)| Err(error.clone())).collect();
    let endpoint = Running::start(config(), Fake::answering(results)).await;
    for (error, status, stored, code) in cases {
        let answer = endpoint.post("/topics/orders", &[], "x").await.unwrap();
        assert_eq!((answer.status, answer.code()), (status, code), "{error}");
        assert_eq!(answer.body["stored"], stored, "{error}");
        assert_eq!(answer.headers.contains_key("retry-after"), status == 503, "{error}");
        check_guide(status, code);
    }
    assert!(endpoint.metrics.render().contains(r#"tidemill_ingest_requests_total{topic="orders",status="503"} 2"#));
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_ended_differently_is_no_success_and_says_which_lines_to_send_again() {
    let stored = |offset| Ok(Position { partition: 0, offset });
    let unknown = || Err(SendError::Unknown("late".to_owned()));
    let cases: [(Vec<Sent>, u16, &str, [&str; 3]); 6] = [
        (vec![stored(1), Err(SendError::QueueFull), stored(2)], 503, "partly", ["yes", "no", "yes"]),
        (vec![stored(1), unknown(), Err(SendError::QueueFull)], 504, "unknown", ["yes", "unknown", "no"]),
        (vec![unknown(), unknown(), unknown()], 504, "unknown", ["unknown", "unknown", "unknown"]),
        (
            vec![Err(SendError::QueueFull), Err(SendError::QueueFull), Err(SendError::QueueFull)],
            503,
            "no",
            ["no", "no", "no"],
        ),
        (vec![stored(1), stored(2), Err(SendError::TooLarge("x".to_owned()))], 413, "partly", ["yes", "yes", "no"]),
        (
            vec![stored(1), Err(SendError::Denied("x".to_owned())), Err(SendError::TooLarge("x".to_owned()))],
            502,
            "partly",
            ["yes", "no", "no"],
        ),
    ];
    let results = cases.iter().flat_map(|(results, ..)| results.clone()).collect();
    let endpoint = Running::start(config(), Fake::answering(results)).await;
    for (results, status, stored, lines) in cases {
        let answer = endpoint.post("/topics/orders", &[NDJSON], "1\n2\n3").await.unwrap();
        assert_eq!(answer.status, status, "{results:?}");
        assert_eq!(answer.body["stored"], stored, "{results:?}");
        let told: Vec<_> =
            answer.body["records"].as_array().unwrap().iter().map(|line| line["stored"].clone()).collect();
        assert_eq!(told, lines, "{results:?}");
        assert!(answer.body["error"]["detail"].is_string());
    }
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_confirmed_in_time_is_unknown_and_still_counted_when_it_comes() {
    let config = Config { send_timeout: Span(Duration::from_millis(20)), ..config() };
    let endpoint = Running::start(config, Fake::held()).await;
    let answer = endpoint.post("/topics/orders", &[], "x").await.unwrap();
    assert_eq!((answer.status, answer.code()), (504, "not-confirmed"));
    assert_eq!(answer.body["stored"], "unknown");
    let answer = endpoint.post("/topics/orders", &[NDJSON], "1\n2").await.unwrap();
    assert_eq!(answer.status, 504);
    assert_eq!(answer.body["records"][1]["stored"], "unknown");

    endpoint.producer.gate.add_permits(2);
    let counted = r#"tidemill_ingest_stored_records_total{topic="orders"} 3"#;
    while !endpoint.metrics.render().contains(counted) {
        tokio::task::yield_now().await;
    }
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_and_nothing_is_sent() {
    let endpoint = Running::start(config(), Fake::new()).await;
    let long = "x".repeat(2_001);
    let body = "x".repeat(10_001);
    let huge = "x".repeat(3_000_000);
    let cases: &[(&str, Headers, &str, u16, &str)] = &[
        ("/topics/other", &[], "x", 404, "topic-not-offered"),
        ("/topics/or%64ers/x", &[], "x", 404, "no-such-path"),
        ("/", &[], "x", 405, "wrong-method"),
        ("/topics/orders", &[("Tidemill-Ky", "x")], "x", 400, "bad-header"),
        ("/topics/orders", &[("Tidemill-Null-Value", "true")], "x", 400, "bad-header"),
        ("/topics/orders", &[("Content-Encoding", "gzip")], "x", 415, "encoded"),
        ("/topics/orders", &[("Origin", "http://evil.example")], "x", 403, "from-browser"),
        ("/topics/orders", &[], &long, 413, "record-too-large"),
        ("/topics/orders", &[], &body, 413, "body-too-large"),
        ("/topics/orders", &[], &huge, 413, "body-too-large"),
        ("/topics/orders", &[NDJSON], "{}\n{]\n", 400, "bad-line"),
        ("/topics/orders", &[NDJSON], "", 400, "no-records"),
        ("/topics/orders", &[NDJSON], &"1\n".repeat(101), 413, "too-many-records"),
    ];
    for (path, headers, body, status, code) in cases {
        let answer = endpoint.post(path, headers, *body).await.unwrap();
        assert_eq!((answer.status, answer.code()), (*status, *code), "{path} {headers:?}");
        assert_eq!(answer.body["stored"], "no");
        check_guide(*status, code);
    }
    let answer = endpoint.post("/topics/orders", &[NDJSON], "{}\n{]\n").await.unwrap();
    assert_eq!(answer.body["line"], 2);
    assert_eq!(endpoint.producer.sends.load(Ordering::SeqCst), 0);
    assert!(endpoint.metrics.render().contains(r#"tidemill_ingest_requests_total{topic="",status="404"} 1"#));
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_bounded_while_it_comes() {
    let endpoint = Running::start(config(), Fake::new()).await;
    let head = b"POST /topics/orders HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n0\r\n\r\n"].concat();
    let answer = raw(endpoint.address, vec![head.to_vec(), chunk]).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("body-too-large"), "{answer}");
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_before_it_sends_is_spared_a_refused_body() {
    let endpoint = Running::start(config(), Fake::new()).await;
    let head = b"POST /topics/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\nExpect: 100-continue\r\n\r\n";
    let answer = raw(endpoint.address, vec![head.to_vec()]).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_too_slow_is_let_go() {
    let short = Span(Duration::from_millis(50));
    let endpoint = Running::start(Config { head_timeout: short, body_timeout: short, ..config() }, Fake::new()).await;
    let half_a_head = raw(endpoint.address, vec![b"POST /topics/orders HT".to_vec()]).await;
    assert!(!half_a_head.contains("200 OK"), "{half_a_head}");
    let half_a_body =
        raw(endpoint.address, vec![b"POST /topics/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx".to_vec()])
            .await;
    assert!(half_a_body.starts_with("HTTP/1.1 408 "), "{half_a_body}");
    assert_eq!(endpoint.producer.sends.load(Ordering::SeqCst), 0, "half a record is no record");
    endpoint.stop().await;
}

/// Sends parts over a bare connection and reads until the other side closes it.
async fn raw(address: SocketAddr, parts: Vec<Vec<u8>>) -> String {
    let read = spawn_blocking(move || {
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for part in parts {
            tcp.write_all(&part).unwrap();
        }
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = tcp.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..count]);
            if String::from_utf8_lossy(&answer).contains("\r\n\r\n{") {
                break;
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    });
    read.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_told_before_anything_is_sent() {
    let endpoint = Running::start(config(), Fake::new()).await;
    endpoint.producer.ready.store(false, Ordering::SeqCst);
    let answer = endpoint.post("/topics/orders", &[], "x").await.unwrap();
    assert_eq!((answer.status, answer.code()), (503, "broker-away"));
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(endpoint.producer.sends.load(Ordering::SeqCst), 0);
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_places_are_refused_and_the_first_is_answered() {
    let endpoint = Running::start(Config { requests_max: 1, ..config() }, Fake::held()).await;
    let first = endpoint.post("/topics/orders", &[], "x");
    endpoint.producer.arrived.notified().await;
    let second = endpoint.post("/topics/orders", &[], "x").await.unwrap();
    assert_eq!((second.status, second.code()), (503, "too-many-requests"));
    assert!(second.headers.contains_key("retry-after"));
    endpoint.producer.gate.add_permits(2);
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(endpoint.post("/topics/orders", &[], "x").await.unwrap().status, 200, "the place is free again");
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_all_bodies_is_bounded() {
    let bounded = Config { bodies_bytes_max: Size(10_000), ..config() };
    let endpoint = Running::start(bounded, Fake::held()).await;
    let batch = format!("\"{}\"\n", "x".repeat(1_000)).repeat(8);
    let first = endpoint.post("/topics/orders", &[NDJSON], batch.clone());
    endpoint.producer.arrived.notified().await;
    let second = endpoint.post("/topics/orders", &[NDJSON], batch.clone()).await.unwrap();
    assert_eq!((second.status, second.code()), (503, "out-of-memory"));
    endpoint.producer.gate.add_permits(2);
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(
        endpoint.post("/topics/orders", &[NDJSON], batch).await.unwrap().status,
        200,
        "what was taken is given back"
    );
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_nothing_is_told_or_taken_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "hunter2\n").unwrap();
    let endpoint = Running::start(Config { token: Some(SecretRef::File { file }), ..config() }, Fake::new()).await;
    for headers in [&[][..], &[("Authorization", "Bearer hunter1")]] {
        let answer = endpoint.post("/topics/orders", headers, "x").await.unwrap();
        assert_eq!((answer.status, answer.code()), (401, "unauthorized"));
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(!answer.body.to_string().contains("hunter"));
        let unoffered = endpoint.post("/topics/secret", headers, "x").await.unwrap();
        assert_eq!(unoffered.status, 401, "which topics there are is not told");
    }
    let answer = endpoint.post("/topics/orders", &[("Authorization", "Bearer hunter2")], "x").await.unwrap();
    assert_eq!(answer.status, 200);
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_help_lists_the_offered_topics() {
    let endpoint = Running::start(config(), Fake::new()).await;
    let url = format!("http://{}/", endpoint.address);
    let text =
        spawn_blocking(move || ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap()).await.unwrap();
    assert!(text.contains("Offered topics:\n  orders\n") && text.contains("Tidemill-Key"), "{text}");
    endpoint.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_hand_at_the_stop_is_answered_and_no_other_is_taken() {
    let endpoint = Running::start(config(), Fake::held()).await;
    let in_hand = endpoint.post("/topics/orders", &[], "x");
    endpoint.producer.arrived.notified().await;
    endpoint.stop.cancel();
    while TcpStream::connect(endpoint.address).is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!endpoint.task.is_finished(), "it waits for the request in hand");
    endpoint.producer.gate.add_permits(1);
    assert_eq!(in_hand.await.unwrap().status, 200);
    endpoint.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_passes_the_drain_deadline_is_cut_off() {
    let hasty = Config { drain_deadline: Span(Duration::from_millis(20)), ..config() };
    let endpoint = Running::start(hasty, Fake::held()).await;
    let address = endpoint.address;
    let request = b"POST /topics/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx".to_vec();
    let in_hand = tokio::spawn(raw(address, vec![request]));
    endpoint.producer.arrived.notified().await;
    endpoint.stop().await;
    assert_eq!(in_hand.await.unwrap(), "", "there is no answer, and certainly no success");
}

#[tokio::test]
async fn when_any_line_is_bad_nothing_is_produced_and_its_number_is_told() {
    const GOOD: [&str; 5] = ["{\"id\":1}", "{\"id\":\"é\",\"x\":[]}", " {\"id\":1e3} ", "", "{\"id\":true}"];
    const BAD: [&str; 6] = ["{", "{\"id\":null}", "{\"no\":1}", "nul", "{\"id\":1,}", "{\"id\":1} {\"id\":2}"];
    let mut dice = fastrand::Rng::with_seed(3);
    for case in 0..500 {
        let mut lines: Vec<&str> = (0..dice.usize(0..20)).map(|_| GOOD[dice.usize(..GOOD.len())]).collect();
        let at = dice.usize(..=lines.len());
        lines.insert(at, BAD[dice.usize(..BAD.len())]);
        let producer = Fake::new();
        let shared: Arc<dyn Producer> = Arc::clone(&producer) as _;
        let endpoint = Endpoint::new(&config(), None, shared, Metrics::new().ingest());
        let request = HttpRequest::post("/topics/orders?key=id")
            .header(CONTENT_TYPE, "application/x-ndjson")
            .body(Body::from(lines.join("\n")))
            .unwrap();
        let answer = TowerToHyperService::new(router(endpoint)).call(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), 400, "case {case}: {lines:?}");
        let body = axum::body::to_bytes(answer.into_body(), 10_000).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["line"], at + 1, "case {case}: {lines:?}");
        assert_eq!(producer.sends.load(Ordering::SeqCst), 0, "case {case}: {lines:?}");
    }
}
