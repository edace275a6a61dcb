//! A handler of many records at once.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Call;
use crate::lanes::Lanes;
use crate::outcome::Answer;
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

    /// Answers with the outcomes, given what the author's function returned.
    pub(crate) fn finish(mut self, returned: Result<()>, answer: &mut impl Answer) -> Result<(), Reason> {
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
        for (record, ending) in self.records.iter().zip(self.endings) {
            if lanes.holds(record.key.as_deref()) {
                answer.end(Outcome::Untouched);
                continue;
            }
            let outcome = ending.map_or_else(Outcome::from, Outcome::Ack);
            if !outcome.settles() {
                lanes.hold(record.key.as_deref());
            }
            answer.end(outcome);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Host, record};
    use crate::{Order, dead_letter, retry, sql};

    #[test]
    fn records_that_are_not_ended_are_handled() {
        fn handle(batch: &mut Batch) {
            batch.end(1, Error::dead_letter("bad", ""));
            batch.emit(1, Output::bytes("out", "dropped"));
            batch.emit(2, Output::bytes("out", "kept"));
        }
        let outcomes = Host::new().call(handle, [record("0"), record("1"), record("2")]);
        assert_eq!(outcomes[0], Outcome::Ack(vec![]));
        assert_eq!(outcomes[1].reason().map(|reason| reason.code.as_str()), Some("bad"));
        assert_eq!(outcomes[2], Outcome::Ack(vec![Output::bytes("out", "kept")]));
    }

    #[test]
    fn what_follows_a_retry_in_its_lane_is_untouched() {
        fn handle(batch: &mut Batch) {
            batch.end(0, Error::retry("later", ""));
        }
        let records = ["a", "b", "a"].map(|key| record("").with_key(key));
        let outcomes = Host::new().order(Order::Key).call(handle, records);
        assert_eq!(outcomes.iter().map(Outcome::settles).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(outcomes[2], Outcome::Untouched);
    }

    #[test]
    fn a_dependency_that_is_away_makes_all_wait() {
        fn handle(_: &mut Batch) -> Result<(), sql::Error> {
            sql::open("main").map(|_| ())
        }
        let host = Host::new().sql("main", &[]);
        host.set_down("main", true);
        let outcomes = host.call(handle, ["a", "b"].map(|key| record("").with_key(key)));
        for outcome in outcomes {
            assert!(matches!(outcome, Outcome::Retry(request) if request.unavailable));
        }
    }

    #[test]
    fn another_error_fails_the_call_until_its_record_is_alone() {
        fn handle(batch: &mut Batch) -> Result<()> {
            match batch.records().iter().find_map(|record| record.value.as_deref()) {
                Some(b"later") => retry("later", "as told"),
                _ => dead_letter("bad", "as told"),
            }
        }
        let host = Host::new();
        let codes = |values: &[&str]| {
            let records: Vec<_> = values.iter().map(|value| record(*value)).collect();
            host.try_call(handle, records).map_err(|reason| reason.code)
        };
        assert_eq!(codes(&["bad", "bad"]), Err("bad".to_owned()));
        assert_eq!(codes(&["later", "bad"]), Err("later".to_owned()));
        assert!(matches!(codes(&["bad"]).as_deref(), Ok([Outcome::DeadLetter(_)])));
        assert!(matches!(codes(&["later"]).as_deref(), Ok([Outcome::Retry(_)])));
    }
}
