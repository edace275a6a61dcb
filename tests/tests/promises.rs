//! The promises.

#[path = "promises/postgres.rs"]
mod postgres;
