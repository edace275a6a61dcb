//! The open transaction: whose outputs are in it, and what is with the producer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::record::{Offset, TopicPartition};
use tidemill_core::transaction::{Filling, Item, Limits, Weight};

use crate::broker::{Outgoing, SendError};
use crate::consumer::commit::outbox::Outbox;
use crate::settle::{Produced, Refusal, Settler};

/// The open transaction.
pub(super) struct Open {
    pub(super) filling: Filling,
    pub(super) parts: Vec<Part>,
    /// Outputs that are with the producer, in the order of sending.
    sent: Vec<Arc<Vec<Outgoing>>>,
    /// Outputs behind those that are not.
    unsent: Vec<Outgoing>,
    /// Whose all of them are, in the same order, with what is known of each record but its outputs.
    pub(super) items: Vec<(usize, Item<Produced>)>,
}

/// One partition's part of it.
pub(super) struct Part {
    pub(super) outbox: Arc<Outbox>,
    pub(super) upto: Offset,
    pub(super) bytes: usize,
}

impl Open {
    pub(super) fn new(limits: Limits) -> Self {
        let filling = Filling::new(limits);
        Self { filling, parts: Vec::new(), sent: Vec::new(), unsent: Vec::new(), items: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes in what may enter of an outbox.
    pub(super) fn fill(&mut self, outbox: &Arc<Outbox>, now: Duration) {
        let Some(entry) = outbox.enter(now, &mut self.filling) else { return };
        let part = match self.parts.iter().position(|part| Arc::ptr_eq(&part.outbox, outbox)) {
            Some(part) => part,
            None => {
                self.parts.push(Part { outbox: Arc::clone(outbox), upto: entry.upto, bytes: 0 });
                self.parts.len() - 1
            }
        };
        self.parts[part].upto = entry.upto;
        for mut item in entry.items {
            self.parts[part].bytes += item.weight.bytes;
            self.unsent.append(&mut item.what.outputs);
            self.items.push((part, item));
        }
    }

    /// What is to be given to the producer now, which counts as given from then on.
    pub(super) fn give(&mut self) -> Option<Arc<Vec<Outgoing>>> {
        if self.unsent.is_empty() {
            return None;
        }
        let outputs = Arc::new(std::mem::take(&mut self.unsent));
        self.sent.push(Arc::clone(&outputs));
        Some(outputs)
    }

    /// Notes where it may stay open: the smallest record of each topic will do.
    pub(super) fn note_in(&self, left: &mut Left) {
        for output in self.sent.iter().flat_map(|sent| sent.iter()) {
            match left.samples.get_mut(&output.topic) {
                Some(sample) if sample.bytes() <= output.bytes() => {}
                Some(sample) => *sample = output.clone(),
                None => drop(left.samples.insert(Arc::clone(&output.topic), output.clone())),
            }
        }
        left.offsets.extend(self.offsets());
    }

    pub(super) fn offsets(&self) -> Vec<(TopicPartition, Offset)> {
        self.parts.iter().map(|part| (part.outbox.progress.from.clone(), part.upto)).collect()
    }

    /// What has been given to the producer, or is going to be, in order.
    fn take_outputs(&mut self) -> Vec<Outgoing> {
        let sent = self.sent.drain(..).map(|sent| Arc::try_unwrap(sent).unwrap_or_else(|shared| (*shared).clone()));
        let mut outputs: Vec<Outgoing> = sent.flatten().collect();
        outputs.append(&mut self.unsent);
        outputs
    }

    /// Ends it with everything kept.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.sent.clear();
        self.unsent.clear();
        self.items.clear();
        self.filling.clear();
    }

    /// Ends it: gives back its parts and, for each, its items, whole again.
    pub(super) fn take(&mut self) -> Vec<(Part, Vec<Item<Produced>>)> {
        let mut outputs = self.take_outputs().into_iter();
        let mut parts: Vec<_> = self.parts.drain(..).map(|part| (part, Vec::new())).collect();
        for (part, mut item) in self.items.drain(..) {
            item.what.outputs = outputs.by_ref().take(item.weight.records).collect();
            parts[part].1.push(item);
        }
        self.filling.clear();
        parts
    }

    /// Some outputs were refused for what they are: their records' dead letters take their place, or their partitions wait.
    pub(super) fn refused(&mut self, refused: &[(usize, SendError)], settler: &Settler, held_until: Duration) {
        let mut refused = refused.iter().peekable();
        let mut first = 0;
        let mut outputs = self.take_outputs().into_iter();
        for (part, item) in &mut self.items {
            let end = first + item.weight.records;
            let mut own: Vec<Outgoing> = outputs.by_ref().take(item.weight.records).collect();
            let mut error = None;
            while let Some((_, refusal)) = refused.next_if(|(at, _)| *at < end) {
                error = Some(refusal);
            }
            if let Some(error) = error {
                let Part { outbox, bytes, .. } = &mut self.parts[*part];
                item.what.outputs = own;
                match settler.refused(&outbox.progress.from, &mut item.what, error) {
                    Refusal::Replaced => {
                        let Weight { bytes: before, .. } = item.weight;
                        outbox.replace(item);
                        *bytes = *bytes + item.weight.bytes - before;
                    }
                    Refusal::Waits => outbox.hold(item.offset, held_until),
                }
                own = std::mem::take(&mut item.what.outputs);
            }
            self.unsent.append(&mut own);
            first = end;
        }
    }
}

/// What brokers that had trouble may have left open, until it is ended once more.
#[derive(Default)]
pub(super) struct Left {
    /// One record for each topic.
    pub(super) samples: BTreeMap<Arc<str>, Outgoing>,
    pub(super) offsets: BTreeMap<TopicPartition, Offset>,
}

impl Left {
    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.offsets.is_empty()
    }
}
