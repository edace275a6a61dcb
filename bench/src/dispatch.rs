//! The suite: fill a topic, let the contenders take turns, compare.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use xtask::lab::kafka::Kafka;

use crate::report::{self, Line, Series};
use crate::run::Measured;
use crate::{peer, topics};

const PARTITIONS: i32 = 8;
const KEYS: u64 = 1000;

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

const WAYS: [Way; 11] = [
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
        label: "reuse, batch 1000",
        batch: 1000,
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
    Way {
        contender: "native-transactions",
        label: "native, transactions",
        batch: 1,
        isolation: "",
        new_values: false,
        share: 1,
    },
    Way {
        contender: "tidemill-transactions",
        label: "exactly once, batch 100",
        batch: 100,
        isolation: "reuse",
        new_values: false,
        share: 1,
    },
    Way {
        contender: "tidemill-transactions",
        label: "exactly once, batch 1000",
        batch: 1000,
        isolation: "reuse",
        new_values: false,
        share: 1,
    },
    Way {
        contender: "kafka-streams",
        label: "Kafka Streams, exactly_once_v2",
        batch: 1,
        isolation: "",
        new_values: false,
        share: 4,
    },
];

/// All contenders, or those whose outputs and offsets are in transactions.
pub(crate) fn dispatch(exactly_once: bool, quick: bool, json: Option<&Path>) -> Result<()> {
    let ways: Vec<&Way> = WAYS.iter().filter(|way| !exactly_once || report::in_transactions(way.contender)).collect();
    let kafka = Kafka::start_nodes(1)?;
    let bootstrap = kafka.bootstrap();
    let rounds = if quick { 2 } else { 5 };
    let sizes: [(usize, u64); 2] =
        if quick { [(100, 1_500_000), (1024, 400_000)] } else { [(100, 3_000_000), (1024, 800_000)] };
    let mut lines = Vec::new();
    for (record_bytes, records) in sizes {
        let input = format!("in-{record_bytes}");
        let value = vec![b'x'; record_bytes];
        let keyed = (0..records).map(|number| (format!("{:06}", number % KEYS), &value));
        topics::fill(&bootstrap, &input, PARTITIONS, keyed)?;
        let mut series = vec![Series::default(); ways.len()];
        for round in 0..rounds {
            for (way, series) in ways.iter().zip(&mut series) {
                let output =
                    format!("out-{record_bytes}-{round}-{}", way.label.replace([' ', ',', '(', ')', '/'], "-"));
                topics::create(&bootstrap, &output, PARTITIONS)?;
                let measured = run(&bootstrap, way, &input, &output, records / way.share)?;
                eprintln!(
                    "round {} of {rounds}, {record_bytes} B, {}: {:.0} records/s",
                    round + 1,
                    way.label,
                    measured.records as f64 / measured.seconds
                );
                series.add(measured);
                topics::delete(&bootstrap, &output)?;
            }
        }
        lines.extend(ways.iter().zip(series).map(|(way, series)| line(way, record_bytes, series)));
        topics::delete(&bootstrap, &input)?;
    }
    report::print(&lines);
    if let Some(path) = json {
        report::write(&lines, path)?;
    }
    Ok(())
}

fn line(way: &Way, record_bytes: usize, series: Series) -> Line {
    let tidemill = way.contender.starts_with("tidemill");
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
    let mut command = match way.contender {
        "kafka-streams" => peer::java("kafka-streams")?,
        contender => {
            let mut own = Command::new(std::env::current_exe()?);
            own.args(["run", "--contender", contender, "--batch", &way.batch.to_string()]);
            own
        }
    };
    command.args(["--bootstrap", bootstrap, "--input", input, "--output", output]);
    command.args(["--group", output, "--records", &records.to_string()]);
    if !way.isolation.is_empty() {
        command.args(["--isolation", way.isolation]);
    }
    if way.new_values {
        command.arg("--new-values");
    }
    Measured::by(command, way.label)
}
