//! A range of the log once more: a store as of a time, the same one again, outputs and dead letters only when they are asked
//! for, what retention has left; and a backlog beside what comes.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::client::Load;
use tests::host::{Handler, Host, Setup};
use tests::ledger::Ledger;
use tests::scenario::{Scenario, dead_letters};
use tests::sink::Sink;
use tests::topics::{self, Kept};
use tests::{names, servers, sqlite};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(120);
/// When the first record was made; the others follow a millisecond apart.
const BEGIN_MS: i64 = 1_750_000_000_000;
const HOUR_MS: i64 = 3_600_000;

#[test]
fn a_database_rebuilt_as_of_a_time_equals_the_one_built_live_and_the_handler_goes_on_there() -> Result<()> {
    const WAVE: i64 = 2_000;
    let _machine = servers::in_company();
    let (bootstrap, topic, handler) = (servers::kafka(), names::unique("ledger"), names::unique("ledger"));
    topics::create(&bootstrap, &topic, 4)?;
    let (live, rebuilt) = (Sink::new(), Sink::new());
    let manifest = format!(
        "topics = [\"{topic}\"]\ndelivery = \"exactly-once\"\n[exactly_once]\ntransaction = \"sql.main\"\n\
         [grants]\nsql = [\"main\"]\n"
    );
    let setup = |sink: &Sink| {
        let ledger = Handler::new(&handler, "ledger", &manifest)
            .migration(&tests::books::schema(Duration::ZERO, Duration::ZERO));
        Setup::on_kafka(&bootstrap, &[]).database(sink.url()).handler(ledger)
    };
    let mut host = setup(&live).start()?;
    // One partition has nothing yet: of it, too, the rebuilt database has to say where the handler goes on.
    book(&bootstrap, &topic, 0..WAVE, BEGIN_MS, 3)?;
    wait_until_booked(&live, WAVE)?;
    let then = books(&live)?;
    book(&bootstrap, &topic, WAVE..2 * WAVE, BEGIN_MS + HOUR_MS, 4)?;
    wait_until_booked(&live, 2 * WAVE)?;
    let now = books(&live)?;
    settled(&bootstrap, &handler, &topic)?;
    let committed = topics::committed(&bootstrap, &handler, &topic)?;

    // Half an hour later, while the host runs.
    let set = format!("sql.main={}", rebuilt.url());
    let replay = ["replay", &handler, "--from", "earliest", "--to", "2025-06-15T15:36:40Z", "--set", &set, "--json"];
    let report = report(&host, &replay)?;
    assert_eq!((&report["done"], &report["records"]), (&Value::from(true), &Value::from(WAVE)), "{report}");
    assert_eq!(books(&rebuilt)?, then, "the rebuilt database is as the live one was then");
    assert_eq!(books(&live)?, now, "the live one is as it was");
    assert_eq!(topics::committed(&bootstrap, &handler, &topic)?, committed, "and so is the group");

    let again = host.command(&replay).expect_err("it would count twice").to_string();
    ensure!(again.contains("would count records twice"), "{again}");
    let same = host.command(&["replay", &handler, "--from", "earliest"]).expect_err("the same database").to_string();
    ensure!(same.contains("--set sql.main=URL"), "{same}");

    assert_eq!(host.terminate(DEADLINE)?.code, Some(0));
    let _moved = setup(&rebuilt).start()?;
    wait_until_booked(&rebuilt, 2 * WAVE)?;
    assert_eq!(books(&rebuilt)?, now, "the handler goes on in the rebuilt database where that ends, exactly");
    Ok(())
}

