//! Exactly once, Kafka to Kafka: whatever becomes of the hosts and of the broker, those who read what is committed see one
//! output for each record. A reader follows along all the time, and another one reads everything in the end.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::host::{Handler, Host, Setup};
use tests::topics::{self, Follower, Kept};
use tests::{hanging, names, servers};
use xtask::lab::kafka::Kafka;
use xtask::lab::wait;

const DEADLINE: Duration = Duration::from_secs(120);
/// The broker gives up what a killed host left open after this long; the default of 10 s only makes the tests longer.
const SETTINGS: &str = "[broker.producer]\n\"transaction.timeout.ms\" = 3000\n\"socket.timeout.ms\" = 2000\n";
const PARTITIONS: i32 = 4;
/// A reader has caught up when nothing came for so long.
const MOMENT: Duration = Duration::from_millis(100);
/// A reader that sees nothing for so long stands still: longer than it takes to end what a killed host left open.
const STANDSTILL: Duration = Duration::from_secs(10);

/// A topic that one handler forwards to another, exactly once.
struct Forwarding {
    bootstrap: String,
    from: String,
    to: String,
    group: String,
    sent: usize,
    /// Reads along.
    follower: Follower,
}

impl Forwarding {
    fn new(bootstrap: &str) -> Result<Forwarding> {
        let (from, to, group) = (names::unique("from"), names::unique("to"), names::unique("forward"));
        topics::create(bootstrap, &from, PARTITIONS)?;
        topics::create(bootstrap, &to, 3)?;
        let follower = Follower::new(bootstrap, &to)?;
        Ok(Forwarding { bootstrap: bootstrap.to_owned(), from, to, group, sent: 0, follower })
    }

    /// A host with the handler, whose guest takes so long for each record.
    fn setup(&self, millis: u32, interval: &str) -> Setup {
        let Forwarding { from, to, group, .. } = self;
        let manifest = format!(
            "topics = [\"{from}\"]\ngroup = \"{group}\"\ndelivery = \"exactly-once\"\n[exactly_once]\ninterval = \"{interval}\"\n\
             [batch]\nrecords_max = 10\n[buffer]\nrecords_max = 100\n\
             [consumer_properties]\n\"session.timeout.ms\" = \"2000\"\n\"heartbeat.interval.ms\" = \"300\"\n\
             [grants]\nproduce = [\"{to}\"]\n[config]\nto = \"{to}\"\nms = \"{millis}\"\n"
        );
        Setup::on_kafka(&self.bootstrap, &[]).with(SETTINGS).handler(Handler::new("forward", "slow", &manifest))
    }

    /// Writes more records, with values and keys that follow on.
    fn send(&mut self, records: usize) -> Result<()> {
        let numbers = self.sent..self.sent + records;
        let kept: Vec<Kept> = numbers
            .map(|number| Kept::new(Some(format!("k{}", number % 50).as_bytes()), Some(number.to_string().as_bytes())))
            .collect();
        self.sent += records;
        topics::produce(&self.bootstrap, &self.from, &kept)
    }

    /// Writes more records, and waits until some outputs are seen that were not before.
    fn send_and_see(&mut self, records: usize, outputs: usize) -> Result<()> {
        self.follower.catch_up(MOMENT)?;
        let before = self.follower.values.len();
        self.send(records)?;
        self.seen(before + outputs)
    }

    fn seen(&mut self, outputs: usize) -> Result<()> {
        let follower = &mut self.follower;
        wait::until(&format!("{outputs} outputs to be seen"), DEADLINE, || {
            follower.catch_up(MOMENT)?;
            Ok((follower.values.len() >= outputs).then_some(()))
        })
    }

    /// Waits until so many outputs are seen, as an operator does who follows `docs/operations.md` when readers stand still.
    fn seen_with_help(&mut self, lab: &Kafka, outputs: usize) -> Result<()> {
        let follower = &mut self.follower;
        wait::until(&format!("{outputs} outputs to be seen"), 2 * DEADLINE, || {
            let before = follower.values.len();
            follower.catch_up(STANDSTILL)?;
            if follower.values.len() >= outputs {
                return Ok(Some(()));
            }
            if follower.values.len() == before {
                for hanging in hanging::find(lab, 1)? {
                    eprintln!("{hanging:?} is aborted by hand");
                    hanging::abort(lab, &hanging)?;
                }
            }
            Ok(None)
        })
    }

