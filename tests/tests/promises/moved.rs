//! `tidemill offsets`: a group is moved while its handler runs, and without a host; it stays moved.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::client::Load;
use tests::host::{Handler, Host, Setup};
use tests::scenario::Scenario;
use tests::topics::{self, Kept};
use tests::{names, servers};
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(90);
const RECORDS: usize = 300;
const PROMPT: &str = "commit_interval = \"20ms\"\n";

#[test]
fn a_running_handler_is_moved_back_and_reads_again_in_its_place() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let host = scenario.setup().handler(scenario.handler(PROMPT)).start()?;
    scenario.send(&host, &Load::batches("load", RECORDS))?;
    scenario.wait_until_committed(DEADLINE)?;
    let ends = topics::ends(&scenario.bootstrap, &scenario.topic)?;
    let joined = assigned(&host)?;

    let reset = ["offsets", "reset", &scenario.handler, "--to", "earliest"];
    let planned = host.ask(&[&reset[..], &["--dry-run"]].concat())?;
    ensure!(planned.contains("2 partitions would begin elsewhere"), "{planned}");
    assert_eq!(committed(&scenario)?, ends.iter().copied().map(Some).collect::<Vec<_>>(), "nothing is done for a plan");
    let told = host.ask(&reset)?;
    ensure!(told.contains("2 partitions begin elsewhere") && told.contains(&format!("{} -> 0", ends[0])), "{told}");
    stored(&scenario, 2 * RECORDS)?;
    scenario.wait_until_committed(DEADLINE)?;

    // One partition, to a place within.
    let place = (ends[1] - 10).to_string();
    host.ask(&["offsets", "reset", &scenario.handler, "--to", &place, "--partition", "1"])?;
    stored(&scenario, 2 * RECORDS + 10)?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(assigned(&host)?, joined, "it never left its group");
    assert_eq!(scenario.sink.stored()?.len(), 2 * RECORDS + 10);
    Ok(())
}

#[test]
fn a_reset_is_answered_once_it_is_carried_out() -> Result<()> {
    let _machine = servers::in_company();
    // A call takes half a second: whoever answers before what is in hand is drained answers too early.
    let scenario = Scenario::slow(1, Duration::from_millis(50))?;
    // Nothing is committed but when partitions move.
    let manifest = "commit_interval = \"10m\"\n[batch]\nrecords_max = 10\n";
    let setup = scenario.setup().handler(scenario.handler(manifest));
    let mut first = setup.start()?;
    scenario.send(&first, &Load::batches("load", 100))?;
    wait::until("a call", DEADLINE, || Ok((first.metrics()?.in_flight() > 0.0).then_some(())))?;
    first.ask(&["offsets", "reset", &scenario.handler, "--to", "5"])?;
    assert_eq!(committed(&scenario)?, [Some(5)], "it is committed when it is answered");
    let before = scenario.sink.stored()?.len();
    first.kill()?;
    let second = setup.start()?;
    scenario.wait_until_stored(100, DEADLINE)?;
    wait::until("the end of the second host's work", DEADLINE, || {
        Ok((second.metrics()?.sum("tidemill_receive_lag_records", &[]) == 0.0).then_some(()))
    })?;
    let again = &scenario.sink.stored()?[before..];
    let offsets: BTreeSet<i64> = again.iter().map(|stored| stored.place.offset).collect();
    ensure!(offsets.range(5..).count() == 95, "the next host reads from the place on: {offsets:?}");
    Ok(())
}

