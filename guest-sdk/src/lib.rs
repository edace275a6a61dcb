//! Write Tidemill handlers in Rust.
//!
//! A handler is a function of one record. It ends well, or it says by its error how the record ends:
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use tidemill_guest::{Context, Json, Output, Result, handler};
//!
//! #[derive(Deserialize, Serialize)]
//! struct Order { id: String, amount_cents: i64 }
//!
//! #[handler]
//! fn enrich(Json(order): Json<Order>, ctx: &mut Context) -> Result<()> {
//!     ctx.emit(Output::json("orders.enriched", &order)?.key(order.id));
//!     Ok(())
//! }
//! ```
//!
//! **Arguments.** The first is the record or what is made of it: [`Json<T>`], [`String`], [`Bytes`], `Vec<u8>`, `Option` of these (a tombstone is
//! `None`), or the whole [`Record`]. Then `&mut Context` if outputs are wanted; `(body, &Record, &mut Context)` gives body and record both.
//! A function of `&mut Batch` takes all the records of a call at once. See [`Handler`].
//!
//! **How a record ends.** `Ok(())` settles it and produces what was emitted. `?` on an error ends it as that error deserves: a dependency that is
//! away means *later* ([`retry`]), anything else means *never* ([`dead_letter`]). [`skip`] settles a record that is not for this handler.
//! After a record that is to be tried later, those of the same key wait behind it: the function is not called for them.
//!
//! **Capabilities** are plain calls: [`kv`], [`sql`], [`config`], [`secrets`], [`log`], [`producer`]. The component imports only those that the
//! code calls, and the operator grants them by name.
//!
//! **Tests.** With the feature `testing` the same function runs in `cargo test`, its capabilities in memory.

#[doc(hidden)]
pub mod bindings;

mod batch;
mod body;
pub mod config;
mod context;
mod convert;
mod error;
mod handler;
pub mod kv;
mod lanes;
pub mod log;
mod outcome;
mod output;
mod packed;
mod platform;
pub mod producer;
mod record;
#[doc(hidden)]
pub mod runtime;
pub mod secrets;
pub mod sql;
#[cfg(all(feature = "testing", not(target_family = "wasm")))]
pub mod testing;

pub use batch::Batch;
pub use body::{FromRecord, Json};
pub use context::Context;
pub use error::{Error, Refusal, Result, dead_letter, retry, skip};
pub use handler::{Ending, Handler};
pub use outcome::Outcome;
pub use output::{IntoBytes, Output};
pub use record::{Header, Record};
pub use tidemill_guest_macros::handler;

pub use bindings::tidemill::guest::types::{Guarantee, Order, Reason, RetryRequest, Setup, Timestamp};
/// Bytes that are shared instead of copied: keys and values of records.
pub use bytes::Bytes;
