//! What the judge says of calls: which record may be called when, and what has become of it.

use std::collections::BTreeSet;

use tidemill_core::record::Offset;
use tidemill_core::retry::Exhausted;

use super::super::story::Mode;
use super::super::trace::{Answer, Host, Said, Sent, Source};
use super::{Assignment, Call, Judge, Last, State, Verdict};

impl Judge<'_> {
    /// REV-2, LANE-1, STOP-1, PARK-1, and that nothing settled comes again before its partition has changed hands.
    pub(super) fn called(&mut self, host: Host, partition: i32, (id, mut call): (u64, Call)) -> Verdict {
        let Some(at) = self.assignment(host, partition) else {
            return Err(format!("{host} calls for {partition}, which it never had"));
        };
        call.at = at;
        let live = self.live.get(&host).copied();
        if live != Some(call.revision) {
            return Err(format!("REV-2: a call goes to revision {} and {live:?} is live", call.revision));
        }
        let offsets = &call.offsets;
        let in_order = self.plan.mode == Mode::Parking || offsets.is_sorted();
        if !in_order || offsets.is_empty() {
            return Err("LANE-1: a call is in offset order".to_owned());
        }
        if self.plan.mode == Mode::Parking {
            self.is_as_it_lies(at, offsets)?;
        }
        for offset in offsets {
            let it = &self.assignments[at];
            if *offset < it.start && !self.parked.contains(&(partition, *offset)) {
                return Err(format!("{offset} was left behind at {}", it.start));
            }
            if it.stopped.is_some_and(|(stop, since)| *offset >= stop && since < self.now) {
                return Err(format!("STOP-1: {offset} is called, and the partition stands still"));
            }
            // What was handled as a parked one comes again from the source, if it was not committed.
            let source = (partition, *offset);
            let parked = self.lying.lies(source)
                || (self.handled.contains(&source) && *offset >= it.start)
                || it.parks.contains_key(offset);
            if self.is_settled(at, *offset) && !parked {
                return Err(format!("{offset} is settled and called again"));
            }
            if it.last.get(offset).is_some_and(|last| last.state == State::Running) {
                return Err(format!("LANE-1: {offset} is in two calls"));
            }
            self.is_next(at, *offset, offsets)?;
            if self.plan.mode == Mode::AtMostOnce {
                self.is_first(partition, *offset)?;
            }
        }
        for offset in offsets {
            self.assignments[at].last.insert(*offset, Last { call: id, state: State::Running });
        }
        self.calls.insert(id, call);
        Ok(())
    }

    /// LANE-1: all that lies before a record in its lane is settled, or in the same call.
    fn is_next(&self, at: usize, offset: Offset, together: &[Offset]) -> Verdict {
        let Assignment { partition, start, .. } = self.assignments[at];
        let lane = self.lane(partition, offset);
        for before in self.records(partition, start).into_iter().take_while(|before| *before < offset) {
            let waits = self.lane(partition, before) == lane && !together.contains(&before);
            let gone = before < self.start_of(partition) && !self.assignments[at].last.contains_key(&before);
            // What is parked goes on as it lies: what lay before it in the source was settled before, by whoever had that.
            let parked = self.lying.lies((partition, offset)) && self.is_safe(partition, before).is_ok();
            if waits && !gone && !parked && !self.may_be_passed(at, before) {
                return Err(format!("LANE-1: {offset} is called before {before}, which is in its lane"));
            }
        }
        Ok(())
    }

    /// At most once: OFF-1.
    fn is_first(&mut self, partition: i32, offset: Offset) -> Verdict {
        if self.committed.get(&partition).is_none_or(|committed| *committed <= offset) {
            return Err(format!("OFF-1: {partition}/{offset} is called before it is committed"));
        }
        if !self.had.insert((partition, offset)) {
            return Err(format!("OFF-1: {partition}/{offset} is called twice"));
        }
        Ok(())
    }

    pub(super) fn returned(&mut self, call: u64, said: Result<&[Said], &&'static str>) {
        let Some(Call { at, offsets, revision }) = self.calls.get(&call).cloned() else { return };
        let partition = self.assignments[at].partition;
        let free = matches!(said, Err(&"host-shortage"));
        let mut blocked = BTreeSet::new();
        for (index, offset) in offsets.iter().enumerate() {
            let lane = self.lane(partition, *offset);
            let waits = self.plan.mode != Mode::AtMostOnce && blocked.contains(&lane);
            let state = match said.map(|said| said[index]) {
                _ if waits => State::Untouched,
                Ok(Said::Ack(outputs)) if self.plan.mode != Mode::Kafka => State::Done((0..outputs).collect()),
                Ok(Said::Ack(_) | Said::Skip) => State::Done(BTreeSet::new()),
                Ok(Said::Untouched) => State::Untouched,
                Ok(Said::Away) => self.failed(at, *offset, false, false),
                Ok(Said::Retry) => self.failed(at, *offset, true, false),
                Ok(Said::Never) => self.failed(at, *offset, true, true),
                Err(_) if free => State::Failed { spent: false, letter: false },
                Err(_) => self.failed(at, *offset, offsets.len() == 1, false),
            };
            // What is refused for good holds up nobody, unless it stops its partition.
            let ends = !matches!(self.plan.exhausted, Exhausted::Stop | Exhausted::Park);
            let refused = ends && said.is_ok_and(|said| said[index] == Said::Never);
            if !matches!(state, State::Done(_)) && !refused {
                blocked.insert(lane);
            }
            if let Ok(said) = said {
                self.said.insert(((partition, *offset), said[index]));
            }
            if free || state == State::Untouched {
                self.had.remove(&(partition, *offset));
            }
            // One that says nothing of others.
            let alone = offsets.len() == 1 && said.is_ok_and(|said| said == [Said::Never]);
            let live = self.live.get(&self.assignments[at].host) == Some(&revision);
            if alone && live && self.plan.exhausted == Exhausted::Stop {
                self.assignments[at].stopped.get_or_insert((*offset, self.now));
            }
            if matches!(state, State::Done(_)) && self.is_latest(at) {
                self.done_last += 1;
                self.done.insert((partition, *offset), self.done_last);
            }
            self.assignments[at].last.insert(*offset, Last { call, state });
        }
    }

    fn failed(&mut self, at: usize, offset: Offset, charged: bool, never: bool) -> State {
        let failures = self.assignments[at].failures.entry(offset).or_default();
        *failures += u32::from(charged);
        let spent = never || *failures >= self.plan.attempts_max || self.plan.mode == Mode::AtMostOnce;
        State::Failed { spent, letter: false }
    }

    pub(super) fn answered(&mut self, host: Host, source: Source, sent: Sent, answer: Answer) {
        if answer == Answer::Refused && sent != Sent::Letter {
            self.refused.insert(source);
        }
        let Some(at) = self.assignment(host, source.0) else { return };
        if sent == Sent::Parked {
            // One behind a record that was refused does not count, and one that failed is written again with all behind it.
            let counts = answer == Answer::Stored && self.lying.lies(source);
            self.assignments[at].parks.insert(source.1, counts);
            return;
        }
        if answer != Answer::Stored && sent != Sent::Letter {
            self.supersede(at, source.1);
        }
        let Some(last) = self.assignments[at].last.get_mut(&source.1) else { return };
        match (&mut last.state, sent, answer) {
            (State::Done(open), Sent::Output(place), Answer::Stored) => {
                open.remove(&place);
            }
            (State::Failed { letter, .. }, Sent::Letter, Answer::Stored) => *letter = true,
            (state @ State::Done(_), Sent::Letter, Answer::Stored) => {
                *state = State::Failed { spent: true, letter: true };
            }
            _ => {}
        }
    }

    /// An output of a record is not stored: what lies behind it in its call's lane comes again.
    fn supersede(&mut self, at: usize, offset: Offset) {
        let it = &self.assignments[at];
        let partition = it.partition;
        let call = it.last.get(&offset).and_then(|last| Some((last.call, self.calls.get(&last.call)?.offsets.clone())));
        let Some((call, offsets)) = call.filter(|_| self.plan.mode.is_at_least_once()) else { return };
        let lane = self.lane(partition, offset);
        for mate in offsets.into_iter().filter(|mate| *mate > offset) {
            if self.lane(partition, mate) == lane {
                self.assignments[at].last.insert(mate, Last { call, state: State::Untouched });
            }
        }
    }

    /// Whether a record's life has ended in this assignment: it is done, and so is what lies before it in its call's lane.
    pub(super) fn is_settled(&self, at: usize, offset: Offset) -> bool {
        let it = &self.assignments[at];
        if let Some(parked) = it.parks.get(&offset) {
            return *parked;
        }
        let Some(Last { call, state }) = it.last.get(&offset) else { return false };
        let ended = match state {
            _ if self.plan.mode == Mode::Database => offset < it.booked_to,
            State::Done(open) => open.is_empty(),
            State::Failed { letter, .. } => *letter,
            State::Running | State::Untouched => false,
        };
        let lane = self.lane(it.partition, offset);
        let mates = self.calls.get(call).map_or(&[][..], |call| &call.offsets[..]);
        let mates = mates.iter().filter(|mate| **mate < offset && self.lane(it.partition, **mate) == lane);
        ended && mates.into_iter().all(|mate| self.may_be_passed(at, *mate))
    }

    /// Whether what lies behind a record may be called, and the group's offset may pass it. A record that is dropped, or whose
    /// letter is in a transaction, is not seen to be settled: that it may be has to do.
    pub(super) fn may_be_passed(&self, at: usize, offset: Offset) -> bool {
        if self.plan.mode == Mode::Database {
            return self.is_settled(at, offset);
        }
        let it = &self.assignments[at];
        let unseen = self.plan.mode == Mode::Kafka || self.plan.exhausted == Exhausted::Drop;
        let spent = it.last.get(&offset).is_some_and(|last| match &last.state {
            State::Failed { spent, .. } => *spent,
            State::Done(_) => self.refused.contains(&(it.partition, offset)),
            State::Running | State::Untouched => false,
        });
        let once = self.plan.mode == Mode::AtMostOnce;
        let source = (it.partition, offset);
        let parked = self.lying.lies(source) || self.handled.contains(&source);
        self.is_settled(at, offset) || parked || (unseen && spent) || (once && self.is_behind(at, offset))
    }

    /// At most once, what is spent is passed whatever becomes of its outputs.
    fn is_behind(&self, at: usize, offset: Offset) -> bool {
        let state = self.assignments[at].last.get(&offset).map(|last| &last.state);
        matches!(state, Some(State::Done(_) | State::Failed { .. }))
    }
}