    /// Waits for the last output, and for surplus ones; both readers must have seen each record's once.
    fn check(&mut self) -> Result<()> {
        self.settle()?;
        let mut last = Follower::new(&self.bootstrap, &self.to)?;
        let read = wait::until("both readers", DEADLINE, || {
            self.follower.catch_up(MOMENT)?;
            last.catch_up(MOMENT)?;
            let has_all = |follower: &Follower| follower.values.len() >= self.sent;
            Ok((has_all(&self.follower) && has_all(&last)).then_some(()))
        });
        read.with_context(|| {
            let (along, end) = (differences(self.sent, &self.follower.values), differences(self.sent, &last.values));
            let ends = topics::ends(&self.bootstrap, &self.to);
            format!("who reads along the way: {along:?}; who reads in the end: {end:?}; ends: {ends:?}")
        })?;
        for (reader, follower) in [("along the way", &mut self.follower), ("in the end", &mut last)] {
            follower.catch_up(Duration::from_secs(1))?;
            let Differences { missing, surplus } = differences(self.sent, &follower.values);
            ensure!(
                missing.is_empty() && surplus.is_empty(),
                "read {reader}: {missing:?} are missing, {surplus:?} are too many"
            );
        }
        Ok(())
    }

    /// Waits until the group has committed all that was sent.
    fn settle(&self) -> Result<()> {
        let group = wait::until("the broker", DEADLINE, || {
            Ok(topics::Group::new(&self.bootstrap, &self.group, &self.from).ok())
        })?;
        wait::until("all records to be committed", DEADLINE, || {
            // A broker that has just come back may not answer yet.
            let Ok(ends) = topics::ends(&self.bootstrap, &self.from) else { return Ok(None) };
            let committed = group.committed()?;
            Ok(ends.iter().zip(&committed).all(|(end, offset)| offset.unwrap_or(0) == *end).then_some(()))
        })
    }

    fn committed(&self) -> Result<i64> {
        Ok(topics::committed(&self.bootstrap, &self.group, &self.from)?.into_iter().flatten().sum())
    }
}

#[derive(Debug)]
struct Differences {
    missing: Vec<usize>,
    surplus: Vec<String>,
}

/// How what was read differs from one output for each record.
fn differences(sent: usize, values: &[Vec<u8>]) -> Differences {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(String::from_utf8_lossy(value).into_owned()).or_default() += 1;
    }
    let missing = (0..sent).filter(|number| !counts.contains_key(&number.to_string())).collect();
    let was_sent = |value: &str| value.parse::<usize>().is_ok_and(|number| number < sent);
    let surplus = counts.into_iter().filter(|(value, count)| *count > 1 || !was_sent(value));
    Differences { missing, surplus: surplus.map(|(value, count)| format!("{value}: {count}")).collect() }
}

fn transactions(host: &Host, result: &str) -> Result<f64> {
    Ok(host.metrics()?.sum("tidemill_commit_transactions_total", &[("result", result)]))
}

#[test]
fn a_host_that_is_killed_amid_its_transactions_costs_and_repeats_no_output() -> Result<()> {
    const KILLS: usize = 6;
    let _machine = servers::in_company();
    let mut forwarding = Forwarding::new(&servers::kafka())?;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let setup = forwarding.setup(10, "40ms");
    for _ in 0..KILLS {
        let mut host = setup.start()?;
        forwarding.send_and_see(1_500, 20)?;
        thread::sleep(Duration::from_millis(dice.u64(..400)));
        ensure!(forwarding.follower.values.len() < forwarding.sent, "it is killed amid its work");
        host.kill()?;
    }
    let mut host = setup.start()?;
    forwarding.check()?;
    ensure!(transactions(&host, "committed")? > 0.0, "there were transactions");
    ensure!(host.terminate(DEADLINE)?.code == Some(0), "it ends in order");
    Ok(())
}

#[test]
fn a_host_that_takes_over_repeats_no_output() -> Result<()> {
    let _machine = servers::in_company();
    let mut forwarding = Forwarding::new(&servers::kafka())?;
    let setup = forwarding.setup(5, "100ms");
    let survivor = setup.start()?;
    let mut victim = setup.start()?;
    forwarding.send(4_000)?;
    wait::until("both hosts to work", DEADLINE, || {
        Ok((transactions(&survivor, "committed")? > 0.0 && transactions(&victim, "committed")? > 0.0).then_some(()))
    })?;
    victim.kill()?;
    forwarding.check()
}

#[test]
fn a_host_that_stops_in_order_repeats_no_output_and_leaves_no_transaction_open() -> Result<()> {
    let _machine = servers::in_company();
    let mut forwarding = Forwarding::new(&servers::kafka())?;
    let setup = forwarding.setup(10, "1s");
    let mut host = setup.start()?;
    forwarding.send_and_see(3_000, 100)?;
    ensure!(host.terminate(DEADLINE)?.code == Some(0), "it ends in order");
    // What it left is committed: a reader sees the outputs of all that the group has behind it, without waiting for anyone.
    let committed = usize::try_from(forwarding.committed()?)?;
    ensure!((1..forwarding.sent).contains(&committed), "{committed} are committed");
    forwarding.seen(committed)?;
    ensure!(
        forwarding.follower.values.len() == committed,
        "each committed record has its output, and no other has one"
    );
    let _next = setup.start()?;
    forwarding.check()
}

