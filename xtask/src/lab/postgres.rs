//! A throw-away PostgreSQL on loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::process::{Farewell, Process};
use super::{port, wait};

const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Ends PostgreSQL at once, but lets it give back its shared memory, which SIGKILL would leak.
const IMMEDIATE: Signal = Signal::SIGQUIT;
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A server of its own. Dropping it stops it and removes its data; so does our death.
pub struct Postgres {
    port: u16,
    programs: PathBuf,
    process: Process,
    folder: TempDir,
}

impl Postgres {
    /// Makes an empty server and waits until it answers. Root runs it as the user `postgres`, since it refuses root.
    pub fn start_new() -> Result<Postgres> {
        let programs = programs()?;
        let folder = tempfile::Builder::new().prefix("tidemill-postgres-").tempdir_in(reachable_folder()?)?;
        if is_root() {
            let status = Command::new("chown").arg("postgres:").arg(folder.path()).status()?;
            ensure!(status.success(), "there is no user `postgres`; on Debian: apt-get install postgresql");
        }
        let mut init = unprivileged(&programs.join("initdb"), folder.path());
        init.args(["-U", "tidemill", "--auth=trust", "-E", "UTF8", "--no-locale", "--no-sync", "-D"]);
        let output = init.arg(folder.path().join("data")).output().context("run `initdb`")?;
        ensure!(output.status.success(), "`initdb` failed: {}", String::from_utf8_lossy(&output.stderr));
        let [port] = port::free::<1>()?;
        let process = launch(&programs, folder.path(), port)?;
        let mut postgres = Postgres { port, programs, process, folder };
        postgres.wait_until_serving()?;
        Ok(postgres)
    }

    /// A new, empty database, as a URL.
    pub fn create_database(&self, name: &str) -> Result<String> {
        let output =
            self.client("createdb").args(["--maintenance-db=postgres", name]).output().context("run `createdb`")?;
        ensure!(output.status.success(), "`createdb` failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(self.url(name))
    }

    /// Where a database of this server is; `postgres` is always there.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://tidemill@127.0.0.1:{}/{database}", self.port)
    }

    /// Where it listens on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it as an administrator would: connections are ended, data is safe.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(STOP_DEADLINE)?;
        Ok(())
    }

    /// SIGKILL: it will have to recover from its log.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Whether it has ended, by itself or by us.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.exited()?.is_some())
    }

    /// Starts it again on the same port and data.
    pub fn start(&mut self) -> Result<()> {
        if self.process.exited()?.is_none() {
            bail!("postgres runs already");
        }
        // What a killed server's sessions still hold is theirs for a moment: it then refuses to start, and is asked again.
        wait::until("postgres to start again", READY_DEADLINE, || {
            self.process = launch(&self.programs, self.folder.path(), self.port)?;
            Ok(self.wait_until_serving().ok())
        })
    }

    fn wait_until_serving(&mut self) -> Result<()> {
        let ready = wait::until("postgres to serve", READY_DEADLINE, || {
            if let Some(status) = self.process.exited()? {
                bail!("postgres ended by itself: {status}");
            }
            let answer = self.client("pg_isready").arg("-q").status().context("run `pg_isready`")?;
            Ok(answer.success().then_some(()))
        });
        ready.with_context(|| self.process.log_tail())
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.args(["-h", "127.0.0.1", "-U", "tidemill", "-p"]).arg(self.port.to_string());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let ended = self.process.signal(IMMEDIATE).and_then(|()| self.process.wait(STOP_DEADLINE));
        if let Err(error) = ended {
            eprintln!("{error:#}");
        }
    }
}

fn launch(programs: &Path, folder: &Path, port: u16) -> Result<Process> {
    let mut command = unprivileged(&programs.join("postgres"), folder);
    command.arg("-D").arg(folder.join("data")).arg("-p").arg(port.to_string());
    for setting in
        ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=100", "max_wal_size=256MB"]
    {
        command.arg("-c").arg(setting);
    }
    let farewell = Farewell { signal: IMMEDIATE, leftovers: Some(folder) };
    Process::start("postgres", &command, &folder.join("server.log"), &farewell)
}

/// `setpriv` becomes the program, where `runuser` would stay beside it and catch its signals.
fn unprivileged(program: &Path, folder: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(folder);
    command
}

/// The newest of Debian's versions, or what the path offers.
fn programs() -> Result<PathBuf> {
    let version = |folder: &PathBuf| folder.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let installed =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    if let Some(newest) = installed.filter(|folder| folder.join("initdb").exists()).max_by_key(version) {
        return Ok(newest);
    }
    let output = Command::new("pg_config").arg("--bindir").output();
    let output = output.ok().filter(|output| output.status.success());
    let output = output.context("there is no PostgreSQL; on Debian: apt-get install postgresql")?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// A place for temporary folders that the user `postgres` can reach, which a private `TMPDIR` is not.
fn reachable_folder() -> Result<PathBuf> {
    let reachable = |folder: &PathBuf| {
        let open = |folder: &Path| folder.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0);
        !is_root() || folder.ancestors().all(open)
    };
    let candidates = [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")];
    candidates.into_iter().find(reachable).context("the user `postgres` can reach no temporary folder; set TMPDIR")
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
