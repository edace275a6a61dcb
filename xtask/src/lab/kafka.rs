//! Real Apache Kafka (KRaft) on loopback, from Maven Central's jars.

use std::fmt::Write;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::process::{Farewell, Process};
use super::{jars, port, wait};

const READY_DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// What every node is told. Small and quick, and bounded: a partition keeps at most 256 MiB, whatever a test produces.
/// Nothing is deleted by time, since a test may replay records that carry the timestamps of another year.
const SETTINGS: &str = "\
process.roles=broker,controller
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,FRONT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
auto.create.topics.enable=false
num.partitions=1
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
broker.session.timeout.ms=6000
controlled.shutdown.enable=true
log.cleaner.dedupe.buffer.size=2097152
log.segment.bytes=67108864
log.retention.bytes=268435456
log.retention.ms=-1
log.retention.check.interval.ms=5000
log.segment.delete.delay.ms=1000
";

/// What a cluster is made of.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Nodes that are brokers and controllers: 1 or 3.
    pub nodes: u16,
    /// Where the lone node keeps its records, instead of in a temporary folder.
    pub data: Option<PathBuf>,
    /// Whether rights can be taken from clients. All have all until then.
    pub authorizes: bool,
}

/// A cluster of its own. Dropping it kills its nodes and removes their data; so does our death.
pub struct Kafka {
    nodes: Vec<Node>,
    folder: TempDir,
}

struct Node {
    id: u16,
    ports: Ports,
    process: Process,
}

/// Where a node listens.
#[derive(Debug, Clone, Copy)]
struct Ports {
    clients: u16,
    controllers: u16,
    /// For clients that come through a proxy, and where they are told that the node is.
    behind: u16,
    front: u16,
}

/// Where a proxy has to listen for a node, and where to pass on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Front {
    /// What clients are told.
    pub port: u16,
    /// What the node listens on.
    pub to: u16,
}

impl Kafka {
    /// Starts 1 or 3 nodes, fetching the jars first if they are not there, and waits until they serve.
    pub fn start_nodes(count: u16) -> Result<Kafka> {
        Kafka::start_with(&Options { nodes: count, ..Options::default() })
    }

    /// The same, made as it is said.
    pub fn start_with(options: &Options) -> Result<Kafka> {
        let count = options.nodes;
        ensure!(matches!(count, 1 | 3), "a cluster has 1 or 3 nodes, not {count}");
        ensure!(count == 1 || options.data.is_none(), "only a lone node can be told where to keep its records");
        let jars = fetched()?;
        let folder = tempfile::Builder::new().prefix("tidemill-kafka-").tempdir()?;
        let ports = port::free::<12>()?;
        let cluster = cluster_id();
        let plan: Vec<(u16, Ports)> = (1..=count).zip(ports.chunks(4).map(Ports::of)).collect();
        let voters: Vec<String> =
            plan.iter().map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports.controllers)).collect();
        let mut formats = Vec::new();
        for (id, ports) in &plan {
            let properties = folder.path().join(format!("node{id}.properties"));
            let data = options.data.clone().unwrap_or_else(|| folder.path().join(format!("node{id}.data")));
            let text = properties_of(*id, options, *ports, &voters.join(","), &data.to_string_lossy());
            fs::write(&properties, text)?;
            let mut format = java(&jars, &["-XX:TieredStopAtLevel=1", "-Xmx128m"])?;
            format.args(["kafka.tools.StorageTool", "format", "-t", &cluster, "-c"]).arg(&properties);
            let log = folder.path().join(format!("node{id}.format"));
            formats.push(Process::start("the storage tool", &format, &log, &farewell(&folder))?);
        }
        for mut format in formats {
            let status = format.wait(READY_DEADLINE)?;
            ensure!(status.success(), "kafka's storage could not be formatted: {status}\n{}", format.log_tail());
        }
        let mut kafka = Kafka { nodes: Vec::new(), folder };
        for (id, ports) in plan {
            let process = kafka.launch(id)?;
            kafka.nodes.push(Node { id, ports, process });
        }
        kafka.nodes.iter_mut().try_for_each(Node::wait_until_serving)?;
        Ok(kafka)
    }

    /// The value of `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        addresses(self.nodes.iter().map(|node| node.ports.clients))
    }

    /// The same for clients that go through proxies, which the caller starts: one for each of [`Kafka::fronts`].
    pub fn bootstrap_of_fronts(&self) -> String {
        addresses(self.nodes.iter().map(|node| node.ports.front))
    }

    /// Where the proxies have to be.
    pub fn fronts(&self) -> Vec<Front> {
        self.nodes.iter().map(|node| Front { port: node.ports.front, to: node.ports.behind }).collect()
    }

    /// Runs one of Kafka's own commands, such as `AclCommand`, and answers what it printed.
    pub fn command(&self, class: &str, arguments: &[&str]) -> Result<String> {
        let mut command = java(&fetched()?, &["-XX:TieredStopAtLevel=1", "-Xmx128m"])?;
        command.arg(format!("org.apache.kafka.tools.{class}")).args(["--bootstrap-server", &self.bootstrap()]);
        let output = command.args(arguments).output().with_context(|| format!("run Kafka's `{class}`"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "`{class}` failed: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// SIGKILL: the node loses its memory, not its disk.
    pub fn kill(&mut self, id: u16) -> Result<()> {
        self.node(id)?.process.kill()
    }

    /// Stops a node in order; the last one of a lost quorum never finishes that, and is killed.
    pub fn stop(&mut self, id: u16) -> Result<()> {
        self.node(id)?.process.terminate(STOP_DEADLINE)
    }

    /// Starts a stopped or killed node again, on its ports and data, and waits until it serves.
    pub fn start(&mut self, id: u16) -> Result<()> {
        if self.node(id)?.process.exited()?.is_none() {
            bail!("kafka node {id} runs already");
        }
        let process = self.launch(id)?;
        let node = self.node(id)?;
        node.process = process;
        node.wait_until_serving()
    }

    /// Whether a node has ended, by itself or by us.
    pub fn has_ended(&mut self, id: u16) -> Result<bool> {
        Ok(self.node(id)?.process.exited()?.is_some())
    }

    /// SIGSTOP: connections stay open and nobody answers.
    pub fn pause(&mut self, id: u16) -> Result<()> {
        self.node(id)?.process.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn resume(&mut self, id: u16) -> Result<()> {
        self.node(id)?.process.signal(Signal::SIGCONT)
    }

    fn node(&mut self, id: u16) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.id == id).with_context(|| format!("there is no kafka node {id}"))
    }

    fn launch(&self, id: u16) -> Result<Process> {
        let mut command = java(&fetched()?, &["-Xms128m", "-Xmx384m", "-XX:-UsePerfData", "-Djava.awt.headless=true"])?;
        command.arg("kafka.Kafka").arg(self.folder.path().join(format!("node{id}.properties")));
        let log = self.folder.path().join(format!("node{id}.log"));
        if log.exists() {
            fs::rename(&log, log.with_extension("log.before"))?;
        }
        Process::start(&format!("kafka node {id}"), &command, &log, &farewell(&self.folder))
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // The nodes die before their folder is removed: fields would be dropped in this order too, but it matters.
        self.nodes.clear();
    }
}

impl Node {
    fn wait_until_serving(&mut self) -> Result<()> {
        let what = format!("kafka node {} to serve", self.id);
        let served = wait::until(&what, READY_DEADLINE, || {
            if let Some(status) = self.process.exited()? {
                bail!("kafka node {} ended by itself: {status}", self.id);
            }
            let says_so = self.process.log().contains("Kafka Server started");
            Ok((says_so && TcpStream::connect(("127.0.0.1", self.ports.clients)).is_ok()).then_some(()))
        });
        served.with_context(|| self.process.log_tail())
    }
}

fn fetched() -> Result<PathBuf> {
    jars::fetched("Apache Kafka (55 MB)", &crate::tree::root().join("xtask/lab/pom.xml"))
}

fn farewell(folder: &TempDir) -> Farewell<'_> {
    Farewell { signal: Signal::SIGKILL, leftovers: Some(folder.path()) }
}

