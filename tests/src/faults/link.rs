//! What happens to the connections between hosts and brokers.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::SESSION_TIMEOUT;
use super::stage::Stage;
use crate::proxy::Link;

const CUT_FOR: Duration = Duration::from_secs(3);
const SLOW: Duration = Duration::from_millis(200);
const SLOW_FOR: Duration = Duration::from_secs(6);

pub(super) fn cut(stage: &mut Stage) -> Result<()> {
    away(stage, Link::Cut, CUT_FOR)
}

/// Heartbeats are answered too late for nobody: nothing may be repeated.
pub(super) fn slow(stage: &mut Stage) -> Result<()> {
    let moment = stage.amid(0)?;
    set(stage, Link::Slow(SLOW))?;
    thread::sleep(SLOW_FOR);
    set(stage, Link::Open)?;
    stage.recover(&moment, Instant::now())
}

pub(super) fn silent(stage: &mut Stage) -> Result<()> {
    away(stage, Link::Silent, SESSION_TIMEOUT + Duration::from_secs(2))
}

fn away(stage: &mut Stage, link: Link, time: Duration) -> Result<()> {
    let moment = stage.amid(0)?;
    set(stage, link)?;
    thread::sleep(time);
    set(stage, Link::Open)?;
    let open = Instant::now();
    stage.may_redeliver(&moment);
    stage.recover(&moment, open)
}

pub(super) fn set(stage: &mut Stage, link: Link) -> Result<()> {
    stage.cluster()?.proxies.iter().for_each(|proxy| proxy.set(link));
    Ok(())
}
