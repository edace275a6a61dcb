//! Between the contract's types and the authors': the form of a call without packing.

use std::sync::Arc;

use crate::bindings::tidemill::guest::types;
use crate::context::Call;
use crate::record::Source;
use crate::{Header, Outcome, Output, Record};

/// A typed batch as a call and its records.
pub(crate) fn lift(batch: types::Batch) -> (Call, Vec<Record>) {
    let source = Arc::new(Source { topic: batch.topic, partition: batch.partition });
    let records = batch.records.into_iter().map(|record| lift_record(&source, record)).collect();
    (Call { source, deadline_ms: batch.deadline_ms, delivery: batch.delivery }, records)
}

/// An output of the contract as authors have it.
#[cfg(all(feature = "testing", not(target_family = "wasm")))]
pub(crate) fn lift_output(output: types::Outgoing) -> Output {
    Output {
        topic: output.topic.into(),
        partition: output.partition,
        timestamp_ms: output.timestamp_ms,
        key: output.key.map(Into::into),
        value: output.value.map(Into::into),
        headers: output.headers.into_iter().map(lift_header).collect(),
    }
}

fn lift_header(header: types::Header) -> Header {
    Header { name: header.name.into(), value: header.value.map(Into::into) }
}

fn lift_record(source: &Arc<Source>, record: types::SourceRecord) -> Record {
    Record {
        key: record.key.map(Into::into),
        value: record.value.map(Into::into),
        headers: record.headers.into_iter().map(lift_header).collect(),
        timestamp: record.timestamp,
        offset: record.offset,
        attempt: record.attempt,
        source: Arc::clone(source),
        id: Some(record.id.into()),
    }
}

/// Outcomes as the contract has them.
pub(crate) fn lower(outcomes: Vec<Outcome>) -> Vec<types::Outcome> {
    let outcome = |outcome| match outcome {
        Outcome::Ack(outputs) => types::Outcome::Ack(outputs.iter().map(lower_output).collect()),
        Outcome::Skip => types::Outcome::Skip,
        Outcome::Retry(request) => types::Outcome::Retry(request),
        Outcome::DeadLetter(reason) => types::Outcome::DeadLetter(reason),
        Outcome::Untouched => types::Outcome::Untouched,
    };
    outcomes.into_iter().map(outcome).collect()
}

/// An output as the contract has it.
pub(crate) fn lower_output(output: &Output) -> types::Outgoing {
    let header = |header: &Header| types::Header {
        name: header.name.to_string(),
        value: header.value.as_deref().map(Vec::from),
    };
    types::Outgoing {
        topic: output.topic.to_string(),
        partition: output.partition,
        timestamp_ms: output.timestamp_ms,
        key: output.key.as_deref().map(Vec::from),
        value: output.value.as_deref().map(Vec::from),
        headers: output.headers.iter().map(header).collect(),
    }
}
