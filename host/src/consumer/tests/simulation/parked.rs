//! The parked topic: what the broker keeps of it, and what anybody who reads it finds parked.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_core::parked::Written;
use tidemill_core::record::{Chunk, ChunkBuilder, HeaderRef, Offset, Timestamp};

use super::broker::SimBroker;
use super::producer::timed_out;
use super::story::{Makes, Plan};
use super::trace::{Answer, Sent, Source, What};
use super::world::State;
use crate::broker::{Outgoing, Position, SendError};
use crate::consumer::tests::TOPIC;
use crate::settle::parked::{Entry, topic_for};

/// The handler's name.
pub(super) const HANDLER: &str = "h";
/// Only a parked record that is written whole has it.
const ID: &[u8] = b"tidemill.parked.id";

/// The topic at the broker.
pub(super) struct ParkedTopic {
    /// By partition. Empty: it is not there.
    log: Vec<Vec<Outgoing>>,
    made_by: Makes,
    pub(super) lying: Lying,
}

impl ParkedTopic {
    pub(super) fn new(plan: &Plan) -> Self {
        let partitions = if plan.parked_made_by == Makes::Before { plan.partitions as usize } else { 0 };
        Self { log: vec![Vec::new(); partitions], made_by: plan.parked_made_by, lying: Lying::default() }
    }

    pub(super) fn partitions(&self) -> i32 {
        self.log.len() as i32
    }

    pub(super) fn takes_records(&self) -> bool {
        !self.log.is_empty() || self.made_by == Makes::Host
    }

    pub(super) fn make(&mut self, partitions: i32) {
        let partitions = self.log.len().max(partitions as usize);
        self.log.resize(partitions, Vec::new());
    }

    /// It gets more partitions, if it is there.
    pub(super) fn grow(&mut self, partitions: i32) {
        if !self.log.is_empty() {
            self.make(partitions);
        }
    }

    pub(super) fn end(&self, partition: i32) -> Offset {
        self.log.get(partition as usize).map_or(0, |log| log.len() as Offset)
    }

    pub(super) fn read(&self, partition: i32, from: Offset, most: usize) -> Chunk {
        let mut chunk = ChunkBuilder::default();
        let log = self.log.get(partition as usize).map_or(&[][..], |log| log);
        for (at, record) in (0..).zip(log).skip(from.max(0) as usize).take(most) {
            push(&mut chunk, at, record);
        }
        chunk.build()
    }
}

fn push(chunk: &mut ChunkBuilder, at: Offset, record: &Outgoing) {
    let headers = record.headers.iter();
    let headers = headers.map(|header| HeaderRef { name: &header.name, value: header.value.as_deref() });
    chunk.push(at, Timestamp::None, record.key.as_deref(), record.value.as_deref(), headers);
}

/// What lies in the parked topic and was not handled: by what stands there, in its order.
#[derive(Default)]
pub(super) struct Lying {
    /// Whose entries count, by partition, as the last notice says.
    owners: BTreeMap<i32, String>,
    /// By partition and key, as it lies.
    entries: BTreeMap<(i32, u8), Vec<Lies>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lies {
    pub(super) at: Offset,
    pub(super) source: Source,
    pub(super) owner: String,
    /// The record of its key that was sent just before it, at once with it.
    pub(super) behind: Option<Offset>,
}

impl Lying {
    pub(super) fn noticed(&mut self, partition: i32, owner: &str) {
        self.owners.insert(partition, owner.to_owned());
    }

    /// A record is written there. It does not count if it is not its owner's, or without the one that it is behind. What its
    /// owner has written of its key before counts no more from that record on. Answers whether it counts.
    pub(super) fn parked(&mut self, key: u8, lies: Lies) -> bool {
        if self.owners.get(&lies.source.0).is_some_and(|known| *known != lies.owner) {
            return false;
        }
        let of = self.entries.entry((lies.source.0, key)).or_default();
        let is_it = |last: &Lies, offset| last.owner == lies.owner && last.source.1 == offset;
        if lies.behind.is_some_and(|behind| !of.last().is_some_and(|last| is_it(last, behind))) {
            return false;
        }
        while of.last().is_some_and(|last| last.owner == lies.owner && last.source >= lies.source) {
            of.pop();
        }
        of.push(lies);
        true
    }

