//! What a fault is done to: a scene's hosts at work under load, and the judge at the end.

mod moments;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;
use xtask::lab::kafka::Kafka;
use xtask::lab::wait;

pub use self::moments::{Moment, NotInjected};
use super::Form;
use super::lab::{Cluster, Database, Lab};
use super::mode::{Mode, Promise};
use super::scene::{Membership, Scene, Standing};
use crate::checker::{self, Commit, Evidence, Expired, Verdict};
use crate::client::{Load, Report, Running};
use crate::host::{Host, Setup};
use crate::ledger::Place;
use crate::results::Results;
use crate::sampler::Sampler;
use crate::scenario::{Scenario, dead_letters};
use crate::topics::{Along, Group};

/// Bounds each wait for a host to be well again.
pub const DEADLINE: Duration = Duration::from_secs(90);
/// A dead host's transaction is aborted after its time-out, 10 s, and the broker's clean-up interval.
const READERS_DEADLINE: Duration = Duration::from_secs(30);
/// Records that are accepted after the last fault, so that what it left behind meets some.
const ACCEPTED_MIN: usize = 100;

/// A running Tidemill.
pub struct Stage<'a> {
    /// The servers.
    pub lab: &'a mut Lab,
    /// How much is done.
    pub form: Form,
    /// Topic, ledger and group.
    pub scenario: Scenario,
    /// Where results are read.
    pub results: Results,
    /// The host that takes records in.
    pub door: Host,
    /// The hosts that do the work.
    pub hosts: Vec<Host>,
    /// These offsets were deleted before they were settled.
    pub expired: Expired,
    /// What the row should say beside its figures.
    pub notes: Vec<String>,
    scene: Scene,
    mode: &'static Mode,
    worker_setup: Setup,
    door_setup: Setup,
    group: Group,
    load: Option<Running>,
    sampler: Option<Sampler>,
    along: Option<Along>,
    moments: Vec<Moment>,
    in_hand: usize,
    /// What may be lost, by partition, in a mode that commits first.
    lost: BTreeMap<i32, usize>,
    /// What may be settled behind later records of its key.
    late: BTreeSet<Place>,
    recoveries: Vec<Duration>,
    injected: usize,
    dice: fastrand::Rng,
    /// Has what hosts keep in files.
    _folder: TempDir,
}

/// What is put on a stage.
#[derive(Clone, Copy)]
pub struct Play {
    /// What stands there.
    pub scene: Scene,
    /// The mode of delivery.
    pub mode: &'static Mode,
    /// How much is done.
    pub form: Form,
    /// Where random moments come from.
    pub seed: u64,
    /// How its hosts are broken on purpose.
    pub broken: Option<&'static str>,
}

/// How a stage ended.
pub struct Ended {
    /// What the judge says.
    pub verdict: Verdict,
    /// Repeats, or losses, that the faults explain.
    pub in_hand: usize,
    /// How things stood at each fault.
    pub moments: Vec<Moment>,
    /// How long each recovery took.
    pub recoveries: Vec<Duration>,
    /// How often the fault came, amid records in flight each time.
    pub injected: usize,
    /// What else there is to say.
    pub notes: Vec<String>,
}

