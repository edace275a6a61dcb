//! The records of a file: NDJSON as it stands, or the rows of a CSV file as JSON objects.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// A line may be so long.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A JSON text in each line; empty lines are passed over.
    Ndjson,
    /// A row of names, then rows of values.
    Csv,
}

/// What is taken from a file, and how.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    pub(super) key: Option<String>,
    pub(super) typed: bool,
}

/// A record of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The line where it begins, from 1.
    pub(super) line: u64,
    pub(super) key: Option<Bytes>,
    pub(super) value: Bytes,
}

/// A file that can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFile {
    /// It can't be read.
    #[error("`{path}` can't be read: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Its format is not known.
    #[error("the format of `{0}` can't be told from its name; add --format ndjson or --format csv")]
    UnknownFormat(PathBuf),
    /// A line is wrong.
    #[error("`{path}` line {line}: {cause}; nothing was sent")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        cause: String,
    },
}

impl Format {
    /// The format that the file's extension tells.
    pub(super) fn of(path: &Path) -> Result<Self, InvalidFile> {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("ndjson" | "jsonl" | "json") => Ok(Self::Ndjson),
            Some("csv") => Ok(Self::Csv),
            _ => Err(InvalidFile::UnknownFormat(path.to_owned())),
        }
    }
}

impl Source {
    /// Reads the file's records one by one.
    pub(super) fn entries(
        &self,
    ) -> Result<Box<dyn Iterator<Item = Result<Entry, InvalidFile>> + Send + '_>, InvalidFile> {
        let unreadable = |cause| InvalidFile::Unreadable { path: self.path.clone(), cause };
        let file = BufReader::with_capacity(1 << 18, File::open(&self.path).map_err(unreadable)?);
        Ok(match self.format {
            Format::Ndjson => Box::new(Lines { source: self, file, line: 0 }),
            Format::Csv => Box::new(self.rows(file)?),
        })
    }

    fn rows(
        &self,
        file: BufReader<File>,
    ) -> Result<impl Iterator<Item = Result<Entry, InvalidFile>> + use<'_>, InvalidFile> {
        let mut reader = csv::Reader::from_reader(file);
        let names = reader.headers().map_err(|error| self.csv_error(&error))?.clone();
        if let Some(key) = &self.key
            && !names.iter().any(|name| name == key)
        {
            let known: Vec<_> = names.iter().collect();
            return Err(
                self.wrong(1, format!("there is no column `{key}` for the key; there are `{}`", known.join("`, `")))
            );
        }
        Ok(reader.into_records().map(move |row| {
            let row = row.map_err(|error| self.csv_error(&error))?;
            let line = row.position().map_or(0, csv::Position::line);
            let object: Map<String, Value> =
                names.iter().zip(&row).map(|(name, text)| (name.to_owned(), self.value_of(text))).collect();
            let key = self.key_in(&object).map_err(|cause| self.wrong(line, cause))?;
            Ok(Entry { line, key, value: Value::Object(object).to_string().into() })
        }))
    }

    fn value_of(&self, text: &str) -> Value {
        if !self.typed {
            return text.into();
        }
        match serde_json::from_str(text) {
            Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
            _ if text.is_empty() => Value::Null,
            _ => text.into(),
        }
    }

    /// Checks one line and takes the key from it.
    fn entry_of(&self, line: u64, text: &[u8]) -> Result<Entry, InvalidFile> {
        let wrong = |error: serde_json::Error| {
            let cause = error.to_string();
            // The place within our one line; the line's number is the file's.
            let cause = cause.split(" at line ").next().unwrap_or_default();
            self.wrong(line, format!("not JSON: {cause} at column {}", error.column()))
        };
        let key = match self.key {
            None => serde_json::from_slice::<IgnoredAny>(text).map(|_| None).map_err(wrong)?,
            Some(_) => {
                let value: Value = serde_json::from_slice(text).map_err(wrong)?;
                let Some(object) = value.as_object() else {
                    return Err(self.wrong(line, "not an object, so it has no field for the key".to_owned()));
                };
                self.key_in(object).map_err(|cause| self.wrong(line, cause))?
            }
        };
        Ok(Entry { line, key, value: Bytes::copy_from_slice(text) })
    }

    fn key_in(&self, object: &Map<String, Value>) -> Result<Option<Bytes>, String> {
        let Some(name) = &self.key else { return Ok(None) };
        match object.get(name) {
            None => Err(format!("there is no field `{name}` for the key")),
            Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone().into())),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string().into())),
            Some(Value::Array(_) | Value::Object(_)) => {
                Err(format!("the field `{name}` is no text and no number, so it can't be the key"))
            }
        }
    }

    fn csv_error(&self, error: &csv::Error) -> InvalidFile {
        let line = error.position().map_or(1, csv::Position::line);
        self.wrong(line, error.to_string())
    }

    fn wrong(&self, line: u64, cause: String) -> InvalidFile {
        InvalidFile::Line { path: self.path.clone(), line, cause }
    }
}

struct Lines<'a> {
    source: &'a Source,
    file: BufReader<File>,
    line: u64,
}

impl Iterator for Lines<'_> {
    type Item = Result<Entry, InvalidFile>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut text = Vec::new();
            self.line += 1;
            match self.file.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut text) {
                Ok(0) => return None,
                Ok(_) if text.len() as u64 > LINE_BYTES_MAX => {
                    return Some(Err(self.source.wrong(self.line, format!("longer than {LINE_BYTES_MAX} bytes"))));
                }
                Ok(_) => {}
                Err(cause) => return Some(Err(InvalidFile::Unreadable { path: self.source.path.clone(), cause })),
            }
            let text = text.trim_ascii();
            if !text.is_empty() {
                return Some(self.source.entry_of(self.line, text));
            }
        }
    }
}
