//! What the judge says of parked keys.

use std::collections::BTreeMap;

use tidemill_core::record::Offset;

use super::super::parked::Lies;
use super::super::story::Mode;
use super::super::trace::Host;
use super::{Judge, Last, State, Verdict};

impl Judge<'_> {
    pub(super) fn parked(&mut self, host: Host, lies: &Lies) {
        if !self.lying.parked(self.keys[&lies.source], lies.clone()) {
            return;
        }
        self.parked.insert(lies.source);
        let partition = lies.source.0;
        // It may come again, behind what its successor has done meanwhile.
        if !self.assignment(host, partition).is_some_and(|at| self.is_latest(at)) {
            self.disturbed.insert(partition);
        }
    }

    /// PARK-2: what stands there as handled was. What its host takes back to write it again is not committed yet.
    pub(super) fn handled(&mut self, partition: i32, places: &[Offset]) -> Verdict {
        let committed = self.left_at(partition);
        for source in self.lying.handled(partition, places) {
            let done = self.assignments.iter().any(|it| it.partition == partition && is_done(it.last.get(&source.1)));
            if done {
                self.handled.insert(source);
            } else if source.1 < committed {
                return Err(format!("PARK-2: {source:?} counts as handled and was not"));
            }
        }
        Ok(())
    }

    /// PARK-1 and PARK-2: of a key of which something lies there, only that is called, and as it lies. A host that was left
    /// behind does not know what its successor does.
    pub(super) fn is_as_it_lies(&self, at: usize, offsets: &[Offset]) -> Verdict {
        let partition = self.assignments[at].partition;
        let of_key = |offset: &Offset| self.keys[&(partition, *offset)];
        let judged = self.is_latest(at) && !self.disturbed.contains(&partition);
        for key in offsets.iter().map(of_key).filter(|_| judged) {
            let lies = self.lying.of_key(partition, key);
            let of_it = offsets.iter().filter(|offset| of_key(offset) == key);
            if let Some(fresh) = of_it.clone().find(|offset| !self.parked.contains(&(partition, **offset)))
                && !lies.is_empty()
            {
                return Err(format!("PARK-1: {fresh} is called and {lies:?} of its key are parked"));
            }
            let called: Vec<Offset> = of_it.copied().filter(|offset| lies.contains(offset)).collect();
            if !lies.starts_with(&called) {
                return Err(format!("PARK-2: {called:?} are called, and {lies:?} is how they lie"));
            }
        }
        Ok(())
    }

    /// PARK-2: whatever came twice, each record of a key was done for the last time behind those before it.
    pub(super) fn is_done_in_order(&self) -> Verdict {
        let mut last: BTreeMap<(i32, u8), (Offset, u64)> = BTreeMap::new();
        let judged = |partition| self.plan.mode == Mode::Parking && !self.disturbed.contains(partition);
        for ((partition, offset), done) in self.done.iter().filter(|((partition, _), _)| judged(partition)) {
            let key = (*partition, self.keys[&(*partition, *offset)]);
            if let Some((before, when)) = last.insert(key, (*offset, *done))
                && when > *done
            {
                return Err(format!("PARK-2: of key {key:?} {before} was done for the last time behind {offset}"));
            }
        }
        Ok(())
    }

    /// Whether an assignment is the latest of its partition.
    pub(super) fn is_latest(&self, at: usize) -> bool {
        let partition = self.assignments[at].partition;
        self.assignments.iter().rposition(|it| it.partition == partition) == Some(at)
    }

    /// Whether a record is behind one of its key that is parked, or to be, and was not parked itself when its partition was
    /// given back.
    pub(super) fn waits_to_be_parked(&self, at: usize, offset: Offset) -> bool {
        let it = &self.assignments[at];
        let key = self.keys.get(&(it.partition, offset)).filter(|_| self.plan.mode == Mode::Parking);
        let Some(key) = key else { return false };
        let failed = |(offset, last): (&Offset, &Last)| {
            let own = self.keys.get(&(it.partition, *offset)) == Some(key);
            own && matches!(last.state, State::Failed { .. }) && !it.parks.contains_key(offset)
        };
        let waits = !self.lying.of_key(it.partition, *key).is_empty() || it.last.iter().any(failed);
        let was_called = it.last.get(&offset).is_some_and(|last| last.state != State::Untouched);
        waits && !was_called && !it.parks.contains_key(&offset)
    }
}

fn is_done(last: Option<&Last>) -> bool {
    last.is_some_and(|last| matches!(&last.state, State::Done(open) if open.is_empty()))
}
