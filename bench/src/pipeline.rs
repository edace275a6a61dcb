//! Tidemill's pipeline, in process: the same rooms as in the host, without HTTP.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tempfile::TempDir;
use tidemill::broker::Broker;
use tidemill::broker::kafka::Kafka;
use tidemill::config::manifest::HandlerSpec;
use tidemill::consumer::{Budget, Group, Membership};
use tidemill::guest::live::LiveHandler;
use tidemill::guest::{Backends, Engine, Handler};
use tidemill::metrics::{HandlerMetrics, Metrics, OutcomeKind, RevisionMetrics};
use tidemill::settle::letter::HeaderStyle;
use tidemill::settle::{DeadLetters, Settler};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::run::{Contender, Measured, Run, Watch};

const LOOK_INTERVAL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(120);

/// One handler that consumes.
pub(crate) struct Pipeline {
    pub(crate) metrics: Arc<HandlerMetrics>,
    pub(crate) membership: Arc<Membership>,
    revision: Arc<RevisionMetrics>,
    stop: CancellationToken,
    group: JoinHandle<()>,
    runtime: Runtime,
    /// The handler's folder and the compiled guest are in it.
    _folder: TempDir,
}

impl Pipeline {
    /// Starts a prebuilt guest with this manifest.
    pub(crate) fn start(bootstrap: &str, guest: &str, manifest: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let spec = spec(folder.path(), guest, manifest)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let kafka = toml::from_str(&format!("[properties]\n\"bootstrap.servers\" = \"{bootstrap}\""))?;
        let metrics = Metrics::new().handler(guest);
        let membership = Arc::<Membership>::default();
        let stop = CancellationToken::new();
        let broker = Kafka::new(kafka)?;
        let inside = runtime.enter();
        let producer = broker.producer(&BTreeMap::new())?;
        let backends = Backends {
            kv: BTreeMap::new(),
            sql: BTreeMap::new(),
            secrets: BTreeMap::new(),
            producer: Arc::clone(&producer),
        };
        let engine = Arc::new(Engine::new(&folder.path().join("state"))?);
        let module = fs::read(&spec.module)?;
        let live = runtime.block_on(LiveHandler::load(&engine, &spec, &backends, Arc::clone(&metrics), module))?;
        let revision = metrics.revision(&live.revision());
        let letters = DeadLetters {
            handler: guest.into(),
            group: spec.consumer.subscription.group.as_str().into(),
            topic: None,
            headers: HeaderStyle::Native,
        };
        let settler = Settler::new(producer, spec.retry.clone(), letters, Arc::clone(&metrics));
        let budget = Budget::new(usize::MAX, Metrics::new().held_bytes());
        let group = Group::new(
            broker,
            spec.consumer.clone(),
            Arc::new(live),
            settler,
            Arc::clone(&metrics),
            Arc::clone(&membership),
            budget,
        );
        let group = runtime.spawn(group.run(stop.clone()));
        drop(inside);
        Ok(Self { metrics, membership, revision, stop, group, runtime, _folder: folder })
    }

    /// Records that the guest is done with.
    pub(crate) fn done(&self) -> u64 {
        self.revision.outcomes(OutcomeKind::Ack).get()
    }

    /// Measures from the first record until `done` says that there were as many as are wanted.
    pub(crate) fn measure(&self, wanted: u64, done: impl Fn() -> u64) -> Result<Measured> {
        let started = Instant::now();
        let mut watch = None;
        while done() < wanted {
            ensure!(started.elapsed() < PATIENCE, "only {} of {wanted} records were done", done());
            if watch.is_none() && self.metrics.received_records.get() > 0 {
                watch = Some(Watch::start()?);
            }
            thread::sleep(LOOK_INTERVAL);
        }
        let measured = watch.ok_or_else(|| anyhow!("nothing was to be done"))?.stop(done())?;
        Ok(Measured { calls: self.metrics.attempts.get(), ..measured })
    }

    /// Drains, commits and leaves.
    pub(crate) fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.runtime.block_on(self.group).context("the pipeline ended badly")
    }
}

pub(crate) fn run(run: &Run) -> Result<Measured> {
    let pipeline = Pipeline::start(&run.bootstrap, "identity", &manifest(run))?;
    let measured = pipeline.measure(run.records, || pipeline.metrics.outputs.get())?;
    pipeline.stop()?;
    Ok(measured)
}

fn manifest(run: &Run) -> String {
    let batch = if run.isolation == "record" { 1 } else { run.batch };
    // At the rates of a benchmark the interval should be what closes a transaction, as in the native loop.
    let delivery = match run.contender {
        Contender::TidemillTransactions => {
            "delivery = \"exactly-once\"\nexactly_once = { interval = \"100ms\", records_max = 1000000, bytes_max = \"256MiB\" }\n"
        }
        Contender::Tidemill | Contender::Native | Contender::NativeTransactions => "",
    };
    format!(
        "{delivery}topics = [\"{}\"]\ngroup = \"{}\"\nisolation = \"{}\"\nbatch.records_max = {batch}\ngrants.produce = [\"{output}\"]\nconfig.to = \"{output}\"\nconfig.new_values = \"{new_values}\"\n",
        run.input,
        run.group,
        run.isolation,
        output = run.output,
        new_values = run.new_values,
    )
}

fn spec(folder: &std::path::Path, guest: &str, manifest: &str) -> Result<HandlerSpec> {
    let folder = folder.join(guest);
    fs::create_dir_all(&folder)?;
    let module = format!("{guest}.wasm");
    fs::copy(xtask::tree::root().join("guests/prebuilt").join(&module), folder.join(&module))?;
    fs::write(folder.join("handler.toml"), manifest)?;
    HandlerSpec::read(&folder).map_err(|problems| anyhow!("{problems:?}"))
}
