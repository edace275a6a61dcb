//! No fault at all, for long: that memory stands still, and that nothing goes wrong by itself.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::stage::Stage;

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// The last third may have this much more than the second: the first one is the warm-up.
const GROWTH_MAX: f64 = 1.2;
const GROWTH_BYTES_MIN: u64 = 24 << 20;

pub(super) fn soak(stage: &mut Stage) -> Result<()> {
    let started = Instant::now();
    let mut samples = Vec::new();
    while started.elapsed() < stage.form.soak {
        samples.push(memory(stage.hosts[0].id())?);
        thread::sleep(SAMPLE_INTERVAL);
    }
    let moment = stage.amid(0)?;
    stage.stop_load()?;
    stage.recover(&moment, Instant::now())?;
    let third = samples.len() / 3;
    let (middle, last) = (median(&samples[third..2 * third]), median(&samples[2 * third..]));
    let mib = |bytes: u64| bytes >> 20;
    stage.notes.push(format!(
        "resident memory {} MiB in the second third, {} MiB in the last, {} MiB at most",
        mib(middle),
        mib(last),
        mib(samples.iter().copied().max().unwrap_or(0))
    ));
    let max = ((middle as f64 * GROWTH_MAX) as u64).max(middle + GROWTH_BYTES_MIN);
    ensure!(last <= max, "resident memory grew from {} to {} MiB", mib(middle), mib(last));
    Ok(())
}

/// Resident bytes of a process.
fn memory(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).context("read a process's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has resident memory")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("it is in kB")?;
    Ok(kib << 10)
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}
