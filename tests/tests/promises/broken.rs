//! The judge judged: a host that is broken on purpose is caught, each time by the check that is there for it.

use anyhow::Result;
use tests::breakages::Breakage;
use tests::faults::lab::Lab;
use tests::servers;

#[test]
fn a_host_that_commits_before_success_is_caught() -> Result<()> {
    is_caught("commit-before-success")
}

#[test]
fn a_host_that_ignores_the_assignment_epoch_is_caught() -> Result<()> {
    is_caught("ignore-epoch")
}

#[test]
fn a_host_that_drops_records_when_it_is_full_is_caught() -> Result<()> {
    is_caught("drop-on-full")
}

#[test]
fn a_host_that_commits_past_a_gap_is_caught() -> Result<()> {
    is_caught("commit-past-gap")
}

#[test]
fn a_host_that_does_not_await_a_dead_letter_is_caught() -> Result<()> {
    is_caught("letter-not-awaited")
}

#[test]
fn a_host_that_does_not_await_what_it_parks_is_caught() -> Result<()> {
    is_caught("parked-not-awaited")
}

fn is_caught(name: &str) -> Result<()> {
    let _machine = servers::in_company();
    let breakage = Breakage::named(name)?;
    let faults = breakage.run(&mut Lab::default())?;
    let checks = faults.checks();
    assert!(breakage.is_caught(&checks), "the judge saw {checks:?}, not all of {:?}\n{faults}", breakage.by);
    Ok(())
}
