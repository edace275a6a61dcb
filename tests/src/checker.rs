//! The judge: what was sent, what was stored, what was committed; and what is wrong with that.
//!
//! A pure function, so that it can itself be tested, and so that the same one judges a host that was broken on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use crate::ledger::{Body, Fate, Place};

/// A record as a sink has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where it came from.
    pub place: Place,
    /// The number of this storing: what is stored later has a higher one.
    pub written: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

/// Everything that the judge looks at.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// What was sent.
    pub sent: BTreeMap<Body, Fate>,
    /// The sink, in the order in which it was written.
    pub stored: Vec<Stored>,
    /// The dead letters.
    pub dead: Vec<Stored>,
    /// The committed offsets over time, in the order in which they were seen.
    pub commits: Vec<Commit>,
    /// How things stood whenever a fault came.
    pub moments: Vec<Standing>,
    /// The numbers of the storings that a reader saw who read along, where there was one.
    pub read_along: Option<BTreeSet<i64>>,
    /// These offsets, by partition, were deleted from the log before they were settled.
    pub expired: Expired,
    /// A host that stood still, and went on, had these in hand, and nobody else was given them.
    pub late: BTreeSet<Place>,
}

/// Offsets by partition.
pub type Expired = BTreeMap<i32, Vec<Range<i64>>>;

/// How things stood at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The highest number of a storing.
    pub written: i64,
    /// What was committed, by partition.
    pub committed: BTreeMap<i32, i64>,
}

/// What a mode of delivery and the faults of a test allow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Records that may be stored again.
    pub repeats: usize,
    /// Records that may be lost.
    pub losses: usize,
    /// Whether offsets may be committed before their records are settled.
    pub commits_ahead: bool,
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
    /// Stored again, although it lay below what was committed at the last fault before: nobody may begin again there.
    Reread(Place),
    /// So many storings were seen by one who read along and not by the last reader, or the other way round.
    ReadersDiffer(usize),
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

/// What the judge counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records that the producer was told are safe.
    pub acked: usize,
    /// Records of which the producer was told nothing that it could rely on.
    pub unknown: usize,
    /// Different records in the sink.
    pub stored: usize,
    /// Different records among the dead letters.
    pub dead: usize,
    /// Records stored or dead-lettered again.
    pub repeated: usize,
    /// Records that are nowhere, although they are safe.
    pub lost: usize,
    /// Records that nobody sent, or that are not what was sent.
    pub invented: usize,
    /// Records that were stored first after a later one of their key, or again from below a commit.
    pub out_of_order: usize,
}

/// What the judge counted, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What was counted.
    pub summary: Summary,
    /// What is wrong with it; empty when all is well.
    pub faults: Faults,
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

    fn count(&self, is_so: impl Fn(&Fault) -> bool) -> usize {
        self.0.iter().filter(|fault| is_so(fault)).count()
    }

    /// The checks that failed, each once, by name.
    pub fn checks(&self) -> Vec<&'static str> {
        let names: BTreeSet<&str> = self.0.iter().map(Fault::check).collect();
        names.into_iter().collect()
    }
}

impl Fault {
    /// The name of the check that finds it.
    pub fn check(&self) -> &'static str {
        match self {
            Fault::Lost(_) => "nothing lost",
            Fault::Invented(_) | Fault::Misplaced(_) => "nothing invented",
            Fault::OutOfOrder(_) => "order per key",
            Fault::Repeated { .. } => "duplicates within the bound",
            Fault::Reread(_) => "redeliveries begin at a committed offset",
            Fault::ReadersDiffer(_) => "all readers see the same",
            Fault::CommitFell { .. } => "commits never fall",
            Fault::CommitAhead { .. } => "commits never pass unsettled work",
        }
    }
}

/// Judges the evidence; `repeats_max` is how many records the faults of this test may have had delivered again.
pub fn check(evidence: &Evidence, repeats_max: usize) -> Result<Summary, Faults> {
    let verdict = judge(evidence, &Allowed { repeats: repeats_max, ..Allowed::default() });
    if verdict.faults.0.is_empty() { Ok(verdict.summary) } else { Err(verdict.faults) }
}

