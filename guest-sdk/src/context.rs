//! What a handler of one record may do and ask, besides its capabilities.

use std::sync::Arc;
use std::time::Duration;

use crate::record::Source;
use crate::{Output, Setup};

/// The call a handler runs in: emits its outputs, and says where its records come from.
#[derive(Debug)]
pub struct Context {
    call: Call,
    setup: Arc<Setup>,
    outputs: Vec<Output>,
}

impl Context {
    pub(crate) fn new(call: Call, setup: Arc<Setup>) -> Self {
        Self { call, setup, outputs: Vec::new() }
    }

    /// Adds an output of this record. It is produced only if the record ends well, in the order of the calls.
    pub fn emit(&mut self, output: Output) {
        self.outputs.push(output);
    }

    /// The topic of the records.
    pub fn topic(&self) -> &str {
        &self.call.source.topic
    }

    /// The partition of the records.
    pub fn partition(&self) -> i32 {
        self.call.source.partition
    }

    /// How long this call had, as it started, until the host stops it.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.call.deadline_ms.into())
    }

    /// Why the records come: `live`, `replay`, …
    pub fn delivery(&self) -> &str {
        &self.call.delivery
    }

    /// What the host told when this guest was made: handler, group, revision, guarantee and order.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The outputs of the record in hand; whoever takes them leaves the list empty.
    pub(crate) fn outputs(&mut self) -> &mut Vec<Output> {
        &mut self.outputs
    }
}

/// A call without its records. Not for authors.
#[derive(Debug)]
pub struct Call {
    pub(crate) source: Arc<Source>,
    pub(crate) deadline_ms: u32,
    pub(crate) delivery: String,
}
