//! Secrets by name. One that was not granted is `none` to the guest; the log names the grant.

use tidemill_core::grants::Kind;

use super::View;
use crate::guest::bindings::tidemill::guest::secrets::Host;
use crate::metrics::HostCallResult;

const CAPABILITY: &str = "secrets";

impl Host for View {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        if self.check(CAPABILITY, Kind::Secret, &name).is_err() {
            return Ok(None);
        }
        self.count(CAPABILITY, HostCallResult::Ok);
        Ok(self.granted.secrets.get(&name).map(|secret| secret.expose().to_owned()))
    }
}