#[test]
fn a_group_by_the_newer_protocol_is_moved_while_it_runs_and_without_a_host() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let setup = scenario.setup().with("\n[broker.consumer]\n\"group.protocol\" = \"consumer\"\n");
    let mut host = setup.handler(scenario.handler(PROMPT)).start()?;
    scenario.send(&host, &Load::batches("load", RECORDS))?;
    scenario.wait_until_committed(DEADLINE)?;
    let joined = assigned(&host)?;
    let reset = ["offsets", "reset", &scenario.handler, "--to", "earliest"];
    let told = host.ask(&reset)?;
    ensure!(told.contains("2 partitions begin elsewhere"), "{told}");
    stored(&scenario, 2 * RECORDS)?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!((assigned(&host)?, scenario.sink.stored()?.len()), (joined, 2 * RECORDS), "it never left its group");

    let before = committed(&scenario)?;
    let refused = host.command(&reset).expect_err("a host runs it").to_string();
    ensure!(refused.contains("nothing is moved") && refused.contains("--admin URL"), "{refused}");
    assert_eq!(committed(&scenario)?, before);
    assert_eq!(host.terminate(DEADLINE)?.code, Some(0));
    host.command(&reset)?;
    assert_eq!(committed(&scenario)?, [Some(0), Some(0)]);
    let shown = show(&host, &scenario.handler)?;
    let behind: i64 = shown.iter().filter_map(|of| of["lag"].as_i64()).sum();
    assert_eq!(behind, RECORDS as i64);
    Ok(())
}

#[test]
fn of_two_hosts_each_moves_what_it_holds_and_says_who_holds_the_rest() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(4)?;
    let setup = scenario.setup().handler(scenario.handler(PROMPT));
    let hosts = [setup.start()?, setup.start()?];
    wait::until("both to have partitions", DEADLINE, || {
        let held = |host: &Host| {
            Ok::<_, anyhow::Error>(host.metrics()?.values_of("tidemill_receive_position_offset", "partition"))
        };
        Ok((held(&hosts[0])?.len() == 2 && held(&hosts[1])?.len() == 2).then_some(()))
    })?;
    scenario.send(&hosts[0], &Load::batches("load", RECORDS))?;
    scenario.wait_until_committed(DEADLINE)?;
    for host in &hosts {
        let asked = host.ask(&["offsets", "reset", &scenario.handler, "--to", "earliest"]);
        let refused = asked.expect_err("half of it is another's").to_string();
        ensure!(refused.contains("2 partitions are held elsewhere and are where they were"), "{refused}");
    }
    stored(&scenario, 2 * RECORDS)?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(scenario.sink.stored()?.len(), 2 * RECORDS, "each record came once more");
    Ok(())
}

#[test]
fn a_place_holds_over_a_restart_also_while_the_handler_is_paused() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let setup = scenario.setup().handler(scenario.handler(PROMPT));
    let mut first = setup.start()?;
    scenario.send(&first, &Load::batches("load", RECORDS))?;
    scenario.wait_until_committed(DEADLINE)?;
    first.ask(&["pause", &scenario.handler])?;
    first.ask(&["offsets", "reset", &scenario.handler, "--to", "0"])?;
    assert_eq!(committed(&scenario)?, [Some(0), Some(0)]);
    assert_eq!(first.terminate(DEADLINE)?.code, Some(0));
    assert_eq!(committed(&scenario)?, [Some(0), Some(0)], "its end does not move it back");
    let _second = setup.start()?;
    stored(&scenario, 2 * RECORDS)
}

#[test]
fn a_group_without_a_host_is_moved_and_one_that_is_in_use_says_by_whom() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let mut host = scenario.setup().handler(scenario.handler(PROMPT)).start()?;
    scenario.send(&host, &Load::batches("load", RECORDS))?;
    scenario.wait_until_committed(DEADLINE)?;
    let reset = ["offsets", "reset", &scenario.handler, "--to", "earliest"];
    // The host's address is not in its configuration, so that nobody is asked.
    let refused = host.command(&reset).expect_err("a host runs it").to_string();
    ensure!(refused.contains("is in use by 127.0.0.1 (tidemill)") && refused.contains("--admin URL"), "{refused}");
    let shown = show(&host, &scenario.handler)?;
    ensure!(shown.iter().all(|of| of["held_by"] == "127.0.0.1 (tidemill)" && of["lag"] == 0), "{shown:?}");

    assert_eq!(host.terminate(DEADLINE)?.code, Some(0));
    host.command(&reset)?;
    assert_eq!(committed(&scenario)?, [Some(0), Some(0)]);
    let shown = show(&host, &scenario.handler)?;
    let behind: i64 = shown.iter().filter_map(|of| of["lag"].as_i64()).sum();
    assert_eq!(behind, RECORDS as i64);
    ensure!(shown.iter().all(|of| of["held_by"].is_null()), "{shown:?}");
    Ok(())
}