#[test]
fn a_replay_into_the_same_store_repeats_what_is_safe_to_repeat_and_moves_nothing() -> Result<()> {
    const RECORDS: usize = 400;
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let mut host = scenario.setup().handler(scenario.handler("commit_interval = \"20ms\"")).start()?;
    scenario.send(&host, &Load::batches("load", RECORDS))?;
    scenario.wait_until_committed(DEADLINE)?;
    let committed = topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?;
    let before = scenario.sink.stored()?.len();
    let replay = ["replay", &scenario.handler, "--from", "earliest", "--rate", "1000/s", "--json"];
    let report = report(&host, &replay)?;
    assert_eq!((&report["done"], &report["outcomes"]["ack"]), (&Value::from(true), &Value::from(RECORDS)), "{report}");
    let rate = report["records_per_second"].as_f64().context("a rate")?;
    ensure!(rate < 1_500.0, "it was to read 1000 a second, and has read {rate}");
    assert_eq!(scenario.sink.stored()?.len(), before + RECORDS, "each record came once more");
    assert_eq!(scenario.sink.count()?, RECORDS, "with the id that it had");
    assert_eq!(topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?, committed);

    // The broker lets nobody commit for a group that has members: without any it is the replay that leaves it alone.
    assert_eq!(host.terminate(DEADLINE)?.code, Some(0));
    let part = self::report(&host, &["replay", &scenario.handler, "--from", "10", "--to", "30", "--json"])?;
    assert_eq!((&part["done"], &part["records"]), (&Value::from(true), &Value::from(40)), "{part}");
    assert_eq!(scenario.sink.stored()?.len(), before + RECORDS + 40, "twenty of each partition came once more");
    assert_eq!(topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?, committed);
    Ok(())
}

#[test]
fn a_key_value_store_rebuilt_as_of_a_time_equals_the_one_built_live() -> Result<()> {
    const WAVE: i64 = 300;
    let _machine = servers::in_company();
    let (bootstrap, topic, handler) = (servers::kafka(), names::unique("states"), names::unique("latest"));
    topics::create(&bootstrap, &topic, 2)?;
    let folder = tempfile::tempdir()?;
    let [live, rebuilt] = ["live.db", "rebuilt.db"].map(|name| folder.path().join(name));
    let setup = Setup::on_kafka(&bootstrap, &[])
        .with(&format!("\n[kv.main]\nkind = \"sqlite\"\nfile = \"{}\"\n", live.display()));
    let manifest = format!("topics = [\"{topic}\"]\ncommit_interval = \"20ms\"\n[grants]\nkv = [\"main\"]\n");
    let host = setup.handler(Handler::new(&handler, "latest", &manifest)).start()?;
    let states = |file: &Path| sqlite::pairs(file, "SELECT key, CAST(value AS TEXT) FROM tidemill_kv ORDER BY key");
    book(&bootstrap, &topic, 0..WAVE, BEGIN_MS, 2)?;
    settled(&bootstrap, &handler, &topic)?;
    let then = states(&live)?;
    book(&bootstrap, &topic, WAVE..2 * WAVE, BEGIN_MS + HOUR_MS, 2)?;
    settled(&bootstrap, &handler, &topic)?;
    let (now, committed) = (states(&live)?, topics::committed(&bootstrap, &handler, &topic)?);
    ensure!(then != now && then.len() == 50, "each key has another value: {then:?}");

    let set = format!("kv.main={}", rebuilt.display());
    let replay = ["replay", &handler, "--from", "earliest", "--to", "2025-06-15T15:36:40Z", "--set", &set, "--json"];
    let report = report(&host, &replay)?;
    assert_eq!((&report["done"], &report["records"]), (&Value::from(true), &Value::from(WAVE)), "{report}");
    assert_eq!(states(&rebuilt)?, then, "the rebuilt store is as the live one was then");
    assert_eq!(states(&live)?, now, "the live one is as it was");
    assert_eq!(topics::committed(&bootstrap, &handler, &topic)?, committed, "and so is the group");
    let unknown =
        host.command(&["replay", &handler, "--from", "0", "--set", "kv.other=x.db"]).expect_err("no such grant");
    ensure!(unknown.to_string().contains("--set kv.other: handler"), "{unknown}");
    Ok(())
}

