//! The database of exactly-once: what guests write, and the rows that keep the partitions' offsets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use tidemill_core::record::Offset;

use super::broker::SimBroker;
use super::trace::{Source, What};
use crate::consumer::tests::GROUP;
use crate::fault::Fault;
use crate::store::migrations::{MigrationError, Migrations};
use crate::store::offsets::{Fence, Place, Standing};
use crate::store::{Connection, DbError, Delivery, RowSet, Sql, SqlError, Statements, Value};

/// Where each partition stands, by the text of its place.
#[derive(Default)]
pub(super) struct Rows(BTreeMap<String, Standing>);

impl Rows {
    /// How far a partition of the group is booked.
    pub(super) fn next(&self, place: &Place) -> Option<Offset> {
        self.0.get(&place.to_string())?.next
    }
}

/// The database as one host sees it. It is reached also when the broker is not.
#[derive(Clone)]
pub(super) struct Bank(pub(super) SimBroker);

impl fmt::Debug for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bank")
    }
}

impl Bank {
    /// Waits for the database.
    async fn reached(&self) -> Result<(), SqlError> {
        let SimBroker { world, life } = &self.0;
        life.alive().await;
        world.latency(5).await;
        life.alive().await;
        let mut state = world.lock();
        if state.away.contains("bank") {
            return Err(SqlError::Unavailable("the database is away".to_owned()));
        }
        if state.mishap(|rates| rates.bank) {
            return Err(SqlError::Transient(db_error(Some("40001"))));
        }
        Ok(())
    }
}

fn db_error(sqlstate: Option<&str>) -> DbError {
    DbError { sqlstate: sqlstate.map(str::to_owned), message: "by chance".to_owned(), constraint: None }
}

impl Sql for Bank {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, SqlError>> {
        std::future::ready(Err(SqlError::Unavailable("nobody asks that".to_owned()))).boxed()
    }

    fn apply(&self, _: Migrations) -> BoxFuture<'_, Result<Vec<String>, MigrationError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn own(&self, place: Place) -> BoxFuture<'_, Result<Standing, SqlError>> {
        async move {
            self.reached().await?;
            let mut state = self.0.world.lock();
            let row = state.rows.0.entry(place.to_string()).or_insert(Standing { epoch: 0, next: None });
            row.epoch += 1;
            let standing = *row;
            if place.group == GROUP {
                self.0.world.note_in(&mut state, What::Owned(self.0.life.host, place.partition));
            }
            Ok(standing)
        }
        .boxed()
    }

    fn standing(&self, place: Place) -> BoxFuture<'_, Result<Option<Standing>, SqlError>> {
        async move {
            self.reached().await?;
            Ok(self.0.world.lock().rows.0.get(&place.to_string()).copied())
        }
        .boxed()
    }

    fn deliver(&self, _: std::time::Duration) -> BoxFuture<'_, Result<Box<dyn Delivery>, SqlError>> {
        async move {
            self.reached().await?;
            let delivery: Box<dyn Delivery> =
                Box::new(SimDelivery { bank: self.clone(), rows: Vec::new(), dead: false });
            Ok(delivery)
        }
        .boxed()
    }
}

/// A delivery's transaction.
struct SimDelivery {
    bank: Bank,
    rows: Vec<Source>,
    /// A statement of it failed.
    dead: bool,
}

impl Statements for SimDelivery {
    fn query(&mut self, _: String, _: Vec<Value>) -> BoxFuture<'_, Result<RowSet, SqlError>> {
        std::future::ready(Err(SqlError::Unavailable("nobody asks that".to_owned()))).boxed()
    }

    fn execute(&mut self, _: String, params: Vec<Value>) -> BoxFuture<'_, Result<u64, SqlError>> {
        async move {
            if self.dead {
                return Err(SqlError::TransactionAborted);
            }
            let reached = self.bank.reached().await;
            self.dead = reached.is_err();
            reached?;
            if let [Value::Int(partition), Value::Int(offset)] = params[..] {
                self.rows.push((partition as i32, offset));
            }
            Ok(1)
        }
        .boxed()
    }

    fn execute_many(&mut self, _: String, _: Vec<Vec<Value>>) -> BoxFuture<'_, Result<u64, SqlError>> {
        std::future::ready(Err(SqlError::Unavailable("nobody asks that".to_owned()))).boxed()
    }
}

impl Delivery for SimDelivery {
    fn commit(self: Box<Self>, fence: Fence, next: Offset) -> BoxFuture<'static, Result<bool, SqlError>> {
        async move {
            if self.dead {
                return Err(SqlError::TransactionAborted);
            }
            self.bank.reached().await?;
            let lost = {
                let world = Arc::clone(&self.bank.0.world);
                let mut state = world.lock();
                let lost = state.mishap(|rates| rates.bank);
                if lost && state.dice.bool() {
                    return Err(SqlError::OutcomeUnknown(db_error(None)));
                }
                let row = state.rows.0.entry(fence.place.to_string()).or_insert(fence.standing);
                if *row != fence.standing && !Fault::IgnoreFence.is_on() {
                    return Ok(false);
                }
                row.next = Some(next);
                let (host, rows) = (self.bank.0.life.host, self.rows.clone());
                let (place, partition) = (fence.place.to_string(), fence.place.partition);
                world.note_in(&mut state, What::Booked { host, place, partition, rows, next });
                lost
            };
            self.bank.0.world.latency(5).await;
            self.bank.0.life.alive().await;
            if lost { Err(SqlError::OutcomeUnknown(db_error(None))) } else { Ok(true) }
        }
        .boxed()
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), SqlError>> {
        std::future::ready(Ok(())).boxed()
    }
}
