//! The functions that are handlers.

use std::sync::Arc;

use crate::context::Call;
use crate::lanes::Lanes;
use crate::{Batch, Context, Error, FromRecord, Outcome, Reason, Record, Result, Setup, bindings};

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
    fn call(&self, batch: bindings::tidemill::guest::types::Batch, setup: &Arc<Setup>) -> Result<Vec<Outcome>, Reason>;
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
    fn call(&self, batch: bindings::tidemill::guest::types::Batch, setup: &Arc<Setup>) -> Result<Vec<Outcome>, Reason> {
        Ok(each(batch, setup, |record, _| self(B::from_record(&record)?).into_result()))
    }
}

impl<F, B, R> Handler<shape::BodyContext<B>> for F
where
    F: Fn(B, &mut Context) -> R,
    B: FromRecord,
    R: Ending,
{
    fn call(&self, batch: bindings::tidemill::guest::types::Batch, setup: &Arc<Setup>) -> Result<Vec<Outcome>, Reason> {
        Ok(each(batch, setup, |record, ctx| self(B::from_record(&record)?, ctx).into_result()))
    }
}

impl<F, B, R> Handler<shape::BodyRecordContext<B>> for F
where
    F: Fn(B, &Record, &mut Context) -> R,
    B: FromRecord,
    R: Ending,
{
    fn call(&self, batch: bindings::tidemill::guest::types::Batch, setup: &Arc<Setup>) -> Result<Vec<Outcome>, Reason> {
        Ok(each(batch, setup, |record, ctx| self(B::from_record(&record)?, &record, ctx).into_result()))
    }
}

impl<F, R> Handler<shape::Whole> for F
where
    F: Fn(Record) -> R,
    R: Ending,
{
    fn call(&self, batch: bindings::tidemill::guest::types::Batch, setup: &Arc<Setup>) -> Result<Vec<Outcome>, Reason> {
        Ok(each(batch, setup, |record, _| self(record).into_result()))
    }
}

impl<F, R> Handler<shape::WholeContext> for F
where
    F: Fn(Record, &mut Context) -> R,
    R: Ending,
{
    fn call(&self, batch: bindings::tidemill::guest::types::Batch, setup: &Arc<Setup>) -> Result<Vec<Outcome>, Reason> {
        Ok(each(batch, setup, |record, ctx| self(record, ctx).into_result()))
    }
}

impl<F, R> Handler<shape::Many> for F
where
    F: Fn(&mut Batch) -> R,
    R: Ending,
{
    fn call(&self, batch: bindings::tidemill::guest::types::Batch, setup: &Arc<Setup>) -> Result<Vec<Outcome>, Reason> {
        let (call, records) = Call::split(batch);
        let mut batch = Batch::new(call, records, Arc::clone(setup));
        let returned = self(&mut batch).into_result();
        batch.finish(returned)
    }
}

/// Calls `handle` for each record whose lane is not held back by one before it.
fn each(
    batch: bindings::tidemill::guest::types::Batch,
    setup: &Arc<Setup>,
    handle: impl Fn(Record, &mut Context) -> Result<()>,
) -> Vec<Outcome> {
    let (call, records) = Call::split(batch);
    let mut outcomes = Vec::with_capacity(records.len());
    let mut ctx = Context::new(call, Arc::clone(setup));
    let mut lanes = Lanes::new(setup.order);
    // The record moves into the author's function; its key may be needed afterwards.
    let mut key_copy = Vec::new();
    for record in records {
        if lanes.holds(record.key.as_deref()) {
            outcomes.push(Outcome::Untouched);
            continue;
        }
        let has_key = record.key.is_some();
        if let (true, Some(key)) = (lanes.need_key(), &record.key) {
            key_copy.clear();
            key_copy.extend_from_slice(key);
        }
        let ended = handle(record, &mut ctx);
        let outputs = ctx.take_outputs();
        let outcome = ended.map_or_else(Outcome::from, |()| Outcome::Ack(outputs));
        if !outcome.settles() {
            lanes.hold(has_key.then_some(&key_copy));
        }
        outcomes.push(outcome);
    }
    outcomes
}
