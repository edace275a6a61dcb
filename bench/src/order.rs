//! Confluent Parallel Consumer's own table, run by both: 10,000 records of one partition, each with up to 5 ms of work.
//!
//! The work is a wait that the record itself asks for, so that both do the same: in Tidemill within the sandboxed guest `slow`.
//! What could be reached at best is the larger of all work shared by as many calls as may run at once, and of the lane
//! with the most work.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use xtask::lab::kafka::Kafka;

use crate::pipeline::Pipeline;
use crate::report::{self, least, median, most};
use crate::run::Measured;
use crate::{peer, topics};

const RECORDS: u64 = 10_000;
const WORK_MICROS_MAX: u64 = 5_000;
/// Calls at once, for both.
const CONCURRENCY: u64 = 100;
/// What a JVM compiles its code on before it is measured.
const WARM_RECORDS: u64 = 5_000;
const WARM_TOPIC: &str = "warm";
const WARM_MICROS: u64 = 100;

/// A row of their table.
struct Row {
    label: &'static str,
    order: Order,
    keys: u64,
    /// What their README says, on a machine that it does not name.
    published_seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    Partition,
    Key,
    Unordered,
}

const ROWS: [Row; 8] = [
    Row { label: "serial", order: Order::Partition, keys: 1000, published_seconds: 22.2 },
    Row { label: "2 keys", order: Order::Key, keys: 2, published_seconds: 13.6 },
    Row { label: "5 keys", order: Order::Key, keys: 5, published_seconds: 5.9 },
    Row { label: "10 keys", order: Order::Key, keys: 10, published_seconds: 3.3 },
    Row { label: "20 keys", order: Order::Key, keys: 20, published_seconds: 2.2 },
    Row { label: "100 keys", order: Order::Key, keys: 100, published_seconds: 2.1 },
    Row { label: "1,000 keys", order: Order::Key, keys: 1000, published_seconds: 2.1 },
    Row { label: "unordered", order: Order::Unordered, keys: 1000, published_seconds: 2.8 },
];

/// Who runs a row.
#[derive(Debug, Clone, Copy)]
struct Contender {
    name: &'static str,
    label: &'static str,
    /// Records of a call at most.
    batch: u64,
}

const CONTENDERS: [Contender; 3] = [
    // As its peer, which calls with one record unless it is told otherwise.
    Contender { name: "tidemill", label: "Tidemill, one a call", batch: 1 },
    Contender { name: "tidemill", label: "Tidemill, default calls", batch: 100 },
    Contender { name: "parallel-consumer", label: "Parallel Consumer", batch: 1 },
];

pub(crate) fn order(quick: bool, only: Option<&str>, json: Option<&Path>) -> Result<()> {
    let kafka = Kafka::start_nodes(1)?;
    let bootstrap = kafka.bootstrap();
    let rounds = if quick { 1 } else { 3 };
    let warm = (0..WARM_RECORDS).map(|number| (format!("{}", number % 100), WARM_MICROS.to_string()));
    topics::fill(&bootstrap, WARM_TOPIC, 1, warm)?;
    let mut objects = Vec::new();
    print_head();
    for row in ROWS.iter().filter(|row| only.is_none_or(|only| row.label == only)) {
        let topic = format!("in-{}", row.label.replace([' ', ','], "-"));
        topics::fill(&bootstrap, &topic, 1, records(row))?;
        let mut runs = CONTENDERS.map(|_| Vec::new());
        for round in 0..rounds {
            for (contender, runs) in CONTENDERS.iter().zip(&mut runs) {
                let group = format!("{topic}-{round}-{}-{}", contender.name, contender.batch);
                runs.push(run(&bootstrap, row, *contender, &topic, &group)?);
            }
        }
        topics::delete(&bootstrap, &topic)?;
        print_row(row, &runs);
        objects.extend(CONTENDERS.iter().zip(&runs).map(|(contender, runs)| object(row, contender, runs)));
    }
    if let Some(path) = json {
        report::save(&objects, path)?;
    }
    Ok(())
}

fn run(bootstrap: &str, row: &Row, contender: Contender, topic: &str, group: &str) -> Result<Measured> {
    let mut command = match contender.name {
        "parallel-consumer" => {
            let mut java = peer::java("parallel-consumer")?;
            java.args(["--warm-input", WARM_TOPIC, "--warm-records", &WARM_RECORDS.to_string()]);
            java
        }
        _ => {
            let mut own = Command::new(std::env::current_exe()?);
            own.args(["work", "--batch", &contender.batch.to_string()]);
            own
        }
    };
    let order = match row.order {
        Order::Partition => "partition",
        Order::Key => "key",
        Order::Unordered => "unordered",
    };
    command.args(["--bootstrap", bootstrap, "--input", topic, "--group", group, "--records", &RECORDS.to_string()]);
    command.args(["--order", order, "--concurrency", &CONCURRENCY.to_string()]);
    Measured::by(command, contender.label)
}

