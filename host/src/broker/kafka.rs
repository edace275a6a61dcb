//! Real Kafka behind the seams, through librdkafka. Nothing outside of this room names rdkafka (ARCH-1).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{Admin, Broker, BrokerError, Producer, Subscription};

mod admin;
mod config;
mod consumer;
mod ends;
mod errors;
mod ffi;
mod listener;
mod producer;
mod reader;

use self::config::Properties;
pub use self::config::{Config, Property};
pub use self::consumer::KafkaConsumer;
pub use self::reader::PartitionReader;

/// A Kafka cluster, as the configuration describes it. Nothing connects before a client is made.
#[derive(Clone)]
pub struct Kafka {
    properties: Arc<Properties>,
}

impl Kafka {
    /// Checks the configuration, down to the names and values of librdkafka's properties, without connecting. Files of
    /// secrets are taken from `folder`.
    pub fn new(config: &Config, folder: &Path) -> Result<Self, BrokerError> {
        let properties = config.read(folder)?;
        properties.check()?;
        Ok(Self { properties: Arc::new(properties) })
    }
}

impl Broker for Kafka {
    type Consumer = KafkaConsumer;

    fn consumer(&self, subscription: &Subscription) -> Result<KafkaConsumer, BrokerError> {
        KafkaConsumer::join(&self.properties, subscription)
    }

    fn producer(&self, properties: &BTreeMap<String, String>) -> Result<Arc<dyn Producer>, BrokerError> {
        Ok(Arc::new(producer::KafkaProducer::new(self.properties.producer(properties)?)?))
    }

    fn admin(&self) -> Result<Arc<dyn Admin>, BrokerError> {
        Ok(Arc::new(admin::KafkaAdmin::new(&self.properties)?))
    }
}
