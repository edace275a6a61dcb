//! Records to be produced.

use serde::Serialize;

use crate::{Error, Header, Output, Record, Result};

impl Output {
    /// A record with these bytes as its value.
    pub fn bytes(topic: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::tombstone(topic) }
    }

    /// A record with this value as JSON.
    pub fn json(topic: impl Into<String>, value: &(impl Serialize + ?Sized)) -> Result<Self> {
        match serde_json::to_vec(value) {
            Ok(value) => Ok(Self::bytes(topic, value)),
            Err(error) => Err(Error::dead_letter("output-not-json", error)),
        }
    }

    /// A record without a value, which is not an empty value: it deletes its key in a compacted topic.
    pub fn tombstone(topic: impl Into<String>) -> Self {
        Self { topic: topic.into(), partition: None, timestamp_ms: None, key: None, value: None, headers: Vec::new() }
    }

    /// Sets the key, which also decides the partition.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header. Names may repeat; order is kept.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push(Header { name: name.into(), value: Some(value.into()) });
        self
    }

    /// Names the partition instead of leaving it to the key.
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Sets the timestamp, in milliseconds since the Unix epoch.
    pub fn timestamp_ms(mut self, timestamp: i64) -> Self {
        self.timestamp_ms = Some(timestamp);
        self
    }
}

impl Record {
    /// Makes an output of this record's key, value and headers, without copying them.
    pub fn into_output(self, topic: impl Into<String>) -> Output {
        Output {
            topic: topic.into(),
            partition: None,
            timestamp_ms: None,
            key: self.key,
            value: self.value,
            headers: self.headers,
        }
    }

    /// The last header of this name that has a value.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|header| header.name == name)?.value.as_deref()
    }
}
