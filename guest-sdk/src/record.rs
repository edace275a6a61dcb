//! Records as a handler gets them.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use crate::{Output, Timestamp};

/// One record of a topic's partition.
///
/// Key, value and headers are slices of the buffer in which the call's records came: to clone one, or to pass it on as an output, copies nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// `None` is null, which is not empty.
    pub key: Option<Bytes>,
    /// `None` is a tombstone, which is not an empty value.
    pub value: Option<Bytes>,
    /// In order; names may repeat.
    pub headers: Vec<Header>,
    /// When it was made, and by whose clock.
    pub timestamp: Timestamp,
    /// Where it stands in its partition.
    pub offset: i64,
    /// 1 on first delivery. A hint: it starts again when the partition moves to another host.
    pub attempt: u32,
    pub(crate) source: Arc<Source>,
    /// The id that the host gave; `None`: the one that all records have.
    pub(crate) id: Option<ByteString>,
}

/// A header of a record. Kafka promises no encoding of values.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The name.
    pub name: ByteString,
    /// `None` is null, which is not empty.
    pub value: Option<Bytes>,
}

/// Where the records of a call come from.
#[derive(Debug, PartialEq)]
pub(crate) struct Source {
    pub(crate) topic: String,
    pub(crate) partition: i32,
}

impl Record {
    /// The key for idempotent effects: `topic/partition/offset/timestamp`, the same whenever this record comes, on each host.
    pub fn id(&self) -> String {
        match &self.id {
            Some(id) => id.to_string(),
            None => {
                let millis = match self.timestamp {
                    Timestamp::None => -1,
                    Timestamp::CreateTime(millis) | Timestamp::LogAppendTime(millis) => millis,
                };
                format!("{}/{}/{}/{millis}", self.source.topic, self.source.partition, self.offset)
            }
        }
    }

    /// The last header of this name that has a value.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|header| header.name == name)?.value.as_deref()
    }

    /// Makes an output of this record's key, value and headers, without copying them.
    pub fn into_output(self, topic: impl Into<Cow<'static, str>>) -> Output {
        Output { key: self.key, value: self.value, headers: self.headers, ..Output::tombstone(topic) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_of_where_the_record_stands_unless_the_host_gave_one() {
        let record = |timestamp, id: Option<&str>| Record {
            key: None,
            value: None,
            headers: Vec::new(),
            timestamp,
            offset: 7,
            attempt: 1,
            source: Arc::new(Source { topic: "t".to_owned(), partition: 3 }),
            id: id.map(ByteString::from),
        };
        assert_eq!(record(Timestamp::CreateTime(5), None).id(), "t/3/7/5");
        assert_eq!(record(Timestamp::None, None).id(), "t/3/7/-1");
        assert_eq!(record(Timestamp::None, Some("first/0/1/2")).id(), "first/0/1/2");
    }
}
