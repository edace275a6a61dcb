//! tidemill.toml and the environment → [`Config`], checked; binds nothing.
//!
//! Every room owns its own `Config`, in which each bound has a name (ARCH-6); this one reads, merges and checks them.
//! Handlers have manifests of their own ([`manifest`]), so that one can be dropped in while the host runs.

pub mod manifest;
pub mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use tidemill_core::grants::Kind;

use self::units::{SecretRef, Size, Span};
use crate::broker::{embedded, kafka};
use crate::store::{postgres, sqlite};
use crate::{admin, ingest};

/// What the host is told, checked as far as one file can be.
#[derive(Debug)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Where the file lies: relative paths start here.
    pub folder: PathBuf,
    /// The log of records.
    pub broker: Broker,
    /// HTTP in; `None`: this host takes no records.
    pub ingest: Option<ingest::Config>,
    /// Health, metrics and commands; `None`: closed.
    pub admin: Option<admin::Config>,
    /// The folder of handlers; `None`: this host runs none.
    pub handlers: Option<PathBuf>,
    /// Bytes that all handlers together may have received and not settled.
    pub bytes_max: usize,
    /// Databases by name.
    pub sql: BTreeMap<String, Sql>,
    /// Key-value stores by name.
    pub kv: BTreeMap<String, Kv>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, units::Secret>,
    /// What the host writes for itself: the compile cache, and which handlers are paused.
    pub state: PathBuf,
    /// How long everything may take to end after SIGTERM.
    pub shutdown_deadline: Duration,
}

/// The log of records: which kind, and its own configuration.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Broker {
    /// A log in a file, for one host.
    Embedded(embedded::Config),
    /// Apache Kafka.
    Kafka(kafka::Config),
}

/// A database.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Sql {
    /// A file.
    Sqlite(sqlite::Config),
    /// A PostgreSQL server.
    Postgres(postgres::Config),
}

/// A key-value store.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kv {
    /// Gone when the host ends.
    Memory(crate::store::memory::Config),
    /// A file.
    Sqlite(sqlite::KeyValueConfig),
}

/// Another backend in place of a configured one, for one command: `sql.NAME=URL`, `sql.NAME=FILE` or `kv.NAME=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// `sql` or `kv`.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// A PostgreSQL database's URL, where `${NAME}` is read from the environment, or a file of SQLite's.
    value: String,
}

impl FromStr for Replacement {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let (key, value) = text.split_once('=')?;
            let (section, name) = key.split_once('.')?;
            let kind = [Kind::Sql, Kind::Kv].into_iter().find(|kind| kind.key() == section)?;
            let value = (!value.is_empty() && !name.is_empty()).then(|| value.to_owned())?;
            Some(Self { kind, name: name.to_owned(), value })
        };
        parts().ok_or("write sql.NAME=postgres://…, sql.NAME=FILE or kv.NAME=FILE")
    }
}

impl Replacement {
    /// What names it in tidemill.toml.
    pub fn key(&self) -> String {
        format!("{}.{}", self.kind.key(), self.name)
    }

    fn is_url(&self) -> bool {
        ["postgres://", "postgresql://", "${"].iter().any(|begin| self.value.starts_with(begin))
    }

    /// The file, from the folder in which the command runs.
    fn file(&self) -> PathBuf {
        std::path::absolute(&self.value).unwrap_or_else(|_| PathBuf::from(&self.value))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    broker: Broker,
    ingest: Option<ingest::Config>,
    admin: Option<admin::Config>,
    handlers: Option<Handlers>,
    #[serde(default)]
    sql: BTreeMap<String, Sql>,
    #[serde(default)]
    kv: BTreeMap<String, Kv>,
    #[serde(default)]
    secrets: BTreeMap<String, SecretRef>,
    state: Option<PathBuf>,
    shutdown_deadline: Option<Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Handlers {
    folder: PathBuf,
    bytes_max: Option<Size>,
}

const BYTES_DEFAULT: usize = 256 << 20;

/// Something wrong with a configuration file: where, what, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    path: PathBuf,
    line: Option<usize>,
    key: Option<String>,
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match &self.key {
            Some(key) => write!(f, ": `{key}` {}", self.text),
            None => write!(f, ": {}", self.text),
        }
    }
}

impl Problem {
    /// A file that can't be read.
    pub fn unreadable(path: &Path, cause: &std::io::Error) -> Self {
        let text = format!("can't be read: {cause}; correct the path or the file's permissions");
        Self { path: path.to_owned(), line: None, key: None, text }
    }

