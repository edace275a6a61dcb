//! Builds the parts from the configuration, starts them, drains them; the only room that names implementations (ARCH-3).

pub(crate) mod offsets;
mod replay;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub(crate) use self::replay::replay;
use self::view::View;
use crate::admin::{self, Admin};
use crate::broker::embedded::{self, Embedded};
use crate::broker::kafka::Kafka;
use crate::broker::{Broker, BrokerError, Producer};
use crate::cli::{Failure, dlq as dlq_command, topic as topic_command, whereabouts as whereabouts_command};
use crate::config::{self, Config, Problem};
use crate::consumer::Budget;
use crate::fleet::{self, Fleet, HandlerError, Pauses, Rollbacks, Roster};
use crate::guest::{Backends, Engine};
use crate::ingest::{self, Ingest};
use crate::metrics::Metrics;
use crate::store::memory::MemoryKeyValue;
use crate::store::postgres::Postgres;
use crate::store::sqlite::{Sqlite, SqliteKeyValue};
use crate::store::{KeyValue, Sql};

/// One of the host's two roles, to run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// HTTP in.
    Ingest,
    /// Handlers.
    Handlers,
}

/// How long the producer may take to connect before the host says that it is ready without.
const WARM_DEADLINE: Duration = Duration::from_secs(10);

/// How much longer than `shutdown_deadline` the process may take to end.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// Runs the host until SIGTERM or SIGINT, then drains it. A second signal ends the process at once.
pub async fn run(config: Config, only: Option<Role>, ready_file: Option<PathBuf>) -> Result<(), Failure> {
    let path = config.path.clone();
    config.check_roles().map_err(|problem| Failure::Refused(vec![problem.to_string()]))?;
    match &config.broker {
        config::Broker::Embedded(embedded) => {
            let broker = Embedded::open(embedded, &config.folder).map_err(|error| refused(&path, "broker", error))?;
            host(broker, config, only, ready_file).await
        }
        config::Broker::Kafka(kafka) => {
            let broker = Kafka::new(kafka.clone()).map_err(|error| refused(&path, "broker", error))?;
            kafka.costs().iter().for_each(|cost| tracing::warn!("{cost}"));
            host(broker, config, only, ready_file).await
        }
    }
}

/// Loads everything and starts nothing; returns the handlers' names.
pub async fn check(config: Config) -> Result<Vec<String>, Failure> {
    let mut refusals: Vec<String> = config.check_roles().err().iter().map(Problem::to_string).collect();
    let mut section = |error: Option<String>| {
        refusals.extend(error.map(|error| format!("{}: {error}", config.path.display())));
    };
    section(config.ingest.as_ref().and_then(|ingest| Some(ingest.check(&config.folder).err()?.to_string())));
    section(config.admin.as_ref().and_then(|admin| Some(admin.check(&config.folder).err()?.to_string())));
    let kafka = match &config.broker {
        config::Broker::Embedded(embedded) => {
            section(Embedded::check(embedded).err().map(|error| format!("`broker` can't work: {error}")));
            None
        }
        config::Broker::Kafka(kafka) => match Kafka::new(kafka.clone()) {
            Ok(kafka) => Some(kafka),
            Err(error) => {
                section(Some(format!("`broker` can't work: {error}")));
                None
            }
        },
    };
    // Manifests and guests are looked at as well, so that everything that is wrong is said at once.
    let stand_in = Embedded::in_memory().map_err(|error| refused(&config.path, "broker", error))?;
    let handlers = match kafka {
        Some(kafka) => check_handlers(kafka, &stand_in, &config).await,
        None => check_handlers(stand_in.clone(), &stand_in, &config).await,
    };
    match handlers {
        Ok(names) if refusals.is_empty() => Ok(names),
        Ok(_) => Err(Failure::Refused(refusals)),
        Err(Failure::Refused(more)) => Err(Failure::Refused([refusals, more].concat())),
        Err(failed) => Err(failed),
    }
}