/// One run of Tidemill; the benchmark calls itself with it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Work {
    #[arg(long)]
    bootstrap: String,
    /// The filled topic.
    #[arg(long)]
    input: String,
    /// A group that never committed.
    #[arg(long)]
    group: String,
    #[arg(long)]
    records: u64,
    #[arg(long)]
    order: Order,
    #[arg(long)]
    concurrency: u64,
    /// Records of a call.
    #[arg(long)]
    batch: u64,
}

impl Work {
    pub(crate) fn run(&self) -> Result<()> {
        let Self { bootstrap, input, group, records, order, concurrency, batch } = self;
        let order = format!("{order:?}").to_lowercase();
        let manifest = format!(
            "topics = [\"{input}\"]\ngroup = \"{group}\"\norder = \"{order}\"\nconcurrency = {concurrency}\nbatch.records_max = {batch}\nconfig.ms = \"value\"\n"
        );
        let pipeline = Pipeline::start(bootstrap, "slow", &manifest)?;
        let measured = pipeline.measure(*records, || pipeline.done())?;
        pipeline.stop()?;
        measured.tell();
        Ok(())
    }
}

fn records(row: &Row) -> impl Iterator<Item = (String, String)> {
    let keys = row.keys;
    (0..RECORDS).map(move |number| (format!("k{}", number % keys), micros(number).to_string()))
}

/// How long the work of a record takes, the same in each run: the first step of splitmix64 from its number.
fn micros(number: u64) -> u64 {
    let mut z = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % (WORK_MICROS_MAX + 1)
}

/// What a row takes at best, in seconds.
fn ideal(row: &Row) -> f64 {
    let mut lanes: BTreeMap<u64, u64> = BTreeMap::new();
    for number in 0..RECORDS {
        let lane = match row.order {
            Order::Partition => 0,
            Order::Key => number % row.keys,
            Order::Unordered => number,
        };
        *lanes.entry(lane).or_default() += micros(number);
    }
    let busiest = lanes.values().copied().max().unwrap_or(0) as f64;
    let all = lanes.values().sum::<u64>() as f64;
    busiest.max(all / CONCURRENCY as f64) / 1e6
}

fn seconds(runs: &[Measured]) -> Vec<f64> {
    runs.iter().map(|run| run.seconds).collect()
}

fn print_head() {
    let [first, second, peer] = CONTENDERS.map(|contender| contender.label);
    println!(
        "{RECORDS} records, 0 to {} ms of work each, {CONCURRENCY} at once; seconds, and times the ideal\n\n{:<12} {:>8} {first:>24} {second:>24} {peer:>24} {:>10}",
        WORK_MICROS_MAX / 1000,
        "row",
        "ideal",
        "published"
    );
}

fn print_row(row: &Row, runs: &[Vec<Measured>]) {
    let ideal = ideal(row);
    let cells = runs.iter().map(|runs| {
        let median = median(&seconds(runs));
        format!("{:>24}", format!("{median:.3} ({:.2})", median / ideal))
    });
    let cells: Vec<String> = cells.collect();
    println!("{:<12} {ideal:>8.3} {} {:>10.1}", row.label, cells.join(" "), row.published_seconds);
}

fn object(row: &Row, contender: &Contender, runs: &[Measured]) -> Value {
    let (seconds, ideal) = (seconds(runs), ideal(row));
    let cpu: Vec<f64> = runs.iter().map(|run| run.cpu_seconds * 1e6 / run.records as f64).collect();
    let calls: Vec<f64> = runs.iter().map(|run| run.calls as f64).collect();
    json!({
        "suite": "order", "case": row.label, "contender": contender.name, "batch": contender.batch, "metric": "seconds", "unit": "s",
        "concurrency": CONCURRENCY, "records": RECORDS, "min": least(&seconds), "median": median(&seconds), "max": most(&seconds),
        "ideal": ideal, "ratio": median(&seconds) / ideal, "calls": median(&calls), "client_cpu_us_per_record": median(&cpu),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ideal_is_the_busiest_lane_or_the_share_of_a_call() {
        let all = (0..RECORDS).map(micros).sum::<u64>() as f64 / 1e6;
        assert!((24.0..26.0).contains(&all), "10,000 times half of 5 ms: {all}");
        assert!((ideal(&ROWS[0]) - all).abs() < 1e-9, "one after another");
        assert!((all / 2.0..all / 1.9).contains(&ideal(&ROWS[1])), "two lanes");
        assert!((ideal(&ROWS[7]) - all / 100.0).abs() < 1e-9, "all calls at once");
    }
}
