//! SQLite's codes → whose move it is.

use std::path::Path;

use rusqlite::{Error, ErrorCode, ffi};

use super::pool::interrupted;
use crate::store::{DbError, SqlError};

/// Tells what a statement's failure means.
pub(super) fn statement(error: Error) -> SqlError {
    let (code, message) = match error {
        Error::SqliteFailure(code, message) => (code, message),
        Error::SqlInputError { error, msg, .. } => (error, Some(msg)),
        Error::MultipleStatement => return rejected(None, "only one statement at a time".to_owned(), None),
        other => return rejected(None, other.to_string(), None),
    };
    let message = message.unwrap_or_else(|| code.to_string());
    #[expect(clippy::wildcard_enum_match_arm, reason = "a code that is not named here is the statement's fault")]
    match code.code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::SchemaChanged => {
            SqlError::Transient(DbError { sqlstate: None, message, constraint: None })
        }
        ErrorCode::OperationInterrupted => interrupted(),
        ErrorCode::ConstraintViolation => constraint(code.extended_code, message),
        ErrorCode::AuthorizationForStatementDenied => rejected(
            Some("42501"),
            "a statement of a guest must stay within the database; transactions are opened by `begin`".to_owned(),
            None,
        ),
        _ if away(code.code) => SqlError::Unavailable(message),
        _ => rejected(None, message, None),
    }
}

/// Tells what a failed COMMIT means: after a failure of the disk nobody knows whether the change will be there.
pub(super) fn commit(error: Error) -> SqlError {
    let failed_disk = matches!(&error, Error::SqliteFailure(code, _) if code.code == ErrorCode::SystemIoFailure);
    match statement(error) {
        SqlError::Unavailable(message) if failed_disk => {
            SqlError::OutcomeUnknown(DbError { sqlstate: None, message, constraint: None })
        }
        known => known,
    }
}

/// Tells why the file can't be opened.
pub(super) fn opening(file: &Path, error: &Error) -> SqlError {
    SqlError::Unavailable(format!("opening `{}`: {error}", file.display()))
}

/// Whether the file, the disk or the memory is at fault.
fn away(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::CannotOpen
            | ErrorCode::SystemIoFailure
            | ErrorCode::DiskFull
            | ErrorCode::ReadOnly
            | ErrorCode::NotADatabase
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::PermissionDenied
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OutOfMemory
            | ErrorCode::NoLargeFileSupport
    )
}

/// A broken constraint, with the code that PostgreSQL has for its kind, so that a guest can ask both the same way.
fn constraint(extended_code: i32, message: String) -> SqlError {
    let sqlstate = match extended_code {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => "23505",
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => "23503",
        ffi::SQLITE_CONSTRAINT_NOTNULL => "23502",
        ffi::SQLITE_CONSTRAINT_CHECK => "23514",
        _ => "23000",
    };
    let name = message.split_once("constraint failed: ").map(|(_, name)| name.to_owned());
    rejected(Some(sqlstate), message, name)
}

/// The guest's move.
pub(super) fn rejected(sqlstate: Option<&str>, message: String, constraint: Option<String>) -> SqlError {
    SqlError::Rejected(DbError { sqlstate: sqlstate.map(str::to_owned), message, constraint })
}