    /// Answers which records lay at these places.
    pub(super) fn handled(&mut self, partition: i32, places: &[Offset]) -> Vec<Source> {
        let of_it = self.entries.iter_mut().filter(|((of, _), _)| *of == partition).map(|(_, entries)| entries);
        of_it.flat_map(|of| of.extract_if(.., |lies| places.contains(&lies.at))).map(|lies| lies.source).collect()
    }

    pub(super) fn lies(&self, source: Source) -> bool {
        self.all().any(|lies| lies == source)
    }

    /// The records of a key as they lie.
    pub(super) fn of_key(&self, partition: i32, key: u8) -> Vec<Offset> {
        let of = self.entries.get(&(partition, key)).map_or(&[][..], |of| of);
        of.iter().map(|lies| lies.source.1).collect()
    }

    /// What lies there.
    pub(super) fn all(&self) -> impl Iterator<Item = Source> {
        self.entries.values().flatten().map(|lies| lies.source)
    }
}

pub(super) fn is_of_parked(record: &Outgoing) -> bool {
    *record.topic == *topic_for(TOPIC, HANDLER)
}

impl SimBroker {
    /// What arrives for the parked topic is stored, or not, and the answer comes, or not.
    pub(super) fn store_parked(&self, state: &mut State, record: &Outgoing, up: bool) -> Result<Position, SendError> {
        let partition = record.partition.expect("it is parked beside its source");
        let at = state.parked.end(partition);
        let mut alone = ChunkBuilder::default();
        push(&mut alone, at, record);
        let entry = Entry::of(&Arc::new(alone.build()).records().next().expect("one record"));
        let source = match &entry {
            Entry::Parked(written) => Some((partition, written.source.offset)),
            Entry::Receipt(_) | Entry::Notice(_) | Entry::Foreign => None,
        };
        let is_whole = record.headers.iter().any(|header| header.name == ID);
        let result = if !up {
            Err(timed_out())
        } else if partition >= state.parked.partitions() {
            Err(SendError::NoSuchTopic(record.topic.to_string()))
        } else if is_whole && source.is_some_and(|(_, offset)| offset % 7 == 3) {
            Err(SendError::TooLarge("with all its headers".to_owned()))
        } else if state.away.contains("parked") {
            Err(if state.dice.bool() { SendError::Denied("parked".to_owned()) } else { timed_out() })
        } else {
            self.keep_parked(state, record, entry, (partition, at))
        };
        if let Some(source) = source {
            let answer = if result.is_ok() { Answer::Stored } else { Answer::Failed };
            self.world.note_in(state, What::Answered(self.life.host, source, Sent::Parked, answer));
        }
        result
    }

    fn keep_parked(
        &self,
        state: &mut State,
        record: &Outgoing,
        entry: Entry,
        (partition, at): (i32, Offset),
    ) -> Result<Position, SendError> {
        let mishap = state.mishap(|rates| rates.send).then(|| state.dice.u8(..3));
        match mishap {
            Some(0) => return Err(SendError::Unavailable("no leader".to_owned())),
            Some(1) => return Err(timed_out()),
            Some(_) | None => {}
        }
        let host = self.life.host;
        state.parked.log[partition as usize].push(record.clone());
        let what = match entry {
            Entry::Parked(Written { source, owner, behind, .. }) => {
                let (source, owner) = ((partition, source.offset), owner.to_string());
                let key = state.input[partition as usize][&source.1];
                let lies = Lies { at, source, owner, behind };
                state.parked.lying.parked(key, lies.clone());
                What::Parked(host, lies)
            }
            Entry::Receipt(handled) => {
                let places: Vec<Offset> = handled.ranges().flat_map(|(first, last)| first..=last).collect();
                state.parked.lying.handled(partition, &places);
                What::Handled(host, partition, places)
            }
            Entry::Notice(owner) => {
                state.parked.lying.noticed(partition, &owner);
                What::Noticed(partition, owner.to_string())
            }
            Entry::Foreign => unreachable!("only the host writes there"),
        };
        self.world.note_in(state, what);
        if mishap.is_some() { Err(timed_out()) } else { Ok(Position { partition, offset: at }) }
    }
}
