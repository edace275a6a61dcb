//! The command line: flags in, exit codes out. What the commands do is in the library.

pub mod check;
pub mod client;
pub mod dlq;
pub mod guests;
pub mod new;
pub mod offsets;
pub mod park;
mod progress;
pub mod replay;
pub mod run;
pub(crate) mod text;
pub mod topic;
pub mod whereabouts;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::telemetry;

/// A WebAssembly consumer host for Kafka.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, max_term_width = 100)]
pub struct Cli {
    /// What is logged: a level, or directives such as `info,tidemill::consumer=debug`.
    #[arg(long = "log", global = true, env = "TIDEMILL_LOG", default_value = "info")]
    log: String,
    /// How it is logged; by default for people on a terminal and as JSON otherwise.
    #[arg(long, global = true, env = "TIDEMILL_LOG_FORMAT")]
    log_format: Option<telemetry::Format>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the host until SIGTERM.
    Run(run::Args),
    /// Checks the configuration, the manifests and the guests, and starts nothing.
    Check(ConfigPath),
    /// Lists, makes, reads and fills topics.
    Topic(TopicArgs),
    /// Counts, shows and sends again what became a dead letter.
    Dlq(DlqArgs),
    /// Says where a record is with each handler: waiting, running, to be tried again, done or dead-lettered.
    Where(whereabouts::Args),
    /// Shows where a handler's group stands, and lets it begin elsewhere.
    Offsets(offsets::Args),
    /// Reads a range of the log once more through a handler, into the same or other stores, without moving its offsets.
    Replay(replay::Args),
    /// Shows what runs in a host, and goes back to the revision before.
    Guests(guests::Args),
    /// Lets a handler of a running host start no more calls, also after a restart. It keeps its place in its group.
    Pause(guests::HandlerArgs),
    /// Lets a paused handler go on where it stood.
    Resume(guests::HandlerArgs),
    /// Shows a handler's parked keys.
    Park(park::ParkArgs),
    /// Tries parked keys again, in order, on the revision that is live.
    Unpark(park::UnparkArgs),
    /// Writes the project of a new handler.
    New(new::NewArgs),
    /// Builds the handler in this folder, or names the command that is missing.
    Build(new::BuildArgs),
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
pub struct ConfigPath {
    /// The configuration file.
    #[arg(long, short, global = true, env = "TIDEMILL_CONFIG", default_value = "tidemill.toml")]
    pub config: PathBuf,
}

#[derive(Debug, clap::Args)]
struct TopicArgs {
    #[command(flatten)]
    config: ConfigPath,
    #[command(subcommand)]
    command: topic::Command,
}

#[derive(Debug, clap::Args)]
struct DlqArgs {
    #[command(flatten)]
    config: ConfigPath,
    #[command(subcommand)]
    command: dlq::Command,
}

/// How a command failed, as an exit code.
#[derive(Debug)]
pub enum Failure {
    /// 1: something went wrong while it ran.
    Failed(anyhow::Error),
    /// 2: the configuration, a manifest or a guest is refused; it is the operator's move.
    Refused(Vec<String>),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Cli {
    /// Sets up logging and does what the command says.
    pub fn execute(self) -> Result<(), Failure> {
        telemetry::install(&self.log, self.log_format)?;
        match self.command {
            Command::Run(args) => run::run(&args),
            Command::Check(args) => check::check(&args.config),
            Command::Topic(args) => crate::app::topic(&args.config.config, args.command),
            Command::Dlq(args) => crate::app::dlq(&args.config.config, args.command),
            Command::Where(args) => crate::app::whereabouts(args),
            Command::Offsets(args) => offsets::run(args),
            Command::Replay(args) => replay::run(&args),
            Command::Guests(args) => Ok(guests::run(args)?),
            Command::Pause(args) => Ok(guests::pause(args, true)?),
            Command::Resume(args) => Ok(guests::pause(args, false)?),
            Command::Park(args) => Ok(park::park(args)?),
            Command::Unpark(args) => Ok(park::unpark(args)?),
            Command::New(args) => Ok(new::new(&args)?),
            Command::Build(args) => Ok(new::build(&args)?),
        }
    }
}

/// Runs a command's work. What still runs on blocking threads after it (a compilation, a query) does not hold the exit.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("tidemill").build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

/// Writes a line to standard output, where a command's answer goes.
pub(crate) fn say(line: &str) -> std::io::Result<()> {
    use std::io::{ErrorKind, Write};
    match writeln!(std::io::stdout().lock(), "{line}") {
        // Whoever reads has read enough, such as `head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
