//! Databases by name: connections and a guest's own transactions.
//!
//! An instance has one session with a database, however many connection handles its guest opens: a call that waited for
//! a second connection while it holds the first could wait for ever. The session takes a connection of the pool when it
//! is used, and gives it back at the end of the call.
//!
//! Under exactly-once on a database there is the delivery's own transaction beside them, which the guest can't end.

mod convert;
mod current;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tidemill_core::grants::Kind;
use wasmtime::component::Resource;

pub use self::current::Transaction;
use super::{Away, View};
use crate::guest::bindings::tidemill::guest::sql::{Error, Host, HostConnection, HostOwnTransaction, RowSet, Value};
use crate::store::{self, Sql, SqlError, Statements};

const CAPABILITY: &str = "sql";

/// A handle to the session with a database.
pub struct Connection {
    database: Arc<str>,
}

/// A handle to a transaction of the guest's own.
pub struct OwnTransaction {
    database: Arc<str>,
    /// Which transaction of the session it is.
    number: u64,
}

/// What an instance has of one database.
pub(super) struct Session {
    pool: Arc<dyn Sql>,
    held: Held,
    /// How many transactions it has begun.
    begun: u64,
}

#[derive(Default)]
enum Held {
    /// Nothing; the next statement takes a connection of the pool.
    #[default]
    Nothing,
    Connection(Box<dyn store::Connection>),
    /// The transaction with the number `Session::begun` is open.
    Transaction(Box<dyn store::Transaction>),
}

impl Away for SqlError {
    fn is_away(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::OutcomeUnknown(_) => true,
            Self::Transient(_) | Self::Rejected(_) | Self::BadParameter(_) | Self::TransactionAborted => false,
        }
    }
}

impl Session {
    /// Gives the connection back, and rolls back what is open on it.
    pub(super) async fn close(&mut self) {
        if let Held::Transaction(transaction) = std::mem::take(&mut self.held)
            && let Err(error) = transaction.rollback().await
        {
            tracing::debug!(%error, "a transaction that a call left open was not rolled back; its connection is given up");
        }
    }

    /// Takes a connection of the pool, if it has none.
    async fn connect(&mut self) -> Result<(), SqlError> {
        if let Held::Nothing = self.held {
            self.held = Held::Connection(self.pool.connect().await?);
        }
        Ok(())
    }

    /// Runs a statement that commits on its own.
    async fn run<T>(&mut self, work: impl for<'a> Work<'a, T>) -> Result<T, SqlError> {
        self.connect().await?;
        match &mut self.held {
            Held::Connection(connection) => work(&mut **connection).await,
            Held::Transaction(_) | Held::Nothing => Err(in_transaction()),
        }
    }

    /// Runs a statement in the open transaction with this number.
    async fn run_within<T>(&mut self, number: u64, work: impl for<'a> Work<'a, T>) -> Result<T, SqlError> {
        match &mut self.held {
            Held::Transaction(transaction) if self.begun == number => work(&mut **transaction).await,
            Held::Transaction(_) | Held::Connection(_) | Held::Nothing => Err(SqlError::TransactionAborted),
        }
    }

    async fn begin(&mut self) -> Result<u64, SqlError> {
        let connection = match std::mem::take(&mut self.held) {
            Held::Nothing => self.pool.connect().await?,
            Held::Connection(connection) => connection,
            open @ Held::Transaction(_) => {
                self.held = open;
                return Err(in_transaction());
            }
        };
        self.held = Held::Transaction(connection.begin().await?);
        self.begun += 1;
        Ok(self.begun)
    }

    /// Takes the open transaction with this number.
    fn take(&mut self, number: u64) -> Option<Box<dyn store::Transaction>> {
        if self.begun != number {
            return None;
        }
        match std::mem::take(&mut self.held) {
            Held::Transaction(transaction) => Some(transaction),
            ended @ (Held::Connection(_) | Held::Nothing) => {
                self.held = ended;
                None
            }
        }
    }

    async fn commit(&mut self, number: u64) -> Result<(), SqlError> {
        let transaction = self.take(number).ok_or(SqlError::TransactionAborted)?;
        self.held = Held::Connection(transaction.commit().await?);
        Ok(())
    }
}

/// What a statement comes to that got no answer in time.
type Late = fn(String) -> SqlError;

/// One call on a connection or a transaction.
trait Work<'a, T>: FnOnce(&'a mut dyn Statements) -> BoxFuture<'a, Result<T, SqlError>> + Send {}