#[test]
fn of_a_range_whose_beginning_was_deleted_the_rest_is_replayed_and_the_gap_is_told() -> Result<()> {
    const RECORDS: i64 = 300;
    const GONE: i64 = 100;
    let _machine = servers::in_company();
    let (bootstrap, topic, handler) = (servers::kafka(), names::unique("short"), names::unique("quiet"));
    topics::create(&bootstrap, &topic, 1)?;
    let manifest = format!("topics = [\"{topic}\"]\ncommit_interval = \"20ms\"\n[config]\nms = \"0\"\n");
    let host = Setup::on_kafka(&bootstrap, &[]).handler(Handler::new(&handler, "slow", &manifest)).start()?;
    book(&bootstrap, &topic, 0..RECORDS, BEGIN_MS, 1)?;
    settled(&bootstrap, &handler, &topic)?;
    topics::delete_before(&bootstrap, &topic, 0, GONE)?;
    // Which part is asked for; from where it is read, how many come, how many offsets are missing before them.
    for (range, from, records, gone) in [
        (&["--from", "earliest"][..], GONE, RECORDS - GONE, GONE),
        (&["--from", "40", "--to", "150"], GONE, 50, GONE - 40),
        (&["--from", "2025-06-15T15:06:40.030Z", "--to", "150"], GONE, 50, GONE),
        (&["--from", "120", "--to", "150"], 120, 30, 0),
        (&["--from", "0", "--to", "80"], GONE, 0, 80),
    ] {
        let said = host.command_says(&[&["replay", &handler, "--json"], range].concat())?;
        ensure!(said.succeeded, "{range:?}: {}", said.told);
        let report: Value = serde_json::from_str(&said.printed)?;
        let part = &report["partitions"][0];
        assert_eq!(
            (&report["done"], &report["records"]),
            (&Value::from(true), &Value::from(records)),
            "{range:?}: {report}"
        );
        assert_eq!(
            (&part["from"], &part["no_longer_kept"]),
            (&Value::from(from), &Value::from(gone)),
            "{range:?}: {report}"
        );
        let warned = said.told.contains("offsets before the range are kept no longer");
        assert_eq!(warned, gone > 0, "{range:?}: {}", said.told);
    }
    Ok(())
}

#[test]
fn dead_letters_of_a_replay_are_written_once_more_only_when_that_is_asked_for() -> Result<()> {
    const RECORDS: i64 = 60;
    const POISON: i64 = 3;
    let _machine = servers::in_company();
    let (bootstrap, from, to) = (servers::kafka(), names::unique("from"), names::unique("to"));
    let letters = dead_letters(&from);
    for topic in [&from, &to, &letters] {
        topics::create(&bootstrap, topic, 1)?;
    }
    let manifest = format!("topics = [\"{from}\"]\n[grants]\nproduce = [\"{to}\"]\n[config]\nto = \"{to}\"\n");
    let handler = names::unique("poisoned");
    let host = Setup::on_kafka(&bootstrap, &[]).handler(Handler::new(&handler, "poison", &manifest)).start()?;
    let value = |number: i64| if number % (RECORDS / POISON) == 0 { "poison".to_owned() } else { number.to_string() };
    let records: Vec<Kept> = (0..RECORDS).map(|number| Kept::new(Some(b"k"), Some(value(number).as_bytes()))).collect();
    topics::produce(&bootstrap, &from, &records)?;
    let written =
        || Ok::<_, anyhow::Error>((topics::ends(&bootstrap, &to)?[0], topics::ends(&bootstrap, &letters)?[0]));
    let live = (RECORDS - POISON, POISON);
    wait::until("outputs and dead letters", DEADLINE, || Ok((written()? == live).then_some(())))?;

    for (said, after) in [("discard", live), ("send", (2 * live.0, 2 * live.1))] {
        let ended = host.command_says(&["replay", &handler, "--from", "earliest", "--outputs", said, "--json"])?;
        ensure!(!ended.succeeded && ended.told.contains("not every record was handled"), "{}", ended.told);
        let report: Value = serde_json::from_str(&ended.printed)?;
        let counted = (&report["done"], &report["outputs"], &report["dead_letters"]);
        assert_eq!(counted, (&Value::from(true), &Value::from(live.0), &Value::from(live.1)), "{report}");
        assert_eq!(written()?, after, "{said}");
    }
    let mut places = Vec::new();
    for letter in topics::read(&bootstrap, &letters)? {
        places.push(letter.as_dead_letter()?.place.offset);
    }
    assert_eq!(places, [0, 20, 40, 0, 20, 40], "each is of the record that it was of the first time");
    Ok(())
}

