//! What a fault is done to: hosts at work under load, and what the checker notes of them meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::lab::kafka::Kafka;
use xtask::lab::wait;

use super::SESSION_TIMEOUT;
use super::lab::{Cluster, Database, Lab, Which};
use super::mode::{Kind, Mode, Promise};
use crate::checker::{self, Commit, Evidence, Standing, Stored, Verdict};
use crate::client::{Load, Report, Running};
use crate::host::{Handler, Host, Setup};
use crate::ledger::Place;
use crate::names;
use crate::results::{Forwarded, Results};
use crate::sampler::Sampler;
use crate::scenario::{Scenario, dead_letters};
use crate::sink::Sink;
use crate::topics::{self, Along, Group};

/// How long a fault waits for records in flight before it counts as not injected.
const INJECTION_DEADLINE: Duration = Duration::from_secs(30);
/// Bounds each wait for a host to be well again.
pub const DEADLINE: Duration = Duration::from_secs(90);
/// A dead host's transaction is aborted after its time-out, 10 s, and the broker's clean-up interval.
const READERS_DEADLINE: Duration = Duration::from_secs(30);
/// Records in requests that ingest has in hand: those of a [`Load::endless`].
const ON_THEIR_WAY: usize = 40;
/// Records that are accepted after the last fault, so that what it left behind meets some.
const ACCEPTED_MIN: usize = 100;

/// What a fault needs.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Brokers: 1 or 3.
    pub nodes: u16,
    /// Whether the one broker has a disk that can be filled.
    pub small_disk: bool,
    /// Hosts that do the work. Ingest has one of its own.
    pub hosts: usize,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Keys of the load.
    pub keys: usize,
    /// Records a second.
    pub rate: f64,
    /// How long the work for a record takes.
    pub delay: Duration,
    /// How much longer a commit of the database takes for each of its records.
    pub commit_delay: Duration,
    /// Where results are, for modes that leave it open.
    pub results: Kind,
    /// The guest that forwards, where results are in a topic.
    pub guest: &'static str,
    /// More of the manifest, in keys of the top level.
    pub manifest: &'static str,
    /// Whether hosts reach brokers and database through the proxies.
    pub behind_proxies: bool,
    /// Whether there is a topic for dead letters.
    pub letters: bool,
}

impl Plan {
    /// Records are stored in a table, at a pace that keeps some of them in flight most of the time.
    pub const TABLE: Plan = Plan {
        nodes: 1,
        small_disk: false,
        hosts: 1,
        partitions: 4,
        keys: 40,
        rate: 300.0,
        delay: Duration::from_millis(8),
        commit_delay: Duration::ZERO,
        results: Kind::Table,
        guest: "slow",
        manifest: "",
        behind_proxies: false,
        letters: true,
    };

    /// The same with a topic: a database would hold the locks of a host that is frozen.
    pub const TOPIC: Plan = Plan { results: Kind::Topic, ..Plan::TABLE };

    /// The cluster that it is on.
    pub fn cluster(&self) -> Which {
        match (self.nodes, self.small_disk) {
            (3, _) => Which::Three,
            (_, true) => Which::Small,
            (_, false) => Which::One,
        }
    }
}

/// A running Tidemill.
pub struct Stage<'a> {
    /// The servers.
    pub lab: &'a mut Lab,
    /// Topic, ledger and group.
    pub scenario: Scenario,
    /// Where results are read.
    pub results: Results,
    /// The host that takes records in.
    pub door: Host,
    /// The hosts that do the work.
    pub hosts: Vec<Host>,
    /// Below these offsets records were deleted.
    pub expired: BTreeMap<i32, i64>,
    /// What the row should say beside its figures.
    pub notes: Vec<String>,
    plan: Plan,
    mode: &'static Mode,
    setup: Setup,
    door_setup: Setup,
    group: Group,
    load: Option<Running>,
    sampler: Option<Sampler>,
    along: Option<Along>,
    moments: Vec<Moment>,
    in_hand: usize,
    recoveries: Vec<Duration>,
    injected: usize,
    dice: fastrand::Rng,
}

/// How things stood when a fault came.
#[derive(Debug, Clone)]
pub struct Moment {
    /// Records in calls of guests, or requests that ingest had not answered.
    pub in_flight: usize,
    /// Records in the topic and not committed.
    pub uncommitted: usize,
    /// The ends of the partitions.
    pub ends: Vec<i64>,
    /// What was committed, by partition.
    pub committed: Vec<i64>,
    written: i64,
}