impl<'a, T, F> Work<'a, T> for F where F: FnOnce(&'a mut dyn Statements) -> BoxFuture<'a, Result<T, SqlError>> + Send {}

impl View {
    /// Takes the session with a database out, to be put back by [`View::keep`].
    fn session(&mut self, database: &Arc<str>) -> Result<Session, Error> {
        if let Some(session) = self.sessions.remove(database) {
            return Ok(session);
        }
        let pool = self.granted.sql.get(&**database).ok_or_else(|| Error::NoSuchDatabase(database.to_string()))?;
        Ok(Session { pool: Arc::clone(pool), held: Held::Nothing, begun: 0 })
    }

    /// Puts a session back. One that lost its database begins anew: an open transaction of it is gone.
    fn keep<T>(&mut self, database: &Arc<str>, mut session: Session, done: Result<T, SqlError>) -> Result<T, Error> {
        if done.as_ref().is_err_and(Away::is_away) {
            session.held = Held::Nothing;
        }
        self.sessions.insert(Arc::clone(database), session);
        done.map_err(Error::from)
    }

    async fn connect(&mut self, database: &Arc<str>) -> Result<(), Error> {
        let mut session = self.session(database)?;
        let done = self.ask(CAPABILITY, session.connect(), SqlError::Unavailable).await;
        self.keep(database, session, done)
    }

    async fn begin_on(&mut self, database: &Arc<str>) -> Result<u64, Error> {
        let mut session = self.session(database)?;
        let done = self.ask(CAPABILITY, session.begin(), SqlError::Unavailable).await;
        self.keep(database, session, done)
    }

    async fn run<T>(&mut self, database: &Arc<str>, late: Late, work: impl for<'a> Work<'a, T>) -> Result<T, Error> {
        let mut session = self.session(database)?;
        let done = self.ask(CAPABILITY, session.run(work), late).await;
        self.keep(database, session, done)
    }

    async fn run_within<T>(&mut self, place: (Arc<str>, u64), work: impl for<'a> Work<'a, T>) -> Result<T, Error> {
        let mut session = self.session(&place.0)?;
        let done = self.ask(CAPABILITY, session.run_within(place.1, work), SqlError::Unavailable).await;
        self.keep(&place.0, session, done)
    }

    async fn commit(&mut self, place: (Arc<str>, u64)) -> Result<(), Error> {
        let mut session = self.session(&place.0)?;
        let done = self.ask(CAPABILITY, session.commit(place.1), unknown).await;
        self.keep(&place.0, session, done)
    }
}

impl Host for View {
    async fn current(&mut self) -> wasmtime::Result<Result<Resource<Transaction>, Error>> {
        match self.current_transaction().await {
            Ok(transaction) => Ok(Ok(self.table.push(transaction)?)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn open(&mut self, name: String) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        if let Err(denied) = self.check(CAPABILITY, Kind::Sql, &name) {
            return Ok(Err(Error::AccessDenied(denied.to_string())));
        }
        if let Err(error) = self.check_beside(&name) {
            return Ok(Err(error));
        }
        let database: Arc<str> = name.into();
        match self.connect(&database).await {
            Ok(()) => Ok(Ok(self.table.push(Connection { database })?)),
            Err(error) => Ok(Err(error)),
        }
    }
}

impl HostConnection for View {
    async fn query(
        &mut self,
        connection: Resource<Connection>,
        statement: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<RowSet, Error>> {
        let database = Arc::clone(&self.table.get(&connection)?.database);
        let rows = self.run(&database, SqlError::Unavailable, |on| on.query(statement, convert::values(params))).await;
        Ok(rows.map(RowSet::from))
    }

    async fn execute(
        &mut self,
        connection: Resource<Connection>,
        statement: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let database = Arc::clone(&self.table.get(&connection)?.database);
        Ok(self.run(&database, unknown, |on| on.execute(statement, convert::values(params))).await)
    }

    async fn execute_many(
        &mut self,
        connection: Resource<Connection>,
        statement: String,
        params: Vec<Vec<Value>>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let database = Arc::clone(&self.table.get(&connection)?.database);
        Ok(self.run(&database, unknown, |on| on.execute_many(statement, convert::lists(params))).await)
    }

    async fn begin(
        &mut self,
        connection: Resource<Connection>,
    ) -> wasmtime::Result<Result<Resource<OwnTransaction>, Error>> {
        let database = Arc::clone(&self.table.get(&connection)?.database);
        match self.begin_on(&database).await {
            Ok(number) => Ok(Ok(self.table.push(OwnTransaction { database, number })?)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.table.delete(connection)?;
        Ok(())
    }
}

impl HostOwnTransaction for View {
    async fn query(
        &mut self,
        own: Resource<OwnTransaction>,
        statement: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<RowSet, Error>> {
        let place = self.table.get(&own)?.place();
        let rows = self.run_within(place, |on| on.query(statement, convert::values(params))).await;
        Ok(rows.map(RowSet::from))
    }

    async fn execute(
        &mut self,
        own: Resource<OwnTransaction>,
        statement: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let place = self.table.get(&own)?.place();
        Ok(self.run_within(place, |on| on.execute(statement, convert::values(params))).await)
    }

    async fn execute_many(
        &mut self,
        own: Resource<OwnTransaction>,
        statement: String,
        params: Vec<Vec<Value>>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let place = self.table.get(&own)?.place();
        Ok(self.run_within(place, |on| on.execute_many(statement, convert::lists(params))).await)
    }

    async fn commit(&mut self, own: Resource<OwnTransaction>) -> wasmtime::Result<Result<(), Error>> {
        let place = self.table.get(&own)?.place();
        Ok(self.commit(place).await)
    }

    async fn drop(&mut self, own: Resource<OwnTransaction>) -> wasmtime::Result<()> {
        let own = self.table.delete(own)?;
        let open = self.sessions.get_mut(&own.database).and_then(|session| session.take(own.number));
        if let Some(transaction) = open {
            // What can't be rolled back in time is given up with its connection, which rolls it back too.
            if let Ok(Ok(connection)) = self.wait(transaction.rollback()).await
                && let Some(session) = self.sessions.get_mut(&own.database)
            {
                session.held = Held::Connection(connection);
            }
        }
        Ok(())
    }
}

impl OwnTransaction {
    fn place(&self) -> (Arc<str>, u64) {
        (Arc::clone(&self.database), self.number)
    }
}

/// A statement or a commit that was not answered in time: it may have happened.
fn unknown(text: String) -> SqlError {
    SqlError::OutcomeUnknown(store::DbError { sqlstate: None, message: text, constraint: None })
}

/// PostgreSQL's code for "there is a transaction already".
fn in_transaction() -> SqlError {
    SqlError::Rejected(store::DbError {
        sqlstate: Some("25001".to_owned()),
        message: "a transaction is open on this database; use it, or end it first".to_owned(),
        constraint: None,
    })
}
