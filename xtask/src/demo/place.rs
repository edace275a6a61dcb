//! Where the demo happens: a folder, a configuration, a host.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::orders::Post;
use nix::sys::signal::Signal;
use xtask::lab::process::{Farewell, Process};
use xtask::lab::wait;
use xtask::tree;

/// The demo's folder and the addresses of its host.
pub(super) struct Place {
    folder: PathBuf,
    http: ureq::Agent,
}

const CONFIGURATION: &str = r#"# The whole configuration of the demo.
[broker]
kind = "embedded"
path = "log"

[ingest]
listen = "127.0.0.1:0"
topics = ["orders"]

[admin]
listen = "127.0.0.1:0"

[handlers]
folder = "handlers"

[sql.main]
kind = "sqlite"
file = "orders.db"
"#;

impl Place {
    /// An empty folder with the configuration and one handler, `orders`.
    pub(super) fn new() -> Result<Self> {
        let folder = tree::target().join("demo");
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("can't clear `{}`; does a demo still run?", folder.display()))?;
        }
        fs::create_dir_all(folder.join("handlers"))?;
        fs::write(folder.join("tidemill.toml"), CONFIGURATION)?;
        let agent =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(30)));
        let place = Self { folder, http: agent.build().into() };
        place.install("orders")?;
        Ok(place)
    }

    /// Starts the host and waits until it is ready.
    pub(super) fn start(&self) -> Result<Process> {
        let binary = tree::target().join("debug/tidemill");
        let mut command = Command::new(&binary);
        let farewell = Farewell { signal: Signal::SIGTERM, leftovers: None };
        command.args(["run", "--ready-file", "ready.json"]).current_dir(&self.folder);
        let mut host = Process::start("tidemill", &command, &self.folder.join("tidemill.log"), &farewell)?;
        let ready = self.folder.join("ready.json");
        wait::until("the host to be ready", Duration::from_secs(60), || match host.exited()? {
            Some(status) => bail!("the host ended: {status}\n{}", host.log_tail()),
            None => Ok(ready.exists().then_some(())),
        })?;
        println!("The host runs in {} (log: tidemill.log).", self.folder.display());
        Ok(host)
    }

    /// Copies an example handler into the handlers' folder, whole: it is renamed into place.
    fn install(&self, name: &str) -> Result<()> {
        let source = tree::root().join("guests").join(name);
        let half = self.folder.join("handlers").join(format!(".{name}"));
        copy_folder(&source.join("migrations"), &half.join("migrations"))?;
        fs::copy(source.join("handler.toml"), half.join("handler.toml"))?;
        fs::copy(component(name), half.join(format!("{name}.wasm")))?;
        fs::rename(&half, self.folder.join("handlers").join(name))?;
        Ok(())
    }

    pub(super) fn drop_in_audit(&self) -> Result<()> {
        self.install("audit")
    }

    /// Renames another build of `orders` over the running one and returns the start of its digest.
    pub(super) fn swap_orders(&self) -> Result<String> {
        let mut bytes = fs::read(component("orders"))?;
        // A custom section named `demo`: the same logic, another revision.
        bytes.extend_from_slice(b"\x00\x05\x04demo");
        let target = self.folder.join("handlers/orders/orders.wasm");
        let half = target.with_extension("tmp");
        fs::write(&half, &bytes)?;
        fs::rename(&half, &target)?;
        let digest = sha256(&bytes);
        wait::until("the swap", Duration::from_secs(20), || {
            let live = self
                .handlers()?
                .iter()
                .any(|handler| handler["revision"].as_str().is_some_and(|live| live.starts_with(&digest)));
            Ok(live.then_some(()))
        })?;
        Ok(digest)
    }

    /// Posts until the host has the orders: what it refuses for now is sent again.
    pub(super) fn post(&self, post: &Post) -> Result<()> {
        let url = format!("http://{}/topics/orders?key=customer", self.address("ingest")?);
        let started = Instant::now();
        loop {
            let answer = self.http.post(&url).content_type("application/x-ndjson").send(post.body())?;
            match answer.status().as_u16() {
                200..=299 => return Ok(()),
                503 if started.elapsed() < Duration::from_secs(30) => std::thread::sleep(Duration::from_millis(50)),
                status => bail!("POST answered {status}: {}", answer.into_body().read_to_string().unwrap_or_default()),
            }
        }
    }

    /// Waits until every handler has settled everything; returns how long that took.
    pub(super) fn wait_until_settled(&self, deadline: Duration) -> Result<Duration> {
        let started = Instant::now();
        let accepted = self.records("orders")?;
        wait::until("the handlers to reach the end of their topics", deadline, || {
            let groups = ["orders", "audit"];
            let committed: Result<Vec<u64>> = groups.iter().map(|handler| self.committed(handler)).collect();
            Ok(committed?.iter().all(|settled| *settled == accepted).then_some(()))
        })?;
        Ok(started.elapsed())
    }

    /// How many records of `orders` a handler's group is past, by the host's metrics.
    fn committed(&self, handler: &str) -> Result<u64> {
        let url = format!("http://{}/metrics", self.address("admin")?);
        let text = self.http.get(&url).call()?.into_body().read_to_string()?;
        let wanted = format!("handler=\"{handler}\"");
        let mut sum = 0.0;
        for line in text.lines().filter(|line| line.starts_with(super::checks::COMMITTED) && line.contains(&wanted)) {
            sum += line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
        }
        Ok(sum as u64)
    }

    /// How many records each topic holds, by `tidemill topic list`.
    pub(super) fn topics(&self) -> Result<BTreeMap<String, u64>> {
        let output = Command::new(tree::target().join("debug/tidemill"))
            .args(["topic", "list", "--json", "--log", "error"])
            .current_dir(&self.folder)
            .output()?;
        ensure!(output.status.success(), "`tidemill topic list` failed: {}", String::from_utf8_lossy(&output.stderr));
        let listed: Value =
            serde_json::from_slice(&output.stdout).context("`tidemill topic list --json` gave no JSON")?;
        let record = |topic: &Value| Some((topic["name"].as_str()?.to_owned(), topic["records"].as_u64()?));
        Ok(listed.as_array().into_iter().flatten().filter_map(record).collect())
    }

    fn records(&self, topic: &str) -> Result<u64> {
        Ok(self.topics()?.get(topic).copied().unwrap_or(0))
    }

    fn handlers(&self) -> Result<Vec<Value>> {
        let url = format!("http://{}/handlers", self.address("admin")?);
        let answer: Value = self.http.get(&url).call()?.into_body().read_json()?;
        let list = answer.as_array().or_else(|| answer["handlers"].as_array()).context("admin lists no handlers")?;
        Ok(list.clone())
    }

    /// The SQLite file that the handlers write.
    pub(super) fn database(&self) -> PathBuf {
        self.folder.join("orders.db")
    }

    fn address(&self, part: &str) -> Result<String> {
        let ready: Value = serde_json::from_slice(&fs::read(self.folder.join("ready.json"))?)?;
        Ok(ready[part].as_str().with_context(|| format!("the host has no {part}"))?.to_owned())
    }

    /// What to try while the host stays up.
    pub(super) fn invitation(&self) -> Result<String> {
        let (ingest, admin) = (self.address("ingest")?, self.address("admin")?);
        Ok(format!(
            "\nThe host stays up; Ctrl-C ends it. Try:\n\
             \n  curl -i http://{ingest}/topics/orders -H 'Tidemill-Key: c-01' -d '{{\"id\":\"mine\",\"customer\":\"c-01\",\"amount_cents\":100}}'\
             \n  curl -s http://{admin}/handlers\
             \n  curl -s http://{admin}/metrics | grep tidemill_\n"
        ))
    }
}

fn component(name: &str) -> PathBuf {
    tree::root().join("guests/prebuilt").join(format!("{name}.wasm"))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}
