//! What records, their guests and their topics do.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::lab::wait;

use super::stage::{DEADLINE, Stage};
use crate::checker;
use crate::host;
use crate::ledger::Place;
use crate::raw_headers::RawHeader;
use crate::scenario::Odd;
use crate::topics;

/// One attempt is enough to see how each class ends; a guest that runs for ever is stopped soon.
pub(super) const POISON: &str = "\
retry.attempts_max = 2
retry.delay_min = \"50ms\"
retry.delay_max = \"100ms\"
limits.deadline = \"300ms\"
limits.memory = \"16MiB\"";

/// The client fetches little ahead, so that most of the log is unread when it is deleted.
pub(super) const LITTLE_AHEAD: &str = "consumer_properties.\"queued.min.messages\" = \"10\"";

/// What the guest `poison` does to a record is in its header of that name; beside it, a header that no guest can be shown.
const CLASSES: [(&str, &str); 6] = [
    ("never", "rejected"),
    ("retry", "retry"),
    ("trap", "trap"),
    ("deadline", "deadline"),
    ("memory", "memory"),
    ("malformed", "malformed"),
];
const OF_EACH_CLASS: u64 = 3;

pub(super) fn poison(stage: &mut Stage) -> Result<()> {
    let letters_before = stage.scenario.dead()?.len();
    let moment = stage.amid(0)?;
    let began = Instant::now();
    let turn = stage.recoveries().len();
    let records: Vec<Odd> = (0..OF_EACH_CLASS)
        .flat_map(|number| CLASSES.iter().map(move |(poison, _)| (number, *poison)))
        .map(|(number, poison)| poisoned(&format!("poison-{turn}-{poison}"), &format!("k{number}"), poison))
        .collect();
    stage.scenario.write_past_ingest(&records)?;
    let expected = letters_before + records.len();
    wait_for_letters(stage, expected)?;
    stage.recovered(began.elapsed());
    stage.wait_until_caught_up(&moment)?;
    as_they_were(stage)
}

/// A dead letter is its record byte for byte, and says why.
fn as_they_were(stage: &Stage) -> Result<()> {
    let source = topics::read(&stage.scenario.bootstrap, &stage.scenario.topic)?;
    for letter in topics::read(&stage.scenario.bootstrap, &stage.letters())? {
        let place = letter.as_dead_letter()?.place;
        let original = source.iter().find(|kept| kept.place == place).context("a letter names its record")?;
        let same = letter.value == original.value
            && letter.key == original.key
            && letter.timestamp == original.timestamp
            && letter.headers.starts_with(&original.headers);
        ensure!(same, "the dead letter of {place:?} is not as its record was");
        let poison = original.header("poison").context("a dead record was poison")?;
        let class = CLASSES.iter().find(|(name, _)| *name == poison).map(|(_, class)| *class);
        let told = letter.header("tidemill.error.class");
        ensure!(told.as_deref() == class, "{place:?} was `{poison}` and its letter says {told:?}");
    }
    Ok(())
}

/// A record that says what a guest is to do to it.
fn poisoned(producer: &str, key: &str, poison: &str) -> Odd {
    let mut odd = Odd::new(producer, key, RawHeader::new("poison", poison));
    if poison == "malformed" {
        odd.kept.headers.push(RawHeader::new(b"\xff\xfe".as_slice(), b"x".as_slice()));
    }
    odd
}

fn wait_for_letters(stage: &Stage, count: usize) -> Result<()> {
    wait::until("every dead letter", DEADLINE, || Ok((stage.scenario.dead()?.len() >= count).then_some(())))
}

/// How long the handler stands still before records are deleted.
const STANDSTILL: Duration = Duration::from_secs(4);
const BETWEEN_SWAPS: Duration = Duration::from_secs(1);

/// Good builds, files that are none, and one that asks for every record again; the last one is good.
pub(super) fn swapped(stage: &mut Stage) -> Result<()> {
    let rounds = if stage.form.is_quick { 2 } else { 20 };
    let (good, worse) = (host::guest_bytes("store")?, host::guest_bytes("failing")?);
    let handler = stage.scenario.handler.clone();
    let mut number = 0;
    let mut another = |guest: &[u8]| {
        number += 1;
        host::with_another_digest(guest, number)
    };
    let mut moment = stage.amid(0)?;
    for _ in 0..rounds {
        let half = good[..good.len() / 2].to_vec();
        for build in [another(&good), half, another(&worse), b"#!/bin/sh\n".to_vec(), another(&good)] {
            moment = stage.amid_or_waiting(0)?;
            stage.hosts[0].swap_bytes(&handler, &build)?;
            thread::sleep(BETWEEN_SWAPS);
        }
    }
    let swapped = Instant::now();
    stage.recover(&moment, swapped)?;
    let metrics = stage.hosts[0].metrics()?;
    let count = |name| metrics.sum(name, &[]);
    let (live, refused) = (count("tidemill_guest_swaps_total"), count("tidemill_guest_rejected_loads_total"));
    stage.notes.push(format!("{live} builds went live, {refused} files were refused"));
    ensure!(live >= 1.0 && refused >= 1.0, "no swap was seen");
    Ok(())
}

