//! What an operator may say about Kafka: librdkafka's properties, but for those that delivery depends on.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde::Deserialize;

use crate::broker::{BrokerError, Subscription};
use crate::config::units;

/// librdkafka's properties, by their own names. Text, numbers and booleans are taken alike.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For all clients; `bootstrap.servers` has to be among them.
    #[serde(default, deserialize_with = "units::properties")]
    pub properties: BTreeMap<String, String>,
    /// For consumers, over `properties`.
    #[serde(default, deserialize_with = "units::properties")]
    pub consumer: BTreeMap<String, String>,
    /// For producers, over `properties`.
    #[serde(default, deserialize_with = "units::properties")]
    pub producer: BTreeMap<String, String>,
    /// What is said of single topics that this host writes to.
    #[serde(default)]
    pub topics: BTreeMap<String, TopicConfig>,
}

/// What is said of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicConfig {
    /// When its records count as stored.
    pub acks: Acks,
}

/// When a record counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "AcksKey")]
pub enum Acks {
    /// Once it is sent.
    None,
    /// Once its leader has it.
    Leader,
    /// Once all in-sync replicas have it.
    #[default]
    All,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "write acks = 0, acks = 1 or acks = \"all\"")]
enum AcksKey {
    Number(i64),
    Text(String),
}

impl TryFrom<AcksKey> for Acks {
    type Error = String;

    fn try_from(key: AcksKey) -> Result<Self, String> {
        let text = match key {
            AcksKey::Number(number) => number.to_string(),
            AcksKey::Text(text) => text,
        };
        match text.as_str() {
            "0" => Ok(Self::None),
            "1" => Ok(Self::Leader),
            "all" | "-1" => Ok(Self::All),
            other => {
                Err(format!("`{other}` is no kind of acknowledgement; write acks = 0, acks = 1 or acks = \"all\""))
            }
        }
    }
}

/// Ours under the operator's, for all clients.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "tidemill"),
    // librdkafka's 10 s would be added to the end of every outage: a broker that is back is found within a second.
    ("reconnect.backoff.max.ms", "1000"),
];

/// Ours under the operator's, for consumers.
const CONSUMER_DEFAULTS: &[(&str, &str)] = &[
    // The default of a second stalls small queues: 262 thousand records a second instead of 1.9 million.
    ("fetch.queue.backoff.ms", "10"),
    // A member asks a broker for one thing at a time. Where the queues of partitions with a backlog are full for a moment, it asks for the
    // others alone, and nothing comes for so long if these are quiet: with the default of 500 ms the last fifth of a backlog was
    // read at a third of its speed. New records are answered at once, whatever this is; a broker pays for it with ten empty answers a second.
    ("fetch.wait.max.ms", "100"),
    // Both are per partition, because each has a queue of its own: 64 partitions hold at most some 256 MiB.
    ("queued.min.messages", "10000"),
    ("queued.max.messages.kbytes", "4096"),
    ("isolation.level", "read_committed"),
    ("allow.auto.create.topics", "false"),
    // How soon a new topic or partition is seen.
    ("topic.metadata.refresh.interval.ms", "15000"),
];

/// Ours under the operator's, for producers.
const PRODUCER_DEFAULTS: &[(&str, &str)] = &[
    ("delivery.timeout.ms", "30000"),
    ("linger.ms", "5"),
    ("queue.buffering.max.messages", "200000"),
    ("queue.buffering.max.kbytes", "131072"),
    // How large a record may be is for the broker and the topic to say. librdkafka's 1 MB is less than brokers take from
    // others, so that such a record's dead letter could not be sent, whatever its topic takes. Nothing larger is read.
    ("message.max.bytes", "100000000"),
    // How long a record waits for a topic that nobody knows.
    ("topic.metadata.propagation.max.ms", "10000"),
];

