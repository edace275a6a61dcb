//! The suite: fill a topic, let the contenders take turns, compare.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::Value;
use xtask::lab::kafka::Kafka;

use crate::report::{self, Line, Series};
use crate::run::Measured;

const PARTITIONS: i32 = 8;
const KEYS: u64 = 1000;
const PATIENCE: Duration = Duration::from_secs(120);

/// A way to run, beside the record's size.
#[derive(Clone, Copy)]
struct Way {
    contender: &'static str,
    /// Its name in the table.
    label: &'static str,
    batch: usize,
    isolation: &'static str,
    /// Whether the guest makes its values anew instead of passing them on.
    new_values: bool,
    /// Measures so many of the topic's records: one in this many.
    share: u64,
}

const WAYS: [Way; 6] = [
    Way { contender: "native", label: "native", batch: 1, isolation: "", new_values: false, share: 1 },
    Way { contender: "native", label: "native again (A/A)", batch: 1, isolation: "", new_values: false, share: 1 },
    Way {
        contender: "tidemill",
        label: "reuse, batch 100",
        batch: 100,
        isolation: "reuse",
        new_values: false,
        share: 1,
    },
    Way {
        contender: "tidemill",
        label: "reuse, batch 100, new values",
        batch: 100,
        isolation: "reuse",
        new_values: true,
        share: 1,
    },
    Way { contender: "tidemill", label: "reuse, batch 1", batch: 1, isolation: "reuse", new_values: false, share: 4 },
    Way { contender: "tidemill", label: "record", batch: 1, isolation: "record", new_values: false, share: 20 },
];

pub(crate) fn dispatch(quick: bool, json: Option<&Path>) -> Result<()> {
    let kafka = Kafka::start_nodes(1)?;
    let bootstrap = kafka.bootstrap();
    let rounds = if quick { 2 } else { 5 };
    let sizes: [(usize, u64); 2] =
        if quick { [(100, 800_000), (1024, 300_000)] } else { [(100, 1_500_000), (1024, 400_000)] };
    let mut lines = Vec::new();
    for (record_bytes, records) in sizes {
        let input = format!("in-{record_bytes}");
        fill(&bootstrap, &input, record_bytes, records)?;
        let mut series = vec![Series::default(); WAYS.len()];
        for round in 0..rounds {
            for (way, series) in WAYS.iter().zip(&mut series) {
                let output =
                    format!("out-{record_bytes}-{round}-{}", way.label.replace([' ', ',', '(', ')', '/'], "-"));
                create(&bootstrap, &output)?;
                let measured = run(&bootstrap, way, &input, &output, records / way.share)?;
                eprintln!(
                    "round {} of {rounds}, {record_bytes} B, {}: {:.0} records/s",
                    round + 1,
                    way.label,
                    measured.records as f64 / measured.seconds
                );
                series.add(measured);
                delete(&bootstrap, &output)?;
            }
        }
        lines.extend(WAYS.iter().zip(series).map(|(way, series)| line(way, record_bytes, series)));
        delete(&bootstrap, &input)?;
    }
    report::print(&lines);
    if let Some(path) = json {
        report::write(&lines, path)?;
        println!("\nfigures: {}", path.display());
    }
    Ok(())
}

fn line(way: &Way, record_bytes: usize, series: Series) -> Line {
    let tidemill = way.contender == "tidemill";
    Line {
        case: format!("{record_bytes} B, {}", way.label),
        contender: way.contender,
        record_bytes,
        batch: tidemill.then_some(way.batch),
        isolation: tidemill.then(|| way.isolation.to_owned()),
        series,
    }
}

fn run(bootstrap: &str, way: &Way, input: &str, output: &str, records: u64) -> Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--contender", way.contender, "--bootstrap", bootstrap, "--input", input, "--output", output]);
    command.args(["--group", output, "--records", &records.to_string(), "--batch", &way.batch.to_string()]);
    if !way.isolation.is_empty() {
        command.args(["--isolation", way.isolation]);
    }
    if way.new_values {
        command.arg("--new-values");
    }
    let done = command.stderr(std::process::Stdio::inherit()).output()?;
    ensure!(done.status.success(), "{}: the run failed", way.label);
    let text = String::from_utf8(done.stdout)?;
    let result: Value = serde_json::from_str(text.lines().last().context("the run printed nothing")?)?;
    let number = |key: &str| result[key].as_f64().with_context(|| format!("the run printed no {key}"));
    Ok(Measured {
        records: number("records")? as u64,
        seconds: number("seconds")?,
        cpu_seconds: number("cpu_seconds")?,
        calls: number("calls")? as u64,
    })
}

fn fill(bootstrap: &str, topic: &str, record_bytes: usize, records: u64) -> Result<()> {
    create(bootstrap, topic)?;
    let producer: ThreadedProducer<DefaultProducerContext> = ThreadedProducer::from_config(
        client(bootstrap).set("acks", "all").set("linger.ms", "20").set("partitioner", "murmur2_random"),
    )?;
    let value = vec![b'x'; record_bytes];
    for number in 0..records {
        let key = format!("{:06}", number % KEYS);
        let mut record = BaseRecord::to(topic).key(&key).payload(&value);
        while let Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) = producer.send(record) {
            producer.poll(Duration::from_millis(1));
            record = again;
        }
    }
    producer.flush(PATIENCE)?;
    Ok(())
}

fn create(bootstrap: &str, topic: &str) -> Result<()> {
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    let results = wait(admin(bootstrap)?.create_topics([&new], &AdminOptions::new()))??;
    results
        .into_iter()
        .try_for_each(|result| result.map(drop))
        .map_err(|(topic, error)| anyhow::anyhow!("create {topic}: {error}"))
}

fn delete(bootstrap: &str, topic: &str) -> Result<()> {
    wait(admin(bootstrap)?.delete_topics(&[topic], &AdminOptions::new()))??;
    Ok(())
}

fn admin(bootstrap: &str) -> Result<AdminClient<DefaultClientContext>> {
    Ok(AdminClient::from_config(&client(bootstrap))?)
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

fn wait<F: Future>(future: F) -> Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
