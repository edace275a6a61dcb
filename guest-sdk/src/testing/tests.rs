//! The capabilities as authors call them, on the host in memory.

use super::{Host, record};
use crate::{Output, config, kv, log, params, producer, secrets, sql};

#[test]
fn a_transaction_that_is_dropped_changes_nothing() -> Result<(), sql::Error> {
    let _host = Host::new().sql("main", &["CREATE TABLE t (id TEXT PRIMARY KEY, n BIGINT)"]);
    let db = sql::open("main")?;
    {
        let tx = db.begin()?;
        assert_eq!(tx.execute("INSERT INTO t VALUES ($2, $1)", params![1, "a"])?, 1, "parameters go by number");
    }
    assert!(db.query("SELECT * FROM t", params![])?.is_empty());
    let tx = db.begin()?;
    tx.execute_many("INSERT INTO t VALUES ($1, $2)", &[params!["a", 1].to_vec(), params!["b", None::<i64>].to_vec()])?;
    tx.commit()?;
    assert_eq!(db.query("SELECT * FROM t", params![])?.len(), 2);
    Ok(())
}

#[test]
fn rows_are_read_by_name_number_and_type() -> crate::Result<()> {
    let _host = Host::new().sql("main", &[]);
    let rows = sql::open("main")?.query("SELECT 7 AS seven, 'x' AS x, NULL AS none", params![])?;
    let row = rows.first().ok_or(crate::Error::Skip)?;
    assert_eq!(row.get::<i64>("seven")?, 7);
    assert_eq!(row.get::<String>(1)?, "x");
    assert_eq!(row.get::<Option<f64>>("none")?, None);
    let text = |error: sql::ColumnError| error.to_string();
    assert_eq!(row.get::<i64>("eight").map_err(text), Err("the row has no column `eight`".to_owned()));
    assert_eq!(row.get::<i64>(3).map_err(text), Err("the row has no column `3`".to_owned()));
    assert_eq!(
        row.get::<i64>("x").map_err(text),
        Err("column `x` of type `unknown` cannot be read as `i64`; use `Option` if it may be null".to_owned())
    );
    Ok(())
}

#[test]
fn a_broken_constraint_is_told_as_bad_data() -> Result<(), sql::Error> {
    let _host = Host::new().sql("main", &["CREATE TABLE t (id TEXT PRIMARY KEY)"]);
    let db = sql::open("main")?;
    db.execute("INSERT INTO t VALUES ($1)", params!["a"])?;
    let Err(sql::Error::Rejected(error)) = db.execute("INSERT INTO t VALUES ($1)", params!["a"]) else {
        panic!("the row is there twice");
    };
    assert!(error.constraint.is_some());
    assert!(matches!(db.execute("INSERT INTO t VALUES ($1)", params![]), Err(sql::Error::BadParameter(_))));
    Ok(())
}

#[test]
fn buckets_keep_values_count_and_are_claimed_once() -> Result<(), kv::Error> {
    let host = Host::new().kv("seen");
    let seen = kv::open("seen")?;
    seen.set_json("a", &[1, 2])?;
    assert_eq!(seen.get_json::<Vec<u8>>("a")?, Some(vec![1, 2]));
    assert_eq!((seen.increment("n", 2)?, seen.increment("n", 3)?), (2, 5));
    assert!(seen.claim("k", "topic/0/1/0", None)?);
    assert!(seen.claim("k", "topic/0/1/0", None)?, "a redelivery of the same record may go on");
    assert!(!seen.claim("k", "topic/0/2/0", None)?);
    assert_eq!(kv::open("other").map(|_| ()), Err(kv::Error::AccessDenied("other".to_owned())));
    host.set_down("seen", true);
    assert!(matches!(seen.get("a"), Err(kv::Error::Unavailable(_))));
    Ok(())
}

#[test]
fn configuration_secrets_logs_and_sending() -> crate::Result<()> {
    let host = Host::new().config("size", "7").config("bad", "seven").secret("token", "s3cret");
    assert_eq!(config::parse_or("size", 1)?, 7);
    assert_eq!(config::parse_or("none", 1)?, 1);
    let error = config::parse_or("bad", 1).map_err(|error| error.to_string());
    assert_eq!(error, Err("config key `bad`: `seven`: invalid digit found in string".to_owned()));
    let error = config::require("none").map_err(|error| error.to_string());
    assert_eq!(error, Err("config key `none` is not set; add it to `[config]` of the handler".to_owned()));
    assert_eq!((secrets::get("token").as_deref(), secrets::get("other")), (Some("s3cret"), None));
    log::warn(format_args!("{} left", 2));
    assert_eq!(host.logs(), [(log::Level::Warn, "2 left".to_owned())]);
    let position = producer::send(&[Output::bytes("t", "v")])?.remove(0);
    assert_eq!((position.topic.as_str(), position.offset), ("t", 0));
    assert_eq!(host.sent().len(), 1);
    Ok(())
}

#[test]
fn a_record_keeps_the_id_that_the_test_gave() {
    fn handle(_: Vec<u8>, record: &crate::Record, ctx: &mut crate::Context) {
        ctx.emit(Output::bytes("ids", record.id()));
    }
    let outcomes = Host::new().call(handle, [record("a"), record("b").with_id("mine"), record("c")]);
    let ids: Vec<_> =
        outcomes.iter().flat_map(|outcome| outcome.outputs()).filter_map(|output| output.value.as_deref()).collect();
    assert_eq!(ids, [b"test/0/0/0".as_slice(), b"mine", b"test/0/2/0"]);
}
