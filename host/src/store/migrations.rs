//! A handler's SQL schema: files `V1__name.sql` beside its manifest, applied in order, each once and whole.
//!
//! Each handler has a history table of its own in the database, `tidemill_migrations_<handler>`. What has been applied
//! must stay as it was: a change of the schema is a new file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use refinery::{Migration, Runner, SchemaVersion};

use super::{Sql, SqlError};

/// What the names of history tables begin with.
const TABLE_PREFIX: &str = "tidemill_migrations_";
/// The longest name that PostgreSQL keeps whole, in bytes.
const NAME_BYTES_MAX: usize = 63;
/// The most files that a handler may have.
const FILES_MAX: usize = 1000;
/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The migrations of one handler, read from its folder and checked as far as files can be.
#[derive(Debug, Clone)]
pub struct Migrations {
    handler: String,
    /// Invariant: in the order of their versions, of which none is there twice.
    files: Vec<Migration>,
}

/// Why a handler's schema could not be brought up to date. Nothing of a failed file is in the database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MigrationError {
    /// The operator's move: the folder or a file can't be read.
    #[error("`{path}` can't be read: {cause}")]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// The operator's move: a name that has no place in the order.
    #[error("`{file}` is not named as a migration; name it like `V1__create_orders.sql`")]
    BadName {
        /// The file's name.
        file: String,
    },
    /// The operator's move: two files have one place.
    #[error("`{first}` and `{second}` have the same number; give one of them a number above all others")]
    SameNumber {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// The operator's move: an applied file is not what it was.
    #[error(
        "`{file}` was changed or renamed after it had been applied (as `{applied}`); put it back as it was, and write the change as a new file"
    )]
    Changed {
        /// The file in the folder.
        file: String,
        /// Its name when it was applied.
        applied: String,
    },
    /// The operator's move: an applied file is gone.
    #[error("`{file}` has been applied to this database, but is not in the handler's folder; put it back")]
    Missing {
        /// The file's name when it was applied.
        file: String,
    },
    /// The operator's move: a new file comes before one that has been applied.
    #[error("`{file}` is new, but comes before `{applied}`, which has been applied; give it a higher number")]
    TooLate {
        /// The new file.
        file: String,
        /// The last one that was applied.
        applied: String,
    },
    /// The operator's move: the database rejected a file.
    #[error("`{file}` failed, and nothing of it was kept: {cause}")]
    Failed {
        /// The file's name.
        file: String,
        /// What the database said.
        cause: SqlError,
    },
    /// The operator's move, or nobody's: the database did not answer, or another host is applying this handler's files.
    #[error("{0}")]
    Database(SqlError),
    /// The operator's move: the history in the database is not one.
    #[error("the table `{table}` is no history of migrations: {cause}")]
    BadHistory {
        /// The handler's history table.
        table: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// Applies the migrations in `folder` that the database has not seen, and gives their file names.
///
/// Many hosts may call it at once: one applies, the others wait and find nothing to do. A folder that is not there has
/// no migrations.
pub async fn migrate(sql: &dyn Sql, handler: &str, folder: &Path) -> Result<Vec<String>, MigrationError> {
    let migrations = Migrations::read(handler, folder)?;
    if migrations.files.is_empty() {
        return Ok(Vec::new());
    }
    sql.apply(migrations).await
}

impl Migrations {
    /// Reads a handler's folder of migrations.
    pub fn read(handler: &str, folder: &Path) -> Result<Self, MigrationError> {
        let mut files = BTreeMap::new();
        for path in paths(folder)? {
            let migration = read(&path)?;
            if let Some(first) = files.insert(migration.version(), migration.clone()) {
                return Err(MigrationError::SameNumber { first: file(&first), second: file(&migration) });
            }
        }
        Ok(Self { handler: handler.to_owned(), files: files.into_values().collect() })
    }

    /// The handler's history table, quoted.
    pub(super) fn table(&self) -> String {
        let mut name = format!("{TABLE_PREFIX}{}", self.handler);
        if name.len() > NAME_BYTES_MAX {
            let digest = self
                .handler
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            name = format!("{TABLE_PREFIX}{}_{digest:016x}", &self.handler[..NAME_BYTES_MAX - TABLE_PREFIX.len() - 17]);
        }
        format!("\"{name}\"")
    }

    /// What applies the files; it is given the history and has checked nothing.
    pub(super) fn runner(&self) -> Runner {
        let mut runner = Runner::new(&self.files);
        runner.set_migration_table_name(self.table());
        runner
    }

    /// Checks the files against the history.
    pub(super) fn check(&self, history: &[Migration]) -> Result<(), MigrationError> {
        let files: BTreeMap<SchemaVersion, &Migration> = self.files.iter().map(|file| (file.version(), file)).collect();
        for applied in history {
            match files.get(&applied.version()) {
                None => return Err(MigrationError::Missing { file: file(applied) }),
                Some(found) if *found != applied => {
                    return Err(MigrationError::Changed { file: file(found), applied: file(applied) });
                }
                Some(_) => {}
            }
        }
        let Some(last) = history.last() else { return Ok(()) };
        match self.pending(history).find(|pending| pending.version() < last.version()) {
            Some(late) => Err(MigrationError::TooLate { file: file(late), applied: file(last) }),
            None => Ok(()),
        }
    }

    /// The names of the files that `history` lacks.
    pub(super) fn pending_names(&self, history: &[Migration]) -> Vec<String> {
        self.pending(history).map(file).collect()
    }

    /// Names the file that failed: the first that is still pending afterwards.
    pub(super) fn failed(&self, history_after: &[Migration], cause: SqlError) -> MigrationError {
        match self.pending(history_after).next() {
            Some(pending) => MigrationError::Failed { file: file(pending), cause },
            None => MigrationError::Database(cause),
        }
    }

    /// Tells that the history can't be read.
    pub(super) fn bad_history(&self, cause: String) -> MigrationError {
        MigrationError::BadHistory { table: self.table(), cause }
    }

    fn pending<'a>(&'a self, history: &'a [Migration]) -> impl Iterator<Item = &'a Migration> {
        self.files.iter().filter(|file| history.iter().all(|applied| applied.version() != file.version()))
    }
}

/// The `.sql` files of a folder; none if it is not there.
fn paths(folder: &Path) -> Result<Vec<PathBuf>, MigrationError> {
    let unreadable = |error: std::io::Error| unreadable(folder, &error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            paths.push(path);
        }
    }
    if paths.len() > FILES_MAX {
        let cause = format!("it has {} files, more than {FILES_MAX}", paths.len());
        return Err(MigrationError::Unreadable { path: folder.to_owned(), cause });
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Migration, MigrationError> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let bad_name = || MigrationError::BadName { file: format!("{name}.sql") };
    if !well_named(&name) {
        return Err(bad_name());
    }
    let size = fs::metadata(path).map_err(|error| unreadable(path, &error))?.len();
    if size > FILE_BYTES_MAX {
        let cause = format!("it has {size} bytes, more than {FILE_BYTES_MAX}");
        return Err(MigrationError::Unreadable { path: path.to_owned(), cause });
    }
    let sql = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    Migration::unapplied(&name, &sql).map_err(|_| bad_name())
}

/// `V`, a number, two underscores, and letters, digits and underscores; refinery would overlook the rest silently.
fn well_named(name: &str) -> bool {
    let Some((number, text)) = name.strip_prefix('V').and_then(|rest| rest.split_once("__")) else { return false };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    number.parse::<SchemaVersion>().is_ok_and(|number| number >= 0) && !text.is_empty() && text.chars().all(word)
}

fn unreadable(path: &Path, error: &std::io::Error) -> MigrationError {
    MigrationError::Unreadable { path: path.to_owned(), cause: error.to_string() }
}

fn file(migration: &Migration) -> String {
    format!("{migration}.sql")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("a file");
        }
        folder
    }

    fn read(files: &[(&str, &str)]) -> Result<Migrations, MigrationError> {
        Migrations::read("orders", folder(files).path())
    }

    #[test]
    fn files_are_ordered_by_number() {
        let migrations = read(&[("V10__c.sql", ""), ("V9__b.sql", ""), ("V1__a.sql", ""), ("readme.md", "")]);
        assert_eq!(migrations.expect("valid").pending_names(&[]), ["V1__a.sql", "V9__b.sql", "V10__c.sql"]);
    }

    #[test]
    fn a_name_without_a_place_is_refused_not_overlooked() {
        for name in
            ["1__a.sql", "V1_a.sql", "V1__.sql", "Vx__a.sql", "V1__a b.sql", "U1__a.sql", "V-1__a.sql", "v1__a.sql"]
        {
            let error = read(&[(name, "")]).expect_err(name);
            assert_eq!(error, MigrationError::BadName { file: name.to_owned() });
        }
        let twice = read(&[("V1__a.sql", ""), ("V01__b.sql", "")]).expect_err("the same number");
        assert!(matches!(twice, MigrationError::SameNumber { .. }), "{twice}");
    }

    #[test]
    fn what_was_applied_must_stay_as_it_was() {
        let applied = read(&[("V1__a.sql", "one"), ("V3__c.sql", "three")]).expect("valid").files;
        let check =
            |files: &[(&str, &str)]| read(files).expect("valid").check(&applied).map_err(|error| error.to_string());
        assert_eq!(check(&[("V1__a.sql", "one"), ("V3__c.sql", "three"), ("V4__d.sql", "")]), Ok(()));
        for (files, text) in [
            (&[("V1__a.sql", "other"), ("V3__c.sql", "three")][..], "`V1__a.sql` was changed or renamed"),
            (&[("V1__z.sql", "one"), ("V3__c.sql", "three")], "(as `V1__a.sql`)"),
            (&[("V3__c.sql", "three")], "`V1__a.sql` has been applied to this database"),
            (
                &[("V1__a.sql", "one"), ("V2__b.sql", ""), ("V3__c.sql", "three")],
                "`V2__b.sql` is new, but comes before `V3__c.sql`",
            ),
        ] {
            let error = check(files).expect_err(text);
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn history_tables_of_long_names_stay_apart() {
        let table = |handler: String| Migrations { handler, files: Vec::new() }.table();
        assert_eq!(table("my-orders".to_owned()), "\"tidemill_migrations_my-orders\"");
        let (one, other) = (table(format!("{}1", "x".repeat(63))), table(format!("{}2", "x".repeat(63))));
        assert_ne!(one, other);
        assert_eq!(one.len(), NAME_BYTES_MAX + 2);
    }
}
