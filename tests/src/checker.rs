//! The judge: what was sent, what was stored, what was committed; and what is wrong with that.
//!
//! A pure function, so that it can itself be tested, and so that the same one judges a host that was broken on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::ledger::{Body, Fate, Place};

/// A record as a sink has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where it came from.
    pub place: Place,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

/// Everything that the judge looks at.
#[derive(Debug, Default)]
pub struct Evidence {
    /// What was sent.
    pub sent: BTreeMap<Body, Fate>,
    /// The sink, in the order in which it was written.
    pub stored: Vec<Stored>,
    /// The dead letters.
    pub dead: Vec<Stored>,
    /// The committed offsets over time, in the order in which they were seen.
    pub commits: Vec<Commit>,
}

/// A committed offset as it was seen, beside what was settled then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The partition.
    pub partition: i32,
    /// The next offset to be delivered.
    pub offset: i64,
    /// How many records below it had not been settled even after it had been seen.
    pub unsettled: i64,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The producer was told that it is safe, and no sink has it.
    Lost(Body),
    /// The sink has what nobody sent, or what the producer was told is not there.
    Invented(Place),
    /// It is stored under another place, key or value than it was accepted with.
    Misplaced(Body),
    /// The first time that this record was stored, a later one of its key had been stored already.
    OutOfOrder(Place),
    /// Stored again, more often than the fault allows.
    Repeated {
        /// How many were stored again.
        count: usize,
        /// How many may be.
        bound: usize,
    },
    /// An offset was committed after a higher one.
    CommitFell {
        /// The partition.
        partition: i32,
        /// What was committed before.
        from: i64,
        /// And then.
        to: i64,
    },
    /// An offset was committed above records that were not settled.
    CommitAhead {
        /// The partition.
        partition: i32,
        /// What was committed.
        committed: i64,
        /// How many records below it were not settled.
        unsettled: i64,
    },
}

/// What the judge counted when nothing was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Records that the producer was told are safe.
    pub acked: usize,
    /// Different records in the sink.
    pub stored: usize,
    /// Different records among the dead letters.
    pub dead: usize,
    /// Records stored or dead-lettered again.
    pub repeated: usize,
}

/// All that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

const FAULTS_SHOWN_MAX: usize = 20;

impl fmt::Display for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{} broken promises", self.0.len())?;
        for fault in self.0.iter().take(FAULTS_SHOWN_MAX) {
            writeln!(formatter, "  {fault:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

impl Faults {
    /// Whether one of them is so.
    pub fn any(&self, is_so: impl Fn(&Fault) -> bool) -> bool {
        self.0.iter().any(is_so)
    }
}

/// Judges the evidence; `repeats_max` is how many records the faults of this test may have had delivered again.
pub fn check(evidence: &Evidence, repeats_max: usize) -> Result<Summary, Faults> {
    let mut faults = Vec::new();
    let arrived: BTreeSet<Body> = evidence.stored.iter().chain(&evidence.dead).filter_map(Stored::body).collect();
    lost(evidence, &arrived, &mut faults);
    misplaced_or_invented(evidence, &mut faults);
    out_of_order(&evidence.stored, &mut faults);
    commits(&evidence.commits, &mut faults);
    let places = |stored: &[Stored]| stored.iter().map(|stored| stored.place).collect::<BTreeSet<_>>().len();
    let (stored, dead) = (places(&evidence.stored), places(&evidence.dead));
    let repeated = evidence.stored.len() + evidence.dead.len() - stored - dead;
    if repeated > repeats_max {
        faults.push(Fault::Repeated { count: repeated, bound: repeats_max });
    }
    if !faults.is_empty() {
        return Err(Faults(faults));
    }
    let acked = evidence.sent.values().filter(|fate| matches!(fate, Fate::Acked(_))).count();
    Ok(Summary { acked, stored, dead, repeated })
}

impl Stored {
    fn body(&self) -> Option<Body> {
        Body::from_bytes(self.value.as_deref()?)
    }
}

fn lost(evidence: &Evidence, arrived: &BTreeSet<Body>, faults: &mut Vec<Fault>) {
    let acked = evidence.sent.iter().filter(|(_, fate)| matches!(fate, Fate::Acked(_)));
    faults.extend(acked.filter(|(body, _)| !arrived.contains(body)).map(|(body, _)| Fault::Lost(body.clone())));
}

fn misplaced_or_invented(evidence: &Evidence, faults: &mut Vec<Fault>) {
    for stored in evidence.stored.iter().chain(&evidence.dead) {
        let Some(body) = stored.body() else {
            faults.push(Fault::Invented(stored.place));
            continue;
        };
        match evidence.sent.get(&body) {
            Some(_) if stored.key.as_deref() != Some(body.key.as_bytes()) => faults.push(Fault::Misplaced(body)),
            Some(Fate::Acked(place)) if *place != stored.place => faults.push(Fault::Misplaced(body)),
            Some(Fate::Acked(_) | Fate::Unknown) => {}
            Some(Fate::Failed) | None => faults.push(Fault::Invented(stored.place)),
        }
    }
}

/// Of each key, only the first time that a record was stored counts: a redelivery may begin again further back.
fn out_of_order(stored: &[Stored], faults: &mut Vec<Fault>) {
    let mut seen = BTreeSet::new();
    let mut highest: BTreeMap<(i32, &Option<Vec<u8>>), i64> = BTreeMap::new();
    for stored in stored.iter().filter(|stored| seen.insert(stored.place)) {
        let highest = highest.entry((stored.place.partition, &stored.key)).or_insert(-1);
        if stored.place.offset < *highest {
            faults.push(Fault::OutOfOrder(stored.place));
        }
        *highest = stored.place.offset.max(*highest);
    }
}

fn commits(commits: &[Commit], faults: &mut Vec<Fault>) {
    let mut before = BTreeMap::new();
    for commit in commits {
        let Commit { partition, offset, unsettled } = *commit;
        match before.insert(partition, offset) {
            Some(from) if from > offset => faults.push(Fault::CommitFell { partition, from, to: offset }),
            _ => {}
        }
        if unsettled > 0 {
            faults.push(Fault::CommitAhead { partition, committed: offset, unsettled });
        }
    }
}

#[cfg(test)]
mod tests;
