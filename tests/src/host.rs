//! The real binary as a child process: configured in a folder of its own, watched, signalled, killed.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use tempfile::TempDir;
use xtask::lab::process::{Farewell, Process};
use xtask::lab::wait;
use xtask::tree;

use crate::metrics::Metrics;

const READY_DEADLINE: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A handler as its author would lay it down: a manifest, a guest, perhaps a schema.
#[derive(Debug, Clone)]
pub struct Handler {
    /// Its folder's name.
    pub name: String,
    guest: Guest,
    manifest: String,
    migration: Option<String>,
}

#[derive(Debug, Clone)]
enum Guest {
    /// One of the project's guests, by its name.
    Ours(String),
    /// Bytes that may be anything.
    Bytes(Arc<[u8]>),
}

impl Handler {
    /// A handler with one of the project's guests.
    pub fn new(name: &str, guest: &str, manifest: &str) -> Handler {
        let guest = Guest::Ours(guest.to_owned());
        Handler { name: name.to_owned(), guest, manifest: manifest.to_owned(), migration: None }
    }

    /// The same with these bytes as its guest.
    pub fn component(self, bytes: &[u8]) -> Handler {
        Handler { guest: Guest::Bytes(bytes.into()), ..self }
    }

    /// The same with this first migration.
    pub fn migration(self, text: &str) -> Handler {
        Handler { migration: Some(text.to_owned()), ..self }
    }

    fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        if let Some(migration) = &self.migration {
            fs::create_dir_all(folder.join("migrations"))?;
            fs::write(folder.join("migrations/V1__schema.sql"), migration)?;
        }
        fs::write(folder.join("handler.toml"), &self.manifest)?;
        self.guest.write(&folder.join("guest.wasm"))
    }
}

impl Guest {
    fn write(&self, file: &Path) -> Result<()> {
        match self {
            Guest::Ours(name) => {
                let from = guests().join(format!("{name}.wasm"));
                fs::copy(&from, file).with_context(|| format!("copy the guest `{}`", from.display()))?;
            }
            Guest::Bytes(bytes) => fs::write(file, bytes)?,
        }
        Ok(())
    }
}

