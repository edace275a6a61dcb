//! What an operator may say about admin.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::config::units::{SecretRef, Span};
use crate::http::{InvalidToken, Token};

/// The section `[admin]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen; default `127.0.0.1:9090`.
    pub listen: SocketAddr,
    /// The token that requests must carry; default: none, which is taken on loopback only.
    pub token: Option<SecretRef>,
    /// Open connections; default 64. Further ones wait.
    pub connections_max: usize,
    /// How long a connection may take to send a request's head, or stay idle; default 30 s.
    pub head_timeout: Span,
    /// After the stop, how long requests in hand may take; default 5 s.
    pub drain_deadline: Span,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            token: None,
            connections_max: 64,
            head_timeout: Span(Duration::from_secs(30)),
            drain_deadline: Span(Duration::from_secs(5)),
        }
    }
}

/// A section `[admin]` that can't work, or is not safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// Anybody on the network could roll a handler back.
    #[error(
        "`admin.listen` is `{0}`, which others can reach, and there is no `admin.token`; set one, for example \
         token = \"${{TIDEMILL_ADMIN_TOKEN}}\", or listen on 127.0.0.1"
    )]
    TokenNeeded(SocketAddr),
    /// A bound of nothing.
    #[error("`admin.{0}` is 0; nothing could be asked, choose a larger one")]
    Zero(&'static str),
    /// The token.
    #[error("`admin.token`: {0}")]
    Token(#[from] InvalidToken),
}

impl Config {
    /// Checks the section, without binding anything, and reads the token.
    pub fn check(&self, folder: &Path) -> Result<Option<Token>, InvalidConfig> {
        if self.token.is_none() && !self.listen.ip().to_canonical().is_loopback() {
            return Err(InvalidConfig::TokenNeeded(self.listen));
        }
        if self.connections_max == 0 {
            return Err(InvalidConfig::Zero("connections_max"));
        }
        if self.head_timeout.0.is_zero() {
            return Err(InvalidConfig::Zero("head_timeout"));
        }
        Ok(self.token.as_ref().map(|token| Token::read(token, folder)).transpose()?)
    }

    /// Where a command on the host's own machine asks; `None` when the port is not known before the host runs.
    pub fn url(&self) -> Option<String> {
        let mut address = self.listen;
        if address.ip().is_unspecified() {
            let loopback = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            address.set_ip(loopback);
        }
        (address.port() != 0).then(|| format!("http://{address}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_a_token_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
        let check = |section: &str| {
            let config: Config = toml::from_str(section).unwrap();
            config.check(folder.path()).map(|token| token.is_some()).map_err(|error| error.to_string())
        };
        assert_eq!(check(""), Ok(false));
        assert_eq!(check("listen = \"[::1]:0\""), Ok(false));
        assert_eq!(check("listen = \"[::ffff:127.0.0.1]:0\""), Ok(false));
        for open in ["0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090"] {
            let text = check(&format!("listen = \"{open}\"")).expect_err("it is not safe");
            assert!(text.contains(open) && text.contains("token = \"${TIDEMILL_ADMIN_TOKEN}\""), "{text}");
        }
        assert_eq!(check("listen = \"0.0.0.0:9090\"\ntoken = { file = \"token\" }"), Ok(true));
        assert!(check("connections_max = 0").is_err());
    }
}
