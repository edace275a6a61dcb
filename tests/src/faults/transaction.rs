//! What happens to the end of a transaction. A proxy lies in wait for the request that ends it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use xtask::lab::wait;

use super::link;
use super::stage::{DEADLINE, Stage};
use crate::proxy::{Link, Trap};

/// How long the broker is frozen, from turn to turn: past all that a commit may take, for a moment, past the session.
const FROZEN_FOR: [Duration; 3] = [Duration::from_secs(20), Duration::from_secs(1), Duration::from_secs(6)];

/// It is committed, and the host asks again and again, on one connection after the other, and never hears of it.
pub(super) fn answer_lost(stage: &mut Stage) -> Result<()> {
    let before = unknown(stage)?;
    let moment = stage.amid(0)?;
    catch(stage, Trap::LosesAnswers)?;
    let struck = Instant::now();
    wait::until("the host to give up waiting for the answer", DEADLINE, || {
        Ok((unknown(stage)? > before).then_some(()))
    })?;
    link::set(stage, Link::Open)?;
    stage.recover(&moment, struck)
}

/// The request reaches a broker that is frozen, and is heard when nobody waits for an answer any more.
pub(super) fn broker_frozen(stage: &mut Stage) -> Result<()> {
    let turn = stage.recoveries().len();
    let before = unknown(stage)?;
    let moment = stage.amid(0)?;
    catch(stage, Trap::Holds)?;
    stage.kafka()?.pause(1)?;
    link::set(stage, Link::Open)?;
    thread::sleep(FROZEN_FOR[turn % FROZEN_FOR.len()]);
    stage.kafka()?.resume(1)?;
    let awake = Instant::now();
    stage.recover(&moment, awake)?;
    let unknown = unknown(stage)? - before;
    stage.notes.push(format!("of {unknown} transactions nobody knew the end"));
    Ok(())
}

/// Waits until the trap has caught a request.
fn catch(stage: &mut Stage, trap: Trap) -> Result<()> {
    let caught =
        |stage: &mut Stage| Ok::<u64, anyhow::Error>(stage.cluster()?.proxies.iter().map(|proxy| proxy.caught()).sum());
    let before = caught(stage)?;
    stage.cluster()?.proxies.iter().for_each(|proxy| proxy.set_trap(trap));
    wait::until("the end of a transaction", DEADLINE, || Ok((caught(stage)? > before).then_some(())))
}

/// Transactions of which the host could not tell how they ended.
fn unknown(stage: &Stage) -> Result<f64> {
    Ok(stage.hosts[0].metrics()?.sum("tidemill_commit_transactions_total", &[("result", "unknown")]))
}
