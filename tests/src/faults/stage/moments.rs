//! The moments at which faults come: that something is in flight, what may come again because of them, and when all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::lab::wait;

use super::{DEADLINE, Stage};
use crate::checker::{self, Stored};
use crate::faults::mode::Promise;
use crate::ledger::Place;

/// How long a fault waits for records in flight before it counts as not injected.
const INJECTION_DEADLINE: Duration = Duration::from_secs(30);
/// Records in requests that ingest has in hand: those of a [`Load::endless`](crate::client::Load::endless).
const ON_THEIR_WAY: usize = 40;

/// How things stood when a fault came.
#[derive(Debug, Clone)]
pub struct Moment {
    /// Records in calls of guests, or requests that ingest had not answered.
    pub in_flight: usize,
    /// Records in the topic and not committed.
    pub uncommitted: usize,
    /// The ends of the partitions.
    pub ends: Vec<i64>,
    /// What was committed, by partition.
    pub committed: Vec<i64>,
    written: i64,
}

impl Moment {
    /// The same with these ends.
    pub fn with_ends(self, ends: Vec<i64>) -> Moment {
        Moment { ends, ..self }
    }

    /// As the judge sees it.
    pub(super) fn standing(&self) -> checker::Standing {
        let committed = (0..).zip(self.committed.iter().copied()).collect();
        checker::Standing { written: self.written, committed }
    }
}

/// Nothing was in flight, however long it was waited for.
#[derive(Debug)]
pub struct NotInjected;

impl std::fmt::Display for NotInjected {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "not injected: nothing was in flight within {INJECTION_DEADLINE:?}")
    }
}

impl std::error::Error for NotInjected {}