/// Loads the handlers for this broker. What they would send goes to a stand-in, since nothing is to be connected.
async fn check_handlers<B: Broker>(broker: B, stand_in: &Embedded, config: &Config) -> Result<Vec<String>, Failure> {
    let Some(folder) = config.handlers.clone() else { return Ok(Vec::new()) };
    let producer = stand_in.producer(&BTreeMap::new())?;
    let parts = parts(broker, producer, config, &Metrics::new()).await?;
    Fleet::new(folder, parts, Arc::default()).check().await.map_err(handlers_refused)
}

/// Does a topic command on the configured log.
pub fn topic(path: &Path, command: topic_command::Command) -> Result<(), Failure> {
    on_log(path, command.only_reads(), LogCommand::Topic(command))
}

/// Does a command about dead letters on the configured log.
pub fn dlq(path: &Path, command: dlq_command::Command) -> Result<(), Failure> {
    on_log(path, command.only_reads(), LogCommand::Dlq(command))
}

/// Says where a record is, by the configured log and by a host that runs on it.
pub fn whereabouts(args: whereabouts_command::Args) -> Result<(), Failure> {
    let path = args.config.config.clone();
    on_log(&path, true, LogCommand::Where(args))
}

/// A command that needs the log and no host.
enum LogCommand {
    Topic(topic_command::Command),
    Dlq(dlq_command::Command),
    Where(whereabouts_command::Args),
}

fn on_log(path: &Path, only_reads: bool, command: LogCommand) -> Result<(), Failure> {
    let config = crate::cli::check::configuration(path)?;
    let handlers = config.handlers.as_deref();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match &config.broker {
            config::Broker::Embedded(embedded) => {
                command.run(&embedded_log(embedded, &config.folder, only_reads)?, handlers).await
            }
            config::Broker::Kafka(kafka) => command.run(&Kafka::new(kafka.clone())?, handlers).await,
        }
    })
}

/// The log in a folder: beside the host that owns it, or owned.
fn embedded_log(config: &embedded::Config, folder: &Path, only_reads: bool) -> Result<Embedded, BrokerError> {
    if only_reads { Embedded::open_read_only(config, folder) } else { Embedded::open(config, folder) }
}

impl LogCommand {
    async fn run<B: Broker>(self, broker: &B, handlers: Option<&Path>) -> Result<(), Failure> {
        match self {
            Self::Topic(command) => Ok(topic_command::run(broker, command).await?),
            Self::Dlq(command) => Ok(dlq_command::run(broker, handlers, command).await?),
            Self::Where(args) => Ok(whereabouts_command::run(broker, handlers, args).await?),
        }
    }
}