/// What delivery depends on, for consumers.
const CONSUMER_OWNED: &[(&str, &str)] = &[
    // Offsets are committed behind what is settled, never by librdkafka.
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("enable.partition.eof", "false"),
    // Where a group begins is decided in `start`; what remains are offsets that are gone: then nothing kept is skipped.
    ("auto.offset.reset", "earliest"),
];

/// What delivery depends on, for producers.
const PRODUCER_OWNED: &[(&str, &str)] = &[
    ("acks", "all"),
    ("enable.idempotence", "true"),
    // As Java's clients choose, so that co-partitioned topics stay so.
    ("partitioner", "murmur2_random"),
];

/// How long a transaction may stay open.
const TRANSACTION_TIMEOUT_MS: &str = "10000";

/// Ours under the operator's, for transactional producers, over those for producers.
const TRANSACTIONS_DEFAULTS: &[(&str, &str)] = &[
    // How long a host that was killed holds up those who read what is committed: to this the broker's own clean-up interval
    // is added, 10 s by default. A transaction that takes longer is aborted and sent again.
    ("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS),
    // A transaction waits no longer than this for a topic that nobody knows, and with it all others of its handler.
    ("topic.metadata.propagation.max.ms", "2000"),
    // The coordinator answers "not yet" while the last transaction ends; the default of 100 ms is most of a transaction then.
    ("retry.backoff.ms", "2"),
];

/// Properties that an operator may not set at all, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("group.id", "write `group` in the handler"),
    ("auto.offset.reset", "write `start` in the handler's manifest"),
    ("enable.auto.commit", "leave it out: offsets are committed once their records are settled"),
    ("auto.commit.enable", "leave it out: offsets are committed once their records are settled"),
    ("auto.commit.interval.ms", "leave it out: offsets are committed once their records are settled"),
    ("enable.auto.offset.store", "leave it out: offsets are committed once their records are settled"),
    ("enable.partition.eof", "leave it out: lag is found in the metrics"),
    ("partitioner", "leave it out: keys are partitioned by murmur2, as Java clients do"),
    ("transactional.id", "leave it out: transactions are the host's, by the handler's `delivery`"),
    ("log.queue", "leave it out: librdkafka's log is part of the host's"),
];

/// Properties with one value that delivery can do with, and why.
const ONLY: &[(&str, &[&str], &str)] = &[
    ("acks", &["all", "-1"], "a record counts as stored once all in-sync replicas have it"),
    ("request.required.acks", &["all", "-1"], "a record counts as stored once all in-sync replicas have it"),
    ("enable.idempotence", &["true"], "without it a retry may store a record twice or out of order"),
    (
        "partition.assignment.strategy",
        &["cooperative-sticky"],
        "others take all partitions from all members at each change; a group cannot mix both, so stop its other members \
         or use a new group",
    ),
];

impl Config {
    /// Refuses what can't work, with the key and the cure. Nothing is connected.
    pub(super) fn check(&self) -> Result<(), BrokerError> {
        check_native(&self.client()?)?;
        check_native(&self.layered(CONSUMER_DEFAULTS, &[&self.consumer], CONSUMER_OWNED)?)?;
        check_native(&self.producer(&BTreeMap::new(), Acks::All)?)
    }

    /// The topics whose records count as stored so.
    pub(super) fn topics_with(&self, acks: Acks) -> impl Iterator<Item = &str> {
        self.topics.iter().filter(move |(_, topic)| topic.acks == acks).map(|(name, _)| name.as_str())
    }

    /// What weaker acknowledgements cost, for each topic that has them.
    pub fn costs(&self) -> Vec<String> {
        let cost = |(name, topic): (&String, &TopicConfig)| match topic.acks {
            Acks::None => Some(format!(
                "records for `{name}` count as stored once they are sent (acks = 0): each may be lost without a word, while \
                 its source is committed or its client told that it is stored"
            )),
            Acks::Leader => Some(format!(
                "records for `{name}` count as stored once its leader has them (acks = 1): the last ones are lost when that \
                 broker fails before another has copied them, and one that is sent again may be there twice"
            )),
            Acks::All => None,
        };
        self.topics.iter().filter_map(cost).collect()
    }