#[test]
fn a_host_that_was_frozen_past_its_session_adds_nothing_when_it_wakes() -> Result<()> {
    let _machine = servers::in_company();
    let mut forwarding = Forwarding::new(&servers::kafka())?;
    let setup = forwarding.setup(5, "200ms");
    let mut frozen = setup.start()?;
    forwarding.send_and_see(3_000, 100)?;
    frozen.pause()?;
    let other = setup.start()?;
    forwarding.settle().context("the other host goes on alone")?;
    frozen.resume()?;
    wait::until("the woken host to be a member again", DEADLINE, || {
        let lost = frozen.metrics()?.sum("tidemill_receive_rebalances_total", &[("kind", "lost")]);
        Ok((lost > 0.0 && frozen.admin("/readyz")?.0 == 200).then_some(()))
    })?;
    forwarding.send(500)?;
    forwarding.check()?;
    ensure!(transactions(&other, "committed")? > 0.0, "the other host took over");
    Ok(())
}

#[test]
fn a_broker_that_hangs_around_the_end_of_transactions_tears_none() -> Result<()> {
    let _machine = servers::in_company();
    let mut lab = Kafka::start_nodes(1)?;
    let mut forwarding = Forwarding::new(&lab.bootstrap())?;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let host = forwarding.setup(5, "20ms").start()?;
    for hang in [200, 1_000, 4_000, 20_000] {
        forwarding.send_and_see(1_500, 50)?;
        thread::sleep(Duration::from_millis(dice.u64(..200)));
        lab.pause(1)?;
        thread::sleep(Duration::from_millis(hang));
        lab.resume(1)?;
    }
    forwarding.check()?;
    let failed = transactions(&host, "aborted")? + transactions(&host, "unknown")?;
    eprintln!("{failed} transactions failed, {} of them with an unknown end", transactions(&host, "unknown")?);
    Ok(())
}

#[test]
fn a_host_that_outlives_its_broker_repeats_no_output() -> Result<()> {
    let _machine = servers::in_company();
    let mut lab = Kafka::start_nodes(1)?;
    let mut forwarding = Forwarding::new(&lab.bootstrap())?;
    let host = forwarding.setup(2, "100ms").start()?;
    // Within the transaction's time, and once past it: then the broker ends the transaction while it starts.
    for away in [0, 5_000, 0, 0] {
        forwarding.send_and_see(2_000, 50).with_context(|| host.log())?;
        lab.kill(1)?;
        thread::sleep(Duration::from_millis(away));
        lab.start(1)?;
    }
    forwarding.check().with_context(|| host.log())
}

/// What the host that is gone left open is ended by the broker, or, where that forgets to say so to its partitions, by hand.
#[test]
fn a_host_whose_broker_is_gone_ends_in_time_and_its_next_start_goes_on() -> Result<()> {
    let _machine = servers::in_company();
    let mut lab = Kafka::start_nodes(1)?;
    let mut forwarding = Forwarding::new(&lab.bootstrap())?;
    let setup = forwarding.setup(2, "100ms");
    let mut host = setup.clone().ahead("shutdown_deadline = \"15s\"\n").start()?;
    forwarding.send_and_see(2_000, 50)?;
    lab.kill(1)?;
    let ended = host.terminate(Duration::from_secs(25))?;
    ensure!(ended.code.is_some(), "it is ended by no signal: {ended:?}");
    lab.start(1)?;
    let _next = setup.start()?;
    forwarding.seen_with_help(&lab, forwarding.sent)?;
    forwarding.check()
}

#[test]
fn readers_that_stand_still_in_front_of_an_open_transaction_are_told_of() -> Result<()> {
    let _machine = servers::in_company();
    let bootstrap = servers::kafka();
    let forwarding = Forwarding::new(&bootstrap)?;
    topics::leave_a_transaction_open(&bootstrap, &forwarding.to)?;
    let host = forwarding.setup(0, "100ms").start()?;
    wait::until("the host to tell of it", DEADLINE, || {
        let told = host.metrics()?.sum("tidemill_receive_hazards", &[("kind", "hidden")]);
        Ok((told > 0.0).then_some(()))
    })
}

#[test]
fn a_host_that_commits_offsets_outside_of_the_transaction_is_caught() -> Result<()> {
    let _machine = servers::in_company();
    let mut forwarding = Forwarding::new(&servers::kafka())?;
    let mut broken = forwarding.setup(2, "2s").fault("offsets-outside-transaction").start()?;
    forwarding.send(3_000)?;
    wait::until("offsets that are ahead of the outputs", DEADLINE, || {
        forwarding.follower.catch_up(MOMENT)?;
        Ok((forwarding.committed()? > i64::try_from(forwarding.follower.values.len())? + 50).then_some(()))
    })?;
    broken.kill()?;
    let _next = forwarding.setup(0, "100ms").start()?;
    forwarding.settle()?;
    forwarding.follower.catch_up(Duration::from_secs(5))?;
    let Differences { missing, .. } = differences(forwarding.sent, &forwarding.follower.values);
    ensure!(!missing.is_empty(), "the outputs of the open transaction are lost");
    Ok(())
}
