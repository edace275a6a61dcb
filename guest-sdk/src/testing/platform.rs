//! The interfaces of `wit/`, in memory: the same names and types as the generated ones. Not for authors.
#![allow(missing_docs, reason = "wit/ documents them")]

mod keyvalue;
pub mod sql;

pub use keyvalue::{atomics, batch, kv_extra, store};

/// `wasi:config/store`.
pub mod config {
    use super::super::world;
    use crate::bindings::wasi::config::store::Error;

    pub fn get(key: &str) -> Result<Option<String>, Error> {
        Ok(world::current().config.borrow().get(key).cloned())
    }
}

/// `tidemill:guest/secrets`.
pub mod secrets {
    use super::super::world;

    pub fn get(name: &str) -> Option<String> {
        world::current().secrets.borrow().get(name).cloned()
    }
}

/// `wasi:logging/logging`.
pub mod logging {
    use super::super::world;
    use crate::log::Level;

    pub fn log(level: Level, _context: &str, message: &str) {
        world::current().logs.borrow_mut().push((level, message.to_owned()));
    }
}

/// `tidemill:guest/producer`.
pub mod producer {
    use super::super::world;
    use crate::bindings::tidemill::guest::types::Outgoing;
    use crate::producer::{Error, Position};

    pub fn send(records: &[Outgoing]) -> Result<Vec<Position>, Error> {
        let world = world::current();
        if world.is_down("producer") {
            return Err(Error::Unavailable("set down by the test".to_owned()));
        }
        let mut sent = world.sent.borrow_mut();
        let mut positions = Vec::with_capacity(records.len());
        for record in records {
            let offset = i64::try_from(sent.len()).unwrap_or(i64::MAX);
            positions.push(Position { topic: record.topic.clone(), partition: record.partition.unwrap_or(0), offset });
            sent.push(record.clone());
        }
        Ok(positions)
    }
}
