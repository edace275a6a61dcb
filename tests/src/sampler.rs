//! Watches a group's committed offsets while a test goes on, beside what is settled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::checker::Commit;
use crate::topics::Group;

const INTERVAL: Duration = Duration::from_millis(50);

/// Samples in a thread of its own until it is stopped.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Commit>>>,
}

impl Sampler {
    /// Starts. `settled_below` counts the settled records of a partition below an offset. It is asked after the commit was
    /// seen: whatever the commit covers must be settled by then. When it fails, because the sink is away, it is asked again
    /// for the same commit; what it answers later can only be more.
    pub fn start(
        bootstrap: &str,
        group: &str,
        topic: &str,
        settled_below: impl FnMut(i32, i64) -> Result<i64> + Send + 'static,
    ) -> Result<Sampler> {
        let group = Group::new(bootstrap, group, topic)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || sample(&group, &stopped, settled_below));
        Ok(Sampler { stop, thread })
    }

    /// Stops after a last sample; the commits in the order in which they were seen.
    pub fn stop(self) -> Result<Vec<Commit>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the sampler panicked"))?
    }
}

fn sample(
    group: &Group,
    stopped: &AtomicBool,
    mut settled_below: impl FnMut(i32, i64) -> Result<i64>,
) -> Result<Vec<Commit>> {
    let mut commits: Vec<Commit> = Vec::new();
    let mut open: Vec<(i32, i64)> = Vec::new();
    let mut last_seen: Vec<Option<i64>> = Vec::new();
    loop {
        let last = stopped.load(Ordering::Relaxed);
        let committed = group.committed()?;
        last_seen.resize(committed.len(), None);
        for (partition, offset) in committed.iter().enumerate() {
            if let Some(offset) = offset.filter(|_| *offset != last_seen[partition]) {
                open.push((i32::try_from(partition)?, offset));
                last_seen[partition] = Some(offset);
            }
        }
        while let Some((partition, offset)) = open.first().copied() {
            match settled_below(partition, offset) {
                Ok(settled) => commits.push(Commit { partition, offset, unsettled: offset - settled }),
                Err(error) if last => return Err(error),
                Err(_) => break,
            }
            open.remove(0);
        }
        if last {
            return Ok(commits);
        }
        thread::sleep(INTERVAL);
    }
}
