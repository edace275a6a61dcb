//! A backlog of days, drained while new records come: how fast until nothing of it is left, beside a drain that nobody disturbs,
//! and beside the native loop.
//!
//! Contenders copy, and know nothing of what is measured: the output topic says when each copy was appended, by the broker's
//! clock, and a new record's number says when it was due. All of it is read afterwards, when no figure can suffer by it.

mod copies;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, ensure};
use rdkafka::producer::{BaseRecord, Producer};
use serde_json::{Value, json};
use xtask::lab::kafka::Kafka;
use xtask::lab::wait;

use self::copies::{Copies, Drained};
use crate::report::{self, least, median, most};
use crate::run::Measured;
use crate::topics;

const PARTITIONS: i32 = 8;
const KEYS: u64 = 1000;
const RECORD_BYTES: usize = 100;
/// How far back the oldest record of the backlog lies.
const BACKLOG_SPAN: Duration = Duration::from_secs(3 * 24 * 3600);
/// New records in a second.
const RATE: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(180);

/// A way to run.
struct Way {
    contender: &'static str,
    label: &'static str,
    /// Whether new records come.
    news: bool,
}

const WAYS: [Way; 6] = [
    Way { contender: "native", label: "native", news: false },
    Way { contender: "native", label: "native again (A/A)", news: false },
    Way { contender: "native", label: "native, new records", news: true },
    Way { contender: "tidemill", label: "Tidemill", news: false },
    Way { contender: "tidemill", label: "Tidemill again (A/A)", news: false },
    Way { contender: "tidemill", label: "Tidemill, new records", news: true },
];

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
struct Size {
    rounds: usize,
    /// Records that lie there before anybody reads.
    backlog: u64,
    /// Records that come from the first copy on, in ways with new ones.
    news: u64,
}

pub(crate) fn backlog(quick: bool, records: Option<u64>, json: Option<&Path>) -> Result<()> {
    let size = if quick {
        Size { rounds: 2, backlog: 1_000_000, news: 10 * RATE }
    } else {
        Size { rounds: 3, backlog: 2_000_000, news: 20 * RATE }
    };
    let size = Size { backlog: records.unwrap_or(size.backlog), ..size };
    let kafka = Kafka::start_nodes(1)?;
    let mut series = WAYS.map(|_| Vec::new());
    for round in 0..size.rounds {
        for (turn, (way, series)) in WAYS.iter().zip(&mut series).enumerate() {
            let drained = run(&kafka.bootstrap(), way, size, &format!("backlog-{round}-{turn}"))?;
            eprintln!("round {} of {}, {}: {drained}", round + 1, size.rounds, way.label);
            series.push(drained);
        }
    }
    let all: Vec<Figures> = series.iter().map(|runs| Figures::of(runs)).collect();
    print(size, &all);
    if let Some(path) = json {
        let objects: Vec<Value> =
            WAYS.iter().zip(&all).map(|(way, figures)| object(size, way, figures, &all)).collect();
        report::save(&objects, path)?;
    }
    Ok(())
}

/// One run on topics of its own, so that no run finds what another one has added.
fn run(bootstrap: &str, way: &Way, size: Size, input: &str) -> Result<Drained> {
    let output = &format!("{input}.out");
    topics::create(bootstrap, input, PARTITIONS)?;
    topics::create_stamped(bootstrap, output, PARTITIONS)?;
    fill(bootstrap, input, size.backlog)?;
    let news = if way.news { size.news } else { 0 };
    let records = size.backlog + news;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--contender", way.contender, "--bootstrap", bootstrap, "--input", input]);
    command.args(["--output", output, "--group", input, "--records", &records.to_string()]);
    let due = thread::scope(|scope| -> Result<Due> {
        let contender = scope.spawn(|| Measured::by(command, way.label));
        let due = send_news(bootstrap, input, output, size.backlog, news);
        contender.join().map_err(|_| anyhow!("{}: it panicked", way.label))??;
        due
    })?;
    let copies = Copies::read(bootstrap, output, KEYS)?;
    ensure!(copies.len() == records, "{}: {} copies of {records} records", way.label, copies.len());
    let left = topics::lag(bootstrap, input, input, PARTITIONS)?;
    topics::delete(bootstrap, input)?;
    topics::delete(bootstrap, output)?;
    copies.judge(size.backlog, due, left)
}

/// Stores the backlog, its records' times spread evenly.
fn fill(bootstrap: &str, topic: &str, records: u64) -> Result<()> {
    let producer = topics::producer(bootstrap, 20)?;
    let (span, begin) = (BACKLOG_SPAN.as_millis() as u64, SystemTime::now() - BACKLOG_SPAN);
    for number in 0..records {
        let (key, value) = (key(number), value(number));
        let at = millis(begin) + (number * span / records) as i64;
        topics::send(&producer, BaseRecord::to(topic).key(&key).payload(value.as_bytes()).timestamp(at));
    }
    Ok(producer.flush(PATIENCE)?)
}

