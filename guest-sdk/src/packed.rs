//! Records and outcomes in one buffer each, as `packed-handler` in `wit/` says.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use crate::outcome::Answer;
use crate::record::Source;
use crate::{Header, Outcome, Output, Reason, Record, Timestamp};

/// The length of what is `none`.
const NONE: u32 = u32::MAX;
/// The length of what is a part of the buffer of records.
const PART: u32 = u32::MAX - 1;
/// Shorter bytes are written as they are: to name the part takes eight.
const PART_BYTES_MIN: usize = 16;

/// The records of a buffer.
pub(crate) fn records(source: &Arc<Source>, buffer: &Bytes) -> Result<Vec<Record>, Reason> {
    let mut from = Reader { buffer, at: 0 };
    from.records(source).ok_or_else(|| Reason {
        code: "packed-records".to_owned(),
        detail: "the host's buffer of records is not what the contract says; build the guest against the host's `wit/`"
            .to_owned(),
    })
}

/// Reads on from a place; `None` when the buffer ends too early.
struct Reader<'a> {
    buffer: &'a Bytes,
    /// Invariant: at most the buffer's length.
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.buffer[self.at..].first_chunk()?;
        self.at += N;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }

    fn some(&mut self, length: u32) -> Option<Bytes> {
        let end = self.at.checked_add(length as usize).filter(|end| *end <= self.buffer.len())?;
        let taken = self.buffer.slice(self.at..end);
        self.at = end;
        Some(taken)
    }

    fn maybe(&mut self) -> Option<Option<Bytes>> {
        match self.u32()? {
            NONE => Some(None),
            length => self.some(length).map(Some),
        }
    }

    fn records(&mut self, source: &Arc<Source>) -> Option<Vec<Record>> {
        let count = self.u32()? as usize;
        let mut records = Vec::with_capacity(count.min(self.buffer.len()));
        for _ in 0..count {
            records.push(self.record(source)?);
        }
        Some(records)
    }

    fn record(&mut self, source: &Arc<Source>) -> Option<Record> {
        let id = match self.maybe()? {
            Some(id) => Some(ByteString::try_from(id).ok()?),
            None => None,
        };
        Some(Record {
            id,
            offset: self.i64()?,
            timestamp: match (self.take::<1>()?, self.i64()?) {
                ([1], millis) => Timestamp::CreateTime(millis),
                ([2], millis) => Timestamp::LogAppendTime(millis),
                _ => Timestamp::None,
            },
            attempt: self.u32()?,
            key: self.maybe()?,
            value: self.maybe()?,
            headers: self.headers()?,
            source: Arc::clone(source),
        })
    }

    fn headers(&mut self) -> Option<Vec<Header>> {
        let count = self.u32()?;
        let header = |_| {
            let length = self.u32()?;
            let name = ByteString::try_from(self.some(length)?).ok()?;
            Some(Header { name, value: self.maybe()? })
        };
        (0..count).map(header).collect()
    }
}

/// Writes outcomes as they come.
pub(crate) struct Writer<'a> {
    buffer: Vec<u8>,
    /// The buffer of the call's records.
    records: &'a Bytes,
}

impl<'a> Writer<'a> {
    /// An answer to so many records, which came in this buffer.
    pub(crate) fn new(records: &'a Bytes, count: usize) -> Self {
        // What most outcomes take whose outputs pass bytes on; it grows where that is too little.
        const OUTCOME_BYTES: usize = 64;
        Self { buffer: Vec::with_capacity(count * OUTCOME_BYTES), records }
    }

    /// The buffer of outcomes.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.buffer
    }

    fn u32(&mut self, number: u32) {
        self.buffer.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(length(bytes.len()));
        self.buffer.extend_from_slice(bytes);
    }

    fn maybe(&mut self, bytes: Option<&Bytes>) {
        match bytes {
            Some(bytes) => match self.part(bytes) {
                Some(start) => {
                    self.u32(PART);
                    self.u32(start);
                    self.u32(length(bytes.len()));
                }
                None => self.bytes(bytes),
            },
            None => self.u32(NONE),
        }
    }

    /// Where these bytes begin in the buffer of records, if they lie in it. That buffer lives as long as `self`, so that
    /// nothing else can lie there.
    fn part(&self, bytes: &Bytes) -> Option<u32> {
        if bytes.len() < PART_BYTES_MIN {
            return None;
        }
        let start = bytes.as_ptr().addr().checked_sub(self.records.as_ptr().addr())?;
        let end = start.checked_add(bytes.len())?;
        if end > self.records.len() { None } else { u32::try_from(start).ok() }
    }

    fn output(&mut self, output: &Output) {
        self.bytes(output.topic.as_bytes());
        self.buffer.push(u8::from(output.partition.is_some()) | u8::from(output.timestamp_ms.is_some()) << 1);
        if let Some(partition) = output.partition {
            self.buffer.extend_from_slice(&partition.to_le_bytes());
        }
        if let Some(millis) = output.timestamp_ms {
            self.buffer.extend_from_slice(&millis.to_le_bytes());
        }
        self.maybe(output.key.as_ref());
        self.maybe(output.value.as_ref());
        self.u32(length(output.headers.len()));
        for header in &output.headers {
            self.bytes(header.name.as_bytes());
            self.maybe(header.value.as_ref());
        }
    }

    fn reason(&mut self, reason: &Reason) {
        self.bytes(reason.code.as_bytes());
        self.bytes(reason.detail.as_bytes());
    }
}

