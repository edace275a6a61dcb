//! Values that configuration files write with a unit, and references to secrets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A length of time, written as `"250ms"`, `"5s"`, `"2m"` or `"1h"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A size, written as `"512B"`, `"64KiB"`, `"128MiB"` or `"1GiB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// A value that could not be read, with what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUnit {
    /// Not a length of time.
    #[error("`{0}` is not a length of time; write a whole number with a unit, such as \"250ms\", \"5s\", \"2m\" or \"1h\"")]
    Span(String),
    /// Not a size.
    #[error("`{0}` is not a size; write a whole number with a unit, such as \"512B\", \"64KiB\", \"128MiB\" or \"1GiB\"")]
    Size(String),
}

impl FromStr for Span {
    type Err = InvalidUnit;

    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        scaled(text, &UNITS).map(Duration::from_millis).map(Self).ok_or_else(|| InvalidUnit::Span(text.to_owned()))
    }
}

impl FromStr for Size {
    type Err = InvalidUnit;

    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        const UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
        scaled(text, &UNITS)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| InvalidUnit::Size(text.to_owned()))
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let (_, factor) = units.iter().find(|(unit, _)| *unit == text[digits..].trim_start())?;
    number.checked_mul(*factor)
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; whoever calls this must not print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where a secret is: `{ env = "NAME" }` or `{ file = "path" }`. A plain text is refused, so that none lies in a file by accident.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file, from the folder of the configuration file; one line end is cut off.
    File(PathBuf),
}

/// A secret that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// The variable is not there.
    #[error("the environment variable `{0}` is not set; set it, or name a file with {{ file = \"...\" }}")]
    NotSet(String),
    /// The file can't be read.
    #[error("the secret's file `{path}` can't be read: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
}

impl SecretRef {
    /// Reads the secret; a relative file is taken from `folder`.
    pub fn read(&self, folder: &Path) -> Result<Secret, InvalidSecret> {
        match self {
            Self::Env(name) => std::env::var(name).map(Secret).map_err(|_| InvalidSecret::NotSet(name.clone())),
            Self::File(path) => {
                let path = folder.join(path);
                match std::fs::read_to_string(&path) {
                    Ok(text) => Ok(Secret(text.strip_suffix('\n').unwrap_or(&text).to_owned())),
                    Err(cause) => Err(InvalidSecret::Unreadable { path, cause: cause.to_string() }),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_carry_their_unit() {
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
        assert_eq!("2 m".parse(), Ok(Span(Duration::from_secs(120))));
        assert_eq!("64KiB".parse(), Ok(Size(65536)));
        for wrong in ["5", "", "s", "-1s", "1.5s", "99999999999999999h"] {
            assert_eq!(wrong.parse::<Span>(), Err(InvalidUnit::Span(wrong.to_owned())));
        }
        assert!("1kb".parse::<Size>().is_err());
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "(secret)");
    }
}
