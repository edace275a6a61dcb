//! Connections to one file, on loan to one call at a time, and the one permit to write.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rusqlite::{
    InterruptHandle,
    hooks::{AuthAction, AuthContext, Authorization},
    limits::Limit,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::timeout,
};

use super::{Config, Synchronous, error};
use crate::store::{DbError, SqlError, offsets};

/// The longest statement text, in bytes.
const STATEMENT_BYTES_MAX: i32 = 1 << 20;

/// Whose statements run on a pool's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// A guest's: nothing beyond the database, no transactions but through `begin`.
    Guest,
    /// The host's own.
    Host,
}

/// The connections to one file.
pub(super) struct Pool {
    config: Config,
    access: Access,
    idle: Mutex<Vec<Handle>>,
    slots: Arc<Semaphore>,
    writer: Arc<Semaphore>,
}

/// An open connection with what belongs to it.
pub(super) struct Handle {
    pub(super) connection: rusqlite::Connection,
    /// Whether the host itself is speaking, which may open and end transactions. Read by the authorizer.
    host_speaks: Arc<AtomicBool>,
}

/// A connection on loan. Dropped, it rolls back what is open and returns to the pool: drop it on a blocking thread while
/// a transaction is open.
pub(super) struct Loan {
    handle: Option<Handle>,
    pool: Arc<Pool>,
    _slot: OwnedSemaphorePermit,
}

/// Tells a running piece of work that nobody waits for it any more.
#[derive(Debug, Clone, Default)]
pub(super) struct Abandoned(Arc<AtomicBool>);

impl Abandoned {
    /// An error once the work was abandoned; asked between the statements of one piece of work.
    pub(super) fn check(&self) -> Result<(), SqlError> {
        if self.0.load(Ordering::Relaxed) { Err(interrupted()) } else { Ok(()) }
    }
}

impl Pool {
    pub(super) fn new(config: Config, access: Access) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(config.connections_max.clamp(1, Semaphore::MAX_PERMITS))),
            writer: Arc::new(Semaphore::new(1)),
            idle: Mutex::new(Vec::new()),
            access,
            config,
        })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// A connection, opened if none is idle.
    pub(super) async fn take(self: Arc<Self>) -> Result<Loan, SqlError> {
        let slot = wait_for(&self.slots, self.config.connection_wait.0, "connections_max").await?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(handle) = idle {
            return Ok(Loan { handle: Some(handle), pool: self, _slot: slot });
        }
        let opening = tokio::task::spawn_blocking(move || {
            let handle = open(&self.config, self.access).map_err(|error| error::opening(&self.config.file, &error))?;
            Ok(Loan { handle: Some(handle), pool: self, _slot: slot })
        });
        opening.await.unwrap_or_else(|error| Err(SqlError::Unavailable(format!("opening the database: {error}"))))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Waits for a permit, no longer than the operator said.
async fn wait_for(
    semaphore: &Arc<Semaphore>,
    wait: Duration,
    limit: &'static str,
) -> Result<OwnedSemaphorePermit, SqlError> {
    match timeout(wait, semaphore.clone().acquire_owned()).await {
        Ok(permit) => Ok(permit.expect("the pool never closes its semaphores")),
        Err(_) => Err(SqlError::Unavailable(format!("no turn within `connection_wait` ({wait:?}): `{limit}` in use"))),
    }
}

/// Opens a connection and prepares it: the one place that says how.
pub(super) fn open(config: &Config, access: Access) -> rusqlite::Result<Handle> {
    let mut connection = rusqlite::Connection::open(&config.file)?;
    connection.busy_timeout(config.busy_timeout.0)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(
        None,
        "synchronous",
        match config.synchronous {
            Synchronous::Normal => "NORMAL",
            Synchronous::Full => "FULL",
        },
    )?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(config.statements_cached_max);
    let host_speaks = Arc::new(AtomicBool::new(false));
    if access == Access::Guest {
        let bytes_max = i32::try_from(config.bytes_max.0).unwrap_or(i32::MAX);
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, bytes_max.max(STATEMENT_BYTES_MAX))?;
        connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, STATEMENT_BYTES_MAX)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        let speaks = host_speaks.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| authorize(&context, &speaks)))?;
    }
    Ok(Handle { connection, host_speaks })
}

