//! Topics that a handler needs and nobody made: told when it starts, with the command that makes them.

use std::collections::BTreeSet;

use tidemill_core::retry::Exhausted;

use crate::broker::Admin;
use crate::config::manifest::HandlerSpec;
use crate::settle::{DeadLetters, parked};

/// What a handler does with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Reads,
    Produces,
    DeadLetters,
    Parks,
}

impl Use {
    fn consequence(self) -> &'static str {
        match self {
            Use::Reads => "the handler has nothing to read until it is there",
            Use::Produces => "records whose outputs go there wait until it is there",
            Use::DeadLetters => "a record that has to go there holds up its lane until it is there",
            Use::Parks => {
                "a record that has to be parked there holds up its key until it is there, with as many partitions as its source"
            }
        }
    }
}

/// Looks for a handler's topics and logs which are missing. The handler runs meanwhile: topics may be made later.
pub(super) async fn missing(admin: &dyn Admin, spec: &HandlerSpec, dead_letters: &DeadLetters) {
    for (topic, r#use) in uses(spec, dead_letters) {
        if matches!(admin.takes_records(&topic).await, Ok(false)) {
            tracing::warn!(
                handler = spec.name,
                topic,
                consequence = r#use.consequence(),
                "there is no such topic; make it with `tidemill topic create {topic} --partitions N`"
            );
        }
    }
}

/// Every topic that a handler needs, and for what.
pub(super) fn uses(spec: &HandlerSpec, dead_letters: &DeadLetters) -> Vec<(String, Use)> {
    let reads = &spec.consumer.subscription.topics;
    let mut letters: BTreeSet<_> = reads.iter().map(|topic| dead_letters.topic_for(topic)).collect();
    if spec.retry.end() != Exhausted::DeadLetter {
        letters.clear();
    }
    let parked = reads.iter().filter(|_| spec.retry.end() == Exhausted::Park);
    let parked = parked.map(|topic| (parked::topic_for(topic, &spec.name), Use::Parks));
    let reads = reads.iter().map(|topic| (topic.clone(), Use::Reads));
    let produces = spec.grants.produce.iter().map(|topic| (topic.clone(), Use::Produces));
    reads
        .chain(produces)
        .chain(parked)
        .chain(letters.iter().map(|topic| (topic.to_string(), Use::DeadLetters)))
        .collect()
}
