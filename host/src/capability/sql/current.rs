//! The delivery's own transaction: opened when the guest asks for it, committed by the host together with the offset.

use std::sync::Arc;

use wasmtime::component::Resource;

use super::{CAPABILITY, Work, convert};
use crate::attempt::{Guarantee, Ownership};
use crate::capability::View;
use crate::guest::bindings::tidemill::guest::sql::{Error, HostTransaction, RowSet, Value};
use crate::metrics::HostCallResult;
use crate::store::SqlError;

/// A handle to the delivery's transaction. One that a guest keeps is worth nothing in the next call.
pub struct Transaction {
    /// The call that it belongs to.
    call: u64,
}

impl View {
    /// Opens the delivery's transaction, unless this call has it open already.
    pub(super) async fn current_transaction(&mut self) -> Result<Transaction, Error> {
        let owner = self.owner()?;
        if self.call.effects.open.is_none() {
            let open = self.ask(CAPABILITY, owner.open(), SqlError::Unavailable).await?;
            self.call.effects.open = Some(open);
        }
        Ok(Transaction { call: self.calls })
    }

    fn owner(&mut self) -> Result<Arc<Ownership>, Error> {
        if let Some(owner) = &self.call.owner {
            return Ok(Arc::clone(owner));
        }
        self.count(CAPABILITY, HostCallResult::Denied);
        let guarantee = match self.call.guarantee {
            _ if self.call.from.is_none() => {
                return Err(Error::AccessDenied("`init` belongs to no delivery, which has the transaction".to_owned()));
            }
            Guarantee::AtMostOnce => "at-most-once",
            Guarantee::AtLeastOnce => "at-least-once",
            Guarantee::KafkaTransaction => "kafka-transaction",
            Guarantee::SqlTransaction => "sql-transaction without a database",
        };
        let text = format!(
            "the delivery has no transaction of a database: its guarantee is {guarantee}; use `open` and `begin`"
        );
        Err(Error::AccessDenied(text))
    }

    /// Refuses a connection beside the delivery's transaction to the same database: what is written there would be repeated
    /// with the delivery, and nobody would notice.
    pub(super) fn check_beside(&mut self, name: &str) -> Result<(), Error> {
        if self.call.owner.as_ref().is_none_or(|owner| owner.database() != name) {
            return Ok(());
        }
        self.count(CAPABILITY, HostCallResult::Denied);
        let text = format!("`{name}` is the database of the delivery's transaction; use `current` instead of `open`");
        Err(Error::AccessDenied(text))
    }

    /// Runs a statement in the delivery's transaction.
    async fn run_current<T>(
        &mut self,
        transaction: &Resource<Transaction>,
        work: impl for<'a> Work<'a, T>,
    ) -> wasmtime::Result<Result<T, Error>> {
        if self.table.get(transaction)?.call != self.calls {
            return Ok(Err(Error::TransactionAborted));
        }
        let Some(mut open) = self.call.effects.open.take() else {
            return Ok(Err(Error::TransactionAborted));
        };
        let done = self.ask(CAPABILITY, work(open.delivery()), SqlError::Unavailable).await;
        self.call.effects.open = Some(open);
        if let Err(error) = &done
            && error.is_conflict()
        {
            self.call.effects.conflict.get_or_insert_with(|| error.to_string());
        }
        Ok(done.map_err(Error::from))
    }
}

impl HostTransaction for View {
    async fn query(
        &mut self,
        transaction: Resource<Transaction>,
        statement: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<RowSet, Error>> {
        let rows = self.run_current(&transaction, |on| on.query(statement, convert::values(params))).await?;
        Ok(rows.map(RowSet::from))
    }

    async fn execute(
        &mut self,
        transaction: Resource<Transaction>,
        statement: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        self.run_current(&transaction, |on| on.execute(statement, convert::values(params))).await
    }

    async fn execute_many(
        &mut self,
        transaction: Resource<Transaction>,
        statement: String,
        params: Vec<Vec<Value>>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        self.run_current(&transaction, |on| on.execute_many(statement, convert::lists(params))).await
    }

    /// Giving the handle back ends nothing: the transaction is the delivery's.
    async fn drop(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<()> {
        self.table.delete(transaction)?;
        Ok(())
    }
}
