//! Exactly once on a database: whatever is killed, stopped or taken over, each record is booked once.
//!
//! The guest `ledger` adds up and appends; nothing in its tables would stop a record from being booked twice.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::books;
use tests::client::Load;
use tests::host::{Handler, Host, Setup};
use tests::ledger::Ledger;
use tests::scenario::Scenario;
use tests::sink::Sink;
use tests::{names, servers, topics};
use tidemill::store::Sql;
use tidemill::store::sqlite::{self, Sqlite};
use xtask::lab::postgres::Postgres;
use xtask::lab::wait;

use super::ledgers::{Books, Errors};

const DEADLINE: Duration = Duration::from_secs(300);
const PARTITIONS: i32 = 4;
/// A killed or frozen member is missed soon, and a transaction that it left open does not hold its locks for long.
const MANIFEST: &str = "\
delivery = \"exactly-once\"
drain_deadline = \"2s\"
[exactly_once]
transaction = \"sql.main\"
[batch]
records_max = 20
[retry]
delay_min = \"1ms\"
delay_max = \"200ms\"
[limits]
deadline = \"2s\"
[consumer_properties]
\"session.timeout.ms\" = \"3000\"
\"heartbeat.interval.ms\" = \"500\"
";

fn handler(scenario: &Scenario, schema: &str) -> Handler {
    let manifest = format!("topics = [\"{}\"]\n{MANIFEST}[grants]\nsql = [\"main\"]\n", scenario.topic);
    Handler::new(&scenario.handler, "ledger", &manifest).migration(schema)
}

/// A topic with so many records, and a host before it runs whose handler books them slowly.
fn slow(records: usize, entry: Duration) -> Result<(Scenario, Setup)> {
    let scenario = Scenario::new(PARTITIONS)?;
    fill(&scenario, records)?;
    let schema = books::schema(entry, Duration::ZERO);
    let setup = scenario.setup().handler(handler(&scenario, &schema));
    Ok((scenario, setup))
}

/// Fills the topic through a host that has no handler.
fn fill(scenario: &Scenario, records: usize) -> Result<()> {
    let ingest = scenario.setup().start()?;
    scenario.send(&ingest, &Load::batches("load", records))?;
    Ok(())
}

fn booked(sink: &Sink) -> Result<usize> {
    Ok(usize::try_from(sink.number("SELECT count(*) FROM entries", &[])?)?)
}

fn wait_until_booked(sink: &Sink, records: usize) -> Result<()> {
    let what = format!("{records} records to be booked");
    wait::until(&what, DEADLINE, || Ok((booked(sink)? >= records).then_some(())))
}

fn dice() -> fastrand::Rng {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    fastrand::Rng::with_seed(seed)
}

/// Kills a host so many times, each time after some more records were booked. Answers how many times it was killed amid its work.
fn kill_again_and_again(setup: &Setup, sink: &Sink, times: usize, records: usize) -> Result<usize> {
    let mut dice = dice();
    let mut amid = 0;
    for _ in 0..times {
        let mut host = setup.start()?;
        let more = booked(sink)? + dice.usize(1..records / (times + 1));
        wait_until_booked(sink, more)?;
        host.kill()?;
        amid += usize::from(booked(sink)? < records);
    }
    Ok(amid)
}

#[test]
fn each_record_is_booked_once_however_often_the_host_is_killed() -> Result<()> {
    let _machine = servers::in_company();
    let (scenario, setup) = slow(4_000, Duration::from_millis(2))?;
    let killed = kill_again_and_again(&setup, &scenario.sink, 5, 4_000)?;
    ensure!(killed == 5, "it was killed amid its work only {killed} times");
    let _last = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(Books::in_postgres(&scenario.sink)?.check(&scenario.ledger)?, 4_000);
    Ok(())
}

#[test]
fn a_host_that_stores_offsets_beside_the_transaction_is_caught() -> Result<()> {
    let _machine = servers::in_company();
    let (scenario, setup) = slow(2_000, Duration::from_millis(2))?;
    kill_again_and_again(&setup.clone().fault("offset-apart"), &scenario.sink, 2, 2_000)?;
    let _last = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    let errors = Books::in_postgres(&scenario.sink)?.check(&scenario.ledger).err().context("the judge saw nothing")?;
    assert!(!errors.repeated.is_empty() && errors.missing.is_empty(), "{errors}");
    Ok(())
}