impl Ports {
    /// # Panics
    /// When there are not four.
    fn of(free: &[u16]) -> Ports {
        let [clients, controllers, behind, front] = *free else { panic!("a node has four ports") };
        Ports { clients, controllers, behind, front }
    }
}

fn addresses(ports: impl Iterator<Item = u16>) -> String {
    ports.map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
}

fn properties_of(id: u16, options: &Options, ports: Ports, voters: &str, data: &str) -> String {
    let nodes = options.nodes;
    let in_sync = if nodes > 1 { 2 } else { 1 };
    let Ports { clients, controllers, behind, front } = ports;
    let mut text = String::from(SETTINGS);
    let mut set = |key: &str, value: &str| writeln!(text, "{key}={value}").expect("a string takes everything");
    set("node.id", &id.to_string());
    set("controller.quorum.voters", voters);
    set(
        "listeners",
        &format!("PLAINTEXT://127.0.0.1:{clients},FRONT://127.0.0.1:{behind},CONTROLLER://127.0.0.1:{controllers}"),
    );
    set("advertised.listeners", &format!("PLAINTEXT://127.0.0.1:{clients},FRONT://127.0.0.1:{front}"));
    set("log.dirs", data);
    set("default.replication.factor", &nodes.to_string());
    set("min.insync.replicas", &in_sync.to_string());
    set("offsets.topic.replication.factor", &nodes.to_string());
    set("transaction.state.log.replication.factor", &nodes.to_string());
    set("transaction.state.log.min.isr", &in_sync.to_string());
    set("share.coordinator.state.topic.replication.factor", &nodes.to_string());
    set("share.coordinator.state.topic.min.isr", &in_sync.to_string());
    if options.authorizes {
        set("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer");
        set("allow.everyone.if.no.acl.found", "true");
    }
    text
}

fn java(jars: &Path, options: &[&str]) -> Result<Command> {
    let log4j = crate::tree::root().join("xtask/lab/log4j2.xml");
    let mut command = Command::new("java");
    command.args(["-Xshare:auto", "-XX:+UseSerialGC"]).args(options);
    command.arg(format!("-Dlog4j2.configurationFile={}", log4j.to_str().context("the tree's path is UTF-8")?));
    command.arg("-cp").arg(jars.join("*"));
    Ok(command)
}

/// A UUID in the 22 characters of Kafka's base64: any will do that does not begin with a dash.
fn cluster_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let random = |place: u64| RandomState::new().hash_one(place) as usize;
    let mut id: String = (0..21).map(|place| char::from(ALPHABET[random(place) % 62])).collect();
    // 16 bytes leave two bits for the last character.
    id.push(char::from(ALPHABET[random(21) % 4 * 16]));
    id
}
