//! Real Kafka behind the seams, through librdkafka. Nothing outside of this room names rdkafka (ARCH-1).

#![allow(clippy::wildcard_enum_match_arm, reason = "of the library's codes and events, those that matter are named")]

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_core::record::{Offset, TopicPartition};

use super::{Admin, Broker, BrokerError, Producer, Subscription};

mod admin;
mod assignment;
mod config;
mod consumer;
mod ends;
mod errors;
mod ffi;
mod listener;
mod producer;
mod ranged;
mod reader;

pub use self::config::{Acks, Config, TopicConfig};
pub use self::consumer::{KafkaConsumer, KafkaMember};
pub use self::producer::transactions::KafkaTransactions;
use self::producer::{ByTopic, KafkaProducer};
pub use self::reader::PartitionReader;

/// A Kafka cluster, as the configuration describes it. Nothing connects before a client is made.
#[derive(Debug, Clone)]
pub struct Kafka {
    config: Arc<Config>,
}

impl Kafka {
    /// Checks the configuration, down to the names and values of librdkafka's properties, without connecting.
    pub fn new(config: Config) -> Result<Self, BrokerError> {
        config.check()?;
        Ok(Self { config: Arc::new(config) })
    }
}

impl Broker for Kafka {
    type Consumer = KafkaConsumer;
    type Transactions = KafkaTransactions;

    fn consumer(&self, subscription: &Subscription) -> Result<KafkaConsumer, BrokerError> {
        KafkaConsumer::join(&self.config, subscription)
    }

    fn readers(
        &self,
        places: &BTreeMap<TopicPartition, Offset>,
        properties: &BTreeMap<String, String>,
    ) -> impl Future<Output = Result<Vec<(TopicPartition, PartitionReader)>, BrokerError>> + Send {
        std::future::ready(ranged::readers(&self.config, places, properties))
    }

    fn check(&self, subscription: &Subscription) -> Result<(), BrokerError> {
        self.config.consumer(subscription).map(drop)
    }

    fn producer(&self, properties: &BTreeMap<String, String>) -> Result<Arc<dyn Producer>, BrokerError> {
        let made = |acks| KafkaProducer::new(self.config.producer(properties, acks)?);
        let usual = made(Acks::All)?;
        let mut weaker = Vec::new();
        for acks in [Acks::None, Acks::Leader] {
            let topics: Vec<Arc<str>> = self.config.topics_with(acks).map(Into::into).collect();
            if !topics.is_empty() {
                weaker.push((made(acks)?, topics));
            }
        }
        Ok(if weaker.is_empty() { Arc::new(usual) } else { Arc::new(ByTopic::new(usual, weaker)) })
    }

    fn transactions(&self, id: &str, properties: &BTreeMap<String, String>) -> Result<KafkaTransactions, BrokerError> {
        KafkaTransactions::new(&self.config.transactions(id, properties)?)
    }

    fn admin(&self) -> Result<Arc<dyn Admin>, BrokerError> {
        Ok(Arc::new(admin::KafkaAdmin::new(&self.config)?))
    }
}
