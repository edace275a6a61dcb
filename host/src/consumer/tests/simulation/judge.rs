//! The judge: goes through a trace and holds each entry against the promises. It is naive on purpose, knows nothing of
//! the host's code, and is told only what can be seen from outside.

mod calls;
mod commits;
mod parked;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use tidemill_core::lanes::Order;
use tidemill_core::record::Offset;

use super::parked::Lying;
use super::story::{Mode, Plan};
use super::trace::{Ending, Entry, Host, Said, Sent, Source, What};

/// Says which promise a trace breaks, and where.
pub(super) fn judge(plan: &Plan, trace: &[Entry]) -> Result<(), String> {
    let mut judge = Judge::new(plan);
    for entry in trace {
        judge.now = entry.at;
        judge.see(&entry.what).map_err(|broken| format!("{broken}\n    at {entry}"))?;
    }
    judge.end()
}

type Verdict = Result<(), String>;

struct Judge<'a> {
    plan: &'a Plan,
    now: Duration,
    /// The key of each record of the input.
    keys: BTreeMap<Source, u8>,
    /// Where each partition begins by now.
    starts: BTreeMap<i32, Offset>,
    /// Offsets that each host has found deleted.
    skipped: BTreeMap<Host, u64>,
    /// The live revision of each host.
    live: BTreeMap<Host, u32>,
    assignments: Vec<Assignment>,
    calls: BTreeMap<u64, Call>,
    paused: BTreeSet<Host>,
    /// The group's offsets.
    committed: BTreeMap<i32, Offset>,
    /// The database's offsets, whose they are, and what is booked.
    rows: BTreeMap<i32, Offset>,
    owners: BTreeMap<i32, Host>,
    booked: BTreeSet<Source>,
    /// What is seen of each record behind the host, and how often.
    outputs: BTreeMap<(Source, Sent), usize>,
    /// What was said of each record at any time.
    said: BTreeSet<(Source, Said)>,
    /// Records of which an output is refused for what it is.
    refused: BTreeSet<Source>,
    /// What is parked, and what of it was handled or ever lay there.
    lying: Lying,
    handled: BTreeSet<Source>,
    parked: BTreeSet<Source>,
    /// Partitions of which a host that was left behind has parked something that counts.
    disturbed: BTreeSet<i32>,
    /// When each record was done for the last time, as a place in the order of all that was done.
    done: BTreeMap<Source, u64>,
    done_last: u64,
    /// At most once: records that a guest has had.
    had: BTreeSet<Source>,
    /// At most once: what ends that were not orderly may have lost.
    losses_max: usize,
}

/// One member's time with one partition.
struct Assignment {
    host: Host,
    partition: i32,
    start: Offset,
    /// Exactly once in a database: all below is booked.
    booked_to: Offset,
    /// What became of each record in its last call.
    last: BTreeMap<Offset, Last>,
    /// What it parks, and whether that is acknowledged and counts.
    parks: BTreeMap<Offset, bool>,
    /// Calls that failed on a record alone.
    failures: BTreeMap<Offset, u32>,
    /// The record at which it stands still, and since when.
    stopped: Option<(Offset, Duration)>,
    asked_back: Option<Duration>,
    trouble: Option<Duration>,
    ended: bool,
}

#[derive(Debug, Clone)]
struct Call {
    /// The assignment that it belongs to.
    at: usize,
    offsets: Vec<Offset>,
    revision: u32,
}

#[derive(Debug, Clone)]
struct Last {
    call: u64,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    /// Done, once these outputs are acknowledged.
    Done(BTreeSet<usize>),
    Failed {
        /// It may end here, as the policy says.
        spent: bool,
        /// Its dead letter was acknowledged.
        letter: bool,
    },
    Untouched,
}

