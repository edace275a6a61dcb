//! Names that no other test has.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// `stem` with a number behind it, good for topics, groups, handlers and databases.
pub fn unique(stem: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{stem}-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
