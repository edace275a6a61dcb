//! The means by which promises are checked from outside: real servers, the real binary, and a ledger of its own.
//! Nothing else of the tree needs a server to be tested (ARCH-8).

pub mod books;
pub mod breakages;
pub mod checker;
pub mod client;
pub mod faults;
pub mod frozen;
pub mod hanging;
pub mod host;
pub mod ledger;
pub mod metrics;
pub mod names;
pub mod proxy;
pub mod raw_headers;
pub mod results;
pub mod sampler;
pub mod scenario;
pub mod servers;
pub mod sink;
pub mod sqlite;
pub mod topics;
pub mod weather;