/// What a guest's statement may do: anything to the database's tables, nothing to the session or beyond the file.
fn authorize(context: &AuthContext<'_>, host_speaks: &AtomicBool) -> Authorization {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what is refused is a list; the enum may grow")]
    match &context.action {
        action if written_table(action).is_some_and(|table| table.eq_ignore_ascii_case(offsets::TABLE)) => {
            if host_speaks.load(Ordering::Relaxed) {
                Authorization::Allow
            } else {
                Authorization::Deny
            }
        }
        AuthAction::Transaction { .. } if host_speaks.load(Ordering::Relaxed) => Authorization::Allow,
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => Authorization::Deny,
        AuthAction::Attach { .. } | AuthAction::Detach { .. } | AuthAction::Unknown { .. } => Authorization::Deny,
        AuthAction::Pragma { .. } => Authorization::Deny,
        AuthAction::CreateTempTable { .. } | AuthAction::CreateTempView { .. } => Authorization::Deny,
        AuthAction::CreateTempIndex { .. } | AuthAction::CreateTempTrigger { .. } => Authorization::Deny,
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            Authorization::Deny
        }
        _ => Authorization::Allow,
    }
}

/// The table that a statement would change, or make anew, if it is that kind.
fn written_table<'a>(action: &AuthAction<'a>) -> Option<&'a str> {
    match action {
        AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name }
        | AuthAction::CreateTable { table_name }
        | AuthAction::DropTable { table_name }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::CreateIndex { table_name, .. }
        | AuthAction::CreateTrigger { table_name, .. } => Some(table_name),
        _ => None,
    }
}

impl Handle {
    /// Opens or ends a transaction, in the host's name.
    pub(super) fn control(&self, statement: &'static str) -> rusqlite::Result<()> {
        self.as_host(|connection| connection.execute_batch(statement))
    }

    /// Speaks in the host's name. The work must not use cached statements: a guest's of the same text would find them
    /// there, allowed.
    pub(super) fn as_host<T>(
        &self,
        work: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.host_speaks.store(true, Ordering::Relaxed);
        let result = work(&self.connection);
        self.host_speaks.store(false, Ordering::Relaxed);
        result
    }
}

impl Loan {
    /// The permit to write. The future does not borrow the loan, which can't be shared between threads.
    pub(super) fn writer(&self) -> impl Future<Output = Result<OwnedSemaphorePermit, SqlError>> + Send + use<> {
        let (writer, wait) = (self.pool.writer.clone(), self.pool.config.connection_wait.0);
        async move { wait_for(&writer, wait, "the one writer").await }
    }

    /// Whether a transaction is open.
    pub(super) fn in_transaction(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| !handle.connection.is_autocommit())
    }

    /// Runs one piece of work on a blocking thread, interrupting it at `statement_timeout` or when nobody waits any more.
    /// The permit to write, if it is given, is held until the work has ended, whoever waits.
    pub(super) async fn run<T: Send + 'static>(
        self,
        permit: Option<OwnedSemaphorePermit>,
        work: impl FnOnce(&Handle, &Config, &Abandoned) -> Result<T, SqlError> + Send + 'static,
    ) -> Result<(Self, Option<OwnedSemaphorePermit>, Result<T, SqlError>), SqlError> {
        let abandoned = Abandoned::default();
        let told = abandoned.clone();
        let limit = self.pool.config.statement_timeout.0;
        let interrupt = self.handle().connection.get_interrupt_handle();
        let join = tokio::task::spawn_blocking(move || {
            let result = work(self.handle(), &self.pool.config, &told);
            (self, permit, result)
        });
        let mut running = Running { interrupt, abandoned, ended: false, join };
        let joined = match timeout(limit, &mut running.join).await {
            Ok(joined) => joined,
            Err(_) => {
                running.stop();
                (&mut running.join).await
            }
        };
        running.ended = true;
        joined.map_err(|error| SqlError::Unavailable(format!("the database's thread: {error}")))
    }

    fn handle(&self) -> &Handle {
        self.handle.as_ref().expect("a loan has its connection until it is dropped")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        if !handle.connection.is_autocommit() && handle.control("ROLLBACK").is_err() {
            return; // Closing the connection rolls back too.
        }
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }
}

/// Work on a blocking thread. Dropped before its end, the work is interrupted; its connection is in `join`, which drops
/// after that, so that the interruption can't reach the connection's next user.
struct Running<T> {
    interrupt: InterruptHandle,
    abandoned: Abandoned,
    ended: bool,
    join: JoinHandle<T>,
}

impl<T> Running<T> {
    fn stop(&self) {
        self.abandoned.0.store(true, Ordering::Relaxed);
        self.interrupt.interrupt();
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if !self.ended {
            self.stop();
        }
    }
}

/// What a statement ends with that took longer than `statement_timeout`.
pub(super) fn interrupted() -> SqlError {
    let message = "the statement was stopped: it took longer than `statement_timeout`".to_owned();
    SqlError::Transient(DbError { sqlstate: Some("57014".to_owned()), message, constraint: None })
}
