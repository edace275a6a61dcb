//! Why a handler's folder is refused.

use std::path::PathBuf;

use tidemill_core::revisions::Rollback;

use crate::attempt::short;
use crate::broker::BrokerError;
use crate::config::Problem;
use crate::guest::LoadError;
use crate::store::SqlError;
use crate::store::migrations::MigrationError;

/// Why a handler does not run, or does not run as its folder says.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The manifest is wrong.
    #[error("{}", lines(.0))]
    Manifest(Vec<Problem>),
    /// The component can't be taken.
    #[error("handler `{handler}`: {cause}")]
    Load {
        /// The handler.
        handler: String,
        /// Why.
        cause: LoadError,
    },
    /// An operator went back from what lies in its folder, and what ran instead is gone.
    #[error(
        "handler `{handler}`: its component was rolled back from, and {} that ran instead is not kept compiled (by this \
         version of the host); put the file that you want to run into the folder, or remove `{file}` to run this one",
        short(&.rollback.live)
    )]
    RolledBack {
        /// The handler.
        handler: String,
        /// To what, and from what.
        rollback: Rollback,
        /// Where that is kept.
        file: PathBuf,
    },
    /// The component's file can't be read.
    #[error("handler `{handler}`: `{path}` can't be read: {cause}")]
    Unreadable {
        /// The handler.
        handler: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Its schema could not be brought up to date.
    #[error("handler `{handler}`: {cause}")]
    Migrations {
        /// The handler.
        handler: String,
        /// Why.
        cause: Box<MigrationError>,
    },
    /// Migrations without a database to apply them to.
    #[error(
        "handler `{handler}`: has migrations and {granted} granted databases; grant exactly one under `grants.sql`"
    )]
    MigrationsWhere {
        /// The handler.
        handler: String,
        /// How many it has.
        granted: usize,
    },
    /// What it subscribes to, or with.
    #[error("handler `{handler}`: {cause}")]
    Subscription {
        /// The handler.
        handler: String,
        /// Why.
        cause: BrokerError,
    },
    /// Two handlers name one group.
    #[error(
        "handler `{handler}`: group `{group}` is `{other}`'s already; a group belongs to one handler, choose another name"
    )]
    GroupTaken {
        /// The handler.
        handler: String,
        /// The group.
        group: String,
        /// Whose it is.
        other: String,
    },
}

impl HandlerError {
    /// Whether it may work later with the folder as it is, and nobody else should wait for it: something else is away.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Migrations { cause, .. } => matches!(**cause, MigrationError::Database(SqlError::Unavailable(_))),
            Self::RolledBack { .. } => true,
            Self::Manifest(_)
            | Self::Load { .. }
            | Self::Unreadable { .. }
            | Self::MigrationsWhere { .. }
            | Self::Subscription { .. }
            | Self::GroupTaken { .. } => false,
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