#[test]
fn outputs_of_a_replay_are_written_once_more_only_when_that_is_asked_for() -> Result<()> {
    const RECORDS: i64 = 100;
    let _machine = servers::in_company();
    let (bootstrap, from, to) = (servers::kafka(), names::unique("from"), names::unique("to"));
    topics::create(&bootstrap, &from, 2)?;
    topics::create(&bootstrap, &to, 1)?;
    let group = names::unique("emit");
    let manifest = format!(
        "topics = [\"{from}\"]\ngroup = \"{group}\"\n[grants]\nproduce = [\"{to}\"]\n[config]\nto = \"{to}\"\nms = \"0\"\n"
    );
    let host = Setup::on_kafka(&bootstrap, &[]).handler(Handler::new("emit", "slow", &manifest)).start()?;
    book(&bootstrap, &from, 0..RECORDS, BEGIN_MS, 2)?;
    let outputs = || topics::ends(&bootstrap, &to).map(|ends| ends[0]);
    wait::until("the outputs", DEADLINE, || Ok((outputs()? == RECORDS).then_some(())))?;

    let replay = ["replay", "emit", "--from", "earliest", "--json"];
    let unsaid = host.command(&replay).expect_err("nobody said what becomes of outputs").to_string();
    ensure!(unsaid.contains("--outputs discard"), "{unsaid}");
    for (said, written) in [("discard", RECORDS), ("send", 2 * RECORDS)] {
        let report = report(&host, &[&replay[..], &["--outputs", said]].concat())?;
        assert_eq!((&report["done"], &report["outputs"]), (&Value::from(true), &Value::from(RECORDS)), "{report}");
        assert_eq!(outputs()?, written, "{said}");
    }
    Ok(())
}

#[test]
fn an_embedded_log_is_replayed_beside_the_host_that_owns_it() -> Result<()> {
    const RECORDS: usize = 300;
    let _machine = servers::in_company();
    let (log, databases) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let [live, rebuilt] = ["live.db", "rebuilt.db"].map(|name| databases.path().join(name));
    let schema = "CREATE TABLE seen (record_id TEXT NOT NULL PRIMARY KEY, key BLOB, value BLOB)";
    let manifest = "topics = [\"orders\"]\n[grants]\nsql = [\"main\"]\n";
    let setup = Setup::on_embedded(log.path(), &["orders"])
        .with(&format!("\n[sql.main]\nkind = \"sqlite\"\nfile = \"{}\"\n", live.display()));
    let host = setup.handler(Handler::new("keep", "store", manifest).migration(schema)).start()?;
    let folder = tempfile::tempdir()?;
    let ledger = Arc::new(Ledger::new(folder.path())?);
    Load::batches("load", RECORDS).send(&host.ingest()?, "orders", &ledger)?;
    let acks = || host.metrics().map(|metrics| metrics.sum("tidemill_settle_outcomes_total", &[("outcome", "ack")]));
    wait::until("all to be stored", DEADLINE, || Ok((acks()? >= RECORDS as f64).then_some(())))?;
    let set = format!("sql.main={}", rebuilt.display());
    let report = report(&host, &["replay", "keep", "--from", "0", "--set", &set, "--json"])?;
    assert_eq!((&report["done"], &report["outcomes"]["ack"]), (&Value::from(true), &Value::from(RECORDS)), "{report}");
    let kept = |file: &Path| sqlite::pairs(file, "SELECT record_id, CAST(value AS TEXT) FROM seen ORDER BY record_id");
    let all = kept(&rebuilt)?;
    assert_eq!((all.len(), &all), (RECORDS, &kept(&live)?), "the rebuilt database has what the live one has");
    let shown = host.command(&["offsets", "show", "keep"])?;
    ensure!(shown.contains("orders/0"), "{shown}");
    Ok(())
}

