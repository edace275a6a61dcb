//! Records to be produced.

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;
use serde::Serialize;

use crate::{Error, Header, Result};

/// A record to be produced. The operator grants the topics.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Where to.
    pub topic: Cow<'static, str>,
    /// `None`: the key decides, as with Java clients.
    pub partition: Option<i32>,
    /// Milliseconds since the Unix epoch; `None`: when it is produced.
    pub timestamp_ms: Option<i64>,
    /// `None` is null, which is not empty.
    pub key: Option<Bytes>,
    /// `None` is a tombstone, which is not an empty value.
    pub value: Option<Bytes>,
    /// In order; names may repeat.
    pub headers: Vec<Header>,
}

/// Bytes, or what is made of them. [`Bytes`], `Vec<u8>` and `String` are taken as they are, what is borrowed is copied.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not bytes",
    note = "give text, bytes, or a number's text (`7.to_string()`); a value as JSON is `Output::json(topic, &value)`"
)]
pub trait IntoBytes {
    /// The bytes.
    fn into_bytes(self) -> Bytes;
}

macro_rules! into_bytes {
    ($($from:ty: $self:ident => $bytes:expr;)*) => {
        $(impl IntoBytes for $from {
            fn into_bytes($self) -> Bytes {
                $bytes
            }
        })*
    };
}

into_bytes! {
    Bytes: self => self;
    &Bytes: self => self.clone();
    ByteString: self => ByteString::into_bytes(self);
    Vec<u8>: self => self.into();
    &Vec<u8>: self => Bytes::copy_from_slice(self);
    &[u8]: self => Bytes::copy_from_slice(self);
    String: self => self.into();
    &String: self => Bytes::copy_from_slice(self.as_bytes());
    &str: self => Bytes::copy_from_slice(self.as_bytes());
}

impl<const N: usize> IntoBytes for [u8; N] {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self)
    }
}

impl<const N: usize> IntoBytes for &[u8; N] {
    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl Output {
    /// A record with these bytes as its value.
    pub fn bytes(topic: impl Into<Cow<'static, str>>, value: impl IntoBytes) -> Self {
        Self { value: Some(value.into_bytes()), ..Self::tombstone(topic) }
    }

    /// A record with this value as JSON.
    pub fn json(topic: impl Into<Cow<'static, str>>, value: &(impl Serialize + ?Sized)) -> Result<Self> {
        match serde_json::to_vec(value) {
            Ok(value) => Ok(Self::bytes(topic, value)),
            Err(error) => Err(Error::dead_letter("output-not-json", error)),
        }
    }

    /// A record without a value, which is not an empty value: it deletes its key in a compacted topic.
    pub fn tombstone(topic: impl Into<Cow<'static, str>>) -> Self {
        Self { topic: topic.into(), partition: None, timestamp_ms: None, key: None, value: None, headers: Vec::new() }
    }

    /// Sets the key, which also decides the partition.
    pub fn key(mut self, key: impl IntoBytes) -> Self {
        self.key = Some(key.into_bytes());
        self
    }

    /// Adds a header. Names may repeat; order is kept.
    pub fn header(mut self, name: impl Into<ByteString>, value: impl IntoBytes) -> Self {
        self.headers.push(Header { name: name.into(), value: Some(value.into_bytes()) });
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
