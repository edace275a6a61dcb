//! A host in memory, for a handler's own unit tests (feature `testing`).
//!
//! ```
//! use tidemill_guest::testing::{Host, json};
//! use tidemill_guest::{Context, Json, Output, Result, handler};
//!
//! #[handler]
//! fn double(Json(number): Json<i64>, ctx: &mut Context) -> Result<()> {
//!     ctx.emit(Output::json("doubled", &(number * 2))?);
//!     Ok(())
//! }
//!
//! let host = Host::new();
//! let outcome = host.call_one(double, json(&21));
//! assert_eq!(outcome.outputs(), [Output::bytes("doubled", "42")]);
//! ```
//!
//! SQL runs on SQLite, so that the handler's own statements and migrations are what is tested.

#[doc(hidden)]
pub mod platform;
mod world;

use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use crate::context::Call;
use crate::log::Level;
use crate::record::Source;
use crate::{
    Guarantee, Handler, Header, IntoBytes, Order, Outcome, Output, Reason, Record, Refusal, Setup, Timestamp, convert,
};
use world::World;

/// A host in memory. While it lives, the capabilities of this thread are its own; nothing is granted that was not given.
#[derive(Debug)]
pub struct Host {
    setup: Setup,
    world: Rc<World>,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        world::leave(&self.world);
    }
}

impl Host {
    /// A host that grants nothing yet. It takes the place of an earlier one on this thread.
    pub fn new() -> Self {
        let setup = Setup {
            handler: "test".to_owned(),
            group: "test".to_owned(),
            revision: "test".to_owned(),
            guarantee: Guarantee::AtLeastOnce,
            order: Order::Key,
            attributes: Vec::new(),
        };
        Self { setup, world: world::enter() }
    }

    /// Runs records in this order; `Order::Key` unless told.
    pub fn order(mut self, order: Order) -> Self {
        self.setup.order = order;
        self
    }

    /// Gives this guarantee; at least once unless told.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.setup.guarantee = guarantee;
        self
    }

    /// Sets a configuration value.
    pub fn config(self, key: &str, value: &str) -> Self {
        self.world.config.borrow_mut().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Grants a secret.
    pub fn secret(self, name: &str, value: &str) -> Self {
        self.world.secrets.borrow_mut().insert(name.to_owned(), value.to_owned());
        self
    }

    /// Grants an empty kv bucket.
    pub fn kv(self, name: &str) -> Self {
        self.world.buckets.borrow_mut().entry(name.to_owned()).or_default();
        self
    }

    /// Grants a database, SQLite in memory, with these migrations: `include_str!("../migrations/V1__orders.sql")`.
    ///
    /// # Panics
    /// If a migration does not run.
    pub fn sql(self, name: &str, migrations: &[&str]) -> Self {
        let database = rusqlite::Connection::open_in_memory().expect("SQLite opens a database in memory");
        for (index, migration) in migrations.iter().enumerate() {
            if let Err(error) = database.execute_batch(migration) {
                panic!("migration {} of database `{name}` does not run: {error}", index + 1);
            }
        }
        self.world.databases.borrow_mut().insert(name.to_owned(), Rc::new(database));
        self
    }

    /// Lets calls on the bucket, database or (`producer`) broker of this name fail as unavailable from now on, or succeed again.
    pub fn set_down(&self, name: &str, down: bool) {
        let mut names = self.world.down.borrow_mut();
        if down {
            names.insert(name.to_owned());
        } else {
            names.remove(name);
        }
    }

    /// Runs a handler's `init` with this host's setup.
    pub fn init(&self, init: fn(&Setup) -> Result<(), Refusal>) -> Result<(), Refusal> {
        init(&self.setup)
    }

    /// Calls a handler with some records of one partition, as the host would.
    ///
    /// # Panics
    /// If the whole call fails, which only a handler of `&mut Batch` can do: see [`Host::try_call`].
    pub fn call<Shape>(&self, handler: impl Handler<Shape>, records: impl IntoIterator<Item = Record>) -> Vec<Outcome> {
        match self.try_call(handler, records) {
            Ok(outcomes) => outcomes,
            Err(reason) => panic!("the call failed as a whole: {}: {}", reason.code, reason.detail),
        }
    }

    /// Calls a handler with one record.
    ///
    /// # Panics
    /// Never for a handler of one record; see [`Host::call`].
    pub fn call_one<Shape>(&self, handler: impl Handler<Shape>, record: Record) -> Outcome {
        self.call(handler, [record]).pop().expect("a call answers each record")
    }

    /// Calls a handler with some records; `Err` if the call failed as a whole.
    pub fn try_call<Shape>(
        &self,
        handler: impl Handler<Shape>,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Vec<Outcome>, Reason> {
        let call = Call { source: source(), deadline_ms: 10_000, delivery: "live".to_owned() };
        let records = records.into_iter().enumerate().map(numbered).collect();
        let mut outcomes = Vec::new();
        handler.call(call, records, &Arc::new(self.setup.clone()), &mut outcomes)?;
        Ok(outcomes)
    }

    /// The log lines so far.
    pub fn logs(&self) -> Vec<(Level, String)> {
        self.world.logs.borrow().clone()
    }

    /// What was sent at once by [`producer::send`](crate::producer::send).
    pub fn sent(&self) -> Vec<Output> {
        self.world.sent.borrow().iter().cloned().map(convert::lift_output).collect()
    }
}

fn source() -> Arc<Source> {
    Arc::new(Source { topic: "test".to_owned(), partition: 0 })
}

/// A record without an id of its own gets the place that it has in the call.
fn numbered((index, mut record): (usize, Record)) -> Record {
    if record.id.is_none() {
        record.offset = i64::try_from(index).unwrap_or(i64::MAX);
    }
    record
}

/// A record with these bytes as its value.
pub fn record(value: impl IntoBytes) -> Record {
    Record { value: Some(value.into_bytes()), ..tombstone() }
}

/// A record with this value as JSON.
///
/// # Panics
/// If the value has no JSON form.
pub fn json(value: &(impl Serialize + ?Sized)) -> Record {
    record(serde_json::to_vec(value).expect("the value has a JSON form"))
}

/// A record without a value.
pub fn tombstone() -> Record {
    Record {
        key: None,
        value: None,
        headers: Vec::new(),
        timestamp: Timestamp::CreateTime(0),
        offset: 0,
        attempt: 1,
        source: source(),
        id: None,
    }
}

impl Record {
    /// Sets the key.
    pub fn with_key(mut self, key: impl IntoBytes) -> Self {
        self.key = Some(key.into_bytes());
        self
    }

    /// Adds a header.
    pub fn with_header(mut self, name: &str, value: impl IntoBytes) -> Self {
        self.headers.push(Header { name: name.into(), value: Some(value.into_bytes()) });
        self
    }

    /// Sets the attempt; the first is 1.
    pub fn with_attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Sets the id, to tell a redelivery from another record.
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = Some(id.into());
        self
    }
}

#[cfg(test)]
mod tests;
