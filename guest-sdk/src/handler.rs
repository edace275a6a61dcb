//! The functions that are handlers.

use std::sync::Arc;

use crate::context::Call;
use crate::lanes::Lanes;
use crate::outcome::Answer;
use crate::{Batch, Context, Error, FromRecord, Outcome, Reason, Record, Result, Setup};

/// A function that handles records, in one of these shapes (each may return `()` or `Result<()>`):
///
/// * `fn(body)` and `fn(body, &mut Context)`, where the body is [`FromRecord`],
/// * `fn(body, &Record, &mut Context)`,
/// * `fn(Record)` and `fn(Record, &mut Context)`,
/// * `fn(&mut Batch)`.
#[diagnostic::on_unimplemented(
    message = "this function is not a handler",
    note = "write one of: `fn(body)`, `fn(body, &mut Context)`, `fn(body, &Record, &mut Context)`, `fn(Record, &mut Context)`, `fn(&mut Batch)`",
    note = "a body is `Json<T>` with `T: serde::Deserialize`, `String`, `Vec<u8>` or `Option` of one of these; return `()` or `tidemill_guest::Result<()>`"
)]
pub trait Handler<Shape> {
    /// Handles the records of one call.
    #[doc(hidden)]
    fn call(
        &self,
        call: Call,
        records: Vec<Record>,
        setup: &Arc<Setup>,
        answer: &mut impl Answer,
    ) -> Result<(), Reason>;
}

/// What a handler may return: nothing, or `Result<(), E>` with any error that `?` would take.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    note = "return `()` or `tidemill_guest::Result<()>`; outputs go out by `ctx.emit(..)`"
)]
pub trait Ending {
    /// The end of the record.
    fn into_result(self) -> Result<()>;
}

impl Ending for () {
    fn into_result(self) -> Result<()> {
        Ok(())
    }
}

impl<E: Into<Error>> Ending for Result<(), E> {
    fn into_result(self) -> Result<()> {
        self.map_err(Into::into)
    }
}

/// Shapes of handlers: they only tell the implementations of [`Handler`] apart.
mod shape {
    use std::marker::PhantomData;

    pub struct Body<B>(PhantomData<B>);
    pub struct BodyContext<B>(PhantomData<B>);
    pub struct BodyRecordContext<B>(PhantomData<B>);
    pub struct Whole;
    pub struct WholeContext;
    pub struct Many;
}

impl<F, B, R> Handler<shape::Body<B>> for F
where
    F: Fn(B) -> R,
    B: FromRecord,
    R: Ending,
{
    fn call(
        &self,
        call: Call,
        records: Vec<Record>,
        setup: &Arc<Setup>,
        answer: &mut impl Answer,
    ) -> Result<(), Reason> {
        each(call, records, setup, answer, |record, _| self(B::from_record(&record)?).into_result())
    }
}

impl<F, B, R> Handler<shape::BodyContext<B>> for F
where
    F: Fn(B, &mut Context) -> R,
    B: FromRecord,
    R: Ending,
{
    fn call(
        &self,
        call: Call,
        records: Vec<Record>,
        setup: &Arc<Setup>,
        answer: &mut impl Answer,
    ) -> Result<(), Reason> {
        each(call, records, setup, answer, |record, ctx| self(B::from_record(&record)?, ctx).into_result())
    }
}

impl<F, B, R> Handler<shape::BodyRecordContext<B>> for F
where
    F: Fn(B, &Record, &mut Context) -> R,
    B: FromRecord,
    R: Ending,
{
    fn call(
        &self,
        call: Call,
        records: Vec<Record>,
        setup: &Arc<Setup>,
        answer: &mut impl Answer,
    ) -> Result<(), Reason> {
        each(call, records, setup, answer, |record, ctx| self(B::from_record(&record)?, &record, ctx).into_result())
    }
}

impl<F, R> Handler<shape::Whole> for F
where
    F: Fn(Record) -> R,
    R: Ending,
{
    fn call(
        &self,
        call: Call,
        records: Vec<Record>,
        setup: &Arc<Setup>,
        answer: &mut impl Answer,
    ) -> Result<(), Reason> {
        each(call, records, setup, answer, |record, _| self(record).into_result())
    }
}

impl<F, R> Handler<shape::WholeContext> for F
where
    F: Fn(Record, &mut Context) -> R,
    R: Ending,
{
    fn call(
        &self,
        call: Call,
        records: Vec<Record>,
        setup: &Arc<Setup>,
        answer: &mut impl Answer,
    ) -> Result<(), Reason> {
        each(call, records, setup, answer, |record, ctx| self(record, ctx).into_result())
    }
}

impl<F, R> Handler<shape::Many> for F
where
    F: Fn(&mut Batch) -> R,
    R: Ending,
{
    fn call(
        &self,
        call: Call,
        records: Vec<Record>,
        setup: &Arc<Setup>,
        answer: &mut impl Answer,
    ) -> Result<(), Reason> {
        let mut batch = Batch::new(call, records, Arc::clone(setup));
        let returned = self(&mut batch).into_result();
        batch.finish(returned, answer)
    }
}

