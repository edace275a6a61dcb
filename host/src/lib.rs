//! Tidemill: a WebAssembly consumer host for Kafka.

pub mod attempt;
pub mod broker;
pub mod config {
    //! Values of configuration files.
    pub mod units;
}
pub mod consumer;
pub mod guest;
pub mod metrics;
pub mod settle;
pub mod store;
