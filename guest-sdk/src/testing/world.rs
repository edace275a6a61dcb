//! What the host in memory holds, one per thread.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::bindings::tidemill::guest::types::Outgoing;
use crate::log::Level;

/// Keys and values of one bucket, and who claimed which key.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) values: BTreeMap<String, Vec<u8>>,
    pub(super) claims: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) config: RefCell<BTreeMap<String, String>>,
    pub(super) secrets: RefCell<BTreeMap<String, String>>,
    pub(super) buckets: RefCell<BTreeMap<String, Bucket>>,
    pub(super) databases: RefCell<BTreeMap<String, Rc<rusqlite::Connection>>>,
    pub(super) logs: RefCell<Vec<(Level, String)>>,
    pub(super) sent: RefCell<Vec<Outgoing>>,
    /// Names whose calls fail as unavailable.
    pub(super) down: RefCell<BTreeSet<String>>,
}

impl World {
    pub(super) fn is_down(&self, name: &str) -> bool {
        self.down.borrow().contains(name)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// Makes a new world the one of this thread.
pub(super) fn enter() -> Rc<World> {
    let world = Rc::new(World::default());
    CURRENT.set(Some(Rc::clone(&world)));
    world
}

/// Forgets a world, unless another has taken its place.
pub(super) fn leave(world: &Rc<World>) {
    CURRENT.with_borrow_mut(|current| {
        if current.as_ref().is_some_and(|current| Rc::ptr_eq(current, world)) {
            *current = None;
        }
    });
}

/// The world of this thread.
pub(super) fn current() -> Rc<World> {
    let world = CURRENT.with_borrow(Clone::clone);
    world.expect(
        "a capability was called without a host; begin the test with `let host = tidemill_guest::testing::Host::new()`",
    )
}
