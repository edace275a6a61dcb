//! The judge judged: ways in which the host can be broken on purpose, each with a story in which that shows.
//!
//! `TIDEMILL_FAULT` is heard only by a binary with the feature `fault-injection`, which no release has.

use std::time::Duration;

use anyhow::{Context, Result};
use xtask::lab::wait;

use crate::checker::{self, Allowed, Commit, Faults, Stored};
use crate::client::Load;
use crate::faults::lab::Lab;
use crate::faults::mode::{EXACTLY_ONCE_KAFKA, EXACTLY_ONCE_POSTGRES, Mode};
use crate::faults::scene::Scene;
use crate::faults::stage::Play;
use crate::faults::{Fault, Form, runner};
use crate::host::{Handler, Setup};
use crate::ledger::Body;
use crate::raw_headers::RawHeader;
use crate::results::{Forwarded, Results};
use crate::scenario::{Odd, Scenario};
use crate::sink::Sink;
use crate::{frozen, names, servers, topics};

/// A promise that the host is told to break.
#[derive(Debug)]
pub struct Breakage {
    /// What the host is told.
    pub name: &'static str,
    /// The checks that have to see it, each. Others may.
    pub by: &'static [&'static str],
    story: Story,
}

/// In which that shows.
#[derive(Debug)]
enum Story {
    /// One that is told here.
    Own(fn() -> Result<Faults>),
    /// A row of the table of faults, with the fault done so many times, at a load that a broken host can bear.
    Row { fault: &'static str, mode: &'static Mode, times: u32, rate: f64 },
}

/// All of them.
pub const BREAKAGES: &[Breakage] = &[
    Breakage {
        name: "commit-before-success",
        by: &["commits never pass unsettled work", "nothing lost"],
        story: Story::Own(commit_before_success),
    },
    Breakage { name: "ignore-epoch", by: &["commits never fall"], story: Story::Own(ignore_epoch) },
    Breakage { name: "drop-on-full", by: &["nothing lost"], story: Story::Own(drop_on_full) },
    Breakage {
        name: "commit-past-gap",
        by: &["commits never pass unsettled work"],
        story: Story::Own(commit_past_gap),
    },
    Breakage { name: "letter-not-awaited", by: &["nothing lost"], story: Story::Own(letter_not_awaited) },
    Breakage { name: "parked-not-awaited", by: &["nothing lost"], story: Story::Own(parked_not_awaited) },
    Breakage {
        name: "offsets-outside-transaction",
        by: &["nothing lost"],
        story: Story::Own(offsets_outside_transaction),
    },
    Breakage {
        name: "new-transaction-after-unknown",
        by: &["duplicates within the bound"],
        story: Story::Row { fault: "commit-answer-lost", mode: &EXACTLY_ONCE_KAFKA, times: 1, rate: 300.0 },
    },
    Breakage {
        name: "offset-apart",
        by: &["duplicates within the bound"],
        story: Story::Row { fault: "only-host-killed", mode: &EXACTLY_ONCE_POSTGRES, times: 2, rate: 100.0 },
    },
    Breakage {
        name: "ignore-fence",
        by: &["duplicates within the bound"],
        story: Story::Row { fault: "host-dispossessed", mode: &EXACTLY_ONCE_POSTGRES, times: 1, rate: 300.0 },
    },
];

impl Breakage {
    /// Whether each of the checks that have to see it is among these.
    pub fn is_caught(&self, checks: &[&str]) -> bool {
        self.by.iter().all(|by| checks.contains(by))
    }

    /// The one with this name.
    pub fn named(name: &str) -> Result<&'static Breakage> {
        let found = BREAKAGES.iter().find(|breakage| breakage.name == name);
        found.with_context(|| format!("there is no breakage `{name}`"))
    }

    /// Runs a host that is broken so; what the judge saw.
    pub fn run(&self, lab: &mut Lab) -> Result<Faults> {
        let seen = match &self.story {
            Story::Own(tell) => tell(),
            Story::Row { fault, mode, times, rate } => self.play(lab, fault, mode, *times, *rate),
        };
        seen.with_context(|| format!("with the host broken by `{}`", self.name))
    }

    fn play(&self, lab: &mut Lab, fault: &str, mode: &'static Mode, times: u32, rate: f64) -> Result<Faults> {
        let fault = Fault::named(fault)?;
        let (scene, seed) = (Scene { rate, ..fault.scene }, fastrand::u64(..));
        let play = Play { scene, mode, form: Form::QUICK, seed, broken: Some(self.name) };
        Ok(runner::played(lab, fault, &play, times)?.verdict.faults)
    }
}