impl<'a> Judge<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            now: Duration::ZERO,
            keys: BTreeMap::new(),
            starts: BTreeMap::new(),
            skipped: BTreeMap::new(),
            live: BTreeMap::new(),
            assignments: Vec::new(),
            calls: BTreeMap::new(),
            paused: BTreeSet::new(),
            committed: BTreeMap::new(),
            rows: BTreeMap::new(),
            owners: BTreeMap::new(),
            booked: BTreeSet::new(),
            outputs: BTreeMap::new(),
            said: BTreeSet::new(),
            refused: BTreeSet::new(),
            lying: Lying::default(),
            handled: BTreeSet::new(),
            parked: BTreeSet::new(),
            disturbed: BTreeSet::new(),
            done: BTreeMap::new(),
            done_last: 0,
            had: BTreeSet::new(),
            losses_max: 0,
        }
    }

    fn see(&mut self, what: &What) -> Verdict {
        match what {
            What::Written(source, key) => {
                self.keys.insert(*source, *key);
            }
            What::Swapped(host, revision) => self.swapped(*host, *revision),
            What::Deleted(partition, start) => {
                self.starts.insert(*partition, *start);
            }
            What::Skipped(host, partition, gone) => return self.skipped(*host, *partition, gone.clone()),
            What::ToldOfSkipped(host, told) => return self.told_of_skipped(*host, *told),
            What::Assigned(host, partition, start) => return self.assigned(*host, *partition, *start),
            What::Told(host, "revoked", partitions) => self.asked_back(*host, |it| partitions.contains(&it)),
            What::Stopping(host) => self.asked_back(*host, |_| true),
            What::Crashed(host) => self.ended_violently(*host, |_| true),
            What::Released(host, partition, ending) => return self.released(*host, *partition, *ending),
            What::Cut(host) | What::Frozen(host) => self.trouble(*host, Duration::MAX),
            What::Healed(host) | What::Thawed(host) | What::CommitFailed(host, _) => self.trouble(*host, self.now),
            What::Paused(host, true) => {
                self.paused.insert(*host);
            }
            What::Paused(host, false) => {
                self.paused.remove(host);
            }
            What::Called { host, call, partition, offsets, revision } => {
                let call = (*call, Call { at: 0, offsets: offsets.clone(), revision: *revision });
                return self.called(*host, *partition, call);
            }
            What::Returned { call, said } => self.returned(*call, said.as_deref()),
            What::Answered(host, source, sent, answer) => self.answered(*host, *source, *sent, *answer),
            What::Stored(source, sent) => *self.outputs.entry((*source, *sent)).or_default() += 1,
            What::Noticed(partition, owner) => self.lying.noticed(*partition, owner),
            What::Parked(host, lies) => self.parked(*host, lies),
            What::Handled(_, partition, places) => return self.handled(*partition, places),
            What::Committed(_, partition, offset) => return self.committed(*partition, *offset),
            What::Transaction { stored, offsets, .. } => return self.transaction(stored, offsets),
            What::Owned(host, partition) => {
                self.owners.insert(*partition, *host);
            }
            What::Booked { host, place, partition, rows, next } => {
                return self.booked(*host, place, *partition, rows, *next);
            }
            What::Started(_)
            | What::Ended(_)
            | What::Evicted(_)
            | What::Away(..)
            | What::Added(_)
            | What::AllIsWell
            | What::Told(..) => {}
        }
        Ok(())
    }

    /// A partition is read from where it was left. A member that waited for that for long, and is none any more, finds the
    /// group's offset and not the row that was taken over from it meanwhile: of a database, which side of a gap is the same.
    fn assigned(&mut self, host: Host, partition: i32, start: Offset) -> Verdict {
        let left = self.left_at(partition);
        let over_a_gap = start > left && self.kept(partition, left).first().is_none_or(|first| *first >= start);
        if start != left && !(self.plan.mode == Mode::Database && over_a_gap) {
            return Err(format!("{partition} is read from {start}, and was left at {left}"));
        }
        self.assignments.push(Assignment {
            host,
            partition,
            start,
            booked_to: start,
            last: BTreeMap::new(),
            parks: BTreeMap::new(),
            failures: BTreeMap::new(),
            stopped: None,
            asked_back: None,
            trouble: None,
            ended: false,
        });
        Ok(())
    }

    /// What it stopped at may go well on another revision.
    fn swapped(&mut self, host: Host, revision: u32) {
        self.live.insert(host, revision);
        self.assignments.iter_mut().filter(|it| it.host == host).for_each(|it| it.stopped = None);
    }

    /// What is passed over is gone, and nothing else.
    fn skipped(&mut self, host: Host, partition: i32, gone: Range<Offset>) -> Verdict {
        *self.skipped.entry(host).or_default() += (gone.end - gone.start).unsigned_abs();
        if gone.end > self.start_of(partition) || gone.is_empty() {
            return Err(format!("{gone:?} of {partition} is passed over and not deleted"));
        }
        Ok(())
    }

    /// Nothing that is lost is lost silently.
    fn told_of_skipped(&self, host: Host, told: u64) -> Verdict {
        let skipped = self.skipped.get(&host).copied().unwrap_or(0);
        if told == skipped {
            Ok(())
        } else {
            Err(format!("{skipped} offsets were deleted unread, and {told} are told"))
        }
    }

    fn start_of(&self, partition: i32) -> Offset {
        self.starts.get(&partition).copied().unwrap_or(0)
    }

    /// Whether a record was deleted, and whoever has its partition has not called it: nobody can any more.
    fn is_gone(&self, (partition, offset): Source) -> bool {
        let last = self.assignments.iter().rev().find(|it| it.partition == partition);
        let known = |it: &Assignment| it.last.contains_key(&offset) || it.parks.contains_key(&offset);
        offset < self.start_of(partition) && !last.is_some_and(known)
    }

    fn left_at(&self, partition: i32) -> Offset {
        let committed = self.committed.get(&partition).copied();
        let row = self.rows.get(&partition).copied();
        row.or(committed).unwrap_or(0)
    }

    fn asked_back(&mut self, host: Host, which: impl Fn(i32) -> bool) {
        let now = self.now;
        for it in self.assignments.iter_mut().filter(|it| it.host == host && which(it.partition) && !it.ended) {
            it.asked_back.get_or_insert(now);
        }
    }

    /// Commits of a host may fail up to this time.
    fn trouble(&mut self, host: Host, until: Duration) {
        self.assignments.iter_mut().filter(|it| it.host == host).for_each(|it| it.trouble = Some(until));
    }

    fn ended_violently(&mut self, host: Host, which: impl Fn(i32) -> bool) {
        let ended = self.assignments.iter_mut().filter(|it| it.host == host && which(it.partition) && !it.ended);
        for it in ended {
            it.ended = true;
            self.losses_max += self.plan.ahead_max;
        }
    }

    /// DRAIN-1: an orderly end leaves nothing settled behind that is not committed, but for what lies behind a failure.
    fn released(&mut self, host: Host, partition: i32, ending: Ending) -> Verdict {
        let Some(at) = self.assignment(host, partition).filter(|at| !self.assignments[*at].ended) else {
            return Ok(());
        };
        let it = &self.assignments[at];
        let began = it.asked_back.unwrap_or(self.now);
        let in_time = self.now - began < self.plan.config().drain_time() && ending == Ending::Orderly;
        // A commit that fails just then is not made again.
        let calm = it.trouble.is_none_or(|trouble| trouble.saturating_add(Duration::from_secs(1)) < began);
        if !in_time || !calm {
            self.ended_violently(host, |it| it == partition);
            return Ok(());
        }
        self.assignments[at].ended = true;
        // A paused partition calls nobody any more. In a transaction more can go wrong that is not seen from here.
        if self.paused.contains(&host) || matches!(self.plan.mode, Mode::AtMostOnce | Mode::Kafka) {
            return Ok(());
        }
        let left = self.left_at(partition).max(self.assignments[at].start);
        let mut failed = false;
        for offset in self.records(partition, left) {
            failed |= self.waits_to_be_parked(at, offset);
            let it = &self.assignments[at];
            // Whether its host has read that it lies there is not seen. Whoever comes next reads it, and does not call it.
            failed |= it.parks.contains_key(&offset);
            match it.last.get(&offset).map(|last| &last.state) {
                Some(State::Failed { letter: false, .. }) => failed = true,
                Some(State::Done(open)) if !open.is_empty() => failed = true,
                Some(_) if !failed && self.is_settled(at, offset) => {
                    return Err(format!("DRAIN-1: {partition}/{offset} is settled and left behind"));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn assignment(&self, host: Host, partition: i32) -> Option<usize> {
        self.assignments.iter().rposition(|it| it.host == host && it.partition == partition)
    }

    /// The offsets of a partition from here on.
    fn records(&self, partition: i32, from: Offset) -> Vec<Offset> {
        self.keys.range((partition, from)..(partition + 1, 0)).map(|((_, offset), _)| *offset).collect()
    }

    /// The same, of those that are not deleted.
    fn kept(&self, partition: i32, from: Offset) -> Vec<Offset> {
        self.records(partition, from.max(self.start_of(partition)))
    }

    /// The same, of those that are not gone.
    fn owed(&self, partition: i32, from: Offset) -> Vec<Offset> {
        self.records(partition, from).into_iter().filter(|offset| !self.is_gone((partition, *offset))).collect()
    }

    fn lane(&self, partition: i32, offset: Offset) -> Offset {
        match self.plan.order {
            Order::Key => Offset::from(self.keys[&(partition, offset)]),
            Order::Partition => 0,
            Order::Unordered => offset,
        }
    }

    /// Nothing is lost, and nothing is there twice that must not be.
    fn end(mut self) -> Verdict {
        if self.plan.mode == Mode::AtMostOnce {
            let lost = self.keys.keys().filter(|source| !self.had.contains(source) && !self.is_gone(**source)).count();
            let losses_max = self.losses_max;
            return if lost <= losses_max { Ok(()) } else { Err(format!("{lost} records are lost, not {losses_max}")) };
        }
        self.now = Duration::MAX;
        if let Some(left) = self.lying.all().find(|(partition, _)| !self.disturbed.contains(partition)) {
            return Err(format!("{left:?} is parked in the end"));
        }
        self.is_done_in_order()?;
        for (partition, offset) in self.keys.keys().copied().collect::<Vec<_>>() {
            if self.is_gone((partition, offset)) {
                continue;
            }
            if self.left_at(partition) <= offset {
                return Err(format!("{partition}/{offset} is not committed in the end"));
            }
            if self.plan.mode != Mode::Database {
                self.is_safe(partition, offset)?;
            }
        }
        let twice = self.outputs.iter().find(|(_, times)| self.plan.mode == Mode::Kafka && **times > 1);
        twice.map_or(Ok(()), |(what, times)| Err(format!("{what:?} is there {times} times")))
    }
}