    /// For clients that neither consume in a group nor produce.
    pub(super) fn client(&self) -> Result<ClientConfig, BrokerError> {
        self.layered(&[], &[], &[])
    }

    /// For one group member.
    pub(super) fn consumer(&self, subscription: &Subscription) -> Result<ClientConfig, BrokerError> {
        let layers = [&self.consumer, &subscription.properties];
        let mut client = self.layered(CONSUMER_DEFAULTS, &layers, CONSUMER_OWNED)?;
        client.set("group.id", &subscription.group);
        // The newer protocol has its strategies at the broker, and refuses one from the client.
        if client.get("group.protocol").is_none_or(|protocol| protocol.eq_ignore_ascii_case("classic")) {
            client.set("partition.assignment.strategy", "cooperative-sticky");
        }
        check_native(&client)?;
        Ok(client)
    }

    /// For one client that reads outside of groups. It is told where a partition ends, and needs nothing that is for members.
    pub(super) fn reader(&self, properties: &BTreeMap<String, String>) -> Result<ClientConfig, BrokerError> {
        let mut client = self.layered(CONSUMER_DEFAULTS, &[&self.consumer, properties], CONSUMER_OWNED)?;
        client.set("enable.partition.eof", "true");
        for of_members in
            ["group.protocol", "group.remote.assignor", "group.instance.id", "partition.assignment.strategy"]
        {
            client.remove(of_members);
        }
        check_native(&client)?;
        Ok(client)
    }

    /// For one producer.
    pub(super) fn producer(
        &self,
        properties: &BTreeMap<String, String>,
        acks: Acks,
    ) -> Result<ClientConfig, BrokerError> {
        let mut client = self.layered(PRODUCER_DEFAULTS, &[&self.producer, properties], PRODUCER_OWNED)?;
        let weaker = match acks {
            Acks::None => Some("0"),
            Acks::Leader => Some("1"),
            Acks::All => None,
        };
        if let Some(acks) = weaker {
            // Without idempotence only one request at a time keeps the order when one is sent again.
            let single = "max.in.flight.requests.per.connection";
            client.set("acks", acks).set("enable.idempotence", "false").set(single, "1");
        }
        check_native(&client)?;
        Ok(client)
    }