const DEADLINE: Duration = Duration::from_secs(60);
const MANIFEST: &str = "\
drain_deadline = \"1s\"
[batch]
records_max = 20
[buffer]
records_max = 100
[consumer_properties]
\"session.timeout.ms\" = \"6000\"
\"heartbeat.interval.ms\" = \"1000\"";

fn commit_before_success() -> Result<Faults> {
    let scenario = Scenario::slow(2, Duration::from_millis(20))?;
    let setup = scenario.setup().handler(scenario.handler(MANIFEST));
    let commits = scenario.watch_commits()?;
    let mut broken = setup.clone().fault("commit-before-success").start()?;
    scenario.send(&broken, &Load::batches("load", 2_000))?;
    wait::until("a commit that is far ahead", DEADLINE, || {
        let committed = topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?;
        let committed: i64 = committed.into_iter().flatten().sum();
        Ok((committed >= i64::try_from(scenario.sink.count()?)? + 50).then_some(()))
    })?;
    broken.kill()?;
    let _next = setup.start()?;
    scenario.wait_until_committed(DEADLINE)?;
    judged(&scenario, commits.stop()?, 2_000)
}

fn ignore_epoch() -> Result<Faults> {
    let (evidence, repeats) = frozen::run(Some("ignore-epoch"))?;
    Ok(checker::judge(&evidence, &Allowed { repeats, ..Allowed::default() }).faults)
}

fn drop_on_full() -> Result<Faults> {
    let scenario = Scenario::slow(2, Duration::from_millis(2))?;
    let setup = scenario.setup().handler(scenario.handler(MANIFEST));
    let commits = scenario.watch_commits()?;
    let broken = setup.fault("drop-on-full").start()?;
    scenario.send(&broken, &Load::batches("load", 2_000))?;
    wait::until("the broken host to have nothing in hand", DEADLINE, || {
        let metrics = broken.metrics()?;
        let sum = |name| metrics.sum(name, &[]);
        Ok((sum("tidemill_receive_records_total") >= 2_000.0 && sum("tidemill_admit_pending_records") == 0.0)
            .then_some(()))
    })?;
    // The frontier passes what was dropped as soon as later records are settled.
    scenario.send(&broken, &Load::new("after", 50))?;
    scenario.wait_until_committed(DEADLINE)?;
    judged(&scenario, commits.stop()?, 0)
}

/// One key waits to be tried again, for as long as the host lives, and the others go on: a gap that nobody may commit past.
fn commit_past_gap() -> Result<Faults> {
    let scenario = Scenario::with(&servers::kafka(), 1, Sink::at(String::new()))?;
    let out = names::unique("out");
    topics::create(&scenario.bootstrap, &out, 1)?;
    let results = Results::Topic(Forwarded::from(&scenario, &out));
    let setup = Setup::on_kafka(&scenario.bootstrap, &[&scenario.topic]).handler(forwarding(
        &scenario,
        &out,
        "retry.attempts_max = 1000\n",
    ));
    scenario.write_past_ingest(&[Odd::new("stuck", "a key of its own", RawHeader::new("poison", "retry"))])?;
    let commits = scenario.watch(&scenario.handler, &results)?;
    let broken = setup.fault("commit-past-gap").start()?;
    scenario.send(&broken, &Load::batches("load", 500))?;
    wait::until("a commit past the gap", DEADLINE, || {
        let committed = topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?;
        Ok(committed.iter().flatten().any(|offset| *offset > 400).then_some(()))
    })?;
    let evidence = scenario.evidence_in(&results, commits.stop()?)?;
    Ok(checker::judge(&evidence, &Allowed::default()).faults)
}

