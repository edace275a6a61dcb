//! What hosts keep in files of SQLite, read beside them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags};

/// How long a reader waits for one who writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens a file that is there.
pub fn open(file: &Path) -> Result<Connection> {
    let opened = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let connection = opened.with_context(|| format!("open `{}`", file.display()))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// The rows of two texts that a query finds.
pub fn pairs(file: &Path, query: &str) -> Result<Vec<(String, String)>> {
    let connection = open(file)?;
    let mut select = connection.prepare(query)?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect::<rusqlite::Result<_>>().with_context(|| format!("read `{}`", file.display()))
}
