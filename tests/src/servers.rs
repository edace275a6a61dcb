//! The servers that all tests of one binary share. A test that hurts a server starts one of its own.

use std::sync::{LazyLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use xtask::lab::kafka::Kafka;
use xtask::lab::postgres::Postgres;

use crate::names;

static KAFKA: LazyLock<Kafka> = LazyLock::new(|| Kafka::start_nodes(1).expect("one kafka node starts"));
static POSTGRES: LazyLock<Postgres> = LazyLock::new(|| Postgres::start_new().expect("postgres starts"));
static MACHINE: RwLock<()> = RwLock::new(());

/// `bootstrap.servers` of the shared cluster, which the first caller starts.
pub fn kafka() -> String {
    KAFKA.bootstrap()
}

/// The URL of a new database on the shared server, which the first caller starts.
pub fn database() -> String {
    let name = names::unique("promise").replace('-', "_");
    POSTGRES.create_database(&name).expect("a database is created")
}

/// Held by every test that does not mind company.
pub fn in_company() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Held by a test that measures time, and therefore wants the machine for itself.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}
