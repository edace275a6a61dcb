//! A client of the ingest endpoint: sends for a ledger, several requests at a time, as fast as it can or at a rate.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use serde_json::Value;

use crate::ledger::{Body, Fate, Ledger, Place};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// An endless load that is further behind its rate gives up what it missed.
const LATE_MAX: Duration = Duration::from_millis(500);
const NOBODY_DELAY: Duration = Duration::from_millis(20);
/// Latencies are counted in microseconds up to two minutes, to three digits.
const LATENCY_MAX_US: u64 = 120_000_000;

/// What a client sends.
#[derive(Debug, Clone)]
pub struct Load {
    /// Names the client in the ledger.
    pub producer: String,
    /// How many records.
    pub records: usize,
    /// Over how many keys. Records of a key are sent one after another.
    pub keys: usize,
    /// How many records a request has.
    pub batch: usize,
    /// How many requests are under way at a time, at most as many as there are keys.
    pub requests: usize,
    /// Records a second, whether answers come or not; `None`: each request follows an answer.
    pub rate: Option<f64>,
}

/// A load that goes on, at its rate, until it is stopped. What it could not send in time it does not send later.
pub struct Running {
    way: Arc<Way>,
    thread: JoinHandle<Result<Report>>,
}

/// Where a load goes to, and whether it goes on.
struct Way {
    url: Mutex<String>,
    topic: String,
    stopped: AtomicBool,
}

/// How a load went.
#[derive(Debug)]
pub struct Report {
    /// Requests by status; 0: there was no answer.
    pub statuses: BTreeMap<u16, usize>,
    /// From when a request should have been sent to its answer, in microseconds.
    pub latency_us: Histogram<u64>,
    /// From the first request to the last answer.
    pub took: Duration,
}

impl Load {
    /// One record a request, eight at a time, over twenty keys.
    pub fn new(producer: &str, records: usize) -> Load {
        Load { producer: producer.to_owned(), records, keys: 20, batch: 1, requests: 8, rate: None }
    }

    /// The same in batches, which is the quickest way to fill a topic.
    pub fn batches(producer: &str, records: usize) -> Load {
        Load { batch: 100, requests: 4, ..Load::new(producer, records) }
    }

    /// The same at a rate.
    pub fn rate(self, records_per_second: f64) -> Load {
        Load { rate: Some(records_per_second), ..self }
    }

    /// No end of records, ten a request, at a rate.
    pub fn endless(producer: &str, records_per_second: f64) -> Load {
        Load { batch: 10, requests: 4, ..Load::new(producer, usize::MAX) }.rate(records_per_second)
    }

    /// Sends all of it and waits for the last answer.
    pub fn send(&self, ingest: &str, topic: &str, ledger: &Arc<Ledger>) -> Result<Report> {
        self.go(&Way::to(ingest, topic), ledger)
    }

    /// Begins to send.
    pub fn start(self, ingest: &str, topic: &str, ledger: &Arc<Ledger>) -> Running {
        let (way, ledger) = (Arc::new(Way::to(ingest, topic)), Arc::clone(ledger));
        let shared = Arc::clone(&way);
        Running { way, thread: thread::spawn(move || self.go(&shared, &ledger)) }
    }

    fn go(&self, way: &Way, ledger: &Ledger) -> Result<Report> {
        let started = Instant::now();
        let reports = thread::scope(|scope| {
            let workers =
                (0..self.workers()).map(|worker| scope.spawn(move || self.work(worker, way, ledger, started)));
            // All are started before the first is waited for.
            let workers: Vec<_> = workers.collect();
            let joined = workers.into_iter().map(|worker| worker.join().map_err(|_| anyhow!("a client panicked"))?);
            joined.collect::<Result<Vec<Report>>>()
        })?;
        let mut total = Report::new()?;
        for report in reports {
            total.add(&report)?;
        }
        total.took = started.elapsed();
        Ok(total)
    }

    fn workers(&self) -> usize {
        self.requests.min(self.keys)
    }

