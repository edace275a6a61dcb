//! What a fault needs around it, as data, and how servers and hosts are told of it.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use super::SESSION_TIMEOUT;
use super::lab::{Database, Lab, Which};
use super::mode::{Engine, Kind, Mode};
use crate::books::{self, Books};
use crate::host::{Handler, Setup};
use crate::names;
use crate::results::{Booked, Forwarded, Results};
use crate::scenario::Scenario;
use crate::sink::Sink;
use crate::topics;

/// What a fault needs.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    /// Brokers: 1 or 3.
    pub nodes: u16,
    /// Whether the one broker has a disk that can be filled.
    pub small_disk: bool,
    /// Hosts that do the work. Ingest has one of its own.
    pub hosts: usize,
    /// How they are members of their group.
    pub membership: Membership,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Keys of the load.
    pub keys: usize,
    /// Records a second.
    pub rate: f64,
    /// How long the work for a record takes. SQLite takes about a millisecond, whatever this says.
    pub delay: Duration,
    /// How much longer a commit of the database takes for each of its records.
    pub commit_delay: Duration,
    /// Records that a call has at most.
    pub call_records: usize,
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

/// How hosts are members of their group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// The classic protocol with cooperative rebalances.
    Cooperative,
    /// The same with a name for each host: it keeps its partitions while it restarts.
    Static,
    /// The newer protocol, whose session is the broker's to say: [`NEWER_SESSION_TIMEOUT`](super::NEWER_SESSION_TIMEOUT).
    Newer,
}

/// A scene that stands, before its hosts.
pub(super) struct Standing {
    /// Topic, ledger and group.
    pub(super) scenario: Scenario,
    /// Where results are read.
    pub(super) results: Results,
    /// A host that does the work.
    pub(super) worker: Setup,
    /// The host that takes records in.
    pub(super) door: Setup,
    /// Has what hosts keep in files.
    pub(super) folder: TempDir,
}

/// How sessions of hosts are told from the checker's.
pub const HOST_SESSIONS: &str = "host";

impl Scene {
    /// Records are stored in a table, at a pace that keeps some of them in flight most of the time.
    pub const TABLE: Scene = Scene {
        nodes: 1,
        small_disk: false,
        hosts: 1,
        membership: Membership::Cooperative,
        partitions: 4,
        keys: 40,
        rate: 300.0,
        delay: Duration::from_millis(8),
        commit_delay: Duration::ZERO,
        call_records: 20,
        results: Kind::Table,
        guest: "slow",
        manifest: "",
        behind_proxies: false,
        letters: true,
    };

    /// The same with a topic: a database would hold the locks of a host that is frozen.
    pub const TOPIC: Scene = Scene { results: Kind::Topic, ..Scene::TABLE };

    /// The cluster that it is on.
    pub fn cluster(&self) -> Which {
        match (self.nodes, self.small_disk) {
            (3, _) => Which::Three,
            (_, true) => Which::Small,
            (_, false) => Which::One,
        }
    }

