//! Keys and values in a bucket that the operator granted by name.
//!
//! Effects are immediate: they stay when the attempt fails, so write what a redelivery may write again, or [`Bucket::claim`] first.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::tidemill::guest::kv_extra::Error as ExtraError;
use crate::bindings::wasi::keyvalue::store::Error as StoreError;
use crate::{Error as Ending, platform};

/// A call on a bucket failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The host knows no bucket of this name.
    NoSuchStore(String),
    /// The operator did not grant this bucket.
    AccessDenied(String),
    /// The value is larger than the store takes; its size in bytes.
    TooLarge(u64),
    /// The store cannot be reached now.
    Unavailable(String),
    /// The stored bytes are not the JSON that was asked for.
    NotJson(String),
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoSuchStore(name) => write!(f, "there is no kv bucket `{name}`"),
            Error::AccessDenied(name) => {
                write!(f, "kv bucket `{name}` is not granted; add it to `kv` under `[grants]`")
            }
            Error::TooLarge(size) => write!(f, "{size} bytes are more than the kv store takes"),
            Error::Unavailable(detail) => write!(f, "the kv store is unavailable: {detail}"),
            Error::NotJson(detail) => write!(f, "the stored value is not the expected JSON: {detail}"),
        }
    }
}

impl std::error::Error for Error {}

/// A bucket. Reads see this handler's own writes.
#[derive(Debug)]
pub struct Bucket {
    name: String,
    store: platform::store::Bucket,
}

/// Opens a bucket by the name under which it was granted.
pub fn open(name: &str) -> Result<Bucket, Error> {
    match platform::store::open(name) {
        Ok(store) => Ok(Bucket { name: name.to_owned(), store }),
        Err(error) => Err(of_store(error, name)),
    }
}

impl Bucket {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.store.get(key).map_err(|error| self.error(error))
    }

    /// Sets the value of a key.
    pub fn set(&self, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.store.set(key, value.as_ref()).map_err(|error| self.error(error))
    }

    /// Removes a key. One that is not there is fine.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        self.store.delete(key).map_err(|error| self.error(error))
    }

    /// True if the key has a value.
    pub fn exists(&self, key: &str) -> Result<bool, Error> {
        self.store.exists(key).map_err(|error| self.error(error))
    }

    /// A page of keys and where the next one starts; begin with `None`.
    pub fn keys(&self, cursor: Option<u64>) -> Result<(Vec<String>, Option<u64>), Error> {
        let page = self.store.list_keys(cursor).map_err(|error| self.error(error))?;
        Ok((page.keys, page.cursor))
    }

    /// Adds to a counter in one step and returns its new value. A redelivery adds again.
    pub fn increment(&self, key: &str, delta: u64) -> Result<u64, Error> {
        platform::atomics::increment(&self.store, key, delta).map_err(|error| self.error(error))
    }

    /// The values of many keys, in their order.
    pub fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let found = platform::batch::get_many(&self.store, keys).map_err(|error| self.error(error))?;
        Ok(found.into_iter().map(|pair| pair.map(|(_, value)| value)).collect())
    }

    /// Sets many keys. If it fails, some of them may be set.
    pub fn set_many(&self, pairs: &[(String, Vec<u8>)]) -> Result<(), Error> {
        platform::batch::set_many(&self.store, pairs).map_err(|error| self.error(error))
    }

    /// Removes many keys. If it fails, some of them may be gone.
    pub fn delete_many(&self, keys: &[String]) -> Result<(), Error> {
        platform::batch::delete_many(&self.store, keys).map_err(|error| self.error(error))
    }

    /// The value of a key, from JSON.
    pub fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(bytes) = self.get(key)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::NotJson(error.to_string()))
    }

    /// Sets the value of a key, as JSON.
    pub fn set_json(&self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.set(key, serde_json::to_vec(value).map_err(|error| Error::NotJson(error.to_string()))?)
    }

    /// Sets the value of a key that goes away by itself.
    pub fn set_with_ttl(&self, key: &str, value: impl AsRef<[u8]>, ttl: Duration) -> Result<(), Error> {
        platform::kv_extra::set_with_ttl(&self.name, key, value.as_ref(), millis(ttl)).map_err(of_extra)
    }

    /// Takes a key for the record of this id. False only if another record holds it: a redelivery of the same record may go on.
    pub fn claim(&self, key: &str, record_id: &str, ttl: Option<Duration>) -> Result<bool, Error> {
        platform::kv_extra::claim(&self.name, key, record_id, ttl.map(millis)).map_err(of_extra)
    }

    fn error(&self, error: StoreError) -> Error {
        of_store(error, &self.name)
    }
}

/// What the error means for the record if the author does not say otherwise.
///
/// A grant that is missing is the operator's move, so the record is tried again and not thrown away at once.
pub(crate) fn ending(error: &Error) -> Ending {
    match error {
        Error::NoSuchStore(_) => Ending::retry("kv-no-such-store", error),
        Error::AccessDenied(_) => Ending::retry("kv-access-denied", error),
        Error::TooLarge(_) => Ending::dead_letter("kv-too-large", error),
        Error::Unavailable(_) => Ending::unavailable("kv-unavailable", error),
        Error::NotJson(_) => Ending::dead_letter("kv-not-json", error),
    }
}

fn of_store(error: StoreError, name: &str) -> Error {
    match error {
        StoreError::NoSuchStore => Error::NoSuchStore(name.to_owned()),
        StoreError::AccessDenied => Error::AccessDenied(name.to_owned()),
        StoreError::Other(detail) => Error::Unavailable(detail),
    }
}

fn of_extra(error: ExtraError) -> Error {
    match error {
        ExtraError::AccessDenied(name) => Error::AccessDenied(name),
        ExtraError::NoSuchStore(name) => Error::NoSuchStore(name),
        ExtraError::TooLarge(size) => Error::TooLarge(size),
        ExtraError::Unavailable(detail) => Error::Unavailable(detail),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
