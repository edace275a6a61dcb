//! Log lines. The host adds handler, revision, topic and partition.
//!
//! ```no_run
//! # let customer = "c-1";
//! tidemill_guest::log::info(format_args!("first order of {customer}"));
//! ```

use std::fmt::Display;

pub use crate::bindings::wasi::logging::logging::Level;

/// For whoever debugs this handler, record by record.
pub fn trace(message: impl Display) {
    log(Level::Trace, message);
}

/// For whoever debugs this handler.
pub fn debug(message: impl Display) {
    log(Level::Debug, message);
}

/// What an operator would tell a colleague.
pub fn info(message: impl Display) {
    log(Level::Info, message);
}

/// Look tomorrow.
pub fn warn(message: impl Display) {
    log(Level::Warn, message);
}

/// Look now.
pub fn error(message: impl Display) {
    log(Level::Error, message);
}

fn log(level: Level, message: impl Display) {
    crate::platform::logging::log(level, "", &message.to_string());
}
