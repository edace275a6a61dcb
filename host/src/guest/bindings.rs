//! The contract in `wit/`, as Rust types: parameters borrow from the records, answers own what the guest gave.
//!
//! Imports that may wait are async: the host suspends the guest on its fiber, the guest sees a plain call. Those that
//! never wait are plain functions, which cost less.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from wit/, where it is documented")]

wasmtime::component::bindgen!({
    world: "platform",
    path: "../wit",
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: {
        "wasi:logging/logging": trappable,
        "wasi:config/store": trappable,
        "tidemill:guest/secrets": trappable,
        default: async | trappable,
    },
    exports: { default: async },
    with: {
        "wasi:keyvalue/store.bucket": crate::capability::Bucket,
        "tidemill:guest/sql.connection": crate::capability::Connection,
        "tidemill:guest/sql.transaction": crate::capability::Transaction,
        "tidemill:guest/sql.own-transaction": crate::capability::OwnTransaction,
    },
    require_store_data_send: true,
});

/// The optional export with one buffer each way.
pub mod packed {
    wasmtime::component::bindgen!({
        world: "packed",
        path: "../wit",
        ownership: Borrowing { duplicate_if_necessary: true },
        exports: { default: async },
        with: { "tidemill:guest/types": super::tidemill::guest::types },
        require_store_data_send: true,
    });
}
