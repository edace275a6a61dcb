//! What the task of a partition does with its parked keys: parks records, and drives the second machine.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_core::lanes::LaneId;
use tidemill_core::offset_set::OffsetSet;
use tidemill_core::parked::{Count, Key};
use tidemill_core::partition::{Action, Call, CallId, Event, Verdict};
use tidemill_core::record::{Chunk, Offset};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::shown::shown;
use super::{FULL_INTERVAL, Page, READ_AGAIN_DELAY, key_of, read_back};
use crate::broker::Reader;
use crate::consumer::asked::{Choice, ParkedKeys};
use crate::consumer::partition::{Ended, Task};
use crate::fault::Fault;
use crate::settle::parked::{ToPark, Why, source_of};
use crate::settle::{Settlement, Stop};

impl<R: Reader> Task<R> {
    /// Learns what is parked. False if the partition was revoked before that was known.
    pub(in crate::consumer::partition) async fn load_parked(&mut self) -> bool {
        let Some(keys) = &mut self.parked else { return true };
        let revoked = self.revoked.clone();
        tokio::select! {
            biased;
            () = revoked.cancelled() => return false,
            () = keys.load() => {}
        }
        let (parked, records) = (keys.index.keys().count(), keys.index.records());
        for (key, _) in keys.index.keys() {
            self.machine.set_aside(key.as_deref());
        }
        if records > 0 {
            tracing::info!(partition = %self.progress.from, keys = parked, records, "keys are parked; their records wait");
        }
        self.after_parking();
        true
    }

    /// Tells the source's machine and others what has changed in what is parked.
    fn after_parking(&mut self) {
        let Some(keys) = &mut self.parked else { return };
        let machine = &mut self.machine;
        keys.index.release(|key| machine.release(key));
        let (records, room) = (keys.index.records(), keys.index.room());
        self.metrics.parked.set(records as i64);
        self.progress.set_parked(records);
        self.on(Event::RoomToPark(room));
    }

    /// Parks what is set aside. What is parked already, since it comes again after a crash, is not parked twice.
    pub(in crate::consumer::partition) fn park(&mut self, call: Call) {
        let Some(keys) = &mut self.parked else { return };
        let Call { id, records } = call;
        let mut held = Vec::with_capacity(records.len());
        let mut to_park = Vec::new();
        let mut fresh: BTreeSet<LaneId> = BTreeSet::new();
        for record in records {
            // What is parked already is parked again behind one that is not.
            let is_held =
                !fresh.contains(&record.lane) && keys.index.holds(&key_of(&record.record), source_of(&record.record));
            held.push((record.lane, is_held));
            if is_held {
                keys.failed.remove(&record.record.offset());
            } else {
                fresh.insert(record.lane);
                let failure = keys.failed.get(&record.record.offset()).cloned();
                to_park.push(ToPark { record, failure });
            }
        }
        let (parking, place, owner) = (keys.parking.clone(), keys.place.clone(), Arc::clone(&keys.owner));
        let (owns, known_to) = (keys.owns(), keys.known_to);
        let (from, revoked) = (self.progress.from.clone(), self.revoked.clone());
        self.calls.spawn(async move {
            let topics = &parking.topics;
            let written = async {
                if !owns {
                    topics.claim_again(&place, &owner, &revoked).await.ok()?;
                }
                let places = topics.park(&from, &owner, &to_park, &revoked).await;
                let read = match places.iter().flatten().max() {
                    Some(last) if !Fault::ParkedNotAwaited.is_on() => {
                        read_back(&*parking.admin, &place, known_to, *last, &revoked).await?
                    }
                    Some(_) | None => Vec::new(),
                };
                Some((places, read))
            };
            let (places, read) = written.await.unwrap_or_else(|| (vec![None; to_park.len()], Vec::new()));
            Ended::Parked { id, held, records: to_park, places, read }
        });
    }

