//! Which records of a call wait behind one that did not settle.
//!
//! A lane is one exact key, all null keys sharing one; with `partition` order everything is one lane, with `unordered` nothing is.

use std::collections::BTreeSet;

use crate::Order;

/// The lanes of one call that are held back.
#[derive(Debug)]
pub(crate) struct Lanes {
    order: Order,
    /// True once nothing more may run: `partition` order after the first record that did not settle.
    all_held: bool,
    null_held: bool,
    held: BTreeSet<Vec<u8>>,
}

impl Lanes {
    /// No lane is held yet.
    pub(crate) fn new(order: Order) -> Self {
        Self { order, all_held: false, null_held: false, held: BTreeSet::new() }
    }

    /// True if a record with this key has to wait.
    pub(crate) fn holds(&self, key: Option<&[u8]>) -> bool {
        if self.all_held {
            return true;
        }
        match key {
            None => self.null_held,
            Some(key) => !self.held.is_empty() && self.held.contains(key),
        }
    }

    /// Holds back whatever comes after a record with this key.
    pub(crate) fn hold(&mut self, key: Option<&[u8]>) {
        match (self.order, key) {
            (Order::Unordered, _) => {}
            (Order::Partition, _) => self.all_held = true,
            (Order::Key, None) => self.null_held = true,
            (Order::Key, Some(key)) => {
                self.held.insert(key.to_vec());
            }
        }
    }
}