impl<'a> Stage<'a> {
    /// Starts everything, and waits until records flow.
    pub fn start(lab: &'a mut Lab, play: &Play) -> Result<Stage<'a>> {
        let Play { scene, mode, form, seed, broken } = *play;
        lab.mend()?;
        let Standing { scenario, results, worker, door: door_setup, folder } = scene.set(lab, mode)?;
        let door = door_setup.start().context("start ingest")?;
        let group = Group::new(&scenario.bootstrap, &scenario.handler, &scenario.topic)?;
        let mut stage = Stage {
            lab,
            form,
            door,
            hosts: Vec::new(),
            expired: BTreeMap::new(),
            notes: Vec::new(),
            sampler: Some(watch_commits(&scenario, &results, mode)?),
            along: match &results {
                Results::Table(_) | Results::Books(_) => None,
                Results::Topic(forwarded) => Some(Along::start(&scenario.bootstrap, &forwarded.out)?),
            },
            load: None,
            scenario,
            results,
            scene,
            mode,
            worker_setup: broken.map_or(worker.clone(), |broken| worker.fault(broken)),
            door_setup,
            group,
            moments: Vec::new(),
            in_hand: 0,
            lost: BTreeMap::new(),
            late: BTreeSet::new(),
            recoveries: Vec::new(),
            injected: 0,
            dice: fastrand::Rng::with_seed(seed),
            _folder: folder,
        };
        for _ in 0..scene.hosts {
            stage.join()?;
        }
        let load = Load { keys: scene.keys, ..Load::endless("load", scene.rate) };
        stage.load = Some(load.start(&stage.door.ingest()?, &stage.scenario.topic, &stage.scenario.ledger));
        for host in 0..stage.hosts.len() {
            stage.wait_until_at_work(host)?;
        }
        Ok(stage)
    }

    /// Starts one more host.
    pub fn join(&mut self) -> Result<()> {
        let host = self.start_host(self.hosts.len())?;
        self.hosts.push(host);
        Ok(())
    }

    /// Starts another host in the place of one that has ended, under its name if it had one.
    pub fn replace(&mut self, host: usize) -> Result<()> {
        self.hosts[host] = self.start_host(host)?;
        self.wait_until_at_work(host)
    }

    fn start_host(&self, place: usize) -> Result<Host> {
        let setup = match self.scene.membership {
            Membership::Cooperative | Membership::Newer => self.worker_setup.clone(),
            Membership::Static => {
                let property = format!("\n[broker.consumer]\n\"group.instance.id\" = \"host-{place}\"\n");
                self.worker_setup.clone().with(&property)
            }
        };
        setup.start().context("start a host")
    }

    /// Starts ingest again, somewhere else.
    pub fn replace_door(&mut self) -> Result<()> {
        self.door = self.door_setup.start().context("start ingest again")?;
        let load = self.load.as_ref().context("the load runs")?;
        load.turn_to(&self.door.ingest()?);
        Ok(())
    }

    /// Waits until a host has received something.
    pub fn wait_until_at_work(&self, host: usize) -> Result<()> {
        wait::until("a host to receive records", DEADLINE, || {
            let received = self.hosts[host].metrics()?.sum("tidemill_receive_records_total", &[]);
            Ok((received > 0.0).then_some(()))
        })
    }

    /// The cluster of this stage.
    pub fn cluster(&mut self) -> Result<&mut Cluster> {
        self.lab.cluster(self.scene.cluster())
    }

    /// Its nodes.
    pub fn kafka(&mut self) -> Result<&mut Kafka> {
        Ok(&mut self.cluster()?.kafka)
    }

    /// The database of this stage.
    pub fn database(&mut self) -> Result<&mut Database> {
        self.lab.database()
    }

    /// A random length of time below a bound.
    pub fn moment_within(&mut self, max: Duration) -> Duration {
        max.mul_f64(self.dice.f64())
    }

    /// The last lines of what each host logged.
    pub fn log_tails(&self, lines: usize) -> String {
        let tail = |host: &Host| {
            let log = host.log();
            let all: Vec<&str> = log.lines().collect();
            format!("host:\n{}", all[all.len().saturating_sub(lines)..].join("\n"))
        };
        self.hosts.iter().chain([&self.door]).map(tail).collect::<Vec<_>>().join("\n")
    }

    /// Stops the load and waits for its last answers.
    pub fn stop_load(&mut self) -> Result<Report> {
        self.load.take().context("the load runs")?.stop()
    }

    /// Does the fault once. That it came amid something is shown by the moments that were noted meanwhile.
    pub fn strike(&mut self, inject: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let moments = self.moments.len();
        inject(self)?;
        if self.moments.len() == moments {
            return Err(NotInjected.into());
        }
        self.injected += 1;
        Ok(())
    }

    /// Ends the load, waits until all is done, and asks the judge.
    pub fn finish(mut self) -> Result<Ended> {
        if self.load.is_some() {
            self.wait_until_more_is_accepted()?;
            self.stop_load()?;
        }
        self.scenario.wait_until_committed(DEADLINE)?;
        self.wait_until_readers_see_all()?;
        let commits = self.sampler.take().context("the sampler runs")?.stop()?;
        let mut evidence = self.evidence(commits)?;
        if let Some(along) = self.along.take() {
            evidence.read_along = Some(along.stop(evidence.stored.len())?);
        }
        let verdict = checker::judge(&evidence, &self.mode.promise.allows(self.in_hand));
        let Stage { in_hand, moments, recoveries, injected, notes, .. } = self;
        Ok(Ended { verdict, in_hand, moments, recoveries, injected, notes })
    }

    /// An open transaction of a host that is dead holds up readers until the broker has aborted it.
    fn wait_until_readers_see_all(&mut self) -> Result<()> {
        if !are_seen_later(&self.results, self.mode) {
            return Ok(());
        }
        let committed = Instant::now();
        let all = self.scenario.ledger.acked();
        let seen = wait::until("readers to see all that was accepted", READERS_DEADLINE, || {
            let (stored, dead) = (self.results.stored()?.len(), self.scenario.dead()?.len());
            Ok((stored + dead >= all).then_some(()))
        });
        // In vain: the judge says what is missing.
        let how = if seen.is_ok() { "saw all" } else { "did not see all" };
        self.notes.push(format!("readers {how} {:.1?} after the last offset was committed", committed.elapsed()));
        Ok(())
    }

    /// After a fault ingest takes records as before.
    fn wait_until_more_is_accepted(&self) -> Result<()> {
        let enough = self.scenario.ledger.acked() + ACCEPTED_MIN;
        wait::until("ingest to accept more after the fault", DEADLINE, || {
            Ok((self.scenario.ledger.acked() >= enough).then_some(()))
        })
    }

    fn evidence(&self, commits: Vec<Commit>) -> Result<Evidence> {
        let moments = self.moments.iter().map(Moment::standing).collect();
        let evidence = self.scenario.evidence_in(&self.results, commits)?;
        Ok(Evidence { moments, expired: self.expired.clone(), late: self.late.clone(), ..evidence })
    }

    /// The name of the topic for dead letters.
    pub fn letters(&self) -> String {
        dead_letters(&self.scenario.topic)
    }
}

/// Whether outputs and offsets are one transaction of Kafka: the outputs may be seen a moment after the offsets.
fn are_seen_later(results: &Results, mode: &Mode) -> bool {
    mode.promise == Promise::Exact && matches!(results, Results::Topic(_))
}

/// That outputs which are seen later are all there is shown by the readers: commits are then only watched not to fall.
fn watch_commits(scenario: &Scenario, results: &Results, mode: &Mode) -> Result<Sampler> {
    if are_seen_later(results, mode) {
        return Sampler::start(&scenario.bootstrap, &scenario.handler, &scenario.topic, |_, offset| Ok(offset));
    }
    scenario.watch(&scenario.handler, results)
}
