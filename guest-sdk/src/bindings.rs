//! What `wit/` says, as Rust. Nothing is added here: types get their methods in the rooms that own them.
#![allow(missing_docs, reason = "the contract is documented in wit/")]
#![allow(unsafe_code, reason = "generated: the component ABI passes pointers")]
#![allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]

wit_bindgen::generate!({
    path: "../wit",
    world: "packing",
    generate_all,
    pub_export_macro: true,
    default_bindings_module: "tidemill_guest::bindings",
    additional_derives: [PartialEq],
});