#[test]
fn each_record_is_booked_once_when_postgresql_is_killed_amid_commits() -> Result<()> {
    const RECORDS: usize = 3_000;
    let _machine = servers::in_company();
    let mut postgres = Postgres::start_new()?;
    let sink = Sink::at(postgres.create_database("promise")?);
    let scenario = Scenario::with(&servers::kafka(), PARTITIONS, sink)?;
    fill(&scenario, RECORDS)?;
    let schema = books::schema(Duration::ZERO, Duration::from_millis(4));
    let host = scenario.setup().handler(handler(&scenario, &schema)).start()?;
    let mut dice = dice();
    for _ in 0..3 {
        let more = booked(&scenario.sink)? + dice.usize(1..RECORDS / 5);
        wait_until_booked(&scenario.sink, more)?;
        let committing = "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'";
        wait::until("a commit under way", DEADLINE, || Ok((scenario.sink.number(committing, &[])? > 0).then_some(())))?;
        postgres.kill()?;
        postgres.start()?;
    }
    ensure!(booked(&scenario.sink)? < RECORDS, "it was killed amid the work");
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(Books::in_postgres(&scenario.sink)?.check(&scenario.ledger)?, RECORDS);
    let log = host.log();
    assert!(log.contains("the answer to a commit was lost"), "each commit was answered, so nothing was proved");
    assert_eq!(scenario.dead()?, [], "a database that is away is nobody's fault");
    Ok(())
}

#[test]
fn a_host_that_wakes_from_a_freeze_books_nothing() -> Result<()> {
    const RECORDS: usize = 4_000;
    let _machine = servers::in_company();
    let (scenario, setup) = slow(RECORDS, Duration::from_millis(2))?;
    let mut frozen = setup.start()?;
    wait_until_booked(&scenario.sink, 200)?;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() \
                AND datname = current_database()";
    wait::until("a transaction to be open", DEADLINE, || Ok((scenario.sink.number(open, &[])? > 0).then_some(())))?;
    frozen.pause()?;
    let other = setup.start()?;
    scenario.wait_until_committed(DEADLINE).context("the other host goes on alone")?;
    let books = Books::in_postgres(&scenario.sink)?;
    assert_eq!(books.check(&scenario.ledger)?, RECORDS);

    frozen.resume()?;
    wait::until("the woken host to join again", DEADLINE, || {
        let metrics = frozen.metrics()?;
        let lost = metrics.sum("tidemill_receive_rebalances_total", &[("kind", "lost")]);
        Ok((lost > 0.0 && frozen.admin("/readyz")?.0 == 200).then_some(()))
    })?;
    scenario.send(&other, &Load::batches("after", 400))?;
    scenario.wait_until_committed(DEADLINE).context("both hosts go on together")?;
    assert_eq!(Books::in_postgres(&scenario.sink)?.check(&scenario.ledger)?, RECORDS + 400);
    Ok(())
}

/// Takes the rows of a host's partitions over, as another host would, and answers how many records are booked by then.
fn take_over(scenario: &Scenario) -> Result<usize> {
    let take = "WITH taken AS (UPDATE tidemill_offsets SET owner_epoch = owner_epoch + 1 WHERE consumer_group = $1 RETURNING 1) \
                SELECT count(*) FROM taken";
    let taken = scenario.sink.number(take, &[&scenario.handler])?;
    ensure!(taken == i64::from(PARTITIONS), "{taken} rows were taken over");
    // The statement has waited for the deliveries that were ahead of it; what comes later is a zombie's.
    booked(&scenario.sink)
}

/// How many records the host books whose rows were taken over, before it takes them over itself.
fn booked_by_a_zombie(scenario: &Scenario, host: &Host) -> Result<usize> {
    let before = take_over(scenario)?;
    let owned = "SELECT sum(owner_epoch)::BIGINT FROM tidemill_offsets WHERE consumer_group = $1";
    let epochs = scenario.sink.number(owned, &[&scenario.handler])?;
    let deadline = Instant::now() + DEADLINE;
    let mut after = before;
    while after < before + 100 && Instant::now() < deadline {
        // In this order: a booking that is seen while the row is another's was made while it was.
        let seen = booked(&scenario.sink)?;
        if scenario.sink.number(owned, &[&scenario.handler])? != epochs {
            break;
        }
        after = seen;
        ensure!(host.admin("/healthz")?.0 == 200, "the host is alive");
    }
    Ok(after - before)
}

