//! A handler of many records at once.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Call;
use crate::lanes::Lanes;
use crate::{Error, Outcome, Output, Reason, Record, Result, Setup};

/// All the records of one call: one topic and partition, in offset order within a key.
///
/// A function of `&mut Batch` that returns `Ok` has handled each record for which it did not call [`Batch::end`].
/// If it returns an error, an unavailable dependency makes all records wait; any other error is tried again by the host with smaller
/// batches, until the record that causes it is alone and gets it. Use it to write many rows with one statement.
#[derive(Debug)]
pub struct Batch {
    call: Call,
    setup: Arc<Setup>,
    records: Vec<Record>,
    /// As long as `records`.
    endings: Vec<Result<Vec<Output>>>,
}

impl Batch {
    pub(crate) fn new(call: Call, records: Vec<Record>, setup: Arc<Setup>) -> Self {
        let endings = records.iter().map(|_| Ok(Vec::new())).collect();
        Self { call, setup, records, endings }
    }

    /// The records, in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Adds an output of the record at `index` in [`Batch::records`]. One that was ended has no outputs.
    pub fn emit(&mut self, index: usize, output: Output) {
        if let Ok(outputs) = &mut self.endings[index] {
            outputs.push(output);
        }
    }

    /// Ends the record at `index` otherwise than well.
    pub fn end(&mut self, index: usize, error: impl Into<Error>) {
        self.endings[index] = Err(error.into());
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

    /// The outcomes, given what the author's function returned.
    pub(crate) fn finish(mut self, returned: Result<()>) -> Result<Vec<Outcome>, Reason> {
        match returned {
            Ok(()) => {}
            Err(error) if self.records.len() == 1 || concerns_all(&error) => {
                self.endings.iter_mut().for_each(|ending| *ending = Err(error.clone()));
            }
            Err(Error::Retry(request)) => return Err(request.reason),
            Err(Error::DeadLetter(reason)) => return Err(reason),
            Err(Error::Skip) => unreachable!("`skip` concerns all records"),
        }
        let mut lanes = Lanes::new(self.setup.order);
        let outcomes = self.records.iter().zip(self.endings).map(|(record, ending)| {
            if lanes.holds(record.key.as_deref()) {
                return Outcome::Untouched;
            }
            let outcome = ending.map_or_else(Outcome::from, Outcome::Ack);
            if !outcome.settles() {
                lanes.hold(record.key.as_deref());
            }
            outcome
        });
        Ok(outcomes.collect())
    }
}

/// True if the error of a whole call says the same of each of its records.
fn concerns_all(error: &Error) -> bool {
    match error {
        Error::Skip => true,
        Error::Retry(request) => request.unavailable,
        Error::DeadLetter(_) => false,
    }
}