/// Calls `handle` for each record whose lane is not held back by one before it.
fn each(
    call: Call,
    records: Vec<Record>,
    setup: &Arc<Setup>,
    answer: &mut impl Answer,
    handle: impl Fn(Record, &mut Context) -> Result<()>,
) -> Result<(), Reason> {
    let mut ctx = Context::new(call, Arc::clone(setup));
    let mut lanes = Lanes::new(setup.order);
    for record in records {
        if lanes.holds(record.key.as_deref()) {
            answer.end(Outcome::Untouched);
            continue;
        }
        // The record moves into the author's function.
        let key = record.key.clone();
        match handle(record, &mut ctx) {
            Ok(()) => answer.ack(ctx.outputs()),
            Err(error) => {
                ctx.outputs().clear();
                let outcome = Outcome::from(error);
                if !outcome.settles() {
                    lanes.hold(key.as_deref());
                }
                answer.end(outcome);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use crate::testing::{Host, record, tombstone};
    use crate::{Batch, Context, Error, Json, Order, Outcome, Output, Record, Result, dead_letter, retry, skip};

    #[test]
    fn a_retry_holds_its_lane_and_no_other() {
        check(Order::Key, "a:ok a:retry b:ok a:ok b:ok", "ack retry ack untouched ack");
    }

    #[test]
    fn settled_records_hold_nothing() {
        check(Order::Key, "a:bad a:skip a:ok", "dead-letter skip ack");
    }

    #[test]
    fn null_keys_share_a_lane_that_is_not_the_empty_key() {
        check(Order::Key, "null:retry null:ok empty:ok a:ok", "retry untouched ack ack");
    }

    #[test]
    fn partition_order_holds_everything_after() {
        check(Order::Partition, "a:ok b:retry c:ok null:ok", "ack retry untouched untouched");
    }

    #[test]
    fn unordered_holds_nothing() {
        check(Order::Unordered, "a:retry a:ok null:retry null:ok", "retry ack retry ack");
    }

    #[test]
    fn outputs_of_a_record_that_does_not_end_well_are_dropped() {
        fn handle(value: String, ctx: &mut Context) -> Result<()> {
            ctx.emit(Output::bytes("out", value.as_str()));
            if value == "bad" { dead_letter("bad", "value is `bad`") } else { Ok(()) }
        }
        let outcomes = Host::new().call(handle, [record("bad"), record("good")]);
        assert!(outcomes[0].outputs().is_empty());
        assert_eq!(outcomes[1].outputs(), [Output::bytes("out", "good")]);
    }

    #[test]
    fn every_shape_is_a_handler() {
        fn body(_: Vec<u8>) {}
        fn body_context(_: Option<String>, ctx: &mut Context) {
            ctx.emit(Output::tombstone(ctx.topic().to_owned()));
        }
        fn body_record_context(Json(_): Json<u8>, record: &Record, ctx: &mut Context) -> Result<()> {
            ctx.emit(Output::bytes("ids", record.id()));
            Ok(())
        }
        fn whole(record: Record) -> Result<(), std::num::ParseIntError> {
            String::from_utf8_lossy(&record.value.unwrap_or_default()).parse::<u8>().map(|_| ())
        }
        fn whole_context(record: Record, ctx: &mut Context) {
            ctx.emit(record.into_output("copies"));
        }
        fn many(batch: &mut Batch) {
            for index in 0..batch.records().len() {
                batch.emit(index, Output::bytes("sizes", "1"));
            }
        }
        let host = Host::new();
        assert_eq!(host.call_one(body, record("7")), Outcome::Ack(vec![]));
        assert_eq!(host.call_one(body_context, tombstone()).outputs(), [Output::tombstone("test")]);
        assert_eq!(host.call_one(body_record_context, record("7")).outputs(), [Output::bytes("ids", "test/0/0/0")]);
        assert_eq!(host.call_one(whole, record("7")), Outcome::Ack(vec![]));
        assert_eq!(
            host.call_one(whole, record("x")).reason().map(|reason| reason.code.as_str()),
            Some("handler-error")
        );
        assert_eq!(host.call_one(whole_context, record("7")).outputs(), [Output::bytes("copies", "7")]);
        assert_eq!(host.call_one(many, record("7")).outputs(), [Output::bytes("sizes", "1")]);
    }

    /// Calls a handler with records `KEY:ENDING`, and looks at the outcomes and at which records it was called for.
    #[track_caller]
    fn check(order: Order, records: &str, expected: &str) {
        let called = RefCell::new(Vec::new());
        let handle = |value: String| {
            called.borrow_mut().push(value.clone());
            match value.as_str() {
                "retry" => retry("later", "as told"),
                "bad" => dead_letter("bad", "as told"),
                "skip" => skip(),
                _ => Ok::<(), Error>(()),
            }
        };
        let host = Host::new().order(order);
        let outcomes = host.call(
            handle,
            records.split(' ').map(|text| {
                let (key, ending) = text.split_once(':').expect("a record is written `KEY:ENDING`");
                match key {
                    "null" => record(ending),
                    "empty" => record(ending).with_key(""),
                    key => record(ending).with_key(key),
                }
            }),
        );
        let names: Vec<_> = outcomes.iter().map(name).collect();
        assert_eq!(names.join(" "), expected);
        let untouched = names.iter().filter(|name| **name == "untouched").count();
        assert_eq!(called.borrow().len() + untouched, names.len(), "the function is not called for untouched records");
    }

    fn name(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Ack(_) => "ack",
            Outcome::Skip => "skip",
            Outcome::Retry(_) => "retry",
            Outcome::DeadLetter(_) => "dead-letter",
            Outcome::Untouched => "untouched",
        }
    }
}
