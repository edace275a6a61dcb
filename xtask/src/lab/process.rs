//! A server as a child process that cannot outlive us.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::wait;

/// Becomes the server, after leaving a watcher behind that holds the other end of our pipe. When the pipe closes without
/// a word, we are dead, however we died: the watcher sends the last signal (`$0`) and removes the leftovers (`$1`).
/// It stays in the server's process group, so that the group's number cannot be given to a stranger before the kill.
/// A parent-death signal would not do: it follows the *thread* that started the child, and tests end theirs.
const WATCHED: &str = r#"
exec 3<&0 </dev/null
( (
  trap '' HUP INT QUIT TERM
  read -r _ <&3 && exit
  kill -"$0" $$
  kill -CONT $$
  [ -z "$1" ] || rm -rf -- "$1"
) & )
shift
exec "$@" 3<&-
"#;

/// How much of a server's log is shown when it fails.
const LOG_TAIL_LINES: usize = 40;

/// What becomes of a server if we die before it.
pub struct Farewell<'a> {
    /// How it is told.
    pub signal: Signal,
    /// The folder that is removed after it.
    pub leftovers: Option<&'a Path>,
}

/// A running or exited server. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Invariant: open for as long as the server may run.
    lifeline: Option<ChildStdin>,
}

impl Process {
    /// Starts `command`, whose output is appended to `log`.
    pub fn start(name: &str, command: &Command, log: &Path, farewell: &Farewell) -> Result<Process> {
        let output = File::options().create(true).append(true).open(log).with_context(|| format!("open `{log:?}`"))?;
        let mut watched = Command::new("sh");
        let signal = farewell.signal.as_str().trim_start_matches("SIG");
        watched.arg("-c").arg(WATCHED).arg(signal).arg(farewell.leftovers.map_or(OsStr::new(""), Path::as_os_str));
        watched.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => watched.env(key, value),
                None => watched.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            watched.current_dir(folder);
        }
        // Its own process group: a Ctrl-C on the tests must not stop servers before the tests have cleaned up.
        let mut child = watched
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let lifeline = child.stdin.take();
        Ok(Process { name: name.to_owned(), child, log: log.to_owned(), lifeline })
    }

    /// The process id, which is the server's own.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it exited, or `None` while it runs.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("ask whether {} runs", self.name))
    }

    /// Sends a signal, which an exited process ignores.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited()?.is_none() {
            let pid = Pid::from_raw(i32::try_from(self.id()).context("a process id is an i32")?);
            signal::kill(pid, signal).with_context(|| format!("send {signal} to {}", self.name))?;
        }
        Ok(())
    }

    /// Waits for the exit; an error after `deadline`, with the end of the log.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the exit of {}", self.name);
        wait::until(&what, deadline, || self.exited()).with_context(|| self.log_tail())
    }

    /// SIGKILL, which works on a stopped process too, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        // Neither can fail for a child that we have not waited for; if it has exited, there is nothing to do.
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// SIGTERM, then SIGKILL after `deadline`.
    pub fn terminate(&mut self, deadline: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.wait(deadline).is_err() {
            self.kill()?;
        }
        Ok(())
    }

    /// Everything that it wrote.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The end of what it wrote, for an error's text.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("the end of the log of {}:\n{}", self.name, tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
        // Any word tells the watcher that its work is done.
        if let Some(mut lifeline) = self.lifeline.take()
            && let Err(error) = lifeline.write_all(b"done\n")
        {
            eprintln!("the watcher of {} is gone: {error}", self.name);
        }
    }
}
