//! A record's headers as one value of the database: each name and value behind its length, in order.

use tidemill_core::record::HeaderRef;

use crate::broker::Header;

/// The length that stands for a null value.
const NULL: u32 = u32::MAX;

/// Headers that were not written by [`encode`]: the file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

/// Writes headers down; `None` where there are none.
pub(super) fn encode(headers: &[Header]) -> Option<Vec<u8>> {
    if headers.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(headers.iter().map(|header| 8 + header.bytes()).sum());
    for header in headers {
        append(&mut out, &header.name);
        match &header.value {
            Some(value) => append(&mut out, value),
            None => out.extend(NULL.to_le_bytes()),
        }
    }
    Some(out)
}

/// Reads headers back.
pub(super) fn decode(mut bytes: &[u8]) -> Result<Vec<HeaderRef<'_>>, Damaged> {
    let mut headers = Vec::new();
    while !bytes.is_empty() {
        let name = take(&mut bytes)?.ok_or(Damaged)?;
        let value = take(&mut bytes)?;
        headers.push(HeaderRef { name, value });
    }
    Ok(headers)
}

fn append(out: &mut Vec<u8>, bytes: &[u8]) {
    // A record is below `record_bytes_max`, which is far below 4 GiB: its parts have lengths of 32 bits.
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Damaged> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(Damaged)?;
    let length = u32::from_le_bytes(*length);
    if length == NULL {
        *bytes = rest;
        return Ok(None);
    }
    let (value, rest) = rest.split_at_checked(length as usize).ok_or(Damaged)?;
    *bytes = rest;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn headers_come_back_byte_for_byte() {
        let header = |name: &'static [u8], value: Option<&'static [u8]>| Header {
            name: Bytes::from_static(name),
            value: value.map(Bytes::from_static),
        };
        let headers =
            [header(b"a", Some(b"1")), header(b"a", None), header(b"\xff", Some(b"")), header(b"", Some(b"x"))];
        let bytes = encode(&headers).expect("there are some");
        let read = decode(&bytes).expect("they are whole");
        let expected: Vec<_> =
            headers.iter().map(|header| HeaderRef { name: &header.name, value: header.value.as_deref() }).collect();
        assert_eq!(read, expected);
        assert_eq!(encode(&[]), None);
    }

    #[test]
    fn damage_is_told_and_never_panics() {
        for bytes in [&b"\x01"[..], b"\x05\0\0\0abc", b"\xff\xff\xff\xff", b"\x01\0\0\0a"] {
            assert_eq!(decode(bytes), Err(Damaged), "{bytes:?}");
        }
    }
}
