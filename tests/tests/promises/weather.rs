//! A public data set goes through ingest and a guest into PostgreSQL, and comes out as it went in.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::host::{Handler, Setup};
use tests::sink::Sink;
use tests::weather::{self, Reading};
use tests::{names, servers, topics};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(180);
const READINGS_PER_REQUEST: usize = 500;
const MEASURES: [&str; 9] =
    ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"];
const SCHEMA: &str = "\
CREATE TABLE weather (
    origin TEXT NOT NULL, time_hour TEXT NOT NULL, year BIGINT, month BIGINT, day BIGINT, hour BIGINT,
    temp DOUBLE PRECISION, dewp DOUBLE PRECISION, humid DOUBLE PRECISION, wind_dir DOUBLE PRECISION,
    wind_speed DOUBLE PRECISION, wind_gust DOUBLE PRECISION, precip DOUBLE PRECISION, pressure DOUBLE PRECISION,
    visib DOUBLE PRECISION, PRIMARY KEY (origin, time_hour)
)";

/// Of one airport and month: readings, and of each measure how many there are and their sum.
type Aggregates = BTreeMap<(String, i64), (i64, Vec<(i64, f64)>)>;

#[test]
fn aggregates_of_a_public_data_set_equal_those_worked_out_from_its_file() -> Result<()> {
    let _machine = servers::in_company();
    let readings = weather::readings()?;
    assert_eq!(readings.len(), 26_115);
    let (bootstrap, topic, group) = (servers::kafka(), names::unique("weather"), names::unique("weather-group"));
    topics::create(&bootstrap, &topic, 4)?;
    topics::create(&bootstrap, &format!("{topic}.dlq"), 1)?;
    let sink = Sink::new();
    let manifest = format!("topics = [\"{topic}\"]\ngroup = \"{group}\"\n[grants]\nsql = [\"main\"]\n");
    let handler = Handler::new("weather", "weather", &manifest).migration(SCHEMA);
    let host = Setup::on_kafka(&bootstrap, &[&topic]).database(sink.url()).handler(handler).start()?;
    let headers = [("Content-Type", "application/x-ndjson"), ("Tidemill-Key-Field", "origin")];
    for request in readings.chunks(READINGS_PER_REQUEST) {
        let lines: Vec<String> = request.iter().map(serde_json::to_string).collect::<serde_json::Result<_>>()?;
        let (status, answer) = tests::client::post_one(&host.ingest()?, &topic, &headers, lines.join("\n").as_bytes())?;
        ensure!(status == 200, "ingest answered {status}: {answer}");
    }
    wait::until("all readings to be stored", DEADLINE, || {
        Ok((sink.number("SELECT count(*) FROM weather", &[])? >= 26_115).then_some(()))
    })?;

    let (stored, expected) = (from_database(&sink)?, from_file(&readings)?);
    assert_eq!(stored.len(), 36, "three airports, twelve months");
    for (place, (count, measures)) in &expected {
        let (stored_count, stored_measures) = stored.get(place).with_context(|| format!("{place:?} is stored"))?;
        assert_eq!(stored_count, count, "{place:?}");
        for (index, ((count, sum), (stored_count, stored_sum))) in measures.iter().zip(stored_measures).enumerate() {
            assert_eq!(stored_count, count, "{place:?} {}", MEASURES[index]);
            // Both add the same numbers, in another order.
            assert!((sum - stored_sum).abs() <= sum.abs() * 1e-12, "{place:?} {}: {sum} {stored_sum}", MEASURES[index]);
        }
    }
    assert_eq!(topics::ends(&bootstrap, &format!("{topic}.dlq"))?, [0], "no reading is dead");
    Ok(())
}

fn from_file(readings: &[Reading]) -> Result<Aggregates> {
    let mut aggregates = Aggregates::new();
    for reading in readings {
        let place = (reading["origin"].clone(), reading["month"].parse()?);
        let (count, measures) = aggregates.entry(place).or_insert_with(|| (0, vec![(0, 0.0); MEASURES.len()]));
        *count += 1;
        for (measure, (count, sum)) in MEASURES.iter().zip(measures) {
            if reading[*measure] != "NA" {
                *count += 1;
                *sum += reading[*measure].parse::<f64>()?;
            }
        }
    }
    Ok(aggregates)
}

fn from_database(sink: &Sink) -> Result<Aggregates> {
    let columns: Vec<String> =
        MEASURES.iter().map(|measure| format!("count({measure}), coalesce(sum({measure}), 0)")).collect();
    let query = format!("SELECT origin, month, count(*), {} FROM weather GROUP BY origin, month", columns.join(", "));
    let aggregates = sink.query(&query, &[])?.into_iter().map(|row| {
        let measures = (0..MEASURES.len()).map(|index| (row.get(3 + 2 * index), row.get(4 + 2 * index))).collect();
        ((row.get(0), row.get(1)), (row.get(2), measures))
    });
    Ok(aggregates.collect())
}
