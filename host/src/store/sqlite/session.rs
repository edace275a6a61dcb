//! What a guest holds: a connection, or a transaction on it.

use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    error,
    pool::{Abandoned, Handle, Loan},
    statement,
};
use crate::store::{Connection, RowSet, SqlError, Statements, Transaction, Value};

/// A connection on which each statement commits on its own.
pub(super) struct SqliteConnection {
    /// `None` once a call was dropped half-way: the connection is then on its way back to the pool.
    loan: Option<Loan>,
}

/// A transaction, which has the one permit to write.
pub(super) struct SqliteTransaction {
    /// `None` once a call was dropped half-way.
    loan: Option<Loan>,
    writer: Option<OwnedSemaphorePermit>,
    aborted: bool,
}

impl SqliteConnection {
    pub(super) fn new(loan: Loan) -> Self {
        Self { loan: Some(loan) }
    }

    fn take(&mut self) -> Result<Loan, SqlError> {
        self.loan.take().ok_or_else(|| SqlError::Unavailable("a call on this connection was given up".to_owned()))
    }

    async fn read(&mut self, statement: String, params: Vec<Value>) -> Result<RowSet, SqlError> {
        let loan = self.take()?;
        let again = (statement.clone(), params.clone());
        let work = move |handle: &Handle, config: &_, _: &Abandoned| {
            statement::query(handle, config, false, &statement, &params)
        };
        let (loan, _, result) = loan.run(None, work).await?;
        self.loan = Some(loan);
        match result? {
            Some(rows) => Ok(rows),
            None => self.write_for_rows(again).await,
        }
    }

    async fn write_for_rows(&mut self, (statement, params): (String, Vec<Value>)) -> Result<RowSet, SqlError> {
        self.write(move |handle, config, _| {
            let rows = statement::query(handle, config, true, &statement, &params)?;
            Ok(rows.expect("a statement that may write gives rows"))
        })
        .await
    }

    /// Runs a piece of work that writes: in a transaction of its own, so that all of it happens or nothing.
    pub(super) async fn write<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Handle, &super::Config, &Abandoned) -> Result<T, SqlError> + Send + 'static,
    ) -> Result<T, SqlError> {
        let loan = self.take()?;
        let permit = match loan.writer().await {
            Ok(permit) => permit,
            Err(error) => {
                self.loan = Some(loan);
                return Err(error);
            }
        };
        let (loan, _, result) =
            loan.run(Some(permit), |handle, config, abandoned| in_transaction(handle, config, abandoned, work)).await?;
        self.loan = Some(loan);
        result
    }
}

fn in_transaction<T>(
    handle: &Handle,
    config: &super::Config,
    abandoned: &Abandoned,
    work: impl FnOnce(&Handle, &super::Config, &Abandoned) -> Result<T, SqlError>,
) -> Result<T, SqlError> {
    handle.control("BEGIN IMMEDIATE").map_err(error::statement)?;
    let result = work(handle, config, abandoned)
        .and_then(|value| handle.control("COMMIT").map(|()| value).map_err(error::commit));
    if result.is_err() && !handle.connection.is_autocommit() {
        handle.control("ROLLBACK").map_err(error::statement)?;
    }
    result
}

impl Statements for SqliteConnection {
    fn query(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<RowSet, SqlError>> {
        Box::pin(self.read(statement, params))
    }

    fn execute(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<u64, SqlError>> {
        self.execute_many(statement, vec![params])
    }

    fn execute_many(&mut self, statement: String, params: Vec<Vec<Value>>) -> BoxFuture<'_, Result<u64, SqlError>> {
        Box::pin(self.write(move |handle, _, abandoned| statement::execute(handle, abandoned, &statement, &params)))
    }
}

impl Connection for SqliteConnection {
    fn begin(mut self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Transaction>, SqlError>> {
        Box::pin(async move { Ok(Box::new(SqliteTransaction::begin(self.take()?).await?) as Box<dyn Transaction>) })
    }
}

impl SqliteTransaction {
    /// Waits for its turn to write.
    pub(super) async fn begin(loan: Loan) -> Result<Self, SqlError> {
        let permit = loan.writer().await?;
        let begin = |handle: &Handle, _: &_, _: &_| handle.control("BEGIN IMMEDIATE").map_err(error::statement);
        let (loan, writer, result) = loan.run(Some(permit), begin).await?;
        result?;
        Ok(Self { loan: Some(loan), writer, aborted: false })
    }

    /// Runs a piece of work; its failure, or its future's being dropped, is the transaction's end.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Handle, &super::Config, &Abandoned) -> Result<T, SqlError> + Send + 'static,
    ) -> Result<T, SqlError> {
        if self.aborted {
            return Err(SqlError::TransactionAborted);
        }
        self.aborted = true;
        let loan = self.loan.take().ok_or(SqlError::TransactionAborted)?;
        let (loan, writer, result) = loan.run(self.writer.take(), work).await?;
        (self.loan, self.writer) = (Some(loan), writer);
        self.aborted = result.is_err();
        result
    }

    async fn end(mut self, statement: &'static str) -> Result<Box<dyn Connection>, SqlError> {
        self.run(move |handle, _, _| handle.control(statement).map_err(error::commit)).await?;
        let loan = self.loan.take().ok_or(SqlError::TransactionAborted)?;
        Ok(Box::new(SqliteConnection::new(loan)))
    }
}

impl Statements for SqliteTransaction {
    fn query(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<RowSet, SqlError>> {
        Box::pin(self.run(move |handle, config, _| {
            let rows = statement::query(handle, config, true, &statement, &params)?;
            Ok(rows.expect("a statement that may write gives rows"))
        }))
    }

    fn execute(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<u64, SqlError>> {
        self.execute_many(statement, vec![params])
    }

    fn execute_many(&mut self, statement: String, params: Vec<Vec<Value>>) -> BoxFuture<'_, Result<u64, SqlError>> {
        Box::pin(self.run(move |handle, _, abandoned| statement::execute(handle, abandoned, &statement, &params)))
    }
}

impl Transaction for SqliteTransaction {
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Connection>, SqlError>> {
        Box::pin(self.end("COMMIT"))
    }

    fn rollback(mut self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Connection>, SqlError>> {
        self.aborted = false;
        Box::pin(self.end("ROLLBACK"))
    }
}

impl Drop for SqliteTransaction {
    fn drop(&mut self) {
        let Some(loan) = self.loan.take() else { return };
        let writer = self.writer.take();
        if loan.in_transaction() && tokio::runtime::Handle::try_current().is_ok() {
            // The permit goes along: nobody else may begin before this has ended.
            drop(tokio::task::spawn_blocking(move || {
                drop(loan);
                drop(writer);
            }));
        } else {
            drop(loan);
        }
    }
}