/// When new records are due, by the wall clock, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Due {
    first: i64,
    news: u64,
}

impl Due {
    /// When a new record is due, counted from the first.
    fn of(self, number: u64) -> i64 {
        self.first + (number * 1000 / RATE) as i64
    }

    /// How many were due before a moment.
    fn before(self, at: i64) -> u64 {
        let passed = (at - self.first).max(0).unsigned_abs();
        (passed * RATE).div_ceil(1000).min(self.news)
    }
}

/// Sends new records behind the backlog, each when it is due, from the first copy on.
fn send_news(bootstrap: &str, input: &str, output: &str, backlog: u64, news: u64) -> Result<Due> {
    let producer = topics::producer(bootstrap, 5)?;
    if news > 0 {
        let copied = || Ok((topics::ends(bootstrap, output, PARTITIONS)?.iter().sum::<i64>() > 0).then_some(()));
        wait::until("the first copy", PATIENCE, copied)?;
    }
    let due = Due { first: millis(SystemTime::now()), news };
    for number in 0..news {
        let early = due.of(number) - millis(SystemTime::now());
        thread::sleep(Duration::from_millis(early.max(0).unsigned_abs()));
        let (key, value) = (key(backlog + number), value(backlog + number));
        topics::send(&producer, BaseRecord::to(input).key(&key).payload(value.as_bytes()));
    }
    producer.flush(PATIENCE)?;
    Ok(due)
}

/// Keys come in turn, so that each has records in the backlog and behind it.
fn key(number: u64) -> String {
    format!("{:06}", number % KEYS)
}

/// A record says which one it is.
fn value(number: u64) -> String {
    format!("{number:<RECORD_BYTES$}")
}

fn millis(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// What the runs of a way come to.
struct Figures {
    rates: Vec<f64>,
    /// Medians.
    rate: f64,
    seconds: f64,
    /// `None` where no new records came afterwards.
    p99_ms: Option<f64>,
    /// Sums.
    disorder: u64,
    lag: i64,
}

impl Figures {
    fn of(runs: &[Drained]) -> Self {
        let rates: Vec<f64> = runs.iter().map(|run| run.rate).collect();
        let seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        let late: Vec<f64> = runs.iter().filter_map(|run| run.p99_ms).collect();
        Self {
            rate: median(&rates),
            rates,
            seconds: median(&seconds),
            p99_ms: (!late.is_empty()).then(|| median(&late)),
            disorder: runs.iter().map(|run| run.disorder).sum(),
            lag: runs.iter().map(|run| run.lag).sum(),
        }
    }
}

/// What a way is measured against: the same contender without new records.
fn undisturbed<'a>(way: &Way, all: &'a [Figures]) -> &'a Figures {
    let first = WAYS.iter().position(|other| other.contender == way.contender).expect("it is one of the ways");
    &all[first]
}

fn print(size: Size, all: &[Figures]) {
    println!(
        "\n{} records of {RECORD_BYTES} B and {} days, {KEYS} keys, {PARTITIONS} partitions; {RATE} new ones a second, {} in all\n\n{:<24} {:>12} {:>9} {:>9} {:>14} {:>18} {:>8} {:>8}",
        size.backlog,
        BACKLOG_SPAN.as_secs() / 86_400,
        size.news,
        "until caught up",
        "records/s",
        "× alone",
        "× native",
        "caught up, s",
        "p99 afterwards, ms",
        "disorder",
        "lag"
    );
    for (way, figures) in WAYS.iter().zip(all) {
        let Figures { rate, seconds, p99_ms, disorder, lag, .. } = figures;
        println!(
            "{:<24} {rate:>12.0} {:>9.2} {:>9.2} {seconds:>14.2} {:>18} {disorder:>8} {lag:>8}",
            way.label,
            rate / undisturbed(way, all).rate,
            rate / all[0].rate,
            p99_ms.map_or_else(|| "-".to_owned(), |late| format!("{late:.0}")),
        );
    }
}

fn object(size: Size, way: &Way, figures: &Figures, all: &[Figures]) -> Value {
    let Figures { rates, rate, seconds, p99_ms, disorder, lag } = figures;
    json!({
        "suite": "backlog", "case": way.label, "contender": way.contender, "metric": "records_per_second until caught up", "unit": "1/s",
        "backlog": size.backlog, "record_bytes": RECORD_BYTES, "new_records_per_second": if way.news { RATE } else { 0 }, "rounds": rates.len(),
        "min": least(rates), "median": rate, "max": most(rates), "seconds": seconds,
        "ratio_alone": rate / undisturbed(way, all).rate, "ratio": rate / all[0].rate,
        "p99_afterwards_ms": p99_ms, "order_violations": disorder, "lag_at_end": lag,
    })
}
