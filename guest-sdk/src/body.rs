//! What a handler's first argument may be made of.

use std::ops::{Deref, DerefMut};

use serde::de::DeserializeOwned;

use crate::{Error, Record, Result};

/// A value that a handler takes in place of the record.
///
/// What cannot be made is a dead letter: a record that is not what the handler reads never will be.
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}`",
    label = "not made of a record",
    note = "take `Json<T>` (with `#[derive(serde::Deserialize)]` on `T`), `String`, `Vec<u8>`, `Option` of one of these, or `Record`"
)]
pub trait FromRecord: Sized {
    /// Makes the value of a record's key, value and headers.
    fn from_record(record: &Record) -> Result<Self>;
}

/// A JSON value of type `T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(
    /// What the JSON said.
    pub T,
);

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Json<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: DeserializeOwned> FromRecord for Json<T> {
    fn from_record(record: &Record) -> Result<Self> {
        serde_json::from_slice(present(record)?)
            .map(Json)
            .map_err(|error| Error::dead_letter("invalid-json", format!("value is not the expected JSON: {error}")))
    }
}

impl FromRecord for Vec<u8> {
    fn from_record(record: &Record) -> Result<Self> {
        present(record).map(Vec::from)
    }
}

impl FromRecord for String {
    fn from_record(record: &Record) -> Result<Self> {
        match str::from_utf8(present(record)?) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(Error::dead_letter("invalid-utf8", format!("value is not text: {error}"))),
        }
    }
}

impl<T: FromRecord> FromRecord for Option<T> {
    fn from_record(record: &Record) -> Result<Self> {
        if record.value.is_none() { Ok(None) } else { T::from_record(record).map(Some) }
    }
}

fn present(record: &Record) -> Result<&[u8]> {
    match &record.value {
        Some(value) => Ok(value),
        None => Err(Error::dead_letter("value-missing", "the record has no value; take an `Option` if tombstones are expected")),
    }
}
