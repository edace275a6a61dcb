//! Sending at once, beside the outcome: for a guest that needs the position now. What was sent is not undone.

use bytes::Bytes;
use tidemill_core::grants::Kind;

use super::View;
use crate::attempt::Guarantee;
use crate::broker::{self, Header, SendError, WhenFull};
use crate::guest::bindings::tidemill::guest::producer::{Error, Host, Outgoing, Position};
use crate::metrics::HostCallResult;

const CAPABILITY: &str = "produce";

impl Host for View {
    async fn send(&mut self, records: Vec<Outgoing>) -> wasmtime::Result<Result<Vec<Position>, Error>> {
        if let Err(error) = self.may_send(&records) {
            return Ok(Err(error));
        }
        if records.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let sizes: Vec<u64> = records.iter().map(size).collect();
        let topics: Vec<String> = records.iter().map(|record| record.topic.clone()).collect();
        let sent = records.into_iter().map(outgoing).collect();
        let work = self.granted.producer.send(sent, WhenFull::Wait);
        let results = match self.wait(work).await {
            Ok(results) => results,
            Err(time) => {
                self.call.effects.sent_at_once += topics.len() as u64;
                let text = format!(
                    "the broker did not confirm in {} ms; the records may or may not be stored",
                    time.as_millis()
                );
                self.late(CAPABILITY, &text);
                return Ok(Err(Error::OutcomeUnknown(text)));
            }
        };
        let mut positions = Vec::with_capacity(results.len());
        let mut failed = None;
        for ((result, topic), size) in results.into_iter().zip(topics).zip(sizes) {
            match result {
                Ok(at) => positions.push(Position { topic, partition: at.partition, offset: at.offset }),
                Err(error) => {
                    self.call.effects.sent_at_once += u64::from(matches!(error, SendError::Unknown(_)));
                    failed.get_or_insert((error, size));
                }
            }
        }
        self.call.effects.sent_at_once += positions.len() as u64;
        Ok(match failed {
            None => {
                self.count(CAPABILITY, HostCallResult::Ok);
                Ok(positions)
            }
            Some((error, size)) => Err(self.refused(error, size)),
        })
    }
}

impl View {
    /// All records or none: nothing is sent if one of them must not be.
    fn may_send(&mut self, records: &[Outgoing]) -> Result<(), Error> {
        if self.call.guarantee == Guarantee::KafkaTransaction {
            self.count(CAPABILITY, HostCallResult::Denied);
            let text = "records can't be sent at once under `kafka-transaction`, they would not be part of it; return them with `ack`";
            return Err(Error::AccessDenied(text.to_owned()));
        }
        for record in records {
            self.check(CAPABILITY, Kind::Produce, &record.topic)
                .map_err(|denied| Error::AccessDenied(denied.to_string()))?;
        }
        Ok(())
    }

    /// The first failure, in the guest's words.
    fn refused(&mut self, error: SendError, size: u64) -> Error {
        match error {
            SendError::Unavailable(_) | SendError::QueueFull => {
                self.away(CAPABILITY, &error);
                Error::Unavailable(error.to_string())
            }
            SendError::Unknown(_) => {
                self.away(CAPABILITY, &error);
                Error::OutcomeUnknown(error.to_string())
            }
            SendError::TooLarge(_) => {
                self.count(CAPABILITY, HostCallResult::Failed);
                Error::TooLarge(size)
            }
            SendError::Denied(_) | SendError::NoSuchTopic(_) | SendError::Rejected(_) => {
                self.count(CAPABILITY, HostCallResult::Failed);
                Error::AccessDenied(error.to_string())
            }
        }
    }
}

/// The bytes that the guest gave for a record.
fn size(record: &Outgoing) -> u64 {
    let bytes = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let headers: usize = record.headers.iter().map(|header| header.name.len() + bytes(&header.value)).sum();
    (bytes(&record.key) + bytes(&record.value) + headers) as u64
}

fn outgoing(record: Outgoing) -> broker::Outgoing {
    let header = |header: crate::guest::bindings::tidemill::guest::types::HeaderResult| Header {
        name: Bytes::from(header.name.into_bytes()),
        value: header.value.map(Bytes::from),
    };
    broker::Outgoing {
        topic: record.topic.into(),
        partition: record.partition,
        timestamp_ms: record.timestamp_ms,
        key: record.key.map(Bytes::from),
        value: record.value.map(Bytes::from),
        headers: record.headers.into_iter().map(header).collect(),
    }
}
