//! How a guest is entered: its exports, looked up once for each revision.

use wasmtime::Store;
use wasmtime::component::InstancePre;

use super::bindings::packed::{Packed, PackedIndices};
use super::bindings::{Platform, PlatformIndices};
use super::instance::State;

/// The exports of a linked component.
pub(super) struct Entry {
    pre: InstancePre<State>,
    handler: PlatformIndices,
    /// Where it can be given a batch in one buffer.
    packed: Option<PackedIndices>,
}

/// The exports of an instance.
pub(super) struct Entered {
    pub(super) handler: Platform,
    pub(super) packed: Option<Packed>,
}

impl Entry {
    /// Looks the exports up. One that is there and does not fit the contract is an error.
    pub(super) fn new(pre: InstancePre<State>, packs: bool) -> wasmtime::Result<Self> {
        let handler = PlatformIndices::new(&pre)?;
        let packed = if packs { Some(PackedIndices::new(&pre)?) } else { None };
        Ok(Self { pre, handler, packed })
    }

    pub(super) fn engine(&self) -> &wasmtime::Engine {
        self.pre.engine()
    }

    /// Makes an instance.
    pub(super) async fn enter(&self, store: &mut Store<State>) -> wasmtime::Result<Entered> {
        let instance = self.pre.instantiate_async(&mut *store).await?;
        let handler = self.handler.load(&mut *store, &instance)?;
        let packed = match &self.packed {
            Some(packed) => Some(packed.load(&mut *store, &instance)?),
            None => None,
        };
        Ok(Entered { handler, packed })
    }
}