#[test]
fn a_backlog_is_drained_in_order_while_new_records_come() -> Result<()> {
    const BACKLOG: usize = 6_000;
    let _machine = servers::in_company();
    let scenario = Scenario::slow(4, Duration::from_millis(1))?;
    let ingest = scenario.setup().start()?;
    scenario.send(&ingest, &Load::batches("backlog", BACKLOG))?;
    drop(ingest);
    let host = scenario.setup().handler(scenario.handler("")).start()?;
    let commits = scenario.watch_commits()?;
    // The same producer goes on: its keys have records in the backlog, and new ones behind them.
    let (rounds, amid) = thread::scope(|scope| -> Result<(usize, usize)> {
        let news = scope.spawn(|| -> Result<(usize, usize)> {
            let (mut rounds, mut amid) = (0, 0);
            while rounds < 20 {
                scenario.send(&host, &Load::batches(&format!("news-{rounds}"), 100))?;
                rounds += 1;
                amid += usize::from(scenario.sink.count()? < BACKLOG);
            }
            Ok((rounds, amid))
        });
        news.join().expect("it does not panic")
    })?;
    ensure!(amid > 0, "nothing came while the backlog was drained");
    scenario.wait_until_committed(DEADLINE)?;
    let summary = scenario.judge(commits.stop()?, 0)??;
    assert_eq!(summary.stored, BACKLOG + rounds * 100);
    Ok(())
}

/// Runs a replay with `--json`, and reads its report.
fn report(host: &Host, arguments: &[&str]) -> Result<Value> {
    let told = host.command(arguments)?;
    serde_json::from_str(&told).with_context(|| told)
}

/// Writes records with keys that come again, a millisecond apart, to the first partitions in turn.
fn book(bootstrap: &str, topic: &str, numbers: Range<i64>, begin_ms: i64, partitions: i64) -> Result<()> {
    let record = |number: i64| {
        let mut kept = Kept::new(Some(format!("k{}", number % 50).as_bytes()), Some(number.to_string().as_bytes()));
        kept.timestamp = Some(begin_ms + number);
        kept.place.partition = (number % partitions) as i32;
        kept
    };
    topics::produce(bootstrap, topic, &numbers.map(record).collect::<Vec<_>>())
}

fn wait_until_booked(sink: &Sink, records: i64) -> Result<()> {
    let booked = || sink.number("SELECT count(*) FROM entries", &[]);
    wait::until(&format!("{records} records to be booked"), DEADLINE, || Ok((booked()? >= records).then_some(())))
}

/// What is booked: each account with its sum, and each entry.
fn books(sink: &Sink) -> Result<Vec<(String, i64)>> {
    let query = "SELECT account, entries FROM accounts UNION ALL \
                 SELECT record_id, count(*) FROM entries GROUP BY record_id ORDER BY 1";
    Ok(sink.query(query, &[])?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Waits until the group has committed all of a topic.
fn settled(bootstrap: &str, group: &str, topic: &str) -> Result<()> {
    let ends = topics::ends(bootstrap, topic)?;
    wait::until("all records to be committed", DEADLINE, || {
        let committed = topics::committed(bootstrap, group, topic)?;
        Ok(ends.iter().zip(committed).all(|(end, at)| at.unwrap_or(0) == *end).then_some(()))
    })
}
