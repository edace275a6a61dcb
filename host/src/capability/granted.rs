//! What one handler may use, found when it is loaded: a grant that can't be met keeps the handler from starting.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use tidemill_core::grants::{Grants, Kind};

use super::log::Budget;
use crate::broker::Producer;
use crate::config::units::Secret;
use crate::store::{KeyValue, Sql};

/// The interfaces of the contract that a component may import, and what must be granted for each.
const OFFERED: [(&str, Option<Kind>); 10] = [
    ("tidemill:guest/types@0.1.0", None),
    ("tidemill:guest/producer@0.1.0", Some(Kind::Produce)),
    ("tidemill:guest/kv-extra@0.1.0", Some(Kind::Kv)),
    ("tidemill:guest/secrets@0.1.0", Some(Kind::Secret)),
    ("tidemill:guest/sql@0.1.0", Some(Kind::Sql)),
    ("wasi:config/store@0.2.0-rc.1", None),
    ("wasi:keyvalue/store@0.2.0-draft", Some(Kind::Kv)),
    ("wasi:keyvalue/atomics@0.2.0-draft", Some(Kind::Kv)),
    ("wasi:keyvalue/batch@0.2.0-draft", Some(Kind::Kv)),
    ("wasi:logging/logging@0.1.0-draft", None),
];

/// Whether a component may import this interface, provided that its operator grants something of it.
pub fn is_offered(import: &str) -> bool {
    OFFERED.iter().any(|(name, _)| *name == import)
}

/// The interfaces of the contract that a component may import.
pub fn offered() -> impl Iterator<Item = &'static str> {
    OFFERED.iter().map(|(name, _)| *name)
}

/// Everything that the operator configured and that a manifest can grant.
#[derive(Clone)]
pub struct Backends {
    /// Key-value stores by name.
    pub kv: BTreeMap<String, Arc<dyn KeyValue>>,
    /// Databases by name.
    pub sql: BTreeMap<String, Arc<dyn Sql>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Where `producer.send` goes.
    pub producer: Arc<dyn Producer>,
}

/// What one handler may use. Invariant: each key-value store, database and secret of `grants` is in its map.
pub struct Granted {
    handler: String,
    pub(super) grants: Grants,
    pub(super) kv: BTreeMap<String, Arc<dyn KeyValue>>,
    pub(super) sql: BTreeMap<String, Arc<dyn Sql>>,
    pub(super) secrets: BTreeMap<String, Secret>,
    pub(super) producer: Arc<dyn Producer>,
    pub(super) config: BTreeMap<String, String>,
    /// Shared by all instances, so that more of them do not log more.
    pub(super) lines: Budget,
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kv, sql, secrets, producer: _ } = self;
        f.debug_struct("Backends").field("kv", kv).field("sql", sql).field("secrets", secrets).finish_non_exhaustive()
    }
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Granted").field("handler", &self.handler).field("grants", &self.grants).finish_non_exhaustive()
    }
}

/// Why a handler can't be loaded with its grants. The texts name the key and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ungranted {
    /// A grant names something that tidemill.toml does not have.
    #[error(
        "`grants.{}` names `{name}`, which is not configured; add `{}` to tidemill.toml{}",
        kind.key(), section(*kind, name), instead(known)
    )]
    NotConfigured {
        /// The handler.
        handler: String,
        /// What kind of thing.
        kind: Kind,
        /// The name in the manifest.
        name: String,
        /// The names that are configured.
        known: Vec<String>,
    },
    /// The guest imports a capability of which nothing is granted.
    #[error(
        "the guest imports `{interface}`, but nothing of it is granted; add `{} = [\"NAME\"]` under `[grants]` in the handler's manifest, or build the guest without the import",
        kind.key()
    )]
    NothingGranted {
        /// The handler.
        handler: String,
        /// The imported interface.
        interface: &'static str,
        /// What would have to be granted.
        kind: Kind,
    },
}

fn section(kind: Kind, name: &str) -> String {
    match kind {
        Kind::Kv => format!("[kv.{name}]"),
        Kind::Sql => format!("[sql.{name}]"),
        Kind::Secret => format!("{name} = \"${{NAME}}\"` under `[secrets]"),
        Kind::Produce => name.to_owned(),
    }
}

fn instead(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!(", or name one of: `{}`", known.join("`, `")) }
}

impl Granted {
    /// Finds what the manifest's grants name. Topics are not looked up: the broker may get them later.
    pub fn resolve(
        handler: &str,
        grants: &Grants,
        config: &BTreeMap<String, String>,
        backends: &Backends,
    ) -> Result<Self, Ungranted> {
        Ok(Self {
            handler: handler.to_owned(),
            kv: find(handler, grants, Kind::Kv, &backends.kv)?,
            sql: find(handler, grants, Kind::Sql, &backends.sql)?,
            secrets: find(handler, grants, Kind::Secret, &backends.secrets)?,
            grants: grants.clone(),
            producer: Arc::clone(&backends.producer),
            config: config.clone(),
            lines: Budget::new(),
        })
    }

    /// Checks a component's imports against the grants, and returns those that are interfaces of the contract. Others are
    /// passed over.
    pub fn demands<'a>(&self, imports: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<&'static str>, Ungranted> {
        let mut used = BTreeSet::new();
        for import in imports {
            let Some((interface, kind)) = OFFERED.into_iter().find(|(name, _)| *name == import) else { continue };
            if let Some(kind) = kind
                && self.grants.of(kind).is_empty()
            {
                return Err(Ungranted::NothingGranted { handler: self.handler.clone(), interface, kind });
            }
            used.insert(interface);
        }
        Ok(used)
    }
}

fn find<T: Clone>(
    handler: &str,
    grants: &Grants,
    kind: Kind,
    configured: &BTreeMap<String, T>,
) -> Result<BTreeMap<String, T>, Ungranted> {
    let found = |name: &String| match configured.get(name) {
        Some(backend) => Ok((name.clone(), backend.clone())),
        None => Err(Ungranted::NotConfigured {
            handler: handler.to_owned(),
            kind,
            name: name.clone(),
            known: configured.keys().cloned().collect(),
        }),
    };
    grants.of(kind).iter().map(found).collect()
}