    /// A worker has keys of its own, so that no two requests with the same key are under way.
    fn work(&self, worker: usize, way: &Way, ledger: &Ledger, started: Instant) -> Result<Report> {
        let agent = agent();
        let workers = self.workers();
        let mut seqs: BTreeMap<usize, u64> = BTreeMap::new();
        let mut mine = (0..self.records).filter(|number| number % self.keys % workers == worker);
        let mut report = Report::new()?;
        // How far behind its rate an endless load is for good.
        let mut late = Duration::ZERO;
        loop {
            let numbers: Vec<usize> = mine.by_ref().take(self.batch).collect();
            let Some(first) = numbers.first().filter(|_| !way.stopped.load(Ordering::Relaxed)) else { break };
            let mut due = match self.rate {
                Some(rate) => started + Duration::from_secs_f64(*first as f64 / rate) + late,
                None => Instant::now(),
            };
            if self.records == usize::MAX && due.elapsed() > LATE_MAX {
                late += due.elapsed();
                due = Instant::now();
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let body = |number: &usize| {
                let key = number % self.keys;
                let seq = seqs.entry(key).and_modify(|seq| *seq += 1).or_default();
                Body::new(&self.producer, &format!("k{key}"), *seq)
            };
            let bodies: Vec<Body> = numbers.iter().map(body).collect();
            bodies.iter().for_each(|body| ledger.intend(body));
            let (status, fates) = post(&agent, &way.url(), &bodies);
            bodies.iter().zip(fates).for_each(|(body, fate)| ledger.resolve(body, fate));
            *report.statuses.entry(status).or_default() += 1;
            report.latency_us.saturating_record(u64::try_from(due.elapsed().as_micros())?);
            if status == 0 {
                // Nobody is there: the next request need not come at once.
                thread::sleep(NOBODY_DELAY);
            }
        }
        Ok(report)
    }
}

impl Way {
    fn to(ingest: &str, topic: &str) -> Way {
        let url = Mutex::new(format!("{ingest}/topics/{topic}"));
        Way { url, topic: topic.to_owned(), stopped: AtomicBool::new(false) }
    }

    fn url(&self) -> String {
        self.url.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Running {
    /// Sends to another ingest from now on.
    pub fn turn_to(&self, ingest: &str) {
        let url = format!("{ingest}/topics/{}", self.way.topic);
        *self.way.url.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }

    /// Waits for the last answers.
    pub fn stop(self) -> Result<Report> {
        self.way.stopped.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the load panicked"))?
    }
}

impl Report {
    fn new() -> Result<Report> {
        let latency_us = Histogram::new_with_max(LATENCY_MAX_US, 3)?;
        Ok(Report { statuses: BTreeMap::new(), latency_us, took: Duration::ZERO })
    }

    fn add(&mut self, other: &Report) -> Result<()> {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.latency_us.add(&other.latency_us)?;
        Ok(())
    }

    /// The share of requests that were accepted, from 0 to 1.
    pub fn accepted_share(&self) -> f64 {
        let all: usize = self.statuses.values().sum();
        let accepted: usize = self.statuses.range(200..300).map(|(_, count)| count).sum();
        accepted as f64 / all as f64
    }

    /// The latency that 99 of 100 requests stay below.
    pub fn p99(&self) -> Duration {
        Duration::from_micros(self.latency_us.value_at_quantile(0.99))
    }
}

/// Posts one record and returns the status and the answer.
pub fn post_one(ingest: &str, topic: &str, headers: &[(&str, &str)], value: &[u8]) -> Result<(u16, Value)> {
    let mut request = agent().post(format!("{ingest}/topics/{topic}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = request.send(value)?;
    let text = response.body_mut().read_to_string()?;
    Ok((response.status().as_u16(), serde_json::from_str(&text)?))
}

/// Sends the bodies in one request; the status (0: none came) and a fate for each.
fn post(agent: &ureq::Agent, url: &str, bodies: &[Body]) -> (u16, Vec<Fate>) {
    let unknown = vec![Fate::Unknown; bodies.len()];
    let sent = match bodies {
        [body] => agent.post(url).header("Tidemill-Key", &body.key).send(body.to_bytes()),
        bodies => {
            let lines: Vec<Vec<u8>> = bodies.iter().map(Body::to_bytes).collect();
            let request = agent.post(format!("{url}?key=key")).header("Content-Type", "application/x-ndjson");
            request.send(lines.join(b"\n".as_slice()))
        }
    };
    let Ok(mut response) = sent else { return (0, unknown) };
    let status = response.status().as_u16();
    let answer = response.body_mut().read_to_string().ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let Some(answer) = answer else { return (status, unknown) };
    let fates = match answer["records"].as_array() {
        Some(lines) if lines.len() == bodies.len() => lines.iter().map(fate).collect(),
        _ => vec![fate(&answer); bodies.len()],
    };
    (status, fates)
}

fn fate(answer: &Value) -> Fate {
    let partition = answer["partition"].as_i64().and_then(|partition| i32::try_from(partition).ok());
    let place = partition.zip(answer["offset"].as_i64()).map(|(partition, offset)| Place { partition, offset });
    match (answer["stored"].as_str(), place) {
        (Some("yes"), Some(place)) => Fate::Acked(place),
        (Some("no"), _) => Fate::Failed,
        _ => Fate::Unknown,
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(REQUEST_TIMEOUT));
    config.build().new_agent()
}