    /// For one transactional producer.
    pub(super) fn transactions(
        &self,
        id: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<ClientConfig, BrokerError> {
        let defaults: Vec<_> = PRODUCER_DEFAULTS.iter().chain(TRANSACTIONS_DEFAULTS).copied().collect();
        let mut client = self.layered(&defaults, &[&self.producer, properties], PRODUCER_OWNED)?;
        client.set("transactional.id", id);
        // A record that is not stored within its transaction's time never is.
        let timeout = client.get("transaction.timeout.ms").unwrap_or(TRANSACTION_TIMEOUT_MS).to_owned();
        client.remove("message.timeout.ms");
        client.set("delivery.timeout.ms", timeout);
        check_native(&client)?;
        Ok(client)
    }

    /// Defaults, then the operator's layers, then what is ours.
    fn layered(
        &self,
        defaults: &[(&str, &str)],
        layers: &[&BTreeMap<String, String>],
        owned: &[(&str, &str)],
    ) -> Result<ClientConfig, BrokerError> {
        let mut client = ClientConfig::new();
        for (key, value) in DEFAULTS.iter().chain(defaults) {
            client.set(*key, *value);
        }
        for layer in std::iter::once(&self.properties).chain(layers.iter().copied()) {
            for (key, value) in layer {
                refuse_owned(key, value)?;
                client.set(key, value);
            }
        }
        if client.get("bootstrap.servers").or(client.get("metadata.broker.list")).is_none_or(str::is_empty) {
            return Err(refusal(
                "bootstrap.servers",
                "is missing; write the brokers as `host:port`, with commas between",
            ));
        }
        for (key, value) in owned {
            client.set(*key, *value);
        }
        Ok(client)
    }
}

fn refuse_owned(key: &str, value: &str) -> Result<(), BrokerError> {
    if let Some((_, instead)) = REFUSED.iter().find(|(refused, _)| *refused == key) {
        return Err(refusal(key, &format!("can't be set; {instead}")));
    }
    let only = ONLY.iter().find(|(limited, allowed, _)| *limited == key && !allowed.contains(&value));
    if let Some((_, allowed, reason)) = only {
        return Err(refusal(key, &format!("can only be `{}`: {reason}", allowed[0])));
    }
    Ok(())
}

/// Asks librdkafka whether it knows each property and can read its value.
fn check_native(client: &ClientConfig) -> Result<(), BrokerError> {
    client.create_native_config().map(drop).map_err(refused_by_library)
}

/// The library's refusal of a configuration, with the key and without a secret.
pub(super) fn refused_by_library(error: KafkaError) -> BrokerError {
    match error {
        KafkaError::ClientConfig(_, text, key, _) if is_secret(&key) => {
            refusal(&key, &format!("is refused ({} characters of text withheld)", text.len()))
        }
        KafkaError::ClientConfig(_, text, key, _) => refusal(&key, &format!("is refused by librdkafka: {text}")),
        KafkaError::ClientCreation(text) => BrokerError::Config(format!("Kafka properties are refused: {text}")),
        other => BrokerError::Config(format!("Kafka properties are refused: {other}")),
    }
}

fn refusal(key: &str, text: &str) -> BrokerError {
    BrokerError::Config(format!("Kafka property `{key}` {text}"))
}

/// Whether a property's value must not be shown.
fn is_secret(key: &str) -> bool {
    ["password", "secret", "token", "private", ".key", "jaas", "pem", "sasl.oauthbearer.config"]
        .iter()
        .any(|mark| key.contains(mark))
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |properties: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            let hide = |key: &str, value: &str| if is_secret(key) { "***".to_owned() } else { value.to_owned() };
            properties.iter().map(|(key, value)| (key.clone(), hide(key, value))).collect()
        };
        f.debug_struct("Config")
            .field("properties", &shown(&self.properties))
            .field("consumer", &shown(&self.consumer))
            .field("producer", &shown(&self.producer))
            .field("topics", &self.topics)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::StartAt;

    fn config(text: &str) -> Config {
        toml::from_str(text).expect("the text is a configuration")
    }

    fn refused(text: &str) -> String {
        config(text).check().expect_err("the configuration is refused").to_string()
    }

    #[test]
    fn an_operators_word_goes_over_ours_and_a_clients_over_all() {
        let config = config(
            "[properties]\n'bootstrap.servers' = 'a:1'\n'linger.ms' = 7\n'socket.keepalive.enable' = true\n\
             [producer]\n'linger.ms' = 8\n[consumer]\n'queued.min.messages' = 5",
        );
        let producer = config.producer(&BTreeMap::from([("batch.size".to_owned(), "9".to_owned())]), Acks::All);
        let producer = producer.expect("it is allowed");
        let of = |key| producer.get(key).unwrap_or("-").to_owned();
        let keys = ["linger.ms", "batch.size", "acks", "partitioner", "queued.min.messages", "socket.keepalive.enable"];
        assert_eq!(keys.map(of), ["8", "9", "all", "murmur2_random", "-", "true"]);

        let subscription = Subscription {
            group: "g".into(),
            topics: vec!["t".into()],
            start_at: StartAt::Latest,
            properties: BTreeMap::from([("queued.min.messages".to_owned(), "6".to_owned())]),
        };
        let consumer = config.consumer(&subscription).expect("it is allowed");
        let of = |key| consumer.get(key).unwrap_or("-").to_owned();
        let keys = ["group.id", "queued.min.messages", "enable.auto.commit", "partition.assignment.strategy"];
        assert_eq!(keys.map(of), ["g", "6", "false", "cooperative-sticky"]);
    }

