//! Tidemill: a WebAssembly consumer host for Kafka.

pub mod attempt;
pub mod broker;
pub mod config;
pub mod guest;
pub mod metrics;
