//! Stores hourly weather readings, dirt included: the `weather` table of the nycflights13 data set, one JSON object a reading.
//!
//! A number may be a number, its text, or missing (`"NA"`, `""`, null, or no field). A reading without `origin` or `time_hour`, or with a text
//! that is no number, is a dead letter. Writes table `weather` of database `main`; the first reading of an origin and hour stays.

use serde::{Deserialize, Deserializer};
use tidemill_guest::sql::{self, ToValue, Value};
use tidemill_guest::{Json, Result, dead_letter, handler, params};

#[derive(Deserialize)]
struct Reading {
    origin: String,
    time_hour: String,
    #[serde(default, deserialize_with = "whole")]
    year: Option<i64>,
    #[serde(default, deserialize_with = "whole")]
    month: Option<i64>,
    #[serde(default, deserialize_with = "whole")]
    day: Option<i64>,
    #[serde(default, deserialize_with = "whole")]
    hour: Option<i64>,
    #[serde(default)]
    temp: Measure,
    #[serde(default)]
    dewp: Measure,
    #[serde(default)]
    humid: Measure,
    #[serde(default)]
    wind_dir: Measure,
    #[serde(default)]
    wind_speed: Measure,
    #[serde(default)]
    wind_gust: Measure,
    #[serde(default)]
    precip: Measure,
    #[serde(default)]
    pressure: Measure,
    #[serde(default)]
    visib: Measure,
}

const INSERT: &str = "INSERT INTO weather (origin, time_hour, year, month, day, hour, temp, dewp, humid, \
    wind_dir, wind_speed, wind_gust, precip, pressure, visib) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT (origin, time_hour) DO NOTHING";

#[handler]
fn handle(Json(it): Json<Reading>) -> Result<()> {
    if is_missing(&it.origin) || is_missing(&it.time_hour) {
        return dead_letter("reading-without-place-or-time", "`origin` and `time_hour` say which reading it is");
    }
    #[rustfmt::skip]
    let reading = params![
        it.origin, it.time_hour, it.year, it.month, it.day, it.hour, it.temp, it.dewp, it.humid,
        it.wind_dir, it.wind_speed, it.wind_gust, it.precip, it.pressure, it.visib
    ];
    sql::open("main")?.execute(INSERT, reading)?;
    Ok(())
}

/// A measured number, if the station had one.
#[derive(Default)]
struct Measure(Option<f64>);

impl<'de> Deserialize<'de> for Measure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match Option::<Dirty>::deserialize(deserializer)? {
            None => Ok(Measure(None)),
            Some(Dirty::Number(number)) => Ok(Measure(Some(number))),
            Some(Dirty::Text(text)) if is_missing(&text) => Ok(Measure(None)),
            Some(Dirty::Text(text)) => match text.trim().parse() {
                Ok(number) => Ok(Measure(Some(number))),
                Err(_) => Err(serde::de::Error::custom(format_args!("`{text}` is not a number"))),
            },
        }
    }
}

impl ToValue for Measure {
    fn to_value(&self) -> Value {
        self.0.to_value()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Dirty {
    Number(f64),
    Text(String),
}

fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<i64>, D::Error> {
    let Measure(number) = Measure::deserialize(deserializer)?;
    match number {
        Some(number) if number.fract() != 0.0 => {
            Err(serde::de::Error::custom(format_args!("`{number}` is not a whole number")))
        }
        number => Ok(number.map(|number| number as i64)),
    }
}

fn is_missing(text: &str) -> bool {
    matches!(text.trim(), "" | "NA" | "NaN" | "null")
}

#[cfg(test)]
mod tests;