#[test]
fn a_host_whose_partitions_were_taken_over_books_nothing_until_they_are_its_own_again() -> Result<()> {
    let _machine = servers::in_company();
    let (scenario, setup) = slow(4_000, Duration::from_millis(2))?;
    let host = setup.start()?;
    wait_until_booked(&scenario.sink, 200)?;
    assert_eq!(booked_by_a_zombie(&scenario, &host)?, 0);
    assert!(host.log().contains("somebody else owns the partition's offset"));
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(Books::in_postgres(&scenario.sink)?.check(&scenario.ledger)?, 4_000);
    Ok(())
}

#[test]
fn a_host_that_ignores_the_fence_is_caught() -> Result<()> {
    let _machine = servers::in_company();
    let (scenario, setup) = slow(4_000, Duration::from_millis(2))?;
    let host = setup.fault("ignore-fence").start()?;
    wait_until_booked(&scenario.sink, 200)?;
    assert!(booked_by_a_zombie(&scenario, &host)? >= 100);
    Ok(())
}

#[test]
fn a_poisonous_record_is_alone_in_the_dead_letters_and_books_nothing() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(PARTITIONS)?;
    let ingest = scenario.setup().start()?;
    scenario.send(&ingest, &Load { keys: 10, ..Load::batches("load", 500) })?;
    let poison = "k7";
    let manifest = format!(
        "topics = [\"{}\"]\n{MANIFEST}[grants]\nsql = [\"main\"]\n[config]\npoison = \"{poison}\"\n",
        scenario.topic
    );
    let schema = books::schema(Duration::ZERO, Duration::ZERO);
    let _host =
        scenario.setup().handler(Handler::new(&scenario.handler, "ledger", &manifest).migration(&schema)).start()?;
    scenario.wait_until_committed(DEADLINE)?;
    let errors = Books::in_postgres(&scenario.sink)?.check(&scenario.ledger).err().context("50 are not booked")?;
    let mut dead: Vec<_> = scenario.dead()?.into_iter().map(|letter| letter.place).collect();
    dead.sort();
    assert_eq!(errors.missing, dead, "{errors}");
    assert_eq!(dead.len(), 50);
    assert_eq!(
        errors,
        Errors { missing: dead, wrong_sums: [(poison.to_owned(), (0, 50))].into(), ..Errors::default() }
    );
    Ok(())
}

#[test]
fn partitions_that_meet_in_the_same_rows_give_way_to_each_other_and_nobody_is_charged() -> Result<()> {
    const RECORDS: usize = 240;
    let _machine = servers::in_company();
    let scenario = Scenario::new(PARTITIONS)?;
    let mut dice = dice();
    // Few accounts, in another order in each partition: the partitions' transactions wait for each other in circles.
    let record = |number: usize| {
        let account = format!("k{}", dice.usize(..3));
        let mut record = topics::Kept::new(Some(account.as_bytes()), Some(b"{}"));
        record.place.partition = number as i32 % PARTITIONS;
        record
    };
    let records: Vec<_> = (0..RECORDS).map(record).collect();
    topics::produce(&scenario.bootstrap, &scenario.topic, &records)?;
    let manifest = format!(
        "topics = [\"{}\"]\n{}[grants]\nsql = [\"main\"]\n",
        scenario.topic,
        MANIFEST.replace("[retry]", "[retry]\nattempts_max = 1").replace("deadline = \"2s\"", "deadline = \"20s\"")
    );
    let schema = books::schema(Duration::from_millis(2), Duration::ZERO);
    let handler = Handler::new(&scenario.handler, "ledger", &manifest).migration(&schema);
    let host = scenario.setup().handler(handler).start()?;
    scenario.wait_until_committed(DEADLINE)?;
    let exact = "SELECT count(*) FROM (SELECT DISTINCT record_id FROM entries) AS once";
    let sum = "SELECT sum(entries)::BIGINT FROM accounts";
    assert_eq!(scenario.sink.number(exact, &[])?, RECORDS as i64);
    assert_eq!((booked(&scenario.sink)?, scenario.sink.number(sum, &[])?), (RECORDS, RECORDS as i64));
    assert_eq!(scenario.dead()?, [], "nobody is charged");
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    wait::until("the server to count its deadlocks", DEADLINE, || {
        Ok((scenario.sink.number(deadlocks, &[])? > 0).then_some(()))
    })
    .with_context(|| host.log())
}

