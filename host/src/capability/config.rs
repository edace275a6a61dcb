//! wasi:config: the `[config]` of the handler's manifest.

use super::View;
use crate::guest::bindings::wasi::config::store::{Error, Host};
use crate::metrics::HostCallResult;

const CAPABILITY: &str = "config";

impl Host for View {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, Error>> {
        self.count(CAPABILITY, HostCallResult::Ok);
        Ok(Ok(self.granted.config.get(&key).cloned()))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, Error>> {
        self.count(CAPABILITY, HostCallResult::Ok);
        Ok(Ok(self.granted.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect()))
    }
}