pub(super) fn letters_missing(stage: &mut Stage) -> Result<()> {
    let letters = stage.letters();
    stalled(stage, "missing", Vec::new(), |stage| topics::create(&stage.scenario.bootstrap, &letters, 1))
}

pub(super) fn letters_denied(stage: &mut Stage) -> Result<()> {
    let letters = stage.letters();
    let acl = |stage: &mut Stage, change: &str, rule: &str, operation: &str| {
        let rule = [change, rule, "User:*", "--operation", operation, "--topic", &letters, "--force"];
        stage.kafka()?.command("AclCommand", &rule).map(drop)
    };
    // Without the leave for the rest nobody could even see the topic.
    acl(stage, "--add", "--allow-principal", "All")?;
    acl(stage, "--add", "--deny-principal", "Write")?;
    stalled(stage, "denied", Vec::new(), |stage| acl(stage, "--remove", "--deny-principal", "Write"))
}

/// The record fits into its own topic; its letter does not fit into the one for letters.
pub(super) fn letter_too_large(stage: &mut Stage) -> Result<()> {
    let letters = stage.letters();
    let limit = |stage: &mut Stage, bytes: &str| {
        topics::configure(&stage.scenario.bootstrap, &letters, "max.message.bytes", bytes)
    };
    limit(stage, "2000")?;
    let ballast = RawHeader::new("ballast", vec![b'x'; 4_000]);
    stalled(stage, "large", vec![ballast], |stage| limit(stage, "1048588"))
}

/// A record whose dead letter can't be written holds its own key up and nobody else; once the letter can be written, it is.
fn stalled(
    stage: &mut Stage,
    producer: &str,
    headers: Vec<RawHeader>,
    mend: impl FnOnce(&mut Stage) -> Result<()>,
) -> Result<()> {
    let moment = stage.amid(0)?;
    let mut odd = poisoned(&format!("poison-{producer}"), "a key of its own", "never");
    odd.kept.headers.extend(headers);
    stage.scenario.write_past_ingest(&[odd])?;
    wait::until("the host to say that the letter can't be written", DEADLINE, || {
        let failures = stage.hosts[0].metrics()?.sum("tidemill_settle_dead_letter_failures_total", &[]);
        Ok((failures >= 1.0).then_some(()))
    })?;
    ensure!(stage.scenario.dead()?.is_empty(), "a letter was written that could not be");
    let stored = stage.results.count()?;
    wait::until("other keys to go on", DEADLINE, || Ok((stage.results.count()? > stored + 20).then_some(())))?;
    mend(stage)?;
    let mended = Instant::now();
    wait_for_letters(stage, 1)?;
    stage.recovered(mended.elapsed());
    stage.wait_until_caught_up(&moment)
}

/// The database is stopped, so that the handler stands still; meanwhile records that it has not read are deleted.
pub(super) fn expired(stage: &mut Stage) -> Result<()> {
    let standing = stage.amid(0)?;
    stage.database()?.postgres.stop()?;
    // More than the handler holds: the rest is unread, beyond what its client has fetched ahead.
    thread::sleep(STANDSTILL);
    // What was settled is committed by now, and is not excused by what happens to the log.
    let (committed, ends) = (stage.committed()?, stage.ends()?);
    for (partition, (committed, end)) in (0..).zip(committed.iter().zip(&ends)) {
        topics::delete_before(&stage.scenario.bootstrap, &stage.scenario.topic, partition, *end)?;
        stage.expired.entry(partition).or_default().push(*committed..*end);
    }
    stage.database()?.postgres.start()?;
    let back = Instant::now();
    stage.may_redeliver_what_is_stored(&stage.partitions(), &committed)?;
    stage.recover(&standing.with_ends(ends), back)?;
    let stored = stage.results.stored()?;
    let is_deleted = |place: &Place| checker::is_expired(&stage.expired, place);
    let read: BTreeSet<Place> = stored.iter().map(|stored| stored.place).filter(is_deleted).collect();
    let deleted: i64 = stage.expired.values().flatten().map(|deleted| deleted.end - deleted.start).sum();
    let unread = deleted - i64::try_from(read.len())?;
    let counted = stage.hosts[0].metrics()?.sum("tidemill_receive_skipped_offsets_total", &[]);
    stage.notes.push(format!(
        "{deleted} unsettled records were deleted, {unread} of them unread; the host has counted {counted}"
    ));
    ensure!(
        unread > 0 && counted == unread as f64,
        "{unread} records were deleted unread, and the host has counted {counted}"
    );
    Ok(())
}
