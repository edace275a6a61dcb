//! What a manifest asks the host to promise around a call, and what it must not grant or ask beside that.

use serde::Deserialize;
use tidemill_core::grants::Kind;

use super::{Check, Manifest, OrderKey};
use crate::attempt::Guarantee;

#[derive(Deserialize, Default, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Delivery {
    #[default]
    AtLeastOnce,
    ExactlyOnce,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct ExactlyOnce {
    /// `kafka`, or `sql.` and the name of a granted database.
    transaction: Option<String>,
}

/// The operator's word on what a transaction does not cover.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Effects {
    /// Repeating it changes nothing.
    Idempotent,
}

/// The guarantee, and the database whose transaction gives it.
pub(super) fn guarantee(manifest: &Manifest) -> (Guarantee, Option<String>) {
    match manifest.delivery {
        Delivery::AtLeastOnce => (Guarantee::AtLeastOnce, None),
        Delivery::ExactlyOnce => match database(manifest) {
            Some(name) => (Guarantee::SqlTransaction, Some(name.to_owned())),
            None => (Guarantee::KafkaTransaction, None),
        },
    }
}

/// The order that the manifest asks for, or the one that goes with its guarantee.
pub(super) fn order(manifest: &Manifest) -> OrderKey {
    let usual = if guarantee(manifest).0 == Guarantee::SqlTransaction { OrderKey::Partition } else { OrderKey::Key };
    manifest.order.unwrap_or(usual)
}

fn database(manifest: &Manifest) -> Option<&str> {
    manifest.exactly_once.transaction.as_ref()?.strip_prefix("sql.")
}

impl Check<'_> {
    pub(super) fn guarantee(&mut self, manifest: &Manifest) {
        if manifest.delivery != Delivery::ExactlyOnce {
            let set = [
                ("exactly_once", manifest.exactly_once.transaction.is_some()),
                ("effects", manifest.effects.is_some()),
            ];
            for (key, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
                self.wrong(key, "is set without delivery = \"exactly-once\"; add that, or leave it out");
            }
            return;
        }
        match database(manifest) {
            Some(name) => self.database(name, manifest),
            None => self.wrong(
                "exactly_once.transaction",
                "must be \"sql.NAME\", with NAME one of `grants.sql`: the Kafka transaction is not there yet",
            ),
        }
    }

    fn database(&mut self, name: &str, manifest: &Manifest) {
        if !manifest.grants.sql.contains(name) {
            self.wrong(
                "exactly_once.transaction",
                format!("names the database `{name}`, which is not granted; add it to `sql` under `[grants]`"),
            );
        }
        if manifest.order.is_some_and(|order| order != OrderKey::Partition) {
            self.wrong(
                "order",
                "must be \"partition\" with a transaction of a database, since one offset stands for all records before it; \
                 leave `order` out, and give the topic more partitions for more at once",
            );
        }
        if manifest.effects.is_some() {
            return;
        }
        let grants = &manifest.grants;
        let others = grants.sql.iter().filter(|granted| *granted != name);
        let beside = [
            (Kind::Sql, others.collect::<Vec<_>>()),
            (Kind::Kv, grants.kv.iter().collect()),
            (Kind::Produce, grants.produce.iter().collect()),
        ];
        for (kind, names) in beside {
            for granted in names {
                self.wrong(
                    &format!("grants.{}", kind.key()),
                    format!(
                        "holds `{granted}`, which the transaction of `{name}` does not cover: what is done there is repeated when a \
                         transaction is; take it out, or say effects = \"idempotent\" if that is harmless"
                    ),
                );
            }
        }
    }
}
