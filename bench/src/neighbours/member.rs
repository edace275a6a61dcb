//! A member of the group: Tidemill's pipeline in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::wait;

use super::PATIENCE;
use crate::pipeline::Pipeline;

const JOINED: &str = "joined";
const CONCURRENCY: u64 = 64;

/// What the process is told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Member {
    #[arg(long)]
    bootstrap: String,
    /// What it reads; its group has the same name.
    #[arg(long)]
    input: String,
    /// Where its outputs go.
    #[arg(long)]
    output: String,
    #[arg(long)]
    drain_deadline_ms: u64,
}

impl Member {
    /// Consumes until standard input ends, as it does when who started it is gone.
    pub(crate) fn run(&self) -> Result<()> {
        let Self { bootstrap, input, output, drain_deadline_ms } = self;
        let manifest = format!(
            "topics = [\"{input}\"]\nconcurrency = {CONCURRENCY}\ndrain_deadline = \"{drain_deadline_ms}ms\"\ngroup = \"{input}\"\ngrants.produce = [\"{output}\"]\n[config]\nms = \"value\"\nto = \"{output}\"\n"
        );
        let pipeline = Pipeline::start(bootstrap, "slow", &manifest)?;
        wait::until("the group to take the member in", PATIENCE, || Ok(pipeline.membership.is_joined().then_some(())))?;
        println!("{JOINED}");
        std::io::stdin().read_to_end(&mut Vec::new())?;
        pipeline.stop()
    }
}

/// A member that runs. Dropping it ends it too, without waiting.
pub(crate) struct Running {
    child: Child,
    lifeline: ChildStdin,
}

impl Running {
    /// Starts a member and waits until it is one.
    pub(crate) fn start(bootstrap: &str, input: &str, output: &str, drain_deadline: Duration) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["member", "--bootstrap", bootstrap, "--input", input, "--output", output]);
        command.args(["--drain-deadline-ms", &drain_deadline.as_millis().to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a member")?;
        let lifeline = child.stdin.take().context("its standard input was asked for")?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("its standard output was asked for")?).read_line(&mut said)?;
        ensure!(said.trim() == JOINED, "the member ended before it had joined");
        Ok(Self { child, lifeline })
    }

    /// Lets it drain, commit and leave.
    pub(crate) fn stop(self) -> Result<()> {
        let Self { mut child, lifeline } = self;
        drop(lifeline);
        ensure!(child.wait()?.success(), "the member ended badly");
        Ok(())
    }
}
