//! Builds the parts from the configuration, starts them, drains them; the only room that names implementations (ARCH-3).

mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::view::View;
use crate::broker::embedded::Embedded;
use crate::broker::kafka::Kafka;
use crate::broker::{Broker, Producer};
use crate::cli::{Failure, topic as topic_command};
use crate::config::{self, Config, Problem};
use crate::fleet::{self, Fleet, HandlerError, Roster};
use crate::guest::{Backends, Engine};
use crate::metrics::Metrics;
use crate::store::memory::MemoryKv;
use crate::store::postgres::Postgres;
use crate::store::sqlite::{SqliteKv, SqliteSql};
use crate::store::{KeyValue, Sql};
use crate::{admin, ingest};

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

/// Runs the host until SIGTERM or SIGINT, then drains it. A second signal ends the process at once.
pub async fn run(config: Config, only: Option<Role>, ready_file: Option<PathBuf>) -> Result<(), Failure> {
    let path = config.path.clone();
    match &config.broker {
        config::Broker::Embedded(embedded) => {
            let broker = Embedded::open(embedded, &config.folder).map_err(|error| refused(&path, "broker", error))?;
            host(broker, config, only, ready_file).await
        }
        config::Broker::Kafka(kafka) => {
            let broker = Kafka::new(kafka).map_err(|error| refused(&path, "broker", error))?;
            host(broker, config, only, ready_file).await
        }
    }
}

/// Loads everything and starts nothing; returns the handlers' names.
pub async fn check(config: Config) -> Result<Vec<String>, Failure> {
    let Some(folder) = config.handlers.clone() else { return Ok(Vec::new()) };
    let broker = Embedded::in_memory().map_err(|error| refused(&config.path, "broker", error))?;
    if let config::Broker::Kafka(kafka) = &config.broker {
        Kafka::new(kafka).map_err(|error| refused(&config.path, "broker", error))?;
    }
    let producer = broker.producer(&BTreeMap::new())?;
    let metrics = Arc::new(Metrics::new());
    let fleet = Fleet::new(folder, parts(broker, producer, &config, &metrics)?, Arc::default());
    fleet.check().await.map_err(handlers_refused)
}

/// Does a topic command on the configured log.
pub fn topic(path: &Path, command: topic_command::Command) -> Result<(), Failure> {
    let config = crate::cli::check::configuration(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match &config.broker {
            config::Broker::Embedded(embedded) => {
                let broker = if command.only_reads() {
                    Embedded::open_read_only(embedded, &config.folder)
                } else {
                    Embedded::open(embedded, &config.folder)
                };
                topic_command::run(&broker.map_err(anyhow::Error::from)?, command).await
            }
            config::Broker::Kafka(kafka) => topic_command::run(&Kafka::new(kafka)?, command).await,
        }
    })?;
    Ok(())
}