/// There is no topic for dead letters: a host that does not wait for the letter goes on without it.
fn letter_not_awaited() -> Result<Faults> {
    not_written("letter-not-awaited", "")
}

/// The same with no topic for parked keys.
fn parked_not_awaited() -> Result<Faults> {
    not_written("parked-not-awaited", "retry.exhausted = \"park\"\n")
}

fn not_written(breakage: &str, manifest: &str) -> Result<Faults> {
    let scenario = Scenario::without_letters(&servers::kafka(), 1, Sink::at(String::new()))?;
    let out = names::unique("out");
    topics::create(&scenario.bootstrap, &out, 1)?;
    let results = Results::Topic(Forwarded::from(&scenario, &out));
    scenario.write_past_ingest(&[Odd::new("dead", "a key of its own", RawHeader::new("poison", "never"))])?;
    let commits = scenario.watch(&scenario.handler, &results)?;
    let host = Setup::on_kafka(&scenario.bootstrap, &[&scenario.topic]);
    let broken = host.handler(forwarding(&scenario, &out, manifest)).fault(breakage).start()?;
    scenario.send(&broken, &Load::batches("load", 500))?;
    scenario.wait_until_committed(DEADLINE)?;
    let evidence = scenario.evidence_in(&results, commits.stop()?)?;
    Ok(checker::judge(&evidence, &Allowed::default()).faults)
}

/// Offsets are there while their outputs are in an open transaction: a host that is killed then takes the outputs with it.
fn offsets_outside_transaction() -> Result<Faults> {
    let scenario = Scenario::with(&servers::kafka(), 2, Sink::at(String::new()))?;
    let out = names::unique("out");
    topics::create(&scenario.bootstrap, &out, 1)?;
    let results = Results::Topic(Forwarded::from(&scenario, &out));
    let door =
        Setup::on_kafka(&scenario.bootstrap, &[&scenario.topic]).argument("--only").argument("ingest").start()?;
    let host = |interval: &str| {
        let manifest = format!(
            "delivery = \"exactly-once\"\nexactly_once.interval = \"{interval}\"\n\
             consumer_properties.\"session.timeout.ms\" = \"6000\"\n"
        );
        Setup::on_kafka(&scenario.bootstrap, &[]).handler(forwarding(&scenario, &out, &manifest))
    };
    let mut broken = host("2s").fault("offsets-outside-transaction").start()?;
    scenario.send(&door, &Load::batches("load", 1_000).rate(200.0))?;
    wait::until("offsets that are ahead of the outputs", DEADLINE, || {
        let committed = topics::committed(&scenario.bootstrap, &scenario.handler, &scenario.topic)?;
        let committed: i64 = committed.into_iter().flatten().sum();
        Ok((committed >= i64::try_from(results.stored()?.len())? + 50).then_some(()))
    })?;
    broken.kill()?;
    let _next = host("100ms").start()?;
    scenario.wait_until_committed(DEADLINE)?;
    // Readers wait for the dead host's transaction until the broker has aborted it.
    scenario.send(&door, &Load::batches("after", 100))?;
    wait::until("readers to see what came after", DEADLINE, || {
        Ok(results.stored()?.iter().any(|stored| is_of(stored, "after")).then_some(()))
    })?;
    let evidence = scenario.evidence_in(&results, Vec::new())?;
    Ok(checker::judge(&evidence, &Allowed::default()).faults)
}

fn is_of(stored: &Stored, producer: &str) -> bool {
    let body = stored.value.as_deref().and_then(Body::from_bytes);
    body.is_some_and(|body| body.producer == producer)
}

fn forwarding(scenario: &Scenario, out: &str, manifest: &str) -> Handler {
    let manifest = format!(
        "topics = [\"{}\"]\n{manifest}\n[grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\n",
        scenario.topic
    );
    Handler::new(&scenario.handler, "poison", &manifest)
}

fn judged(scenario: &Scenario, commits: Vec<Commit>, repeats: usize) -> Result<Faults> {
    let evidence = scenario.evidence(commits)?;
    Ok(checker::judge(&evidence, &Allowed { repeats, ..Allowed::default() }).faults)
}
