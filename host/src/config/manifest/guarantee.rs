//! What a manifest asks the host to promise around a call, and what it must not grant or ask beside that.

use std::time::Duration;

use serde::Deserialize;
use tidemill_core::grants::Kind;
use tidemill_core::transaction::Limits;

use super::{Check, Manifest, OrderKey};
use crate::attempt::Guarantee;
use crate::config::units::{Size, Span};

#[derive(Deserialize, Default, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::enum_variant_names, reason = "that is what the field calls them")]
pub(super) enum Delivery {
    AtMostOnce,
    #[default]
    AtLeastOnce,
    ExactlyOnce,
}

#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct ExactlyOnce {
    /// `kafka`, or `sql.` and the name of a granted database.
    transaction: Option<String>,
    /// How long a Kafka transaction is open.
    interval: Option<Span>,
    /// Records that it produces.
    records_max: Option<usize>,
    /// Their bytes.
    bytes_max: Option<Size>,
}

/// The operator's word on what a transaction does not cover.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Effects {
    /// Repeating it changes nothing.
    Idempotent,
}

/// An interval that leaves a transaction time to end before the broker gives it up.
const INTERVAL_MAX: Duration = Duration::from_secs(5);

/// The property that decides whether a consumer sees what is not committed.
const ISOLATION: (&str, &str) = ("isolation.level", "read_committed");

/// What the manifest asks for, and the database whose transaction gives it.
pub(super) fn guarantee(manifest: &Manifest) -> (Guarantee, Option<String>) {
    match manifest.delivery {
        Delivery::AtMostOnce => (Guarantee::AtMostOnce, None),
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

/// How far a partition may run ahead of what is committed, where the manifest does not say. What a crash repeats of a Kafka
/// transaction is seen by nobody, and a partition from which one transaction takes as much as it can must not wait for its commit.
pub(super) fn span_max(manifest: &Manifest) -> usize {
    match guarantee(manifest).0 {
        Guarantee::KafkaTransaction => 100_000,
        Guarantee::AtMostOnce | Guarantee::AtLeastOnce | Guarantee::SqlTransaction => 10_000,
    }
}

/// The bounds of a Kafka transaction.
pub(super) fn limits(manifest: &Manifest) -> Limits {
    let asked = &manifest.exactly_once;
    Limits {
        interval: asked.interval.map_or(Duration::from_millis(100), |span| span.0),
        records_max: asked.records_max.unwrap_or(100_000),
        bytes_max: asked.bytes_max.map_or(16 << 20, |size| size.0),
    }
}

/// The consumer's properties: with a Kafka transaction it must not read past one that is open, nor begin before one that
/// holds its own offsets has ended.
pub(super) fn properties(manifest: &Manifest) -> std::collections::BTreeMap<String, String> {
    let mut properties = manifest.consumer_properties.clone();
    if guarantee(manifest).0 == Guarantee::KafkaTransaction {
        properties.insert(ISOLATION.0.to_owned(), ISOLATION.1.to_owned());
    }
    properties
}

impl Check<'_> {
    pub(super) fn guarantee(&mut self, manifest: &Manifest) {
        let asked = &manifest.exactly_once;
        if manifest.delivery != Delivery::ExactlyOnce {
            if *asked != ExactlyOnce::default() {
                self.wrong(
                    "exactly_once",
                    "is set without delivery = \"exactly-once\"; add that, or leave the table out",
                );
            }
            if manifest.effects.is_some() {
                self.wrong("effects", "is set without delivery = \"exactly-once\"; add that, or leave it out");
            }
            return;
        }
        match (asked.transaction.as_deref(), database(manifest)) {
            (None | Some("kafka"), _) => self.kafka(manifest),
            (Some(_), Some(name)) => self.database(name, manifest),
            (Some(_), None) => self
                .wrong("exactly_once.transaction", "must be \"kafka\", or \"sql.NAME\" with NAME one of `grants.sql`"),
        }
    }

    fn database(&mut self, name: &str, manifest: &Manifest) {
        let asked = &manifest.exactly_once;
        if asked.interval.is_some() || asked.records_max.is_some() || asked.bytes_max.is_some() {
            self.wrong(
                "exactly_once",
                "has bounds of a Kafka transaction; one of a database has those of a call, `batch.records_max` and `batch.bytes_max`",
            );
        }
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
        let grants = &manifest.grants;
        let others = grants.sql.iter().filter(|granted| *granted != name).collect();
        let beside = [
            (Kind::Sql, others),
            (Kind::Kv, grants.kv.iter().collect()),
            (Kind::Produce, grants.produce.iter().collect()),
        ];
        self.uncovered(manifest, &format!("the transaction of `{name}`"), "a transaction", &beside);
    }

    /// Refuses grants that a transaction does not cover, unless the operator says that repeating them is harmless.
    fn uncovered(&mut self, manifest: &Manifest, by: &str, repeated_with: &str, beside: &[(Kind, Vec<&String>)]) {
        if manifest.effects.is_some() {
            return;
        }
        for (kind, names) in beside {
            for granted in names {
                self.wrong(
                    &format!("grants.{}", kind.key()),
                    format!(
                        "holds `{granted}`, which {by} does not cover: what is done there is repeated when {repeated_with} is; take \
                         it out, or say effects = \"idempotent\" if that is harmless"
                    ),
                );
            }
        }
    }

    fn kafka(&mut self, manifest: &Manifest) {
        let asked = &manifest.exactly_once;
        if asked.interval.is_some_and(|span| span.0 < Duration::from_millis(1) || span.0 > INTERVAL_MAX) {
            self.wrong(
                "exactly_once.interval",
                "must be between 1ms and 5s: whoever reads the outputs waits for it, and the broker gives up a transaction that stays open",
            );
        }
        for (key, value) in [("records_max", asked.records_max), ("bytes_max", asked.bytes_max.map(|size| size.0))] {
            if value == Some(0) {
                self.wrong(
                    &format!("exactly_once.{key}"),
                    "is 0; use at least 1, or leave the key out for the default",
                );
            }
        }
        let (key, value) = ISOLATION;
        if manifest.consumer_properties.get(key).is_some_and(|set| set != value) {
            self.wrong(
                "consumer_properties",
                format!("sets `{key}`, which can only be `{value}` with a Kafka transaction; leave it out"),
            );
        }
        let grants = &manifest.grants;
        let beside = [(Kind::Sql, grants.sql.iter().collect()), (Kind::Kv, grants.kv.iter().collect())];
        self.uncovered(manifest, "a Kafka transaction", "the record", &beside);
    }
}
