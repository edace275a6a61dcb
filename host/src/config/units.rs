//! Values that configuration files write with a unit, and references to secrets.

use std::collections::BTreeMap;
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
    #[error(
        "`{0}` is not a length of time; write a whole number with a unit, such as \"250ms\", \"5s\", \"2m\" or \"1h\""
    )]
    Span(String),
    /// Not a size.
    #[error(
        "`{0}` is not a size; write a whole number with a unit, such as \"512B\", \"64KiB\", \"128MiB\" or \"1GiB\""
    )]
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

/// A text that may be or hold a secret: `"${NAME}"` (from the environment, also within a longer text such as a URL) or
/// `{ file = "path" }` (from the folder of the configuration file; one line end is cut off).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "write \"${NAME}\" for an environment variable or { file = \"path\" } for a file")]
pub enum SecretRef {
    /// A text with `${NAME}` in it.
    Text(String),
    /// A file.
    File {
        /// Its path.
        file: PathBuf,
    },
}

/// A secret that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// The variable is not there.
    #[error("the environment variable `{0}` is not set; set it, or name a file with {{ file = \"...\" }}")]
    NotSet(String),
    /// A `${` that does not end.
    #[error("a `${{` has no `}}` after it; write `${{NAME}}`")]
    Unclosed,
    /// A secret that stands in the file.
    #[error("this secret stands in the file itself; write \"${{NAME}}\" and set the variable, or {{ file = \"...\" }}")]
    Plain,
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
    /// Reads the text; a relative file is taken from `folder`. A text without `${NAME}` is taken as it stands.
    pub fn read(&self, folder: &Path) -> Result<Secret, InvalidSecret> {
        match self {
            Self::Text(text) => interpolate(text).map(Secret),
            Self::File { file } => {
                let path = folder.join(file);
                match std::fs::read_to_string(&path) {
                    Ok(text) => Ok(Secret(text.strip_suffix('\n').unwrap_or(&text).to_owned())),
                    Err(cause) => Err(InvalidSecret::Unreadable { path, cause: cause.to_string() }),
                }
            }
        }
    }

    /// The same for what is certainly a secret (a token): it must not stand in the file.
    pub fn read_strict(&self, folder: &Path) -> Result<Secret, InvalidSecret> {
        match self {
            Self::Text(text) if !text.contains("${") => Err(InvalidSecret::Plain),
            Self::Text(_) | Self::File { .. } => self.read(folder),
        }
    }
}

/// Replaces each `${NAME}` by the environment's value; `$$` stands for `$`.
pub fn interpolate(text: &str) -> Result<String, InvalidSecret> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(name) = rest.strip_prefix('{') {
            let end = name.find('}').ok_or(InvalidSecret::Unclosed)?;
            let value = std::env::var(&name[..end]).map_err(|_| InvalidSecret::NotSet(name[..end].to_owned()))?;
            out.push_str(&value);
            rest = &name[end + 1..];
        } else {
            out.push('$');
            rest = rest.strip_prefix('$').unwrap_or(rest);
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Reads librdkafka's properties, whose values may be text, whole numbers or booleans.
pub fn properties<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a text, a whole number or a boolean; quote a property's name: \"linger.ms\" = 5")]
    enum Value {
        Text(String),
        Number(i64),
        Switch(bool),
    }
    let values = BTreeMap::<String, Value>::deserialize(from)?;
    let text = |value| match value {
        Value::Text(text) => text,
        Value::Number(number) => number.to_string(),
        Value::Switch(switch) => switch.to_string(),
    };
    Ok(values.into_iter().map(|(key, value)| (key, text(value))).collect())
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
    fn variables_are_replaced_within_a_text() {
        let home = std::env::var("PATH").expect("tests have a PATH");
        assert_eq!(interpolate("a${PATH}b$$c$d"), Ok(format!("a{home}b$c$d")));
        assert_eq!(interpolate("${TIDEMILL_NOT_SET}"), Err(InvalidSecret::NotSet("TIDEMILL_NOT_SET".to_owned())));
        assert_eq!(interpolate("x${PATH"), Err(InvalidSecret::Unclosed));
    }

    #[test]
    fn a_token_must_not_stand_in_the_file() {
        let plain = SecretRef::Text("hunter2".to_owned());
        assert_eq!(plain.read_strict(Path::new(".")), Err(InvalidSecret::Plain));
        assert!(plain.read(Path::new(".")).is_ok(), "a URL without a password may");
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "(secret)");
    }
}