/// A host before it runs.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    configuration: String,
    handlers: Vec<Handler>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Setup {
    /// A host on this Kafka cluster, with free ports for admin and, unless there are no topics for it, ingest.
    pub fn on_kafka(bootstrap: &str, ingest_topics: &[&str]) -> Setup {
        let mut configuration = format!(
            "[broker]\nkind = \"kafka\"\n\n[broker.properties]\n\"bootstrap.servers\" = \"{bootstrap}\"\n\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n\n[handlers]\nfolder = \"handlers\"\n"
        );
        if !ingest_topics.is_empty() {
            configuration += &format!("\n[ingest]\nlisten = \"127.0.0.1:0\"\ntopics = {ingest_topics:?}\n");
        }
        Setup { configuration, ..Setup::default() }
    }

    /// A host with a log of its own in this folder, and ingest of these topics.
    pub fn on_embedded(log: &Path, ingest_topics: &[&str]) -> Setup {
        let configuration = format!(
            "[broker]\nkind = \"embedded\"\npath = \"{}\"\n\n[ingest]\nlisten = \"127.0.0.1:0\"\ntopics = {ingest_topics:?}\n\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n\n[handlers]\nfolder = \"handlers\"\n",
            log.display()
        );
        Setup { configuration, ..Setup::default() }
    }

    /// The same with more of tidemill.toml.
    pub fn with(mut self, configuration: &str) -> Setup {
        self.configuration.push_str(configuration);
        self
    }

    /// The same with more at the beginning of tidemill.toml, where its first keys are.
    pub fn ahead(mut self, configuration: &str) -> Setup {
        self.configuration.insert_str(0, configuration);
        self
    }

    /// The same with a PostgreSQL database, `main` to its guests.
    pub fn database(self, url: &str) -> Setup {
        self.with(&format!("\n[sql.main]\nkind = \"postgres\"\nurl = \"{url}\"\n"))
    }

    /// The same with one more handler.
    pub fn handler(mut self, handler: Handler) -> Setup {
        self.handlers.push(handler);
        self
    }

    /// The same with a flag of `tidemill run`.
    pub fn argument(mut self, argument: &str) -> Setup {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The same, broken on purpose; needs a binary with the feature `fault-injection`.
    pub fn fault(mut self, fault: &str) -> Setup {
        self.environment.push(("TIDEMILL_FAULT".to_owned(), fault.to_owned()));
        self
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(&self) -> Result<Host> {
        let folder = tempfile::Builder::new().prefix("tidemill-host-").tempdir()?;
        fs::write(folder.path().join("tidemill.toml"), &self.configuration)?;
        fs::create_dir(folder.path().join("handlers"))?;
        for handler in &self.handlers {
            handler.write(&folder.path().join("handlers").join(&handler.name))?;
        }
        let ready = folder.path().join("ready.json");
        let mut command = Command::new(binary());
        command.current_dir(folder.path()).args(["run", "--config", "tidemill.toml", "--ready-file"]).arg(&ready);
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        let farewell = Farewell { signal: Signal::SIGKILL, leftovers: Some(folder.path()) };
        let mut process = Process::start("the host", &command, &folder.path().join("host.log"), &farewell)?;
        let addresses = wait::until("the host to be ready", READY_DEADLINE, || {
            if let Some(status) = process.exited()? {
                bail!("the host ended by itself: {status}");
            }
            let text = fs::read(&ready).unwrap_or_default();
            Ok(serde_json::from_slice::<Addresses>(&text).ok())
        });
        let addresses = addresses.with_context(|| process.log_tail())?;
        let host = Host { process, folder, addresses };
        let ready = || Ok(host.admin("/readyz").is_ok_and(|(status, _)| status == 200).then_some(()));
        wait::until("the host's /readyz", READY_DEADLINE, ready)?;
        Ok(host)
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Addresses {
    ingest: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

/// A running host, or what is left of one. Dropping it kills it; if the test fails, its log is shown.
pub struct Host {
    process: Process,
    folder: TempDir,
    addresses: Addresses,
}

/// How a host ended after SIGTERM.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// How long it took.
    pub took: Duration,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// Whether its exit code is 0.
    pub succeeded: bool,
    /// Its standard output.
    pub printed: String,
    /// Its log, and why it failed.
    pub told: String,
}

impl Host {
    /// Where records go in.
    pub fn ingest(&self) -> Result<String> {
        let address = self.addresses.ingest.context("this host has no ingest")?;
        Ok(format!("http://{address}"))
    }

    /// Where its admin endpoint is.
    pub fn admin_url(&self) -> Result<String> {
        let address = self.addresses.admin.context("this host has no admin endpoint")?;
        Ok(format!("http://{address}"))
    }

    /// Asks the admin endpoint: status and body.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        let url = self.admin_url()?;
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(REQUEST_TIMEOUT));
        let mut response = config.build().new_agent().get(format!("{url}{path}")).call()?;
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    }

    /// Runs a command of the binary that asks this host, and returns what it says.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binary());
        command.current_dir(self.folder.path()).args(arguments).args(["--admin", &self.admin_url()?]);
        let output = command.output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Its metrics now.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.admin("/metrics")?;
        ensure!(status == 200, "/metrics answered {status}");
        Ok(Metrics::parse(&text))
    }

    /// Runs a command of the binary beside the host, with its configuration, and returns what it printed.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let Said { succeeded, printed, told } = self.command_says(arguments)?;
        ensure!(succeeded, "`{}` failed: {told}", arguments.join(" "));
        Ok(printed)
    }

    /// The same for one that may fail.
    pub fn command_says(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new(binary());
        let output = command.current_dir(self.folder.path()).args(arguments).output()?;
        let (printed, told) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
        Ok(Said { succeeded: output.status.success(), printed, told })
    }

    /// Lays down a new handler as an installer would: written aside, then renamed into place.
    pub fn drop_in(&self, handler: &Handler) -> Result<()> {
        let aside = self.folder.path().join(format!("aside-{}", handler.name));
        handler.write(&aside)?;
        fs::rename(aside, self.handler_folder(&handler.name))?;
        Ok(())
    }

    /// Replaces a handler's guest by rename.
    pub fn swap(&self, handler: &str, guest: &str) -> Result<()> {
        self.replace(handler, &Guest::Ours(guest.to_owned()))
    }

    /// Replaces a handler's guest by these bytes.
    pub fn swap_bytes(&self, handler: &str, bytes: &[u8]) -> Result<()> {
        self.replace(handler, &Guest::Bytes(bytes.into()))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL, as a power cut would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGSTOP: it keeps its memory and its connections, and does nothing.
    pub fn pause(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn resume(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self, deadline: Duration) -> Result<Ended> {
        let started = Instant::now();
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(deadline)?;
        Ok(Ended { code: status.code(), took: started.elapsed() })
    }

    /// SIGTERM, without waiting for the end.
    pub fn ask_to_end(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }

    /// Everything that it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The file of the guest that a handler runs.
    pub fn guest_file(&self, handler: &str) -> PathBuf {
        self.handler_folder(handler).join("guest.wasm")
    }

    fn handler_folder(&self, handler: &str) -> PathBuf {
        self.folder.path().join("handlers").join(handler)
    }

    fn replace(&self, handler: &str, guest: &Guest) -> Result<()> {
        let aside = self.folder.path().join("aside.wasm");
        guest.write(&aside)?;
        fs::rename(aside, self.guest_file(handler))?;
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.process.log_tail());
        }
    }
}

/// The bytes of one of the project's guests.
pub fn guest_bytes(name: &str) -> Result<Vec<u8>> {
    let file = guests().join(format!("{name}.wasm"));
    fs::read(&file).with_context(|| format!("read the guest `{}`", file.display()))
}

/// The same guest with another digest: a custom section, which says nothing, is added at its end.
pub fn with_another_digest(guest: &[u8], number: u32) -> Vec<u8> {
    let name = format!("build {number:08}");
    let name_length = u8::try_from(name.len()).expect("a short name");
    let mut bytes = guest.to_vec();
    bytes.extend([0, name_length + 1, name_length]);
    bytes.extend(name.as_bytes());
    bytes
}

/// The binary under test: from the environment, or where cargo builds it.
fn binary() -> PathBuf {
    std::env::var_os("TIDEMILL_BIN").map_or_else(|| tree::target().join("debug/tidemill"), PathBuf::from)
}

/// The guests under test: from the environment, those built from source, or the prebuilt ones.
fn guests() -> PathBuf {
    if let Some(folder) = std::env::var_os("TIDEMILL_GUESTS") {
        return PathBuf::from(folder);
    }
    let built = tree::target().join("guests");
    if built.exists() { built } else { tree::root().join("guests/prebuilt") }
}