#[test]
fn a_handler_that_counts_in_a_database_is_moved_by_its_rows() -> Result<()> {
    let _machine = servers::in_company();
    let scenario = Scenario::new(2)?;
    let manifest = format!(
        "topics = [\"{}\"]\n{PROMPT}delivery = \"exactly-once\"\n[exactly_once]\ntransaction = \"sql.main\"\n\
         [grants]\nsql = [\"main\"]\n",
        scenario.topic
    );
    let schema = tests::books::schema(Duration::ZERO, Duration::ZERO);
    let handler = Handler::new(&scenario.handler, "ledger", &manifest).migration(&schema);
    let mut host = scenario.setup().handler(handler).start()?;
    scenario.send(&host, &Load::batches("load", RECORDS))?;
    let booked = |records: usize| {
        wait::until(&format!("{records} to be booked"), DEADLINE, || {
            let count = scenario.sink.number("SELECT count(*) FROM entries", &[])?;
            Ok((count == records as i64).then_some(()))
        })
    };
    booked(RECORDS)?;
    // While it starts no calls, nothing else than the reset writes the rows.
    host.ask(&["pause", &scenario.handler])?;
    host.ask(&["offsets", "reset", &scenario.handler, "--to", "earliest"])?;
    let shown = show(&host, &scenario.handler)?;
    ensure!(shown.iter().all(|of| of["in_database"] == 0 && of["lag"] == of["end"]), "{shown:?}");
    host.ask(&["resume", &scenario.handler])?;
    booked(2 * RECORDS)?;
    scenario.wait_until_committed(DEADLINE)?;
    assert_eq!(host.terminate(DEADLINE)?.code, Some(0));

    let reset = ["offsets", "reset", &scenario.handler, "--to", "0", "--partition", "0"];
    host.command(&reset)?;
    let shown = show(&host, &scenario.handler)?;
    let rows: Vec<(&Value, bool)> = shown.iter().map(|of| (&of["in_database"], of["lag"] == of["end"])).collect();
    assert_eq!(rows[0], (&Value::from(0), true), "the row of the partition is moved");
    assert_eq!(rows[1].0, &shown[1]["end"], "and no other");
    Ok(())
}

#[test]
fn a_handler_that_commits_in_transactions_is_moved_between_two_of_them() -> Result<()> {
    let _machine = servers::in_company();
    let (bootstrap, from, to, group) =
        (servers::kafka(), names::unique("from"), names::unique("to"), names::unique("forward"));
    topics::create(&bootstrap, &from, 2)?;
    topics::create(&bootstrap, &to, 1)?;
    let manifest = format!(
        "topics = [\"{from}\"]\ngroup = \"{group}\"\ndelivery = \"exactly-once\"\n[grants]\nproduce = [\"{to}\"]\n\
         [config]\nto = \"{to}\"\nms = \"0\"\n"
    );
    let host = Setup::on_kafka(&bootstrap, &[]).handler(Handler::new("forward", "slow", &manifest)).start()?;
    let record = |number: usize| Kept::new(Some(format!("k{number}").as_bytes()), Some(b"v"));
    topics::produce(&bootstrap, &from, &(0..RECORDS).map(record).collect::<Vec<_>>())?;
    let outputs = |records: usize| {
        wait::until(&format!("{records} outputs"), DEADLINE, || {
            Ok((topics::read(&bootstrap, &to)?.len() == records).then_some(()))
        })
    };
    outputs(RECORDS)?;
    host.ask(&["offsets", "reset", "forward", "--to", "earliest"])?;
    outputs(2 * RECORDS)
}

fn stored(scenario: &Scenario, records: usize) -> Result<()> {
    wait::until(&format!("{records} storings"), DEADLINE, || {
        Ok((scenario.sink.stored()?.len() >= records).then_some(()))
    })
}

fn committed(scenario: &Scenario) -> Result<Vec<Option<i64>>> {
    topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)
}

/// How often the host was assigned partitions.
fn assigned(host: &Host) -> Result<f64> {
    Ok(host.metrics()?.sum("tidemill_receive_rebalances_total", &[("kind", "assigned")]))
}

fn show(host: &Host, handler: &str) -> Result<Vec<Value>> {
    let told = host.command(&["offsets", "show", handler, "--json"])?;
    told.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}