impl Answer for Writer<'_> {
    fn ack(&mut self, outputs: &mut Vec<Output>) {
        self.buffer.push(0);
        self.u32(length(outputs.len()));
        outputs.drain(..).for_each(|output| self.output(&output));
    }

    fn end(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Ack(mut outputs) => self.ack(&mut outputs),
            Outcome::Skip => self.buffer.push(1),
            Outcome::Retry(request) => {
                self.buffer.push(2);
                self.buffer.push(u8::from(request.after_ms.is_some()) | u8::from(request.unavailable) << 1);
                if let Some(millis) = request.after_ms {
                    self.u32(millis);
                }
                self.reason(&request.reason);
            }
            Outcome::DeadLetter(reason) => {
                self.buffer.push(3);
                self.reason(&reason);
            }
            Outcome::Untouched => self.buffer.push(4),
        }
    }
}

/// A component's memory is 4 GiB at most, of which nothing so long fits beside its copy.
fn length(length: usize) -> u32 {
    u32::try_from(length).ok().filter(|length| *length < PART).expect("a length is below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RetryRequest;

    #[test]
    fn records_are_read_as_the_contract_says() {
        let buffer = [
            &2_u32.to_le_bytes()[..],
            &[3, 0, 0, 0, b'a', b'/', b'1'],
            &7_i64.to_le_bytes(),
            &[1],
            &(-5_i64).to_le_bytes(),
            &2_u32.to_le_bytes(),
            &[0xff; 4],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0, 1, 0, 0, 0, b'h', 2, 0, 0, 0, 0xff, 0],
            &[0xff; 4],
            &8_i64.to_le_bytes(),
            &[0],
            &0_i64.to_le_bytes(),
            &1_u32.to_le_bytes(),
            &[1, 0, 0, 0, b'k'],
            &[0xff; 4],
            &[0, 0, 0, 0],
        ]
        .concat();
        let source = Arc::new(Source { topic: "t".to_owned(), partition: 3 });
        let expected = [
            Record {
                id: Some("a/1".into()),
                offset: 7,
                timestamp: Timestamp::CreateTime(-5),
                attempt: 2,
                key: None,
                value: Some(Bytes::new()),
                headers: vec![Header { name: "h".into(), value: Some(Bytes::from_static(&[0xff, 0])) }],
                source: Arc::clone(&source),
            },
            Record {
                id: None,
                offset: 8,
                timestamp: Timestamp::None,
                attempt: 1,
                key: Some(Bytes::from_static(b"k")),
                value: None,
                headers: Vec::new(),
                source: Arc::clone(&source),
            },
        ];
        let buffer = Bytes::from(buffer);
        assert_eq!(records(&source, &buffer).as_deref(), Ok(&expected[..]));
        for end in 0..buffer.len() {
            assert!(records(&source, &buffer.slice(..end)).is_err(), "{end} bytes are too few");
        }
    }

    #[test]
    fn outcomes_are_written_as_the_contract_says() {
        let reason = || Reason { code: "c".to_owned(), detail: String::new() };
        let output = Output {
            topic: "t".into(),
            partition: Some(3),
            timestamp_ms: None,
            key: None,
            value: Some(Bytes::from_static(b"v")),
            headers: vec![Header { name: "h".into(), value: None }],
        };
        let records = Bytes::new();
        let mut written = Writer::new(&records, 5);
        written.ack(&mut vec![output]);
        written.end(Outcome::Skip);
        written.end(Outcome::Retry(RetryRequest { after_ms: Some(9), reason: reason(), unavailable: true }));
        written.end(Outcome::DeadLetter(reason()));
        written.end(Outcome::Untouched);
        let expected = [
            &[0, 1, 0, 0, 0][..],
            &[1, 0, 0, 0, b't', 1, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, b'v'],
            &[1, 0, 0, 0, 1, 0, 0, 0, b'h', 0xff, 0xff, 0xff, 0xff],
            &[1],
            &[2, 3, 9, 0, 0, 0, 1, 0, 0, 0, b'c', 0, 0, 0, 0],
            &[3, 1, 0, 0, 0, b'c', 0, 0, 0, 0],
            &[4],
        ];
        assert_eq!(written.finish(), expected.concat());
    }

    #[test]
    fn what_is_passed_on_is_named_and_what_is_new_is_written() {
        let records = Bytes::from(vec![b'r'; 100]);
        let elsewhere = Bytes::from(vec![b'r'; 16]);
        let written = |value: Bytes| {
            let mut writer = Writer::new(&records, 1);
            writer.maybe(Some(&value));
            writer.finish()
        };
        let part = |start: u8, length: u8| [&[0xfe, 0xff, 0xff, 0xff][..], &[start, 0, 0, 0, length, 0, 0, 0]].concat();
        assert_eq!(written(records.slice(3..50)), part(3, 47));
        assert_eq!(written(records.slice(84..)), part(84, 16));
        assert_eq!(written(records.slice(3..18)), [&[15, 0, 0, 0][..], &[b'r'; 15]].concat(), "too short to be named");
        assert_eq!(written(elsewhere), [&[16, 0, 0, 0][..], &[b'r'; 16]].concat());
        assert_eq!(written(Bytes::new()), [0; 4]);
    }
}
