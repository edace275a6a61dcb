//! What the judge says of what lasts: the group's offsets, transactions, and the database.

use tidemill_core::record::Offset;
use tidemill_core::retry::Exhausted;

use super::super::story::Mode;
use super::super::trace::{Host, Said, Sent, Source};
use super::{Assignment, Judge, State, Verdict};
use crate::consumer::tests::{GROUP, TOPIC};
use crate::store::offsets::Place;

impl Judge<'_> {
    /// OFF-1 and OFF-2 of the group's offsets.
    pub(super) fn committed(&mut self, partition: i32, offset: Offset) -> Verdict {
        let before = self.committed.insert(partition, offset).unwrap_or(0);
        // A database's row knows nothing of gaps, and is what counts: over one the group's offset may fall.
        let over_a_gap = self.kept(partition, offset).first().is_none_or(|first| *first >= before);
        if offset < before && !(self.plan.mode == Mode::Database && over_a_gap) {
            return Err(format!("OFF-2: {partition} falls from {before} to {offset}"));
        }
        match self.plan.mode {
            Mode::AtMostOnce => Ok(()),
            Mode::Kafka => Err(format!("{partition} is committed outside of a transaction")),
            Mode::Database => {
                let row = self.rows.get(&partition).copied().unwrap_or(0);
                match self.owed(partition, row).first() {
                    Some(first) if *first < offset => {
                        Err(format!("OFF-1: {partition} is committed at {offset}, and its row says {row}"))
                    }
                    Some(_) | None => Ok(()),
                }
            }
            Mode::AtLeastOnce | Mode::Parking => {
                let passed = self.owed(partition, before).into_iter().take_while(|passed| *passed < offset);
                for passed in passed.collect::<Vec<_>>() {
                    self.is_safe(partition, passed)?;
                }
                Ok(())
            }
        }
    }

    /// OFF-1: somebody has settled the record.
    pub(super) fn is_safe(&self, partition: i32, offset: Offset) -> Verdict {
        let mut all = (0..self.assignments.len()).filter(|at| self.assignments[*at].partition == partition);
        if all.any(|at| self.may_be_passed(at, offset)) {
            return Ok(());
        }
        Err(format!("OFF-1: {partition}/{offset} is committed and not settled"))
    }

    /// TX-1: what lies between the group's offset and the new one, whole, in order, and nothing else.
    pub(super) fn transaction(&mut self, stored: &[(Source, Sent)], offsets: &[(i32, Offset)]) -> Verdict {
        for (partition, upto) in offsets {
            let before = self.committed.insert(*partition, *upto).unwrap_or(0);
            if *upto < before {
                return Err(format!("OFF-2: {partition} falls from {before} to {upto}"));
            }
            let own: Vec<Source> = stored.iter().map(|(source, _)| *source).filter(|(of, _)| of == partition).collect();
            if !own.is_sorted() || own.iter().any(|(_, offset)| *offset < before || offset >= upto) {
                return Err(format!("TX-1: {partition} from {before} to {upto} has {own:?}"));
            }
            for offset in self.owed(*partition, before).into_iter().take_while(|offset| offset < upto) {
                self.is_safe(*partition, offset)?;
                self.is_whole((*partition, offset), stored)?;
            }
        }
        if let Some((stray, _)) = stored.iter().find(|((of, _), _)| !offsets.iter().any(|(it, _)| it == of)) {
            return Err(format!("TX-1: {stray:?} is in a transaction that does not commit its partition"));
        }
        stored.iter().for_each(|what| *self.outputs.entry(*what).or_default() += 1);
        Ok(())
    }

    /// A record's outputs, or its letter, are in the transaction that commits it.
    fn is_whole(&self, source: Source, stored: &[(Source, Sent)]) -> Verdict {
        let own = stored.iter().filter(|(of, _)| *of == source).map(|(_, sent)| *sent).collect::<Vec<_>>();
        let said = |outputs: usize| {
            let skipped = outputs == 0 && self.said.contains(&(source, Said::Skip));
            skipped || self.said.contains(&(source, Said::Ack(outputs)))
        };
        let whole = own.iter().copied().eq((0..own.len()).map(Sent::Output)) && said(own.len());
        let spent = own == [Sent::Letter] || (own.is_empty() && self.plan.exhausted == Exhausted::Drop);
        if whole || (spent && self.may_be_spent(source)) {
            return Ok(());
        }
        Err(format!("TX-1: of {source:?} only {own:?} is in the transaction that commits it"))
    }

    /// Whether the record's life may have ended without its outputs.
    fn may_be_spent(&self, source: Source) -> bool {
        let spent = |it: &Assignment| {
            let last = it.last.get(&source.1).filter(|_| it.partition == source.0);
            last.is_some_and(|last| matches!(last.state, State::Failed { spent: true, .. }))
        };
        self.refused.contains(&source) || self.assignments.iter().any(spent)
    }

    /// FENCE-1 and OFF-1 of the database: what lies between the row's offset and the new one, each record once.
    pub(super) fn booked(&mut self, host: Host, place: &str, partition: i32, rows: &[Source], next: Offset) -> Verdict {
        let group = Place { group: GROUP.to_owned(), topic: TOPIC.to_owned(), partition };
        if place != group.to_string() {
            return Err(format!("FENCE-1: {rows:?} is kept, and the offset is not: it is of {place}"));
        }
        let owner = self.owners.get(&partition).copied();
        if owner != Some(host) {
            return Err(format!("FENCE-1: {host} stores an offset of {partition}, which is {owner:?}'s"));
        }
        if let Some(at) = self.assignment(host, partition) {
            self.assignments[at].booked_to = next;
        }
        let before = self.rows.insert(partition, next).unwrap_or(0);
        if next < before {
            return Err(format!("FENCE-1: {partition} falls from {before} to {next}"));
        }
        if let Some(stray) = rows.iter().find(|(of, offset)| *of != partition || !(before..next).contains(offset)) {
            return Err(format!("FENCE-1: {stray:?} is booked with an offset that moves from {before} to {next}"));
        }
        for offset in self.owed(partition, before).into_iter().take_while(|offset| *offset < next) {
            let source = (partition, offset);
            let letter = self.outputs.contains_key(&(source, Sent::Letter)) || self.plan.exhausted == Exhausted::Drop;
            let skipped = self.said.contains(&(source, Said::Skip));
            let spent = letter && self.may_be_spent(source);
            if !(rows.contains(&source) || skipped || spent) {
                return Err(format!("OFF-1: {source:?} is passed and not booked"));
            }
        }
        match rows.iter().find(|row| !self.booked.insert(**row)) {
            Some(twice) => Err(format!("FENCE-1: {twice:?} is booked twice")),
            None => Ok(()),
        }
    }
}
