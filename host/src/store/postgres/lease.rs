//! A connection of the pool in somebody's hands: who always leaves it clean, or not at all.

use std::time::Duration;

use deadpool_postgres::{ClientWrapper, Object};
use tokio::time::timeout;
use tokio_postgres::{NoTls, Statement};

use super::{Config, error};
use crate::store::SqlError;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing; it may go back to the pool.
    Idle,
    /// A transaction is open, and nothing runs.
    InTransaction,
    /// A question is out. It stays so when the answer does not come, or nobody waited for it.
    Asking,
}

/// The bounds of one connection's use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rows_max: usize,
    pub(super) bytes_max: usize,
    statements_cached_max: usize,
    answer_timeout: Duration,
    rollback_timeout: Duration,
}

/// A connection on loan. Dropped, it goes back to the pool; an open transaction is rolled back first, and a connection
/// that owes an answer is closed.
pub(super) struct Lease {
    client: Option<Object>,
    state: State,
    pub(super) bounds: Bounds,
}

impl Lease {
    pub(super) fn new(client: Object, config: &Config) -> Self {
        let bounds = Bounds {
            rows_max: config.rows_max,
            bytes_max: config.bytes_max.0,
            statements_cached_max: config.statements_cached_max,
            answer_timeout: config.statement_timeout.0.saturating_add(config.answer_grace.0),
            rollback_timeout: config.recycle_timeout.0,
        };
        Self { client: Some(client), state: State::Idle, bounds }
    }

    /// Asks the server something and waits for the answer. An error of the server leaves the connection usable; a lost
    /// one, or a future dropped here, does not. `committing`: the question asks to make changes last.
    pub(super) async fn ask<T>(
        &mut self,
        committing: bool,
        question: impl AsyncFnOnce(&ClientWrapper) -> Result<T, Failure>,
    ) -> Result<T, SqlError> {
        if self.state == State::Asking {
            return Err(SqlError::Unavailable("an earlier call on this connection was given up".to_owned()));
        }
        let before = std::mem::replace(&mut self.state, State::Asking);
        let limit = self.bounds.answer_timeout;
        let Ok(answer) = timeout(limit, question(self.client())).await else {
            return Err(error::lost(format!("the server did not answer within {limit:?}"), committing));
        };
        match answer {
            Ok(answer) => {
                self.state = before;
                Ok(answer)
            }
            Err(Failure::Server(failure)) => {
                if error::stale_statement(&failure) {
                    self.client().statement_cache.clear();
                }
                if !error::ends_connection(&failure) {
                    self.state = before;
                }
                Err(error::statement(&failure, committing))
            }
            Err(Failure::Ours(error)) => {
                self.state = before;
                Err(error)
            }
        }
    }

    /// Opens a transaction.
    pub(super) async fn begin(&mut self) -> Result<(), SqlError> {
        self.open("BEGIN").await
    }

    /// Opens a transaction that the server ends when it hears nothing for so long.
    pub(super) async fn begin_within(&mut self, silence_max: Duration) -> Result<(), SqlError> {
        // 0 would switch the bound off.
        let millis = silence_max.as_millis().clamp(1, i32::MAX as u128);
        self.open(&format!("BEGIN; SET LOCAL idle_in_transaction_session_timeout = {millis}")).await
    }

    async fn open(&mut self, begin: &str) -> Result<(), SqlError> {
        self.ask(false, async |client| Ok(client.batch_execute(begin).await?)).await?;
        self.state = State::InTransaction;
        Ok(())
    }

    /// Ends the transaction with changes that last.
    pub(super) async fn commit(&mut self) -> Result<(), SqlError> {
        let result = self.ask(true, async |client| Ok(client.batch_execute("COMMIT").await?)).await;
        self.ended();
        result
    }

    /// Ends the transaction without its changes.
    pub(super) async fn rollback(&mut self) -> Result<(), SqlError> {
        let result = self.ask(false, async |client| Ok(client.batch_execute("ROLLBACK").await?)).await;
        self.ended();
        result
    }

    /// A failed COMMIT has ended the transaction too, if the server answered at all.
    fn ended(&mut self) {
        if self.state == State::InTransaction {
            self.state = State::Idle;
        }
    }

    /// Takes the connection out of the pool for good.
    pub(super) fn detach(mut self) -> ClientWrapper {
        Object::take(self.client.take().expect("a lease has its connection until it is dropped"))
    }

    fn client(&self) -> &ClientWrapper {
        self.client.as_ref().expect("a lease has its connection until it is dropped")
    }
}

/// Why a question failed: the driver's error, or one that we found ourselves while the connection is well.
pub(super) enum Failure {
    Server(tokio_postgres::Error),
    Ours(SqlError),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Server(error)
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Ours(error)
    }
}

/// A prepared statement from the connection's cache, which starts again when it is full.
pub(super) async fn prepare(client: &ClientWrapper, statement: &str, bounds: Bounds) -> Result<Statement, Failure> {
    if client.statement_cache.size() >= bounds.statements_cached_max {
        client.statement_cache.clear();
    }
    Ok(client.prepare_cached(statement).await?)
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        match self.state {
            State::Idle => drop(client),
            State::InTransaction => in_background(roll_back(client, self.bounds.rollback_timeout)),
            State::Asking => {
                let client = Object::take(client);
                in_background(give_up(client, self.bounds.rollback_timeout));
            }
        }
    }
}

/// Runs what a dropped lease leaves to do. There are never more of these than connections of the pool, and each ends in time.
fn in_background(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn(work));
    }
}

/// Rolls back and lets the connection return to the pool; without an answer it does not.
async fn roll_back(client: Object, limit: Duration) {
    let answer = timeout(limit, client.batch_execute("ROLLBACK")).await;
    if !matches!(answer, Ok(Ok(()))) {
        drop(Object::take(client));
    }
}

/// Asks the server to stop what it does for a connection, then closes it.
async fn give_up(client: ClientWrapper, limit: Duration) {
    if !client.is_closed() && timeout(limit, client.cancel_token().cancel_query(NoTls)).await.is_err() {
        tracing::debug!("the server did not take the request to stop a statement");
    }
    drop(client);
}
