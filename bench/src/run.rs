//! One run of one contender, and what it measures.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use serde_json::{Value, json};

use crate::{native, native_transactions, pipeline, topics};

/// What to run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Run {
    #[arg(long)]
    pub(crate) contender: Contender,
    #[arg(long)]
    pub(crate) bootstrap: String,
    /// The filled topic.
    #[arg(long)]
    pub(crate) input: String,
    /// Where the copies go.
    #[arg(long)]
    pub(crate) output: String,
    /// A group that never committed.
    #[arg(long)]
    pub(crate) group: String,
    /// How many records to measure.
    #[arg(long)]
    pub(crate) records: u64,
    /// Records of a call.
    #[arg(long, default_value_t = 100)]
    pub(crate) batch: usize,
    /// Whether the guest makes its values anew.
    #[arg(long)]
    pub(crate) new_values: bool,
    /// How long a guest's state lives.
    #[arg(long, default_value = "reuse")]
    pub(crate) isolation: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Contender {
    /// The usual loop: `BaseConsumer::poll` and `ThreadedProducer`.
    Native,
    /// The usual transactional loop, 100 ms a transaction, with its commit fixed.
    NativeTransactions,
    /// The host's pipeline with a guest that copies.
    Tidemill,
    /// The same, exactly once, 100 ms a transaction.
    TidemillTransactions,
}

/// What one run came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// Calls of the guest; 0 without one.
    pub(crate) calls: u64,
}

impl Run {
    /// What each client of a native loop has.
    pub(crate) fn client(&self) -> ClientConfig {
        topics::client(&self.bootstrap)
    }

    /// The consumer of a native loop, not subscribed yet.
    pub(crate) fn consumer(&self) -> Result<BaseConsumer> {
        let mut config = self.client();
        config.set("group.id", &self.group).set("auto.offset.reset", "earliest");
        config.set("enable.auto.commit", "false").set("fetch.queue.backoff.ms", "5");
        Ok(config.create()?)
    }

    pub(crate) fn run(&self) -> Result<()> {
        let measured = match self.contender {
            Contender::Native => native::run(self)?,
            Contender::NativeTransactions => native_transactions::run(self)?,
            Contender::Tidemill | Contender::TidemillTransactions => pipeline::run(self)?,
        };
        measured.tell();
        Ok(())
    }
}

impl Measured {
    /// Runs a contender as a process of its own, and reads what it tells.
    pub(crate) fn by(mut command: Command, label: &str) -> Result<Self> {
        let done =
            command.stderr(Stdio::inherit()).output().with_context(|| format!("{label}: it can't be started"))?;
        ensure!(done.status.success(), "{label}: the run failed");
        let text = String::from_utf8(done.stdout)?;
        let result: Value = serde_json::from_str(text.lines().last().context("the run printed nothing")?)?;
        let number = |key: &str| result[key].as_f64().with_context(|| format!("the run printed no {key}"));
        Ok(Self {
            records: number("records")? as u64,
            seconds: number("seconds")?,
            cpu_seconds: number("cpu_seconds")?,
            calls: number("calls")? as u64,
        })
    }

    /// Prints one line for who started this process.
    pub(crate) fn tell(self) {
        let Self { records, seconds, cpu_seconds, calls } = self;
        let line = json!({ "records": records, "seconds": seconds, "cpu_seconds": cpu_seconds, "calls": calls });
        println!("{line}");
    }
}

/// Time and CPU time of this process since a moment.
pub(crate) struct Watch {
    started: Instant,
    cpu: Duration,
}

impl Watch {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self { started: Instant::now(), cpu: cpu_time()? })
    }

    pub(crate) fn stop(&self, records: u64) -> Result<Measured> {
        let cpu_seconds = (cpu_time()? - self.cpu).as_secs_f64();
        Ok(Measured { records, seconds: self.started.elapsed().as_secs_f64(), cpu_seconds, calls: 0 })
    }
}

/// User and system time of this process so far, all threads.
fn cpu_time() -> Result<Duration> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).context("getrusage")?;
    let micros =
        |time: nix::sys::time::TimeVal| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64);
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}