/// Judges the evidence by what is allowed.
pub fn judge(evidence: &Evidence, allowed: &Allowed) -> Verdict {
    let mut faults = Vec::new();
    let arrived: BTreeSet<Body> = evidence.stored.iter().chain(&evidence.dead).filter_map(Stored::body).collect();
    lost(evidence, &arrived, &mut faults);
    misplaced_or_invented(evidence, &mut faults);
    out_of_order(evidence, &mut faults);
    reread(evidence, &mut faults);
    commits(evidence, &mut faults);
    readers_differ(evidence, &mut faults);
    let places = |stored: &[Stored]| stored.iter().map(|stored| stored.place).collect::<BTreeSet<_>>().len();
    let (stored, dead) = (places(&evidence.stored), places(&evidence.dead));
    let repeated = evidence.stored.len() + evidence.dead.len() - stored - dead;
    if repeated > allowed.repeats {
        faults.push(Fault::Repeated { count: repeated, bound: allowed.repeats });
    }
    let mut faults = Faults(faults);
    let fates = |is_so: fn(&Fate) -> bool| evidence.sent.values().filter(|fate| is_so(fate)).count();
    let summary = Summary {
        acked: fates(|fate| matches!(fate, Fate::Acked(_))),
        unknown: fates(|fate| matches!(fate, Fate::Unknown)),
        stored,
        dead,
        repeated,
        lost: faults.count(|fault| matches!(fault, Fault::Lost(_))),
        invented: faults.count(|fault| matches!(fault, Fault::Invented(_) | Fault::Misplaced(_))),
        out_of_order: faults.count(|fault| matches!(fault, Fault::OutOfOrder(_) | Fault::Reread(_))),
    };
    if summary.lost <= allowed.losses {
        faults.0.retain(|fault| !matches!(fault, Fault::Lost(_)));
    }
    if allowed.commits_ahead {
        faults.0.retain(|fault| !matches!(fault, Fault::CommitAhead { .. }));
    }
    Verdict { summary, faults }
}

impl Stored {
    fn body(&self) -> Option<Body> {
        Body::from_bytes(self.value.as_deref()?)
    }
}

/// Whether a place is among them.
pub fn is_expired(expired: &Expired, place: &Place) -> bool {
    expired.get(&place.partition).into_iter().flatten().any(|gone| gone.contains(&place.offset))
}

fn lost(evidence: &Evidence, arrived: &BTreeSet<Body>, faults: &mut Vec<Fault>) {
    let kept = |fate: &Fate| match fate {
        Fate::Acked(place) => !is_expired(&evidence.expired, place),
        Fate::Failed | Fate::Unknown => false,
    };
    let owed = evidence.sent.iter().filter(|(body, fate)| kept(fate) && !arrived.contains(body));
    faults.extend(owed.map(|(body, _)| Fault::Lost(body.clone())));
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
fn out_of_order(evidence: &Evidence, faults: &mut Vec<Fault>) {
    let mut seen = BTreeSet::new();
    let mut highest: BTreeMap<(i32, &Option<Vec<u8>>), i64> = BTreeMap::new();
    for stored in evidence.stored.iter().filter(|stored| seen.insert(stored.place)) {
        let highest = highest.entry((stored.place.partition, &stored.key)).or_insert(-1);
        if stored.place.offset < *highest && !evidence.late.contains(&stored.place) {
            faults.push(Fault::OutOfOrder(stored.place));
        }
        *highest = stored.place.offset.max(*highest);
    }
}

/// Of each record that was stored again, the last fault before tells where its reader may have begun again.
fn reread(evidence: &Evidence, faults: &mut Vec<Fault>) {
    let mut seen = BTreeSet::new();
    for stored in evidence.stored.iter().filter(|stored| !seen.insert(stored.place)) {
        let before = evidence.moments.iter().rev().find(|moment| moment.written < stored.written);
        let committed = before.and_then(|moment| moment.committed.get(&stored.place.partition));
        if committed.is_some_and(|committed| stored.place.offset < *committed) {
            faults.push(Fault::Reread(stored.place));
        }
    }
}

/// What was taken back after it was seen, or appeared behind one who had passed.
fn readers_differ(evidence: &Evidence, faults: &mut Vec<Fault>) {
    let Some(read_along) = &evidence.read_along else { return };
    let last: BTreeSet<i64> = evidence.stored.iter().map(|stored| stored.written).collect();
    let differing = last.symmetric_difference(read_along).count();
    if differing > 0 {
        faults.push(Fault::ReadersDiffer(differing));
    }
}

fn commits(evidence: &Evidence, faults: &mut Vec<Fault>) {
    let mut before = BTreeMap::new();
    for commit in &evidence.commits {
        let Commit { partition, offset, unsettled } = *commit;
        match before.insert(partition, offset) {
            Some(from) if from > offset => faults.push(Fault::CommitFell { partition, from, to: offset }),
            _ => {}
        }
        let below = |gone: &Range<i64>| (gone.end.min(offset) - gone.start).max(0);
        let gone: i64 = evidence.expired.get(&partition).into_iter().flatten().map(below).sum();
        if unsettled > gone {
            faults.push(Fault::CommitAhead { partition, committed: offset, unsettled: unsettled - gone });
        }
    }
}

#[cfg(test)]
mod tests;
