//! Configuration values that the operator wrote beside the handler.

use std::fmt::{self, Display};
use std::str::FromStr;

use crate::{Error as Ending, platform};

/// A configuration value is missing, is not what was asked for, or cannot be read now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The operator did not set this key.
    Missing {
        /// The key that was asked for.
        key: String,
    },
    /// The text of this key does not parse.
    Invalid {
        /// The key that was asked for.
        key: String,
        /// What is wrong with its text.
        detail: String,
    },
    /// The host could not read its configuration.
    Unreadable(String),
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Missing { key } => write!(f, "config key `{key}` is not set; add it to `[config]` of the handler"),
            Error::Invalid { key, detail } => write!(f, "config key `{key}`: {detail}"),
            Error::Unreadable(detail) => write!(f, "config cannot be read: {detail}"),
        }
    }
}

impl std::error::Error for Error {}

/// What the error means for the record if the author does not say otherwise: the configuration is the operator's to mend, so
/// the record is tried again and not thrown away at once.
pub(crate) fn ending(error: &Error) -> Ending {
    Ending::retry("config", error)
}

/// The text of a key, if the operator set it.
pub fn get(key: &str) -> Result<Option<String>, Error> {
    use crate::bindings::wasi::config::store::Error as Wasi;
    platform::config::get(key).map_err(|error| match error {
        Wasi::Upstream(detail) | Wasi::Io(detail) => Error::Unreadable(detail),
    })
}

/// The text of a key that must be set.
pub fn require(key: &str) -> Result<String, Error> {
    get(key)?.ok_or_else(|| Error::Missing { key: key.to_owned() })
}

/// The value of a key, or `default` if it is not set. A text that does not parse is an error, never the default.
pub fn parse_or<T: FromStr<Err: Display>>(key: &str, default: T) -> Result<T, Error> {
    let Some(text) = get(key)? else { return Ok(default) };
    text.parse().map_err(|error: T::Err| Error::Invalid { key: key.to_owned(), detail: format!("`{text}`: {error}") })
}