    /// Makes topics and databases, on servers that the first caller starts.
    pub(super) fn set(&self, lab: &mut Lab, mode: &Mode) -> Result<Standing> {
        let kind = mode.results.unwrap_or(self.results);
        let kafka = &lab.cluster(self.cluster())?.kafka;
        let (bootstrap, front) = (kafka.bootstrap(), kafka.bootstrap_of_fronts());
        let for_hosts = if self.behind_proxies { front } else { bootstrap.clone() };
        let (sink, database) = match kind {
            Kind::Table | Kind::Books(Engine::Postgres) => self.database(lab.database()?)?,
            Kind::Topic | Kind::Books(Engine::Sqlite) => (Sink::at(String::new()), String::new()),
        };
        let scenario = if self.letters {
            Scenario::with(&bootstrap, self.partitions, sink)?
        } else {
            Scenario::without_letters(&bootstrap, self.partitions, sink)?
        };
        let folder = tempfile::Builder::new().prefix("tidemill-scene-").tempdir()?;
        let door = Setup::on_kafka(&for_hosts, &[&scenario.topic]).argument("--only").argument("ingest");
        let host = Setup::on_kafka(&for_hosts, &[]);
        let (results, host) = match kind {
            Kind::Table => {
                let handler = scenario.handler(&self.manifest(mode));
                (Results::Table(scenario.sink.clone()), host.database(&database).handler(handler))
            }
            Kind::Topic => {
                let out = names::unique("out");
                topics::create(&bootstrap, &out, 1)?;
                let handler = self.forwarding(&scenario, mode, &out);
                (Results::Topic(Forwarded::from(&scenario, &out)), host.handler(handler))
            }
            Kind::Books(Engine::Postgres) => {
                let handler = self.booking(&scenario, mode, &books::schema(self.delay, self.commit_delay));
                let books = Books::Postgres(scenario.sink.clone());
                (booked(&scenario, books), host.database(&database).handler(handler))
            }
            Kind::Books(Engine::Sqlite) => {
                let handler = self.booking(&scenario, mode, &books::schema_for_sqlite());
                let file = folder.path().join("main.db");
                (booked(&scenario, Books::Sqlite(file.clone())), in_sqlite(host, &file).handler(handler))
            }
        };
        let worker = match self.membership {
            Membership::Cooperative | Membership::Static => host,
            Membership::Newer => host.with("\n[broker.consumer]\n\"group.protocol\" = \"consumer\"\n"),
        };
        Ok(Standing { scenario, results, worker, door, folder })
    }

    /// A new database, as the checker and as hosts reach it.
    fn database(&self, database: &Database) -> Result<(Sink, String)> {
        let url = database.postgres.create_database(&names::unique("faults").replace('-', "_"))?;
        let (direct, front) = (database.postgres.port(), database.proxy.port());
        let for_hosts = if self.behind_proxies {
            url.replace(&format!("127.0.0.1:{direct}"), &format!("127.0.0.1:{front}"))
        } else {
            url.clone()
        };
        let sink = Sink::at(url).slow(self.delay).slow_to_commit(self.commit_delay);
        Ok((sink, format!("{for_hosts}?application_name={HOST_SESSIONS}")))
    }

    /// Small calls and buffers, so that a fault meets many calls and each bound is reached; a short session.
    fn manifest(&self, mode: &Mode) -> String {
        let session = match self.membership {
            Membership::Cooperative | Membership::Static => format!(
                "consumer_properties.\"session.timeout.ms\" = \"{}\"\nconsumer_properties.\"heartbeat.interval.ms\" = \"500\"\n",
                SESSION_TIMEOUT.as_millis()
            ),
            Membership::Newer => String::new(),
        };
        format!(
            "{}\n{}\nbatch.records_max = {}\nbuffer.records_max = 200\nbuffer.span_max = 400\ndrain_deadline = \"5s\"\n{session}",
            mode.manifest, self.manifest, self.call_records
        )
    }

    fn forwarding(&self, scenario: &Scenario, mode: &Mode, out: &str) -> Handler {
        let manifest = format!(
            "topics = [\"{}\"]\n{}\n[grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\nms = \"{}\"\n",
            scenario.topic,
            self.manifest(mode),
            self.delay.as_millis()
        );
        Handler::new(&scenario.handler, self.guest, &manifest)
    }

    fn booking(&self, scenario: &Scenario, mode: &Mode, schema: &str) -> Handler {
        let manifest =
            format!("topics = [\"{}\"]\n{}\n[grants]\nsql = [\"main\"]\n", scenario.topic, self.manifest(mode));
        Handler::new(&scenario.handler, "ledger", &manifest).migration(schema)
    }
}

fn booked(scenario: &Scenario, books: Books) -> Results {
    let (bootstrap, source) = (scenario.bootstrap.clone(), scenario.topic.clone());
    Results::Books(Booked { bootstrap, source, books })
}

fn in_sqlite(host: Setup, file: &Path) -> Setup {
    host.with(&format!("\n[sql.main]\nkind = \"sqlite\"\nfile = \"{}\"\n", file.display()))
}