impl Moment {
    /// The same with these ends.
    pub fn with_ends(self, ends: Vec<i64>) -> Moment {
        Moment { ends, ..self }
    }
}

/// Nothing was in flight, however long it was waited for.
#[derive(Debug)]
pub struct NotInjected;

impl std::fmt::Display for NotInjected {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "not injected: nothing was in flight within {INJECTION_DEADLINE:?}")
    }
}

impl std::error::Error for NotInjected {}

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
    pub fn start(lab: &'a mut Lab, plan: Plan, mode: &'static Mode, seed: u64) -> Result<Stage<'a>> {
        lab.mend()?;
        let kind = mode.results.unwrap_or(plan.results);
        let kafka = &lab.cluster(plan.cluster())?.kafka;
        let (bootstrap, front) = (kafka.bootstrap(), kafka.bootstrap_of_fronts());
        let for_hosts = if plan.behind_proxies { front } else { bootstrap.clone() };
        let (sink, database_for_hosts) = match kind {
            Kind::Table => database(lab.database()?, &plan)?,
            Kind::Topic => (Sink::at(String::new()), String::new()),
        };
        let scenario = if plan.letters {
            Scenario::with(&bootstrap, plan.partitions, sink)?
        } else {
            Scenario::without_letters(&bootstrap, plan.partitions, sink)?
        };
        let door_setup = Setup::on_kafka(&for_hosts, &[&scenario.topic]).argument("--only").argument("ingest");
        let setup = Setup::on_kafka(&for_hosts, &[]);
        let (results, setup) = match kind {
            Kind::Table => {
                let handler = scenario.handler(&manifest(&plan, mode));
                (Results::Table(scenario.sink.clone()), setup.database(&database_for_hosts).handler(handler))
            }
            Kind::Topic => {
                let out = names::unique("out");
                topics::create(&bootstrap, &out, 1)?;
                let handler = forwarding(&scenario, &plan, mode, &out);
                (Results::Topic(Forwarded::from(&scenario, &out)), setup.handler(handler))
            }
        };
        let door = door_setup.start().context("start ingest")?;
        let group = Group::new(&bootstrap, &scenario.handler, &scenario.topic)?;
        let mut stage = Stage {
            lab,
            door,
            hosts: Vec::new(),
            expired: BTreeMap::new(),
            notes: Vec::new(),
            sampler: Some(watch_commits(&scenario, &results, mode)?),
            along: match &results {
                Results::Table(_) => None,
                Results::Topic(forwarded) => Some(Along::start(&bootstrap, &forwarded.out)?),
            },
            load: None,
            scenario,
            results,
            plan,
            mode,
            setup,
            door_setup,
            group,
            moments: Vec::new(),
            in_hand: 0,
            recoveries: Vec::new(),
            injected: 0,
            dice: fastrand::Rng::with_seed(seed),
        };
        for _ in 0..plan.hosts {
            stage.join()?;
        }
        let load = Load { keys: plan.keys, ..Load::endless("load", plan.rate) };
        stage.load = Some(load.start(&stage.door.ingest()?, &stage.scenario.topic, &stage.scenario.ledger));
        for host in 0..stage.hosts.len() {
            stage.wait_until_at_work(host)?;
        }
        Ok(stage)
    }

    /// Starts one more host.
    pub fn join(&mut self) -> Result<()> {
        let host = self.start_host()?;
        self.hosts.push(host);
        Ok(())
    }

    /// Starts another host in the place of one that has ended.
    pub fn replace(&mut self, host: usize) -> Result<()> {
        self.hosts[host] = self.start_host()?;
        self.wait_until_at_work(host)
    }

    fn start_host(&self) -> Result<Host> {
        self.setup.start().context("start a host")
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
        self.lab.cluster(self.plan.cluster())
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

    /// Waits until a host has records in a call, notes how things stand, and answers at once: now is the moment.
    pub fn amid(&mut self, host: usize) -> Result<Moment> {
        let started = Instant::now();
        while started.elapsed() < INJECTION_DEADLINE {
            let moment = self.look()?;
            let in_flight = self.hosts[host].metrics()?.sum("tidemill_invoke_in_flight_records", &[]);
            // What is committed before it is called is in hand all the same.
            let is_in_hand = moment.uncommitted > 0 || self.mode.promise == Promise::NothingRepeated;
            if in_flight > 0.0 && is_in_hand {
                return Ok(self.note(Moment { in_flight: in_flight as usize, ..moment }));
            }
        }
        Err(NotInjected.into())
    }

    /// The same, also when all records of the host wait to be tried again: they are in hand, if not in a call.
    pub fn amid_or_waiting(&mut self, host: usize) -> Result<Moment> {
        let waiting = self.hosts[host].metrics()?.sum("tidemill_admit_lanes_waiting", &[]);
        if waiting > 0.0 {
            let moment = self.look()?;
            return Ok(self.note(Moment { in_flight: waiting as usize, ..moment }));
        }
        self.amid(host)
    }

    /// The same for requests that ingest has not answered.
    pub fn amid_requests(&mut self) -> Result<Moment> {
        let started = Instant::now();
        while started.elapsed() < INJECTION_DEADLINE {
            let moment = self.look()?;
            let in_flight = self.door.metrics()?.sum("tidemill_ingest_in_flight_requests", &[]);
            if in_flight > 0.0 {
                return Ok(self.note(Moment { in_flight: in_flight as usize, ..moment }));
            }
        }
        Err(NotInjected.into())
    }

    /// How things stand, without a fault.
    pub fn look(&self) -> Result<Moment> {
        let committed = self.committed()?;
        let (written, ends) = (self.results.written()?, self.group.ends()?);
        let uncommitted = above(&committed, &ends);
        Ok(Moment { in_flight: 0, uncommitted, ends, committed, written })
    }

    fn note(&mut self, moment: Moment) -> Moment {
        self.moments.push(moment.clone());
        moment
    }

    /// What the group has committed, by partition.
    pub fn committed(&self) -> Result<Vec<i64>> {
        Ok(self.group.committed()?.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The ends of the partitions now.
    pub fn ends(&self) -> Result<Vec<i64>> {
        self.group.ends()
    }

    /// Notes that what was in hand at a moment may be redelivered, when nothing could be delivered after it: what was
    /// committed then is known, and what was delivered is at most what the topic had, and what was on its way into it.
    pub fn may_redeliver(&mut self, moment: &Moment) {
        self.in_hand += moment.uncommitted + ON_THEIR_WAY;
    }

    /// The same in a mode that commits first: what is committed and not settled is lost, and all of it is seen at once.
    fn may_lose(&mut self) -> Result<()> {
        let committed: i64 = self.committed()?.iter().sum();
        let places: BTreeSet<Place> =
            self.results.stored()?.iter().chain(&self.scenario.dead()?).map(|stored| stored.place).collect();
        self.in_hand = self.in_hand.max(usize::try_from(committed)?.saturating_sub(places.len()));
        Ok(())
    }

    /// The same when the topic grows on: what was delivered is at most what it has now.
    pub fn may_redeliver_since(&mut self, moment: &Moment) -> Result<()> {
        if self.mode.promise == Promise::NothingRepeated {
            return self.may_lose();
        }
        self.in_hand += above(&moment.committed, &self.group.ends()?);
        Ok(())
    }

    /// The same, told exactly, for a host that is dead: what it stored of its partitions and did not commit.
    pub fn may_redeliver_what_is_stored(&mut self, partitions: &[i32]) -> Result<()> {
        if self.mode.promise == Promise::NothingRepeated {
            return self.may_lose();
        }
        let committed = self.committed()?;
        let is_in_hand = |stored: &Stored| {
            let partition = stored.place.partition;
            let committed = usize::try_from(partition).ok().and_then(|partition| committed.get(partition));
            partitions.contains(&partition) && committed.is_none_or(|committed| stored.place.offset >= *committed)
        };
        let mut places: Vec<_> =
            self.results.stored()?.iter().filter(|stored| is_in_hand(stored)).map(|stored| stored.place).collect();
        places.sort();
        places.dedup();
        self.in_hand += places.len();
        Ok(())
    }

    /// The partitions that a host has, as it says itself.
    pub fn partitions_of(&self, host: usize) -> Result<Vec<i32>> {
        let metrics = self.hosts[host].metrics()?;
        let names = metrics.values_of("tidemill_receive_position_offset", "partition");
        names.iter().map(|name| name.parse().with_context(|| format!("`{name}` is a partition"))).collect()
    }

    /// Waits until all that the topic had at a moment is committed.
    pub fn wait_until_caught_up(&self, moment: &Moment) -> Result<()> {
        wait::until("all that was there at the fault to be committed", DEADLINE, || {
            Ok((above(&self.committed()?, &moment.ends) == 0).then_some(()))
        })
    }

    /// The same after a fault whose recovery is told by something else: a note says how long all of it took.
    pub fn catch_up(&mut self, moment: &Moment, since: Instant) -> Result<()> {
        self.wait_until_caught_up(moment)?;
        self.notes.push(format!("all that was there at the fault was committed after {:.1?}", since.elapsed()));
        Ok(())
    }

    /// The same, and notes how long it took since then.
    pub fn recover(&mut self, moment: &Moment, since: Instant) -> Result<()> {
        self.wait_until_caught_up(moment)?;
        self.recovered(since.elapsed());
        Ok(())
    }

    /// Waits until more is stored than now, and notes how long it took since then.
    pub fn recover_flow(&mut self, since: Instant) -> Result<()> {
        let before = self.results.count()?;
        wait::until("the next record to be stored", DEADLINE, || Ok((self.results.count()? > before).then_some(())))?;
        self.recovered(since.elapsed());
        Ok(())
    }

    /// Notes a recovery that was timed elsewhere.
    pub fn recovered(&mut self, took: Duration) {
        self.recoveries.push(took);
    }

    /// How many recoveries there were so far.
    pub fn recoveries(&self) -> &[Duration] {
        &self.recoveries
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

    /// How many records were in flight at the last fault.
    pub fn last_in_flight(&self) -> usize {
        self.moments.last().map_or(0, |moment| moment.in_flight)
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
        if self.mode.promise != Promise::Exact {
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
        let standing = |moment: &Moment| Standing {
            written: moment.written,
            committed: (0..).zip(moment.committed.iter().copied()).collect(),
        };
        let moments = self.moments.iter().map(standing).collect();
        let evidence = self.scenario.evidence_in(&self.results, commits)?;
        Ok(Evidence { moments, expired: self.expired.clone(), ..evidence })
    }

    /// The name of the topic for dead letters.
    pub fn letters(&self) -> String {
        dead_letters(&self.scenario.topic)
    }
}

/// Where outputs and offsets are one transaction, the outputs may be seen a moment after the offsets: that both are there
/// is shown by the readers, and commits are only watched not to fall.
fn watch_commits(scenario: &Scenario, results: &Results, mode: &Mode) -> Result<Sampler> {
    match (mode.promise, results) {
        (Promise::Exact, Results::Topic(_)) => {
            Sampler::start(&scenario.bootstrap, &scenario.handler, &scenario.topic, |_, offset| Ok(offset))
        }
        _ => scenario.watch(&scenario.handler, results),
    }
}

/// How many offsets lie between two places of each partition.
fn above(committed: &[i64], ends: &[i64]) -> usize {
    let gaps = committed.iter().zip(ends).map(|(committed, end)| (end - committed).max(0));
    usize::try_from(gaps.sum::<i64>()).unwrap_or(usize::MAX)
}

/// A new database, as the checker and as hosts reach it.
fn database(database: &Database, plan: &Plan) -> Result<(Sink, String)> {
    let url = database.postgres.create_database(&names::unique("faults").replace('-', "_"))?;
    let (direct, front) = (database.postgres.port(), database.proxy.port());
    let for_hosts = if plan.behind_proxies {
        url.replace(&format!("127.0.0.1:{direct}"), &format!("127.0.0.1:{front}"))
    } else {
        url.clone()
    };
    let sink = Sink::at(url).slow(plan.delay).slow_to_commit(plan.commit_delay);
    Ok((sink, format!("{for_hosts}?application_name={HOST_SESSIONS}")))
}

/// How sessions of hosts are told from the checker's.
pub const HOST_SESSIONS: &str = "host";

/// Small calls and buffers, so that a fault meets many calls and each bound is reached; a short session.
fn manifest(plan: &Plan, mode: &Mode) -> String {
    format!(
        "{}\n{}\nbatch.records_max = 20\nbuffer.records_max = 200\nbuffer.span_max = 400\ndrain_deadline = \"5s\"\n\
         consumer_properties.\"session.timeout.ms\" = \"{}\"\nconsumer_properties.\"heartbeat.interval.ms\" = \"500\"\n",
        mode.manifest,
        plan.manifest,
        SESSION_TIMEOUT.as_millis()
    )
}

fn forwarding(scenario: &Scenario, plan: &Plan, mode: &Mode, out: &str) -> Handler {
    let manifest = format!(
        "topics = [\"{}\"]\n{}\n[grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\nms = \"{}\"\n",
        scenario.topic,
        manifest(plan, mode),
        plan.delay.as_millis()
    );
    Handler::new(&scenario.handler, plan.guest, &manifest)
}
