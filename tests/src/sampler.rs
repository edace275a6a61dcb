//! Watches a group's committed offsets while a test goes on, beside what is settled.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::checker::Commit;
use crate::ledger::Place;
use crate::topics::Group;

const INTERVAL: Duration = Duration::from_millis(50);

/// Samples in a thread of its own until it is stopped.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Commit>>>,
}

/// What is settled of one partition, from offset 0 without a gap.
#[derive(Default)]
struct Settled {
    /// The lowest offset that is not settled.
    frontier: i64,
    /// Settled offsets above it.
    above: BTreeSet<i64>,
}

impl Sampler {
    /// Starts. `newly_settled` gives the records that were settled since it was asked last; when it fails, because the sink
    /// is away, it is asked again for the same commit: what it answers later can only be more.
    pub fn start(
        bootstrap: &str,
        group: &str,
        topic: &str,
        newly_settled: impl FnMut() -> Result<Vec<Place>> + Send + 'static,
    ) -> Result<Sampler> {
        let group = Group::new(bootstrap, group, topic)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || sample(&group, &stopped, newly_settled));
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
    mut newly_settled: impl FnMut() -> Result<Vec<Place>>,
) -> Result<Vec<Commit>> {
    let mut commits: Vec<Commit> = Vec::new();
    let mut settled: Vec<Settled> = Vec::new();
    loop {
        let last = stopped.load(Ordering::Relaxed);
        // The commit is read before the sink: whatever it covers must be in the sink by then.
        let committed = group.committed()?;
        settled.resize_with(committed.len(), Settled::default);
        match newly_settled() {
            Ok(places) => {
                for place in places {
                    settled[usize::try_from(place.partition)?].add(place.offset);
                }
                for (partition, offset) in committed.iter().enumerate() {
                    let Some(offset) = *offset else { continue };
                    let unsettled = settled[partition].frontier;
                    let partition = i32::try_from(partition)?;
                    let before = commits.iter().rev().find(|commit| commit.partition == partition);
                    if before.is_none_or(|before| before.offset != offset) {
                        commits.push(Commit { partition, offset, unsettled });
                    }
                }
            }
            Err(error) if last => return Err(error),
            Err(_) => {}
        }
        if last {
            return Ok(commits);
        }
        thread::sleep(INTERVAL);
    }
}

impl Settled {
    fn add(&mut self, offset: i64) {
        if offset >= self.frontier {
            self.above.insert(offset);
        }
        while self.above.remove(&self.frontier) {
            self.frontier += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frontier_waits_for_the_gap() {
        let mut settled = Settled::default();
        settled.add(0);
        settled.add(2);
        assert_eq!(settled.frontier, 1);
        settled.add(1);
        settled.add(1);
        assert_eq!(settled.frontier, 3);
    }
}
