//! What bounds a guest: settings of a handler, and their watch over one store.

use std::time::Duration;

use wasmtime::ResourceLimiter;

/// The limits of one handler's guest. The deadline of a call is the attempt's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// All linear memories of an instance together, in bytes.
    pub memory_bytes_max: usize,
    /// All tables of an instance together, in elements.
    pub table_elements_max: usize,
    /// How long `init` may take.
    pub init_deadline: Duration,
    /// Bytes that a guest may hand to the host in one host call or one answer.
    pub transfer_bytes_max: usize,
    /// Resources (buckets, connections, streams) that a guest may hold open.
    pub handles_max: usize,
    /// Bytes of a reason's detail, and of a trap's text.
    pub reason_bytes_max: usize,
    /// Bytes of a logged line; the rest of a longer one is cut off.
    pub log_line_bytes_max: usize,
    /// Logged lines a second, for all instances of the revision together; the rest is counted and dropped.
    pub log_lines_per_second: u32,
    /// Calls after which a kept instance is replaced, spread by a fifth.
    pub reuse_calls_max: u32,
    /// Age at which a kept instance is replaced, spread by a fifth.
    pub reuse_age_max: Duration,
    /// Idle time after which a kept instance is dropped.
    pub reuse_idle_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 128 << 20,
            table_elements_max: 100_000,
            init_deadline: Duration::from_secs(5),
            transfer_bytes_max: 16 << 20,
            handles_max: 1000,
            reason_bytes_max: 1024,
            log_line_bytes_max: 8192,
            log_lines_per_second: 100,
            reuse_calls_max: 10_000,
            reuse_age_max: Duration::from_secs(600),
            reuse_idle_max: Duration::from_secs(30),
        }
    }
}

/// Watches the memories and tables of one store.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_max: usize,
    table_elements_max: usize,
    memory: usize,
    table_elements: usize,
    /// Whether growth was refused since the flag was last taken: tells memory from other traps.
    refused: bool,
}

impl Limiter {
    /// Core instances of one component; languages with adapters need about five.
    const INSTANCES_MAX: usize = 64;

    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            memory_max: limits.memory_bytes_max,
            table_elements_max: limits.table_elements_max,
            memory: 0,
            table_elements: 0,
            refused: false,
        }
    }

    /// Forgets an earlier refusal, before a call.
    pub(crate) fn begin_call(&mut self) {
        self.refused = false;
    }

    /// What the guest was refused in this call, in words.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refused.then(|| format!("the guest asked for more than its {} B of memory", self.memory_max))
    }

    /// Whether so much memory is in use that the instance should be replaced: memory never shrinks.
    pub(crate) fn is_high(&self) -> bool {
        self.memory > self.memory_max / 4 * 3
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let memory = self.memory + desired.saturating_sub(current);
        if memory > self.memory_max || maximum.is_some_and(|maximum| desired > maximum) {
            self.refused = true;
            return Ok(false);
        }
        self.memory = memory;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = true;
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let elements = self.table_elements + desired.saturating_sub(current);
        if elements > self.table_elements_max {
            self.refused = true;
            return Ok(false);
        }
        self.table_elements = elements;
        Ok(true)
    }

    fn instances(&self) -> usize {
        Self::INSTANCES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_are_limited_together_and_a_refusal_is_remembered_for_its_call() {
        let mut limiter = Limiter::new(&Limits { memory_bytes_max: 100, ..Limits::default() });
        assert!(limiter.memory_growing(0, 60, None).expect("no trap"));
        assert!(limiter.memory_growing(0, 40, None).expect("no trap"), "exactly the limit is obeyed");
        assert_eq!(limiter.refusal(), None);
        assert!(limiter.is_high());
        assert!(!limiter.memory_growing(40, 41, None).expect("no trap"), "one more is not");
        assert_eq!(limiter.refusal().as_deref(), Some("the guest asked for more than its 100 B of memory"));
        limiter.begin_call();
        assert_eq!(limiter.refusal(), None);
    }
}
