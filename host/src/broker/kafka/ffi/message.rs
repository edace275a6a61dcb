//! Messages as librdkafka lends them.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};

use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaErrorCode as Code;
use tidemill_core::record::{ChunkBuilder, HeaderRef, Offset, Timestamp};

/// A message taken from a queue: a record, or an error in its place.
pub(in super::super) struct Message<'a>(pub(super) &'a rd::rd_kafka_message_t);

impl<'a> Message<'a> {
    /// The error in place of a record.
    pub(in super::super) fn error(&self) -> Option<(Code, String)> {
        let code = Code::from(self.0.err);
        if code == Code::NoError {
            return None;
        }
        // SAFETY: the payload of an error is its text, with its length.
        let text = unsafe { bytes(self.0.payload, self.0.len) };
        Some((code, text.map_or_else(|| code.to_string(), |text| String::from_utf8_lossy(text).into_owned())))
    }

    /// Where the record stands.
    pub(in super::super) fn offset(&self) -> Offset {
        self.0.offset
    }

    /// The size of key, value and headers.
    pub(in super::super) fn bytes(&self) -> usize {
        let header = |header: HeaderRef<'_>| header.name.len() + header.value.map_or(0, <[u8]>::len);
        self.0.key_len + self.0.len + self.headers().map(header).sum::<usize>()
    }

    /// Copies the record to the end of a chunk.
    pub(in super::super) fn push_to(&self, chunk: &mut ChunkBuilder) {
        // SAFETY: a record's key and value are null or as long as they say.
        let (key, value) = unsafe { (bytes(self.0.key, self.0.key_len), bytes(self.0.payload, self.0.len)) };
        chunk.push(self.0.offset, self.timestamp(), key, value, self.headers());
    }

    fn timestamp(&self) -> Timestamp {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message lives; `kind` is written.
        let millis = unsafe { rd::rd_kafka_message_timestamp(self.0, &mut kind) };
        match kind {
            rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => Timestamp::None,
            rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME => Timestamp::Create(millis),
            rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => Timestamp::LogAppend(millis),
        }
    }

    /// The headers in order. A name ends at its first zero byte: librdkafka tells no length.
    fn headers(&self) -> impl Iterator<Item = HeaderRef<'a>> + use<'a> {
        let mut headers = ptr::null_mut();
        // SAFETY: the message lives; the headers stay its own and live as long. The library parses them in place on
        // the first call: nobody else can, because a `Message` borrows its queue mutably.
        let answer = unsafe { rd::rd_kafka_message_headers(self.0, &mut headers) };
        let headers = NonNull::new(headers).filter(|_| Code::from(answer) == Code::NoError);
        let mut index = 0;
        std::iter::from_fn(move || {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the headers live for `'a`; name and value are written and point into them.
            unsafe {
                let answer = rd::rd_kafka_header_get_all(headers?.as_ptr(), index, &mut name, &mut value, &mut size);
                if Code::from(answer) != Code::NoError {
                    return None;
                }
                index += 1;
                Some(HeaderRef { name: CStr::from_ptr(name).to_bytes(), value: bytes(value, size) })
            }
        })
    }
}

/// # Safety
/// `start` is null, or `len` bytes can be read from it for `'a`.
unsafe fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise; null is sorted out.
    NonNull::new(start.cast_mut().cast::<u8>()).map(|start| unsafe { std::slice::from_raw_parts(start.as_ptr(), len) })
}