    /// Records lie in the parked topic, or were given up because the partition is revoked. What counts of them is read there, as
    /// whoever comes next will read it: a notice of a host that was left behind may have come before them.
    pub(in crate::consumer::partition) fn on_parked(
        &mut self,
        id: CallId,
        held: Vec<(LaneId, bool)>,
        records: Vec<ToPark>,
        places: Vec<Option<Offset>>,
        read: &[Arc<Chunk>],
    ) {
        let Some(keys) = &mut self.parked else { return };
        if keys.take_in(read) {
            keys.index.keys().for_each(|(key, _)| self.machine.set_aside(key.as_deref()));
        }
        if !keys.owns() {
            tracing::warn!(
                partition = %self.progress.from, topic = &*keys.place.topic,
                "another host has said that it parks the records of this partition; this one says so again, and parks them again"
            );
        }
        let given_up = Verdict::Retry { after: READ_AGAIN_DELAY, charge: false };
        let mut written = records.into_iter().zip(places);
        let mut verdicts = Vec::with_capacity(held.len());
        // What comes behind one that was given up is parked behind it.
        let mut given_up_in: Vec<LaneId> = Vec::new();
        for (lane, is_held) in held {
            let own = if is_held { None } else { written.next() };
            let verdict = if given_up_in.contains(&lane) {
                Verdict::Untouched
            } else if is_held {
                Verdict::Settled
            } else if let Some((ToPark { record, failure }, Some(at))) = own
                && keys.lies_at(record.record.offset(), at)
            {
                let record = record.record;
                if let Some(stop) = &failure {
                    tracing::warn!(
                        handler = self.metrics.handler(), from = %self.progress.from, offset = record.offset(),
                        class = stop.class.name(), code = stop.reason.code, attempts = stop.attempts,
                        revision = crate::attempt::short(&stop.revision), parked_at = at,
                        "a record is parked, and later records of its key will be behind it"
                    );
                }
                keys.failed.remove(&record.offset());
                Verdict::Settled
            } else {
                given_up_in.push(lane);
                given_up
            };
            verdicts.push(verdict);
        }
        self.on(Event::Returned { call: id, verdicts });
        self.after_parking();
    }

    /// A page of what is tried again.
    pub(in crate::consumer::partition) fn on_page(&mut self, page: Page) {
        let Some(keys) = &mut self.parked else { return };
        match page {
            Ok((_, chunk)) if chunk.is_empty() => keys.read_nothing("nothing is there yet"),
            Ok((asked, chunk)) => {
                if let Some(chunk) = keys.hand_out(asked, &chunk) {
                    self.on_second(Event::Received(chunk));
                }
                self.after_parking();
            }
            Err(error) => keys.read_nothing(&error),
        }
    }

    /// Drives the second machine. What it sets aside lies in the parked topic already.
    pub(in crate::consumer::partition) fn on_second(&mut self, event: Event) {
        let now = self.origin.elapsed();
        let Some(keys) = &mut self.parked else { return };
        let mut actions = Vec::new();
        keys.second.on(now, event, &mut actions);
        while let Some(action) = actions.pop() {
            if let Action::Park(Call { id, records }) = action {
                for record in &records {
                    keys.forget(record.record.offset());
                }
                let verdicts = vec![Verdict::Settled; records.len()];
                keys.second.on(now, Event::Returned { call: id, verdicts }, &mut actions);
            }
        }
        self.hold();
    }

    /// Starts a call with parked records.
    pub(in crate::consumer::partition) fn try_again(&mut self, slot: OwnedSemaphorePermit) {
        let now = self.origin.elapsed();
        let spare = self.parts.slots.available_permits() + 1;
        let Some(keys) = &mut self.parked else { return };
        let mut actions = Vec::new();
        keys.second.on(now, Event::Slot { spare }, &mut actions);
        let Some(Action::Invoke(mut call)) = actions.pop() else { return };
        let mut places = Vec::with_capacity(call.records.len());
        for record in &mut call.records {
            let Some(handed) = keys.handed.get(&record.record.offset()) else { continue };
            places.push((record.record.offset(), handed.at));
            record.record = handed.record.clone();
        }
        let (topics, place) = (Arc::clone(&keys.parking.topics), keys.place.clone());
        let revoked = self.revoked.clone();
        let id = call.id;
        let run = self.attempt(call, slot);
        self.calls.spawn(async move {
            let mut settlement = run.await;
            let settled = settlement.verdicts.iter().zip(&places);
            let settled = settled.filter(|(verdict, _)| **verdict == Verdict::Settled).map(|(_, (_, at))| *at);
            let handled = OffsetSet::from_iter(settled);
            // Nothing is handled before that is noted: whoever comes next begins behind it.
            let noted = handled.ranges().next().is_none() || topics.note(&place, &handled, &revoked).await.is_ok();
            if !noted {
                settlement.verdicts.iter_mut().for_each(|verdict| *verdict = Verdict::Untouched);
            }
            Ended::TriedAgain { id, settlement, places }
        });
    }