async fn host<B: Broker>(
    broker: B,
    config: Config,
    only: Option<Role>,
    ready_file: Option<PathBuf>,
) -> Result<(), Failure> {
    let mut signals = Signals::install()?;
    let metrics = Arc::new(Metrics::new());
    let roster: Arc<Roster> = Arc::default();
    let producer = broker.producer(&BTreeMap::new()).map_err(|error| refused(&config.path, "broker", error))?;
    let (stop_ingest, stop_handlers, stop_admin) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());

    let admin = match &config.admin {
        Some(admin) => Some(admin::bind(admin, &config.folder).await.map_err(|error| refused(&config.path, "admin", error))?),
        None => None,
    };
    let ingest = match config.ingest.as_ref().filter(|_| only != Some(Role::Handlers)) {
        Some(ingest) => {
            let properties = BTreeMap::from([("linger.ms".to_owned(), "0".to_owned())]);
            let producer = broker.producer(&properties).map_err(|error| refused(&config.path, "broker", error))?;
            let bound = ingest::bind(ingest, &config.folder, producer, metrics.ingest()).await;
            Some(bound.map_err(|error| refused(&config.path, "ingest", error))?)
        }
        None => None,
    };
    let addresses = view::Addresses {
        ingest: ingest.as_ref().map(ingest::Bound::address),
        admin: admin.as_ref().map(admin::Bound::address),
    };

    let fleet = match config.handlers.clone().filter(|_| only != Some(Role::Ingest)) {
        Some(folder) => {
            let parts = parts(broker.clone(), Arc::clone(&producer), &config, &metrics)?;
            let mut fleet = Fleet::new(folder, parts, Arc::clone(&roster));
            fleet.start().await.map_err(handlers_refused)?;
            Some(fleet)
        }
        None => None,
    };
    let view = Arc::new(View::new(roster, Arc::clone(&producer), stop_handlers.clone()));
    let admin = admin.map(|bound| tokio::spawn(bound.serve(Arc::clone(&view) as _, Arc::clone(&metrics), stop_admin.clone())));
    let fleet = fleet.map(|fleet| tokio::spawn(fleet.run(stop_handlers.clone())));
    let warm = producer.warm(&[], WARM_DEADLINE).await;
    if let Err(error) = warm {
        tracing::warn!(%error, "the producer is not connected yet; the host goes on and says when it is ready");
    }
    let ingest = ingest.map(|bound| tokio::spawn(bound.serve(stop_ingest.clone())));
    tracing::info!(ingest = ?addresses.ingest, admin = ?addresses.admin, "the host runs");

    let announced = tokio::spawn(view::announce(Arc::clone(&view), addresses, ready_file));
    signals.first().await;
    announced.abort();
    tracing::info!(deadline = ?config.shutdown_deadline, "the host drains and ends; a second signal ends it at once");
    tokio::spawn(async move {
        signals.first().await;
        tracing::warn!("a second signal: the host ends at once; what was in hand is delivered again");
        process::exit(130);
    });
    view.stopping();
    let drain = async {
        stop_ingest.cancel();
        join("ingest", ingest).await;
        stop_handlers.cancel();
        join("handlers", fleet).await;
        let unsent = producer.flush(config.shutdown_deadline).await;
        if unsent > 0 {
            tracing::warn!(unsent, "records were not acknowledged before the end; those that they came from are delivered again");
        }
        stop_admin.cancel();
        join("admin", admin).await;
    };
    if tokio::time::timeout(config.shutdown_deadline, drain).await.is_err() {
        return Err(anyhow::anyhow!(
            "the host did not drain within `shutdown_deadline` ({:?}); what was in hand is delivered again",
            config.shutdown_deadline
        )
        .into());
    }
    tracing::info!("the host has ended");
    Ok(())
}

async fn join(part: &str, task: Option<tokio::task::JoinHandle<()>>) {
    if let Some(task) = task
        && let Err(error) = task.await
    {
        tracing::error!(part, %error, "a part of the host ended badly");
    }
}

fn parts<B: Broker>(
    broker: B,
    producer: Arc<dyn Producer>,
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<fleet::Parts<B>, Failure> {
    let backends = Backends {
        kv: kv_stores(config)?,
        sql: databases(config)?,
        secrets: config.secrets.clone(),
        producer: Arc::clone(&producer),
    };
    let engine = Arc::new(Engine::new(&config.state).context("the sandbox can't be set up")?);
    Ok(fleet::Parts { broker, producer, engine, backends, metrics: Arc::clone(metrics) })
}

fn kv_stores(config: &Config) -> Result<BTreeMap<String, Arc<dyn KeyValue>>, Failure> {
    let mut stores: BTreeMap<String, Arc<dyn KeyValue>> = BTreeMap::new();
    for (name, kv) in &config.kv {
        let store: Arc<dyn KeyValue> = match kv {
            config::Kv::Memory(memory) => Arc::new(MemoryKv::new(memory.clone())),
            config::Kv::Sqlite(sqlite) => Arc::new(
                SqliteKv::open(sqlite.from(&config.folder))
                    .map_err(|error| refused(&config.path, &format!("kv.{name}"), error))?,
            ),
        };
        stores.insert(name.clone(), store);
    }
    Ok(stores)
}

fn databases(config: &Config) -> Result<BTreeMap<String, Arc<dyn Sql>>, Failure> {
    let mut databases: BTreeMap<String, Arc<dyn Sql>> = BTreeMap::new();
    for (name, sql) in &config.sql {
        let key = format!("sql.{name}");
        let database: Arc<dyn Sql> = match sql {
            config::Sql::Sqlite(sqlite) => Arc::new(
                SqliteSql::open(sqlite.from(&config.folder)).map_err(|error| refused(&config.path, &key, error))?,
            ),
            config::Sql::Postgres(postgres) => {
                let url = postgres.url.read(&config.folder).map_err(|error| refused(&config.path, &format!("{key}.url"), error))?;
                Arc::new(Postgres::new(&url, postgres).map_err(|error| refused(&config.path, &key, error))?)
            }
        };
        databases.insert(name.clone(), database);
    }
    Ok(databases)
}

fn refused(path: &Path, key: &str, error: impl std::fmt::Display) -> Failure {
    Failure::Refused(vec![Problem::invalid(path, key, format!("can't work: {error}")).to_string()])
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
