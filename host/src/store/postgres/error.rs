//! PostgreSQL's SQLSTATEs → whose move it is.

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::{DbError as ServerError, Severity, SqlState};

use super::Config;
use crate::store::{DbError, SqlError};

/// Tells why the pool gave no connection.
pub(super) fn pool(error: &PoolError, config: &Config) -> SqlError {
    SqlError::Unavailable(match error {
        PoolError::Timeout(TimeoutType::Wait) => {
            format!("no connection became free within `connection_wait` ({:?})", config.connection_wait)
        }
        PoolError::Timeout(TimeoutType::Create) => {
            format!("no connection within `connect_timeout` ({:?})", config.connect_timeout)
        }
        PoolError::Timeout(TimeoutType::Recycle) => {
            format!("no answer within `recycle_timeout` ({:?})", config.recycle_timeout)
        }
        PoolError::Backend(error) => words(error),
        other @ (PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_)) => other.to_string(),
    })
}

/// Tells what a failure means; `committing`: of a COMMIT, or of a statement that commits on its own.
pub(super) fn statement(error: &tokio_postgres::Error, committing: bool) -> SqlError {
    match error.as_db_error() {
        Some(server) => said(server, committing),
        None => lost(words(error), committing),
    }
}

/// Tells what a lost connection means.
pub(super) fn lost(message: String, committing: bool) -> SqlError {
    if committing {
        SqlError::OutcomeUnknown(DbError { sqlstate: None, message, constraint: None })
    } else {
        SqlError::Unavailable(message)
    }
}

/// Whether the connection is of no use after this error.
pub(super) fn ends_connection(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none_or(ends_session)
}

/// Whether the server no longer knows this session's prepared statements, or one of them is stale.
pub(super) fn stale_statement(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(stale)
}

fn said(server: &ServerError, committing: bool) -> SqlError {
    let code = server.code();
    let error = DbError {
        sqlstate: Some(code.code().to_owned()),
        message: server.message().to_owned(),
        constraint: server.constraint().map(str::to_owned),
    };
    if [SqlState::TRANSACTION_RESOLUTION_UNKNOWN, SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN].contains(code) {
        return SqlError::OutcomeUnknown(error);
    }
    if ends_session(server) {
        return if committing { SqlError::OutcomeUnknown(error) } else { SqlError::Unavailable(error.to_string()) };
    }
    if *code == SqlState::IN_FAILED_SQL_TRANSACTION {
        return SqlError::TransactionAborted;
    }
    if away(code) {
        return SqlError::Unavailable(error.to_string());
    }
    if worth_another_try(code) || stale(server) {
        return SqlError::Transient(error);
    }
    SqlError::Rejected(error)
}

/// A session that the server ends: by its administrator, by a crash, or because it is in recovery.
fn ends_session(server: &ServerError) -> bool {
    let fatal = matches!(server.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
        || matches!(server.severity(), "FATAL" | "PANIC");
    fatal || matches!(server.code().code(), "57P01" | "57P02" | "57P03") || class(server.code()) == "08"
}

/// No statement is to blame: the disk is full, connections are used up, or this is a server that takes no writes.
fn away(code: &SqlState) -> bool {
    [SqlState::DISK_FULL, SqlState::TOO_MANY_CONNECTIONS, SqlState::READ_ONLY_SQL_TRANSACTION].contains(code)
        || ["57P04", "57P05"].contains(&code.code())
        || class(code) == "58"
}

/// Deadlocks, serialisation failures, time-outs and shortages.
fn worth_another_try(code: &SqlState) -> bool {
    let integrity = *code == SqlState::T_R_INTEGRITY_CONSTRAINT_VIOLATION;
    (class(code) == "40" && !integrity)
        || class(code) == "53"
        || [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE].contains(code)
}

fn stale(server: &ServerError) -> bool {
    *server.code() == SqlState::INVALID_SQL_STATEMENT_NAME || server.routine() == Some("RevalidateCachedQuery")
}

fn class(code: &SqlState) -> &str {
    code.code().get(..2).unwrap_or_default()
}

/// An error's own words with its cause's: tokio-postgres keeps the system's words in the cause.
fn words(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The guest's move, found out before the server was asked.
pub(super) fn rejected(sqlstate: &str, message: String) -> SqlError {
    SqlError::Rejected(DbError { sqlstate: Some(sqlstate.to_owned()), message, constraint: None })
}
