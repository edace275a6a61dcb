//! Header names as bytes, which Kafka allows and rdkafka's own reader panics on.
#![allow(unsafe_code, reason = "rdkafka gives no other way to write or read a header name that is not UTF-8")]

use std::ffi::{CStr, c_void};
use std::ptr;

use rdkafka::bindings::{rd_kafka_header_add, rd_kafka_header_get_all, rd_kafka_headers_t};
use rdkafka::error::IsError;
use rdkafka::message::{BorrowedHeaders, Headers, OwnedHeaders};

/// A header as it lies in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawHeader {
    /// Its name.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

impl RawHeader {
    /// A header with a value.
    pub fn new(name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> RawHeader {
        RawHeader { name: name.into(), value: Some(value.into()) }
    }
}

/// For a producer.
pub fn to_owned_headers(raw: &[RawHeader]) -> OwnedHeaders {
    let headers = OwnedHeaders::new_with_capacity(raw.len());
    let list = ptr::from_ref(headers.as_borrowed()).cast::<rd_kafka_headers_t>().cast_mut();
    for header in raw {
        let (name, value) = (&header.name, header.value.as_deref());
        let bytes = value.map_or(ptr::null(), <[u8]>::as_ptr).cast::<c_void>();
        // SAFETY: a `BorrowedHeaders` reference is the native list in disguise, here the one that we have just made and
        // that nobody else sees; both slices live through the call, which copies them.
        let error = unsafe {
            rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name.len().cast_signed(),
                bytes,
                value.map_or(0, <[u8]>::len).cast_signed(),
            )
        };
        assert!(!error.is_error(), "a new list of headers takes another one");
    }
    headers
}

/// From a consumed record.
pub fn from_borrowed(headers: &BorrowedHeaders) -> Vec<RawHeader> {
    let list = ptr::from_ref(headers).cast::<rd_kafka_headers_t>();
    (0..headers.count())
        .map(|index| {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: a `BorrowedHeaders` reference is the native list in disguise and lives through the call; the
            // pointers that it gives are into that list, with a name that ends in a NUL, and are copied before it goes.
            unsafe {
                let error = rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size);
                assert!(!error.is_error(), "a list has as many headers as it says");
                let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size).to_vec());
                RawHeader { name: CStr::from_ptr(name).to_bytes().to_vec(), value }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_values_and_their_order_survive() {
        let raw = [
            RawHeader::new("a", "1"),
            RawHeader::new(b"\xff\xfe".as_slice(), b"\x00\xff".as_slice()),
            RawHeader::new("a", ""),
            RawHeader { name: b"none".to_vec(), value: None },
        ];
        assert_eq!(from_borrowed(to_owned_headers(&raw).as_borrowed()), raw);
    }
}