    /// A file whose text is not what it should be, with the place that TOML names.
    pub fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        Self { path: path.to_owned(), line, key: None, text: error.message().to_owned() }
    }

    /// A value that can't work. The text goes on after the key.
    pub fn invalid(path: &Path, key: &str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: None, key: Some(key.to_owned()), text: text.into() }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, Vec<Problem>> {
        let text = std::fs::read_to_string(path).map_err(|cause| vec![Problem::unreadable(path, &cause)])?;
        let file: File = toml::from_str(&text).map_err(|error| vec![Problem::syntax(path, &text, &error)])?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut problems = Vec::new();
        let mut broker = file.broker;
        if let Broker::Kafka(kafka) = &mut broker {
            let sections = [
                ("properties", &mut kafka.properties),
                ("consumer", &mut kafka.consumer),
                ("producer", &mut kafka.producer),
            ];
            for (section, properties) in sections {
                fill_in(path, section, properties, &mut problems);
            }
        }
        let mut secrets = BTreeMap::new();
        for (name, reference) in &file.secrets {
            match reference.read_strict(folder) {
                Ok(secret) => drop(secrets.insert(name.clone(), secret)),
                Err(error) => {
                    problems.push(Problem::invalid(path, &format!("secrets.{name}"), format!("can't be read: {error}")))
                }
            }
        }
        let bytes_max =
            file.handlers.as_ref().and_then(|handlers| handlers.bytes_max).map_or(BYTES_DEFAULT, |size| size.0);
        if bytes_max == 0 {
            let text = "is 0; handlers could hold no record, choose a larger one or leave the key out for 256MiB";
            problems.push(Problem::invalid(path, "handlers.bytes_max", text));
        }
        let handlers = file.handlers.map(|handlers| folder.join(handlers.folder));
        if let Some(handlers) = handlers.as_ref().filter(|handlers| !handlers.is_dir()) {
            let text =
                format!("is `{}`, which is no folder; make it, with one folder for each handler", handlers.display());
            problems.push(Problem::invalid(path, "handlers.folder", text));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            path: path.to_owned(),
            broker,
            ingest: file.ingest,
            admin: file.admin,
            handlers,
            bytes_max,
            sql: file.sql,
            kv: file.kv,
            secrets,
            state: folder.join(file.state.unwrap_or_else(|| PathBuf::from(".tidemill"))),
            shutdown_deadline: file.shutdown_deadline.map_or(Duration::from_secs(30), |span| span.0),
            folder: folder.to_owned(),
        })
    }

    /// Puts another backend in the place of one of the same name, whose bounds stay where both are of one kind.
    pub fn replace(&mut self, with: &Replacement) -> Result<(), Problem> {
        let place = &with.name;
        let missing = || {
            let text = "is not in this file; --set puts another backend in the place of one that is configured";
            Problem::invalid(&self.path, &with.key(), text)
        };
        match with.kind {
            Kind::Sql => {
                let old = self.sql.get(place).ok_or_else(missing)?;
                let new = match old {
                    Sql::Postgres(old) if with.is_url() => {
                        Sql::Postgres(postgres::Config { url: SecretRef::Text(with.value.clone()), ..old.clone() })
                    }
                    Sql::Sqlite(_) if with.is_url() => {
                        Sql::Postgres(postgres::Config::new(SecretRef::Text(with.value.clone())))
                    }
                    Sql::Sqlite(old) => Sql::Sqlite(sqlite::Config { file: with.file(), ..old.clone() }),
                    Sql::Postgres(_) => Sql::Sqlite(sqlite::Config::new(with.file())),
                };
                self.sql.insert(place.clone(), new);
            }
            Kind::Kv => {
                let new = match self.kv.get(place).ok_or_else(missing)? {
                    Kv::Sqlite(old) => sqlite::KeyValueConfig { file: with.file(), ..old.clone() },
                    Kv::Memory(_) => sqlite::KeyValueConfig::new(with.file()),
                };
                self.kv.insert(place.clone(), Kv::Sqlite(new));
            }
            Kind::Produce | Kind::Secret => return Err(missing()),
        }
        Ok(())
    }

    /// Refuses a configuration of a host that would do nothing.
    pub fn check_roles(&self) -> Result<(), Problem> {
        if self.handlers.is_none() && self.ingest.is_none() {
            let text = "is not set and neither is `ingest`: this host would do nothing; add one";
            return Err(Problem::invalid(&self.path, "handlers", text));
        }
        Ok(())
    }
}

/// Replaces `${NAME}` in the values of librdkafka's properties.
fn fill_in(path: &Path, section: &str, properties: &mut BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    for (name, value) in properties {
        match units::interpolate(value) {
            Ok(filled) => *value = filled,
            Err(error) => {
                let key = format!("broker.{section}.\"{name}\"");
                problems.push(Problem::invalid(path, &key, format!("can't be read: {error}")));
            }
        }
    }
}
