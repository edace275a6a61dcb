//! Buckets in memory.

/// `wasi:keyvalue/store`.
pub mod store {
    use super::super::super::world;
    use crate::bindings::wasi::keyvalue::store::{Error, KeyResponse};

    #[derive(Debug)]
    pub struct Bucket {
        name: String,
    }

    pub fn open(identifier: &str) -> Result<Bucket, Error> {
        if !world::current().buckets.borrow().contains_key(identifier) {
            return Err(Error::AccessDenied);
        }
        Ok(Bucket { name: identifier.to_owned() })
    }

    impl Bucket {
        pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
            self.with(|bucket| bucket.values.get(key).cloned())
        }

        pub fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
            self.with(|bucket| {
                bucket.values.insert(key.to_owned(), value.to_vec());
            })
        }

        pub fn delete(&self, key: &str) -> Result<(), Error> {
            self.with(|bucket| {
                bucket.values.remove(key);
            })
        }

        pub fn exists(&self, key: &str) -> Result<bool, Error> {
            self.with(|bucket| bucket.values.contains_key(key))
        }

        pub fn list_keys(&self, _cursor: Option<u64>) -> Result<KeyResponse, Error> {
            self.with(|bucket| KeyResponse { keys: bucket.values.keys().cloned().collect(), cursor: None })
        }

        pub(super) fn with<T>(&self, act: impl FnOnce(&mut world::Bucket) -> T) -> Result<T, Error> {
            let world = world::current();
            if world.is_down(&self.name) {
                return Err(Error::Other("set down by the test".to_owned()));
            }
            let mut buckets = world.buckets.borrow_mut();
            buckets.get_mut(&self.name).map(act).ok_or(Error::NoSuchStore)
        }
    }
}

/// `wasi:keyvalue/atomics`.
pub mod atomics {
    use super::store::Bucket;
    use crate::bindings::wasi::keyvalue::store::Error;

    pub fn increment(bucket: &Bucket, key: &str, delta: u64) -> Result<u64, Error> {
        bucket.with(|bucket| {
            let value = bucket.values.entry(key.to_owned()).or_insert_with(|| b"0".to_vec());
            let before: u64 = str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            let after = before.saturating_add(delta);
            *value = after.to_string().into_bytes();
            after
        })
    }
}

/// `wasi:keyvalue/batch`.
pub mod batch {
    use super::store::Bucket;
    use crate::bindings::wasi::keyvalue::store::Error;

    #[allow(clippy::type_complexity, reason = "the generated function has this type")]
    pub fn get_many(bucket: &Bucket, keys: &[String]) -> Result<Vec<Option<(String, Vec<u8>)>>, Error> {
        keys.iter().map(|key| Ok(bucket.get(key)?.map(|value| (key.clone(), value)))).collect()
    }

    pub fn set_many(bucket: &Bucket, key_values: &[(String, Vec<u8>)]) -> Result<(), Error> {
        key_values.iter().try_for_each(|(key, value)| bucket.set(key, value))
    }

    pub fn delete_many(bucket: &Bucket, keys: &[String]) -> Result<(), Error> {
        keys.iter().try_for_each(|key| bucket.delete(key))
    }
}

/// `tidemill:guest/kv-extra`. Nothing expires: a test is shorter than any time to live.
pub mod kv_extra {
    use super::super::super::world;
    use crate::bindings::tidemill::guest::kv_extra::Error;

    pub fn set_with_ttl(store: &str, key: &str, value: &[u8], _ttl_ms: u64) -> Result<(), Error> {
        with(store, |bucket| {
            bucket.values.insert(key.to_owned(), value.to_vec());
        })
    }

    pub fn claim(store: &str, key: &str, record_id: &str, _ttl_ms: Option<u64>) -> Result<bool, Error> {
        with(store, |bucket| {
            let holder = bucket.claims.entry(key.to_owned()).or_insert_with(|| record_id.to_owned());
            holder.as_str() == record_id
        })
    }

    fn with<T>(store: &str, act: impl FnOnce(&mut world::Bucket) -> T) -> Result<T, Error> {
        let world = world::current();
        if world.is_down(store) {
            return Err(Error::Unavailable("set down by the test".to_owned()));
        }
        let mut buckets = world.buckets.borrow_mut();
        buckets.get_mut(store).map(act).ok_or_else(|| Error::AccessDenied(store.to_owned()))
    }
}