async fn host<B: Broker>(
    broker: B,
    config: Config,
    only: Option<Role>,
    ready_file: Option<PathBuf>,
) -> Result<(), Failure> {
    let mut signals = Signals::install()?;
    let metrics = Metrics::new();
    let roster: Arc<Roster> = Arc::default();
    let producer = broker.producer(&BTreeMap::new()).map_err(|error| refused(&config.path, "broker", error))?;
    let mut producers = vec![Arc::clone(&producer)];
    // A client waits for each record: ingest's are sent at once instead of waiting for company.
    let for_ingest = match config.ingest.as_ref().filter(|_| only != Some(Role::Handlers)) {
        Some(ingest) => {
            let properties = BTreeMap::from([("linger.ms".to_owned(), "0".to_owned())]);
            let own = broker.producer(&properties).map_err(|error| refused(&config.path, "broker", error))?;
            producers.push(Arc::clone(&own));
            Some((ingest, own))
        }
        None => None,
    };
    let pauses = Arc::new(Pauses::new(&config.state));
    let rollbacks = Arc::new(Rollbacks::new(&config.state));
    let view = Arc::new(View::new(Arc::clone(&roster), producers.clone(), metrics.clone(), pauses, rollbacks));
    let doors = Doors::bind(&config, for_ingest, &view, &metrics).await?;
    let addresses = doors.addresses();
    let mut fleet = match config.handlers.clone().filter(|_| only != Some(Role::Ingest)) {
        Some(folder) => {
            let parts = parts(broker, Arc::clone(&producer), &config, &metrics).await?;
            Some(Fleet::new(folder, parts, roster))
        }
        None => None,
    };
    if let Some(fleet) = &mut fleet {
        fleet.start().await.map_err(handlers_refused)?;
    }

    let (stop_ingest, stop_handlers, stop_admin) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let fleet = fleet.map(|fleet| tokio::spawn(fleet.run(stop_handlers.clone())));
    let admin = doors.admin.map(|admin| tokio::spawn(admin.run(stop_admin.clone())));
    warm(&producers, &config).await;
    let ingest = doors.ingest.map(|ingest| tokio::spawn(ingest.run(stop_ingest.clone())));
    tracing::info!(
        ingest = addresses.ingest.map(tracing::field::display),
        admin = addresses.admin.map(tracing::field::display),
        "the host runs"
    );
    view.started();
    let announced = tokio::spawn(view::announce(Arc::clone(&view), addresses, ready_file));

    signals.first().await;
    announced.abort();
    view.stopping();
    tracing::info!(deadline = ?config.shutdown_deadline, "the host drains and ends; a second signal ends it at once");
    tokio::spawn(end_at_once(signals));
    end_in_any_case(config.shutdown_deadline + EXIT_GRACE);
    let drain = async {
        stop_ingest.cancel();
        join("ingest", ingest).await;
        stop_handlers.cancel();
        join("handlers", fleet).await;
        for producer in &producers {
            let unsent = producer.flush(config.shutdown_deadline).await;
            if unsent > 0 {
                tracing::warn!(
                    unsent,
                    "records were not acknowledged before the end; whoever sent them was told, or they come again"
                );
            }
        }
        stop_admin.cancel();
        join("admin", admin).await;
    };
    let late = || {
        let deadline = config.shutdown_deadline;
        anyhow!("the host did not drain within `shutdown_deadline` ({deadline:?}); what was in hand is delivered again")
    };
    tokio::time::timeout(config.shutdown_deadline, drain).await.map_err(|_| late())?;
    tracing::info!("the host has ended");
    Ok(())
}

/// Connects the producers ahead of the first record. The host goes on without, and says when it is ready.
async fn warm(producers: &[Arc<dyn Producer>], config: &Config) {
    let topics: Vec<Arc<str>> =
        config.ingest.iter().flat_map(|ingest| &ingest.topics).map(|topic| topic.as_str().into()).collect();
    for producer in producers {
        if let Err(error) = producer.warm(&topics, WARM_DEADLINE).await {
            tracing::warn!(%error, "a producer is not connected yet; the host goes on and says when it is ready");
        }
    }
}

/// A second signal: the operator has waited enough.
async fn end_at_once(mut signals: Signals) {
    signals.first().await;
    tracing::warn!("a second signal: the host ends at once; what was in hand is delivered again");
    process::exit(130);
}

/// Whatever holds the process up behind its deadline, such as a client of the broker that waits for a coordinator that is
/// away (librdkafka 2.12.1), it ends. A thread of the system's, since the runtime may be what is held up.
fn end_in_any_case(after: Duration) {
    let end = move || {
        std::thread::sleep(after);
        tracing::error!("the host did not end by itself and is ended; what was in hand is delivered again");
        process::exit(1);
    };
    if let Err(error) = std::thread::Builder::new().name("exit".to_owned()).spawn(end) {
        tracing::warn!(%error, "no thread to end the host in any case");
    }
}

/// The host's listeners.
struct Doors {
    ingest: Option<Ingest>,
    admin: Option<Admin>,
}

impl Doors {
    async fn bind(
        config: &Config,
        for_ingest: Option<(&ingest::Config, Arc<dyn Producer>)>,
        view: &Arc<View>,
        metrics: &Metrics,
    ) -> Result<Self, Failure> {
        let admin = match &config.admin {
            Some(admin) => {
                let host = Arc::clone(view) as Arc<dyn admin::Host>;
                let bound = Admin::bind(admin, &config.folder, host, metrics.clone()).await;
                Some(bound.map_err(|error| section_refused(&config.path, &error))?)
            }
            None => None,
        };
        let ingest = match for_ingest {
            Some((ingest, producer)) => {
                let bound = Ingest::bind(ingest, &config.folder, producer, metrics.ingest()).await;
                Some(bound.map_err(|error| section_refused(&config.path, &error))?)
            }
            None => None,
        };
        Ok(Self { ingest, admin })
    }