    /// A call with parked records has ended, and its receipt is written.
    pub(in crate::consumer::partition) fn tried_again(
        &mut self,
        call: CallId,
        settlement: Settlement,
        places: Vec<(Offset, Offset)>,
    ) {
        let Settlement { verdicts, stops, .. } = settlement;
        let mut failed: Vec<Option<Bytes>> = Vec::new();
        if let Some(keys) = &mut self.parked {
            for (verdict, (own, at)) in verdicts.iter().zip(&places) {
                match verdict {
                    Verdict::Settled => {
                        keys.index.settled(*at);
                        keys.forget(*own);
                    }
                    Verdict::Park => {
                        let Some(handed) = keys.handed.get(own) else { continue };
                        let of_it = |stop: &&Stop| stop.offset == handed.record.offset();
                        let Some(stop) = stops.iter().find(of_it) else { continue };
                        tracing::warn!(
                            handler = self.metrics.handler(), from = %self.progress.from, offset = stop.offset,
                            class = stop.class.name(), code = stop.reason.code, revision = crate::attempt::short(&stop.revision),
                            "a parked record failed again; its key stays parked"
                        );
                        failed.push(handed.record.shared_key());
                        keys.index.failed_again(&key_of(&handed.record), Why::of(stop));
                    }
                    Verdict::Retry { .. } | Verdict::Halve | Verdict::Untouched | Verdict::Stop => {}
                }
            }
        }
        self.on_second(Event::Returned { call, verdicts });
        if let Some(keys) = &mut self.parked {
            // Its records have left the second machine: they may be handed out again.
            for key in &failed {
                keys.second.release(key.as_deref());
            }
        }
        self.after_parking();
    }

    /// Tries keys again that failed on another revision than the live one, and says when there is no room to park.
    pub(in crate::consumer::partition) fn look_at_parked(&mut self) {
        let live = self.parts.handler.revision();
        let Some(keys) = &mut self.parked else { return };
        if !self.revoked.is_cancelled() {
            let Count { keys: count, records } =
                keys.index.try_again(|_, why| why.is_none_or(|why| *why.revision != *live));
            if count > 0 {
                tracing::info!(
                    partition = %self.progress.from, keys = count, records, revision = crate::attempt::short(&live),
                    "parked keys are tried again: another revision is live"
                );
            }
        }
        let now = Instant::now();
        if self.machine.is_short_of_room_to_park() && keys.told_full.is_none_or(|told| now >= told + FULL_INTERVAL) {
            keys.told_full = Some(now);
            tracing::error!(
                handler = self.metrics.handler(), partition = %self.progress.from, records = keys.index.records(),
                "as many records are parked as `retry.parked_max` allows; the partition takes records until its buffer is \
                 full, and then stands still: swap in a revision that handles them, or `tidemill park list` them"
            );
        }
    }

    /// An operator wants keys to be tried again, or to know how many that would be.
    pub(in crate::consumer::partition) fn unpark(&mut self, choice: &Choice) -> Count {
        let Some(keys) = &mut self.parked else { return Count::default() };
        let chosen = |key: &Key| choice.key.as_ref().is_none_or(|wanted| wanted.as_deref() == key.as_deref());
        if choice.only_count {
            let meant = keys.index.keys().filter(|(key, of)| chosen(key) && !of.is_tried());
            return meant.fold(Count::default(), |count, (_, of)| Count {
                keys: count.keys + 1,
                records: count.records + of.records(),
            });
        }
        keys.index.try_again(|key, _| chosen(key))
    }

    /// The parked keys, as many as are shown.
    pub(in crate::consumer::partition) fn shown_parked(&self) -> ParkedKeys {
        self.parked.as_ref().map(|keys| shown(&keys.index)).unwrap_or_default()
    }
}
