//! Tidemill's pipeline, in process: the same rooms as in the host, without HTTP.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tidemill::broker::Broker;
use tidemill::broker::kafka::Kafka;
use tidemill::config::manifest::HandlerSpec;
use tidemill::consumer::{Budget, Group};
use tidemill::guest::live::LiveHandler;
use tidemill::guest::{Backends, Engine};
use tidemill::metrics::Metrics;
use tidemill::settle::letter::HeaderStyle;
use tidemill::settle::{DeadLetters, Settler};
use tokio_util::sync::CancellationToken;

use crate::run::{Contender, Measured, Run, Watch};

const LOOK_INTERVAL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(run: &Run) -> Result<Measured> {
    let folder = tempfile::tempdir()?;
    let spec = spec(run, folder.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let kafka = toml::from_str(&format!("[properties]\n\"bootstrap.servers\" = \"{}\"", run.bootstrap))?;
    let metrics = Metrics::new().handler("identity");
    let stop = CancellationToken::new();
    let group = {
        let broker = Kafka::new(kafka)?;
        let _inside = runtime.enter();
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
        let letters = DeadLetters {
            handler: "identity".into(),
            group: run.group.as_str().into(),
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
            Arc::default(),
            budget,
        );
        runtime.spawn(group.run(stop.clone()))
    };
    let started = Instant::now();
    let mut watch = None;
    while metrics.outputs.get() < run.records {
        ensure!(started.elapsed() < PATIENCE, "only {} of {} records were copied", metrics.outputs.get(), run.records);
        if watch.is_none() && metrics.received_records.get() > 0 {
            watch = Some(Watch::start()?);
        }
        thread::sleep(LOOK_INTERVAL);
    }
    let measured = watch.ok_or_else(|| anyhow!("nothing was to be copied"))?.stop(metrics.outputs.get())?;
    stop.cancel();
    runtime.block_on(group).context("the pipeline ended badly")?;
    Ok(Measured { calls: metrics.attempts.get(), ..measured })
}

fn spec(run: &Run, folder: &std::path::Path) -> Result<HandlerSpec> {
    let folder = folder.join("identity");
    fs::create_dir_all(&folder)?;
    fs::copy(xtask::tree::root().join("guests/prebuilt/identity.wasm"), folder.join("identity.wasm"))?;
    let batch = if run.isolation == "record" { 1 } else { run.batch };
    // At the rates of a benchmark the interval should be what closes a transaction, as in the native loop.
    let delivery = match run.contender {
        Contender::TidemillTransactions => {
            "delivery = \"exactly-once\"\nexactly_once = { interval = \"100ms\", records_max = 1000000, bytes_max = \"256MiB\" }\n"
        }
        Contender::Tidemill | Contender::Native | Contender::NativeTransactions => "",
    };
    let manifest = format!(
        "{delivery}topics = [\"{}\"]\ngroup = \"{}\"\nisolation = \"{}\"\nbatch.records_max = {batch}\ngrants.produce = [\"{output}\"]\nconfig.to = \"{output}\"\nconfig.new_values = \"{new_values}\"\n",
        run.input,
        run.group,
        run.isolation,
        output = run.output,
        new_values = run.new_values,
    );
    fs::write(folder.join("handler.toml"), manifest)?;
    HandlerSpec::read(&folder).map_err(|problems| anyhow!("{problems:?}"))
}
