//! What a handler of one record may do and ask, besides its capabilities.

use std::sync::Arc;
use std::time::Duration;

use crate::{Output, Setup, bindings};

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
        &self.call.topic
    }

    /// The partition of the records.
    pub fn partition(&self) -> i32 {
        self.call.partition
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

    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }
}

/// A batch without its records.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) deadline_ms: u32,
    pub(crate) delivery: String,
}

impl Call {
    /// Parts a batch into the call and its records.
    pub(crate) fn split(batch: bindings::tidemill::guest::types::Batch) -> (Self, Vec<crate::Record>) {
        let call = Self {
            topic: batch.topic,
            partition: batch.partition,
            deadline_ms: batch.deadline_ms,
            delivery: batch.delivery,
        };
        (call, batch.records)
    }
}
