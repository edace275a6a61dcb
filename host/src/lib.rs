//! Tidemill: a WebAssembly consumer host for Kafka.
//!
//! Records go through six rooms: receive ([`consumer`] ← [`broker`]), admit (`tidemill-core`), invoke ([`attempt`] → [`guest`]),
//! host calls ([`capability`] → [`store`], [`broker`]), [`settle`], commit ([`consumer`]). [`app`] builds them from [`config`].

pub mod admin;
pub mod app;
pub mod attempt;
pub mod broker;
pub mod capability;
pub mod cli;
pub mod config;
pub mod consumer;
pub mod fault;
pub mod fleet;
pub mod guest;
pub mod http;
pub mod ingest;
pub mod metrics;
pub mod replay;
pub mod settle;
pub mod store;
mod sync;
pub mod telemetry;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
