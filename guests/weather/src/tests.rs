use serde_json::{Value, json};
use tidemill_guest::testing::{self, Host};
use tidemill_guest::{Result, params, sql};

use super::handle;

#[test]
fn numbers_their_texts_and_gaps_are_read() -> Result<()> {
    let host = host();
    let reading = json!({
        "origin": "EWR", "time_hour": "2013-01-01T06:00:00Z", "year": "2013", "month": 1, "day": "1", "hour": 1.0,
        "temp": "39.02", "dewp": 26.06, "humid": "NA", "wind_dir": "", "wind_speed": null, "precip": " 0 ",
    });
    assert!(host.call_one(handle, testing::json(&reading)).settles());
    let rows = sql::open("main")?.query(
        "SELECT year, hour, temp, dewp, humid, wind_dir, wind_speed, wind_gust, precip FROM weather",
        params![],
    )?;
    let row = rows.first().expect("one reading is stored");
    assert_eq!((row.get::<i64>("year")?, row.get::<i64>("hour")?), (2013, 1));
    assert_eq!((row.get::<f64>("temp")?, row.get::<f64>("dewp")?, row.get::<f64>("precip")?), (39.02, 26.06, 0.0));
    for gap in ["humid", "wind_dir", "wind_speed", "wind_gust"] {
        assert_eq!(row.get::<Option<f64>>(gap)?, None, "{gap}");
    }
    Ok(())
}

#[test]
fn the_first_reading_of_an_hour_stays() -> Result<()> {
    let host = host();
    for temp in [1, 2] {
        host.call_one(handle, testing::json(&json!({"origin": "EWR", "time_hour": "t", "temp": temp})));
    }
    let rows = sql::open("main")?.query("SELECT temp FROM weather", params![])?;
    assert_eq!(rows.iter().map(|row| row.get::<f64>(0)).collect::<Result<Vec<_>, _>>()?, [1.0]);
    Ok(())
}

#[test]
fn what_is_no_reading_is_a_dead_letter() {
    check(json!({"origin": "", "time_hour": "t"}), "`origin` and `time_hour` say which reading it is");
    check(json!({"origin": "EWR", "time_hour": "NA"}), "`origin` and `time_hour` say which reading it is");
    check(json!({"origin": "EWR", "time_hour": "t", "temp": "warm"}), "`warm` is not a number");
    check(json!({"origin": "EWR", "time_hour": "t", "year": 2013.5}), "`2013.5` is not a whole number");
}

fn host() -> Host {
    Host::new().sql("main", &[include_str!("../migrations/V1__weather.sql")])
}

#[track_caller]
fn check(reading: Value, expected: &str) {
    let outcome = host().call_one(handle, testing::json(&reading));
    let detail = outcome.reason().map_or("", |reason| &reason.detail);
    assert!(detail.contains(expected), "{outcome:?}");
}
