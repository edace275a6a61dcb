//! What a handler's first argument may be made of.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{Error, Record, Result};

/// A value that a handler takes in place of the record.
///
/// What cannot be made is a dead letter: a record that is not what the handler reads never will be.
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}`",
    label = "not made of a record",
    note = "take `Json<T>` (with `#[derive(serde::Deserialize)]` on `T`), `String`, `Bytes`, `Vec<u8>`, `Option` of one of these, or `Record`"
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
        present(record).map(|value| value.to_vec())
    }
}

impl FromRecord for Bytes {
    fn from_record(record: &Record) -> Result<Self> {
        present(record).cloned()
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

fn present(record: &Record) -> Result<&Bytes> {
    match &record.value {
        Some(value) => Ok(value),
        None => Err(Error::dead_letter(
            "value-missing",
            "the record has no value; take an `Option` if tombstones are expected",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{record, tombstone};

    #[test]
    fn what_is_not_the_json_is_a_dead_letter_that_says_where() {
        check::<Json<[u8; 1]>>(
            &record("["),
            "invalid-json: value is not the expected JSON: EOF while parsing a list at line 1 column 1",
        );
        check::<Json<u8>>(
            &record("300"),
            "invalid-json: value is not the expected JSON: invalid value: integer `300`, expected u8 at line 1 column 3",
        );
        check::<String>(
            &record([0xff]),
            "invalid-utf8: value is not text: invalid utf-8 sequence of 1 bytes from index 0",
        );
    }

    #[test]
    fn a_missing_value_is_a_dead_letter_unless_it_may_be_missing() {
        check::<Vec<u8>>(
            &tombstone(),
            "value-missing: the record has no value; take an `Option` if tombstones are expected",
        );
        assert_eq!(Option::<Json<u8>>::from_record(&tombstone()), Ok(None));
        assert_eq!(Option::<Json<u8>>::from_record(&record("7")), Ok(Some(Json(7))));
        assert_eq!(Vec::from_record(&record("")), Ok(vec![]), "an empty value is a value");
    }

    #[track_caller]
    fn check<T: FromRecord>(record: &Record, expected: &str) {
        match T::from_record(record) {
            Err(Error::DeadLetter(reason)) => assert_eq!(format!("{}: {}", reason.code, reason.detail), expected),
            Err(other) => panic!("ended as {other:?}"),
            Ok(_) => panic!("was taken"),
        }
    }
}
