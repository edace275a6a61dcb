//! wasi:keyvalue on the operator's stores: buckets by name, single keys, counters, many keys.

use std::future::Future;
use std::sync::Arc;

use tidemill_core::grants::Kind;
use wasmtime::component::Resource;

use super::{Away, View};
use crate::guest::bindings::wasi::keyvalue::store::{Error, HostBucket, KeyResponse};
use crate::guest::bindings::wasi::keyvalue::{atomics, batch, store};
use crate::metrics::HostCallResult;
use crate::store::{KeyValue, KeyValueError};

pub(super) const CAPABILITY: &str = "kv";

/// An open bucket. It holds nothing of the store's, so a guest may keep it from call to call.
pub struct Bucket(Arc<dyn KeyValue>);

impl Away for KeyValueError {
    fn is_away(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Full { .. } => true,
            Self::TooLarge { .. } | Self::NotANumber { .. } | Self::Overflow { .. } => false,
        }
    }
}

impl From<KeyValueError> for Error {
    fn from(error: KeyValueError) -> Self {
        Self::Other(error.to_string())
    }
}

impl View {
    fn bucket(&self, bucket: &Resource<Bucket>) -> wasmtime::Result<Arc<dyn KeyValue>> {
        Ok(Arc::clone(&self.table.get(bucket)?.0))
    }

    async fn ask_kv<T>(&mut self, work: impl Future<Output = Result<T, KeyValueError>>) -> Result<T, Error> {
        self.ask(CAPABILITY, work, KeyValueError::Unavailable).await.map_err(Error::from)
    }
}

impl store::Host for View {
    async fn open(&mut self, name: String) -> wasmtime::Result<Result<Resource<Bucket>, Error>> {
        if self.check(CAPABILITY, Kind::Kv, &name).is_err() {
            return Ok(Err(Error::AccessDenied));
        }
        let Some(store) = self.granted.kv.get(&name) else { return Ok(Err(Error::NoSuchStore)) };
        let bucket = self.table.push(Bucket(Arc::clone(store)))?;
        self.count(CAPABILITY, HostCallResult::Ok);
        Ok(Ok(bucket))
    }
}

impl HostBucket for View {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<Option<Vec<u8>>, Error>> {
        let store = self.bucket(&bucket)?;
        Ok(self.ask_kv(store.get(key)).await)
    }

    async fn set(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let store = self.bucket(&bucket)?;
        Ok(self.ask_kv(store.set(key, value)).await)
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<(), Error>> {
        let store = self.bucket(&bucket)?;
        Ok(self.ask_kv(store.delete(key)).await)
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> wasmtime::Result<Result<bool, Error>> {
        let store = self.bucket(&bucket)?;
        Ok(self.ask_kv(store.exists(key)).await)
    }

    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<u64>,
    ) -> wasmtime::Result<Result<KeyResponse, Error>> {
        let store = self.bucket(&bucket)?;
        let page = self.ask_kv(store.list_keys(cursor)).await;
        Ok(page.map(|page| KeyResponse { keys: page.keys, cursor: page.cursor }))
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for View {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let store = self.bucket(&bucket)?;
        Ok(self.ask_kv(store.increment(key, delta)).await)
    }
}

impl batch::Host for View {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<Vec<Option<(String, Vec<u8>)>>, Error>> {
        let store = self.bucket(&bucket)?;
        let values = self.ask_kv(store.get_many(keys.clone())).await;
        Ok(values.map(|values| keys.into_iter().zip(values).map(|(key, value)| Some((key, value?))).collect()))
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        pairs: Vec<(String, Vec<u8>)>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let store = self.bucket(&bucket)?;
        Ok(self.ask_kv(store.set_many(pairs)).await)
    }

    async fn delete_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let store = self.bucket(&bucket)?;
        Ok(self.ask_kv(store.delete_many(keys)).await)
    }
}