impl Stage<'_> {
    /// Waits until a host has records in a call, notes how things stand, and answers at once: now is the moment.
    pub fn amid(&mut self, host: usize) -> Result<Moment> {
        // What is committed before it is called is in hand all the same.
        let commits_first = self.mode.promise == Promise::NothingRepeated;
        self.amid_some(|stage, moment| {
            let in_flight = stage.hosts[host].metrics()?.in_flight();
            Ok(if moment.uncommitted > 0 || commits_first { in_flight } else { 0.0 })
        })
    }

    /// The same, also when all records of the host wait to be tried again: they are in hand, if not in a call.
    pub fn amid_or_waiting(&mut self, host: usize) -> Result<Moment> {
        let waiting = self.hosts[host].metrics()?.sum("tidemill_admit_lanes_waiting", &[]);
        if waiting > 0.0 { self.amid_some(|_, _| Ok(waiting)) } else { self.amid(host) }
    }

    /// The same for requests that ingest has not answered.
    pub fn amid_requests(&mut self) -> Result<Moment> {
        self.amid_some(|stage, _| Ok(stage.door.metrics()?.sum("tidemill_ingest_in_flight_requests", &[])))
    }

    fn amid_some(&mut self, in_flight: impl Fn(&Self, &Moment) -> Result<f64>) -> Result<Moment> {
        let started = Instant::now();
        while started.elapsed() < INJECTION_DEADLINE {
            let moment = self.look()?;
            let in_flight = in_flight(self, &moment)?;
            if in_flight > 0.0 {
                let moment = Moment { in_flight: in_flight as usize, ..moment };
                self.moments.push(moment.clone());
                return Ok(moment);
            }
        }
        Err(NotInjected.into())
    }

    fn look(&self) -> Result<Moment> {
        let committed = self.committed()?;
        let (written, ends) = (self.results.written()?, self.ends()?);
        let uncommitted = above(&committed, &ends);
        Ok(Moment { in_flight: 0, uncommitted, ends, committed, written })
    }

    /// What the group has committed, by partition.
    pub fn committed(&self) -> Result<Vec<i64>> {
        Ok(self.group.committed()?.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The ends of the partitions now.
    pub fn ends(&self) -> Result<Vec<i64>> {
        self.group.ends()
    }

    /// All partitions.
    pub fn partitions(&self) -> Vec<i32> {
        (0..self.scene.partitions).collect()
    }

    /// The partitions that a host has, as it says itself.
    pub fn partitions_of(&self, host: usize) -> Result<Vec<i32>> {
        let metrics = self.hosts[host].metrics()?;
        let names = metrics.values_of("tidemill_receive_position_offset", "partition");
        names.iter().map(|name| name.parse().with_context(|| format!("`{name}` is a partition"))).collect()
    }

    /// Notes that what was in hand at a moment may be redelivered, when nothing could be delivered after it: what was
    /// committed then is known, and what was delivered is at most what the topic had, and what was on its way into it.
    pub fn may_redeliver(&mut self, moment: &Moment) {
        self.in_hand += moment.uncommitted + ON_THEIR_WAY;
    }

    /// The same when the topic grows on: what was delivered is at most what it has now.
    pub fn may_redeliver_since(&mut self, moment: &Moment) -> Result<()> {
        match self.mode.promise {
            Promise::NothingRepeated => return self.may_lose(&self.partitions()),
            Promise::NothingLost => self.in_hand += above(&moment.committed, &self.ends()?),
            Promise::Exact => {}
        }
        Ok(())
    }

    /// The same, told exactly, once a host or its database is dead: what was stored of these partitions and not committed.
    pub fn may_redeliver_what_is_stored(&mut self, partitions: &[i32], committed: &[i64]) -> Result<()> {
        match self.mode.promise {
            Promise::NothingRepeated => return self.may_lose(partitions),
            Promise::Exact => return Ok(()),
            Promise::NothingLost => {}
        }
        let is_in_hand = |stored: &&Stored| {
            let partition = stored.place.partition;
            let committed = usize::try_from(partition).ok().and_then(|partition| committed.get(partition));
            partitions.contains(&partition) && committed.is_none_or(|committed| stored.place.offset >= *committed)
        };
        let stored = self.results.stored()?;
        self.in_hand += stored.iter().filter(is_in_hand).map(|stored| stored.place).collect::<BTreeSet<_>>().len();
        Ok(())
    }

    /// Notes that a host which stands still, and will go on, may settle what it has in hand behind what others settle meanwhile:
    /// in a mode that commits first nobody else is given it.
    pub fn may_come_late(&mut self) -> Result<()> {
        if self.mode.promise == Promise::NothingRepeated {
            let unsettled = self.committed_and_unsettled(&self.partitions())?;
            self.late.extend(unsettled.into_values().flatten());
        }
        Ok(())
    }

    /// The same as [`Self::may_redeliver`] in a mode that commits first, before anybody else has these partitions.
    fn may_lose(&mut self, partitions: &[i32]) -> Result<()> {
        let unsettled = self.committed_and_unsettled(partitions)?;
        // What was lost at an earlier fault is in it.
        self.lost.extend(unsettled.into_iter().map(|(partition, places)| (partition, places.len())));
        self.in_hand = self.lost.values().sum();
        Ok(())
    }

    /// What is committed of partitions, and not settled.
    fn committed_and_unsettled(&self, partitions: &[i32]) -> Result<BTreeMap<i32, Vec<Place>>> {
        let committed = self.committed()?;
        let (stored, dead) = (self.results.stored()?, self.scenario.dead()?);
        let settled: BTreeSet<Place> = stored.iter().chain(&dead).map(|stored| stored.place).collect();
        let of = |partition: i32| {
            let end =
                usize::try_from(partition).ok().and_then(|partition| committed.get(partition)).copied().unwrap_or(0);
            let all = (0..end).map(|offset| Place { partition, offset });
            (partition, all.filter(|place| !settled.contains(place)).collect())
        };
        Ok(partitions.iter().copied().map(of).collect())
    }

    /// Waits until all that the topic had at a moment is committed.
    pub fn wait_until_caught_up(&self, moment: &Moment) -> Result<()> {
        wait::until("all that was there at the fault to be committed", DEADLINE, || {
            Ok((above(&self.committed()?, &moment.ends) == 0).then_some(()))
        })
    }

    /// The same after a fault whose recovery is told by something else: a note says how long all of it took.
    pub fn catch_up(&mut self, moment: &Moment, since: Instant) -> Result<()> {
        self.wait_until_caught_up(moment)?;
        self.notes.push(format!("all that was there at the fault was committed after {:.1?}", since.elapsed()));
        Ok(())
    }

    /// The same, and notes how long it took since then.
    pub fn recover(&mut self, moment: &Moment, since: Instant) -> Result<()> {
        self.wait_until_caught_up(moment)?;
        self.recovered(since.elapsed());
        Ok(())
    }

    /// Waits until more is stored than now, and notes how long it took since then.
    pub fn recover_flow(&mut self, since: Instant) -> Result<()> {
        let before = self.results.count()?;
        wait::until("the next record to be stored", DEADLINE, || Ok((self.results.count()? > before).then_some(())))?;
        self.recovered(since.elapsed());
        Ok(())
    }

    /// Notes a recovery that was timed elsewhere.
    pub fn recovered(&mut self, took: Duration) {
        self.recoveries.push(took);
    }

    /// The recoveries so far.
    pub fn recoveries(&self) -> &[Duration] {
        &self.recoveries
    }

    /// How many records were in flight at the last fault.
    pub fn last_in_flight(&self) -> usize {
        self.moments.last().map_or(0, |moment| moment.in_flight)
    }
}

/// How many offsets lie between two places of each partition.
fn above(committed: &[i64], ends: &[i64]) -> usize {
    let gaps = committed.iter().zip(ends).map(|(committed, end)| (end - committed).max(0));
    usize::try_from(gaps.sum::<i64>()).unwrap_or(usize::MAX)
}
