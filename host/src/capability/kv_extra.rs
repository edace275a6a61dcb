//! What wasi:keyvalue lacks: keys that expire, and taking a key for a record.

use std::sync::Arc;
use std::time::Duration;

use tidemill_core::grants::Kind;

use super::View;
use super::kv::CAPABILITY;
use crate::guest::bindings::tidemill::guest::kv_extra::{Error, Host};
use crate::store::{KeyValue, KeyValueError};

impl From<KeyValueError> for Error {
    fn from(error: KeyValueError) -> Self {
        match error {
            KeyValueError::TooLarge { given, .. } => Self::TooLarge(given),
            // Counters alone fail by the first two, and none is asked for here.
            error @ (KeyValueError::NotANumber { .. }
            | KeyValueError::Overflow { .. }
            | KeyValueError::Full { .. }
            | KeyValueError::Unavailable(_)) => Self::Unavailable(error.to_string()),
        }
    }
}

impl View {
    fn store(&mut self, name: &str) -> Result<Arc<dyn KeyValue>, Error> {
        self.check(CAPABILITY, Kind::Kv, name).map_err(|denied| Error::AccessDenied(denied.to_string()))?;
        self.granted.kv.get(name).cloned().ok_or_else(|| Error::NoSuchStore(name.to_owned()))
    }
}

impl Host for View {
    async fn set_with_ttl(
        &mut self,
        store: String,
        key: String,
        value: Vec<u8>,
        ttl_ms: u64,
    ) -> wasmtime::Result<Result<(), Error>> {
        let store = match self.store(&store) {
            Ok(store) => store,
            Err(error) => return Ok(Err(error)),
        };
        let work = store.set_with_ttl(key, value, Duration::from_millis(ttl_ms));
        Ok(self.ask(CAPABILITY, work, KeyValueError::Unavailable).await.map_err(Error::from))
    }

    async fn claim(
        &mut self,
        store: String,
        key: String,
        record_id: String,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<bool, Error>> {
        let store = match self.store(&store) {
            Ok(store) => store,
            Err(error) => return Ok(Err(error)),
        };
        let work = store.claim(key, record_id, ttl_ms.map(Duration::from_millis));
        Ok(self.ask(CAPABILITY, work, KeyValueError::Unavailable).await.map_err(Error::from))
    }
}
