//! Where the log's database is and how it is opened: by the one writer, and by readers of this and of other processes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::config::Sync;
use crate::broker::BrokerError;

/// The database's name in the log's folder.
const NAME: &str = "log.db";

/// Marks the file as ours ("tide"), so that no other database is taken for a log.
const APPLICATION_ID: i32 = 0x7469_6465;

/// The version of the tables; a file of a newer version is refused.
const VERSION: i32 = 1;

/// How long a statement waits for another process that looks after the file, such as a `sqlite3` shell.
const BUSY: Duration = Duration::from_secs(5);

/// How many statements each connection keeps prepared: some for each partition in use.
const STATEMENTS_MAX: usize = 512;

/// The write-ahead log is cut back to this once it was copied into the database.
pub(super) const WAL_BYTES_MAX: i64 = 64 << 20;

/// Where the database is.
#[derive(Debug)]
pub(super) struct Database {
    place: Place,
    /// In memory, where SQLite has no write-ahead log, the writer and the readers take turns.
    turns: Mutex<()>,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    Memory(String),
}

/// Held while a connection works.
pub(super) type Turn<'a> = Option<MutexGuard<'a, ()>>;

impl Database {
    /// A database in a folder, which is made when it is missing.
    pub(super) fn in_folder(folder: &Path) -> Result<Self, BrokerError> {
        let unusable = |cause| {
            BrokerError::Config(format!("the embedded log's folder `{}` can't be made: {cause}", folder.display()))
        };
        std::fs::create_dir_all(folder).map_err(unusable)?;
        Ok(Self { place: Place::Folder(folder.to_owned()), turns: Mutex::new(()) })
    }

    /// A database of a log that another process may hold.
    pub(super) fn of_another(folder: &Path) -> Result<Self, BrokerError> {
        if !folder.join(NAME).is_file() {
            let text =
                format!("there is no embedded log in `{}` yet; a host or `topic create` makes it", folder.display());
            return Err(BrokerError::Config(text));
        }
        Ok(Self { place: Place::Folder(folder.to_owned()), turns: Mutex::new(()) })
    }

    /// A database that is gone with its last connection.
    pub(super) fn in_memory() -> Self {
        Self { place: Place::Memory(format!("file:/{}?vfs=memdb", uuid::Uuid::new_v4())), turns: Mutex::new(()) }
    }

    /// Waits for this connection's turn, where there are turns.
    pub(super) fn turn(&self) -> Turn<'_> {
        match self.place {
            Place::Folder(_) => None,
            Place::Memory(_) => Some(self.turns.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Opens the one connection that writes, and makes the tables.
    pub(super) fn writer(&self, sync: Sync) -> Result<Connection, BrokerError> {
        let mut connection = self.open(OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        let empty = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0));
        if !empty.map_err(|error| self.unusable(&error))? {
            self.check_version(&connection)?;
        }
        self.prepare(&mut connection, sync).map_err(|error| self.unusable(&error))?;
        Ok(connection)
    }

    /// Opens a connection that only reads.
    pub(super) fn reader(&self) -> Result<Connection, BrokerError> {
        let connection = match self.place {
            Place::Folder(_) => self.open(OpenFlags::SQLITE_OPEN_READ_ONLY)?,
            Place::Memory(_) => self.open(OpenFlags::SQLITE_OPEN_READ_WRITE)?,
        };
        self.check_version(&connection)?;
        Ok(connection)
    }

    fn open(&self, flags: OpenFlags) -> Result<Connection, BrokerError> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = match &self.place {
            Place::Folder(folder) => Connection::open_with_flags(folder.join(NAME), flags),
            Place::Memory(uri) => Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI),
        };
        let connection = opened.map_err(|error| self.unusable(&error))?;
        connection.busy_timeout(BUSY).map_err(|error| self.unusable(&error))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Ok(connection)
    }

    fn prepare(&self, connection: &mut Connection, sync: Sync) -> rusqlite::Result<()> {
        let synchronous = match sync {
            Sync::Process => "NORMAL",
            Sync::Full => "FULL",
        };
        if matches!(self.place, Place::Folder(_)) {
            connection.pragma_update(None, "journal_mode", "WAL")?;
        }
        connection.pragma_update(None, "synchronous", synchronous)?;
        connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)?;
        let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            let making = connection.transaction()?;
            making.execute_batch(include_str!("schema.sql"))?;
            making.pragma_update(None, "application_id", APPLICATION_ID)?;
            making.pragma_update(None, "user_version", VERSION)?;
            making.commit()?;
        }
        Ok(())
    }

    fn check_version(&self, connection: &Connection) -> Result<(), BrokerError> {
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let id = pragma("application_id").map_err(|error| self.unusable(&error))?;
        let version = pragma("user_version").map_err(|error| self.unusable(&error))?;
        match (id, version) {
            (APPLICATION_ID, VERSION) => Ok(()),
            (APPLICATION_ID, newer) => Err(BrokerError::Config(format!(
                "the embedded log `{}` has format {newer}, and this program knows {VERSION}; use the program that wrote it",
                self.name()
            ))),
            _ => Err(BrokerError::Config(format!(
                "`{}` is not an embedded log; use another folder, or move the file away",
                self.name()
            ))),
        }
    }

    fn unusable(&self, error: &rusqlite::Error) -> BrokerError {
        BrokerError::Config(format!("the embedded log `{}` can't be opened: {error}", self.name()))
    }

    fn name(&self) -> String {
        match &self.place {
            Place::Folder(folder) => folder.join(NAME).display().to_string(),
            Place::Memory(_) => "in memory".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_database_is_not_taken_for_a_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let other = Connection::open(folder.path().join(NAME)).expect("a database");
        other.execute_batch("CREATE TABLE mine (x); PRAGMA user_version = 3").expect("a table");
        let database = Database::in_folder(folder.path()).expect("the folder is there");
        let refused = database.writer(Sync::Process).expect_err("it is not ours").to_string();
        assert!(refused.contains("is not an embedded log"), "{refused}");
    }
}
