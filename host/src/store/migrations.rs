//! A handler's SQL schema: files `V1__name.sql` beside its manifest, applied in order, each once.

use std::path::{Path, PathBuf};

use super::{Sql, SqlError};

/// The migrations of one handler, read from its folder.
#[derive(Debug, Clone)]
pub struct Migrations {
    handler: String,
    folder: PathBuf,
}

/// Why a handler's schema could not be brought up to date. Nothing of the failed file is in the database.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The database did not answer; trying again can help.
    #[error("migrations of `{handler}`: {cause}")]
    Database {
        /// The handler.
        handler: String,
        /// What the database said.
        #[source]
        cause: SqlError,
    },
}

/// Applies the migrations in `folder` that the database has not seen, and gives their file names.
/// Safe to call from many hosts at once.
pub async fn migrate(sql: &dyn Sql, handler: &str, folder: &Path) -> Result<Vec<String>, MigrationError> {
    sql.apply(Migrations { handler: handler.to_owned(), folder: folder.to_owned() }).await
}
