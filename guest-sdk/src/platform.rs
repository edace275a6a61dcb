//! The host's side of the capabilities: the real one in a component, one in memory in native tests.

#[cfg(not(all(feature = "testing", not(target_family = "wasm"))))]
pub(crate) use crate::bindings::{
    tidemill::guest::{kv_extra, producer, secrets, sql},
    wasi::{
        config::store as config,
        keyvalue::{atomics, batch, store},
        logging::logging,
    },
};

#[cfg(all(feature = "testing", not(target_family = "wasm")))]
pub(crate) use crate::testing::platform::{atomics, batch, config, kv_extra, logging, producer, secrets, sql, store};
