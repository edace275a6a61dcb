//! May this guest do this?

use std::collections::BTreeSet;

/// What the operator granted to one handler, by kind and name. What is not in here is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Key-value stores that it may open.
    pub kv: BTreeSet<String>,
    /// SQL databases that it may open.
    pub sql: BTreeSet<String>,
    /// Topics that it may produce to.
    pub produce: BTreeSet<String>,
    /// Secrets that it may read.
    pub secrets: BTreeSet<String>,
}

/// A kind of grant: what a guest may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A key-value store.
    Kv,
    /// A SQL database.
    Sql,
    /// A topic to produce to.
    Produce,
    /// A secret.
    Secret,
}

impl Kind {
    /// The key under `[grants]` that grants it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::Sql => "sql",
            Self::Produce => "produce",
            Self::Secret => "secrets",
        }
    }
}

/// A guest asked for something that its operator did not grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not granted; add it to `{}` under `[grants]` in the handler's manifest", kind.key())]
pub struct Denied {
    /// What kind of thing.
    pub kind: Kind,
    /// Its name, as the guest gave it.
    pub name: String,
}

impl Grants {
    /// Whether the named thing is granted.
    pub fn check(&self, kind: Kind, name: &str) -> Result<(), Denied> {
        if self.of(kind).contains(name) { Ok(()) } else { Err(Denied { kind, name: name.to_owned() }) }
    }

    /// The names that are granted of one kind.
    pub fn of(&self, kind: Kind) -> &BTreeSet<String> {
        match kind {
            Kind::Kv => &self.kv,
            Kind::Sql => &self.sql,
            Kind::Produce => &self.produce,
            Kind::Secret => &self.secrets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_granted_is_denied_and_the_error_names_the_cure() {
        let grants = Grants { kv: ["totals".to_owned()].into(), ..Grants::default() };
        assert_eq!(grants.check(Kind::Kv, "totals"), Ok(()));
        let denied = grants.check(Kind::Sql, "totals").expect_err("a grant is of one kind");
        assert_eq!(
            denied.to_string(),
            "`totals` is not granted; add it to `sql` under `[grants]` in the handler's manifest"
        );
    }
}