#[test]
fn a_row_that_is_ahead_of_its_partition_is_said_and_nothing_is_skipped() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(1)?;
    let schema = books::schema(Duration::ZERO, Duration::ZERO);
    let host = scenario.setup().handler(handler(&scenario, &schema)).start()?;
    scenario.send(&host, &Load::batches("before", 100))?;
    wait_until_booked(&scenario.sink, 100)?;
    // As if the topic had been made anew, or had lost what was handled.
    let stand_at = |next: i64| {
        let set = "WITH set AS (UPDATE tidemill_offsets SET next_offset = $2, owner_epoch = owner_epoch + 1 \
                   WHERE consumer_group = $1 RETURNING 1) SELECT count(*) FROM set";
        scenario.sink.number(set, &[&scenario.handler, &next])
    };
    assert_eq!(stand_at(500)?, 1);
    scenario.send(&host, &Load::batches("meanwhile", 50))?;
    let told = "is handled up to 500, but it ends at 150";
    wait::until("the host to say so", DEADLINE, || Ok(host.log().contains(told).then_some(())))?;
    assert_ne!(host.admin("/readyz")?.0, 200, "and it is not ready");
    assert_eq!(stand_at(100)?, 1);
    wait_until_booked(&scenario.sink, 150)?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(Books::in_postgres(&scenario.sink)?.check(&scenario.ledger)?, 150);
    Ok(())
}

#[test]
fn each_record_is_booked_once_on_sqlite_with_the_embedded_log() -> Result<()> {
    const RECORDS: usize = 3_000;
    let folder = tempfile::tempdir()?;
    let ledger = std::sync::Arc::new(Ledger::new(folder.path())?);
    let topic = names::unique("records");
    let setup = Setup::on_embedded(&folder.path().join("log"), &[&topic])
        .with(&format!("\n[sql.main]\nkind = \"sqlite\"\nfile = \"{}\"\n", folder.path().join("main.db").display()));
    let mut filling = setup.start()?;
    Load::batches("load", RECORDS).send(&filling.ingest()?, &topic, &ledger)?;
    filling.terminate(DEADLINE)?;

    let manifest = format!(
        "topics = [\"{topic}\"]\ndelivery = \"exactly-once\"\n[exactly_once]\ntransaction = \"sql.main\"\n\
         [batch]\nrecords_max = 5\n[grants]\nsql = [\"main\"]\n"
    );
    let setup = setup.handler(Handler::new("ledger", "ledger", &manifest).migration(&books::schema_for_sqlite()));
    let mut dice = dice();
    let mut booked = 0;
    for _ in 0..6 {
        let mut host = setup.start()?;
        let more = booked + dice.usize(1..RECORDS / 10);
        wait::until("more to be booked", DEADLINE, || Ok((in_sqlite(folder.path())?.entries() >= more).then_some(())))?;
        host.kill()?;
        booked = in_sqlite(folder.path())?.entries();
    }
    ensure!(booked < RECORDS, "it was killed amid its work");
    let _last = setup.start()?;
    wait::until("all to be booked", DEADLINE, || Ok((in_sqlite(folder.path())?.entries() >= RECORDS).then_some(())))?;
    assert_eq!(in_sqlite(folder.path())?.check(&ledger)?, RECORDS);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn in_sqlite(folder: &Path) -> Result<Books> {
    let config = sqlite::Config { rows_max: 1_000_000, ..sqlite::Config::new(folder.join("main.db")) };
    let mut connection = Sqlite::open(config).await?.connect().await?;
    Books::on(&mut *connection).await
}
