//! Figures: medians, ratios, a table and JSON.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::run::Measured;

/// All runs of one contender in one case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    pub(crate) cpu_us_per_record: Vec<f64>,
    pub(crate) records_per_second: Vec<f64>,
}

impl Series {
    pub(crate) fn add(&mut self, measured: Measured) {
        let records = measured.records as f64;
        self.cpu_us_per_record.push(measured.cpu_seconds * 1e6 / records);
        self.records_per_second.push(records / measured.seconds);
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) case: String,
    pub(crate) contender: &'static str,
    pub(crate) record_bytes: usize,
    pub(crate) batch: Option<usize>,
    pub(crate) isolation: Option<String>,
    pub(crate) series: Series,
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (_, _) if sorted.is_empty() => f64::NAN,
        (middle, 1) => sorted[middle],
        (middle, _) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

pub(crate) fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

pub(crate) fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Prints the table; ratios are to the native loop of the same record size in the same run.
pub(crate) fn print(lines: &[Line]) {
    println!("\n{:<34} {:>14} {:>22} {:>9} {:>9}", "case", "records/s", "client CPU µs/record", "rate ×", "CPU ×");
    for line in lines {
        let native = native(lines, line);
        let rate = median(&line.series.records_per_second);
        let cpu = &line.series.cpu_us_per_record;
        let (rate_ratio, cpu_ratio) = native.map_or((f64::NAN, f64::NAN), |native| {
            (rate / median(&native.series.records_per_second), median(cpu) / median(&native.series.cpu_us_per_record))
        });
        let spread = format!("{:.2} ({:.2}–{:.2})", median(cpu), least(cpu), most(cpu));
        println!("{:<34} {rate:>14.0} {spread:>22} {rate_ratio:>9.2} {cpu_ratio:>9.2}", line.case);
    }
}

/// The native loop with the same promise, on records of the same size.
fn native<'a>(lines: &'a [Line], of: &Line) -> Option<&'a Line> {
    let contender = if in_transactions(of.contender) { "native-transactions" } else { "native" };
    lines.iter().find(|line| line.contender == contender && line.record_bytes == of.record_bytes)
}

/// Whether a contender's outputs and offsets are in transactions.
pub(crate) fn in_transactions(contender: &str) -> bool {
    contender.ends_with("-transactions") || contender == "kafka-streams"
}

/// Writes the figures as a list of objects.
pub(crate) fn write(lines: &[Line], path: &Path) -> Result<()> {
    let mut objects: Vec<Value> = Vec::new();
    for line in lines {
        let native = native(lines, line);
        let metrics = [
            (
                "client_cpu_us_per_record",
                "µs",
                &line.series.cpu_us_per_record,
                native.map(|native| &native.series.cpu_us_per_record),
            ),
            (
                "records_per_second",
                "1/s",
                &line.series.records_per_second,
                native.map(|native| &native.series.records_per_second),
            ),
        ];
        for (metric, unit, values, native) in metrics {
            objects.push(json!({
                "suite": "dispatch", "case": line.case, "contender": line.contender, "metric": metric, "unit": unit,
                "record_bytes": line.record_bytes, "batch": line.batch, "isolation": line.isolation,
                "delivery": if in_transactions(line.contender) { "exactly-once" } else { "at-least-once" }, "min": least(values), "median": median(values), "max": most(values),
                "ratio": native.map(|native| median(values) / median(native)),
            }));
        }
    }
    save(&objects, path)
}

/// Writes figures as JSON, and says where.
pub(crate) fn save(objects: &[Value], path: &Path) -> Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(objects)? + "\n")?;
    println!("\nfigures: {}", path.display());
    Ok(())
}