    fn addresses(&self) -> view::Addresses {
        view::Addresses {
            ingest: self.ingest.as_ref().map(Ingest::address),
            admin: self.admin.as_ref().map(Admin::address),
        }
    }
}

async fn join(part: &str, task: Option<tokio::task::JoinHandle<()>>) {
    if let Some(task) = task
        && let Err(error) = task.await
    {
        tracing::error!(part, %error, "a part of the host ended badly");
    }
}

async fn parts<B: Broker>(
    broker: B,
    producer: Arc<dyn Producer>,
    config: &Config,
    metrics: &Metrics,
) -> Result<fleet::Parts<B>, Failure> {
    let backends = Backends {
        kv: kv_stores(config).await?,
        sql: databases(config, |_| true).await?,
        secrets: config.secrets.clone(),
        producer: Arc::clone(&producer),
    };
    let engine = Arc::new(Engine::new(&config.state).context("the sandbox can't be set up")?);
    let budget = Budget::new(config.bytes_max, metrics.held_bytes());
    let pauses = Arc::new(Pauses::new(&config.state));
    let rollbacks = Arc::new(Rollbacks::new(&config.state));
    Ok(fleet::Parts { broker, producer, engine, backends, metrics: metrics.clone(), budget, pauses, rollbacks })
}

async fn kv_stores(config: &Config) -> Result<BTreeMap<String, Arc<dyn KeyValue>>, Failure> {
    let mut stores: BTreeMap<String, Arc<dyn KeyValue>> = BTreeMap::new();
    for (name, kv) in &config.kv {
        let store: Arc<dyn KeyValue> = match kv {
            config::Kv::Memory(memory) => Arc::new(MemoryKeyValue::new(memory.clone())),
            config::Kv::Sqlite(sqlite) => {
                let mut sqlite = sqlite.clone();
                sqlite.file = config.folder.join(&sqlite.file);
                let opened = SqliteKeyValue::open(sqlite).await;
                Arc::new(opened.map_err(|error| refused(&config.path, &format!("kv.{name}"), error))?)
            }
        };
        stores.insert(name.clone(), store);
    }
    Ok(stores)
}

/// The configured databases whose names are wanted.
async fn databases(config: &Config, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Arc<dyn Sql>>, Failure> {
    let mut databases: BTreeMap<String, Arc<dyn Sql>> = BTreeMap::new();
    for (name, sql) in config.sql.iter().filter(|(name, _)| wanted(name)) {
        let key = format!("sql.{name}");
        let database: Arc<dyn Sql> = match sql {
            config::Sql::Sqlite(sqlite) => {
                let mut sqlite = sqlite.clone();
                sqlite.file = config.folder.join(&sqlite.file);
                Arc::new(Sqlite::open(sqlite).await.map_err(|error| refused(&config.path, &key, error))?)
            }
            config::Sql::Postgres(postgres) => {
                let opened = Postgres::new(postgres.clone(), &config.folder);
                Arc::new(opened.map_err(|error| refused(&config.path, &key, error))?)
            }
        };
        databases.insert(name.clone(), database);
    }
    Ok(databases)
}

fn refused(path: &Path, key: &str, error: impl std::fmt::Display) -> Failure {
    Failure::Refused(vec![Problem::invalid(path, key, format!("can't work: {error}")).to_string()])
}

/// For errors that name their key themselves.
fn section_refused(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Refused(vec![format!("{}: {error}", path.display())])
}

fn handlers_refused(errors: Vec<HandlerError>) -> Failure {
    Failure::Refused(errors.iter().map(HandlerError::to_string).collect())
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
