//! Free ports for servers that must be told theirs.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// Below the range of ephemeral ports, so that no client's socket takes one between here and the server's bind.
const FIRST: u16 = 20_000;
const COUNT: u64 = 12_000;
const TRIES_MAX: u32 = 1_000;

/// Different loopback ports on which nobody listens.
pub fn free<const N: usize>() -> Result<[u16; N]> {
    let mut free = BTreeSet::new();
    for try_number in 0..TRIES_MAX {
        if free.len() == N {
            break;
        }
        let port = FIRST + (RandomState::new().hash_one(try_number) % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            free.insert(port);
        }
    }
    let free: Vec<u16> = free.into_iter().collect();
    free.try_into().ok().context("found no free ports on loopback")
}
