//! Tidemill's decisions, without IO.
//!
//! Plain data in, plain data out: no clock, no dice, no task (ARCH-2), no format (ARCH-4). The host tells the time and
//! performs what is decided here. Start with [`partition::Partition`]: one assigned partition as a state machine.

pub mod grants;
pub mod hazards;
pub mod lanes;
pub mod murmur2;
pub mod offset_tracker;
pub mod partition;
pub mod rate;
pub mod record;
pub mod retry;
pub mod revisions;
pub mod transaction;