    #[test]
    fn the_newer_group_protocol_is_left_to_the_broker() {
        let config = config("[properties]\n'bootstrap.servers' = 'a:1'\n'group.protocol' = 'consumer'");
        let subscription = Subscription {
            group: "g".into(),
            topics: vec![],
            start_at: StartAt::Earliest,
            properties: BTreeMap::new(),
        };
        let consumer = config.consumer(&subscription).expect("it is allowed");
        assert_eq!(consumer.get("partition.assignment.strategy"), None);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_key_and_the_cure() {
        let cases = [
            (
                "",
                "Kafka property `bootstrap.servers` is missing; write the brokers as `host:port`, with commas between",
            ),
            ("'group.id' = 'x'", "Kafka property `group.id` can't be set; write `group` in the handler"),
            (
                "'enable.auto.commit' = true",
                "Kafka property `enable.auto.commit` can't be set; leave it out: offsets are committed once their \
                 records are settled",
            ),
            (
                "'acks' = 1",
                "Kafka property `acks` can only be `all`: a record counts as stored once all in-sync replicas have it",
            ),
            (
                "'lingerms' = 1",
                "Kafka property `lingerms` is refused by librdkafka: No such configuration property: \"lingerms\"",
            ),
        ];
        for (line, expected) in cases {
            let servers = if line.is_empty() { "" } else { "'bootstrap.servers' = 'a:1'" };
            assert_eq!(refused(&format!("[properties]\n{servers}\n{line}")), expected);
        }
        assert!(
            refused("[properties]\n'bootstrap.servers' = 'a:1'\n[consumer]\n'fetch.wait.max.ms' = 'x'")
                .starts_with("Kafka property `fetch.wait.max.ms` is refused by librdkafka")
        );
        assert!(
            refused("[properties]\n'bootstrap.servers' = 'a:1'\n'partition.assignment.strategy' = 'range'")
                .contains("can only be `cooperative-sticky`")
        );
        assert!(toml::from_str::<Config>("[propertys]").is_err());
    }

    #[test]
    fn weaker_acknowledgements_are_a_topics_own_and_their_cost_is_said() {
        let servers = "[properties]\n'bootstrap.servers' = 'a:1'\n";
        let config =
            config(&format!("{servers}[topics.a]\nacks = 0\n[topics.b]\nacks = '1'\n[topics.c]\nacks = 'all'"));
        assert_eq!(config.topics_with(Acks::None).collect::<Vec<_>>(), ["a"]);
        let weak = config.producer(&BTreeMap::new(), Acks::Leader).expect("it is allowed");
        let of = |key| weak.get(key).unwrap_or("-").to_owned();
        let keys = ["acks", "enable.idempotence", "max.in.flight.requests.per.connection", "partitioner"];
        assert_eq!(keys.map(of), ["1", "false", "1", "murmur2_random"]);
        let costs = config.costs();
        assert!(costs.len() == 2 && costs[0].contains("`a`") && costs[1].contains("`b`"), "{costs:?}");
        let wrong =
            toml::from_str::<Config>(&format!("{servers}[topics.a]\nacks = 2")).expect_err("there is no such kind");
        assert!(wrong.message().contains("write acks = 0, acks = 1 or acks = \"all\""), "{wrong}");
    }

    #[test]
    fn a_secret_is_not_shown() {
        let text = "[properties]\n'bootstrap.servers' = 'a:1'\n'sasl.password' = 'hush'\n'ssl.key.pem' = 'hush'";
        let shown = format!("{:?}", config(text));
        assert!(shown.contains("a:1") && shown.contains("***") && !shown.contains("hush"), "{shown}");
    }
}
