//! Records and outcomes in one buffer each, as `packed-handler` in `wit/` says.

use crate::{Header, Outcome, Output, Reason, Record, Timestamp};

/// The length of what is `none`.
const NONE: u32 = u32::MAX;

/// The records of a buffer.
pub(crate) fn records(buffer: &[u8]) -> Result<Vec<Record>, Reason> {
    let mut from = Reader(buffer);
    from.records().ok_or_else(|| Reason {
        code: "packed-records".to_owned(),
        detail: "the host's buffer of records is not what the contract says; build the guest against the host's `wit/`"
            .to_owned(),
    })
}

/// The buffer of these outcomes.
pub(crate) fn outcomes(outcomes: &[Outcome]) -> Vec<u8> {
    // What most outputs take; it grows where that is too little.
    let mut to = Writer(Vec::with_capacity(outcomes.iter().map(size).sum()));
    outcomes.iter().for_each(|outcome| to.outcome(outcome));
    to.0
}

fn size(outcome: &Outcome) -> usize {
    const FIXED: usize = 40;
    let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    match outcome {
        Outcome::Ack(outputs) => outputs
            .iter()
            .fold(5, |size, output| size + FIXED + output.topic.len() + length(&output.key) + length(&output.value)),
        Outcome::Retry(request) => FIXED + request.reason.code.len() + request.reason.detail.len(),
        Outcome::DeadLetter(reason) => FIXED + reason.code.len() + reason.detail.len(),
        Outcome::Skip | Outcome::Untouched => 1,
    }
}

/// Reads from the front; `None` when the buffer ends too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }

    fn some(&mut self, length: u32) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length as usize)?;
        self.0 = rest;
        Some(taken)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()?;
        String::from_utf8(self.some(length)?.to_vec()).ok()
    }

    fn maybe(&mut self) -> Option<Option<Vec<u8>>> {
        match self.u32()? {
            NONE => Some(None),
            length => Some(Some(self.some(length)?.to_vec())),
        }
    }

    fn records(&mut self) -> Option<Vec<Record>> {
        let count = self.u32()? as usize;
        let mut records = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            records.push(self.record()?);
        }
        Some(records)
    }

    fn record(&mut self) -> Option<Record> {
        Some(Record {
            id: self.text()?,
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
        })
    }

    fn headers(&mut self) -> Option<Vec<Header>> {
        let count = self.u32()?;
        (0..count).map(|_| Some(Header { name: self.text()?, value: self.maybe()? })).collect()
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(length(bytes.len()));
        self.0.extend_from_slice(bytes);
    }

    fn maybe(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bytes(bytes),
            None => self.u32(NONE),
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ack(outputs) => {
                self.0.push(0);
                self.u32(length(outputs.len()));
                outputs.iter().for_each(|output| self.output(output));
            }
            Outcome::Skip => self.0.push(1),
            Outcome::Retry(request) => {
                self.0.push(2);
                self.0.push(u8::from(request.after_ms.is_some()) | u8::from(request.unavailable) << 1);
                if let Some(millis) = request.after_ms {
                    self.u32(millis);
                }
                self.reason(&request.reason);
            }
            Outcome::DeadLetter(reason) => {
                self.0.push(3);
                self.reason(reason);
            }
            Outcome::Untouched => self.0.push(4),
        }
    }

    fn output(&mut self, output: &Output) {
        self.bytes(output.topic.as_bytes());
        self.0.push(u8::from(output.partition.is_some()) | u8::from(output.timestamp_ms.is_some()) << 1);
        if let Some(partition) = output.partition {
            self.0.extend(partition.to_le_bytes());
        }
        if let Some(millis) = output.timestamp_ms {
            self.0.extend(millis.to_le_bytes());
        }
        self.maybe(output.key.as_deref());
        self.maybe(output.value.as_deref());
        self.u32(length(output.headers.len()));
        for header in &output.headers {
            self.bytes(header.name.as_bytes());
            self.maybe(header.value.as_deref());
        }
    }

    fn reason(&mut self, reason: &Reason) {
        self.bytes(reason.code.as_bytes());
        self.bytes(reason.detail.as_bytes());
    }
}

/// A component's memory is 4 GiB at most, of which nothing so long fits beside its copy.
fn length(length: usize) -> u32 {
    u32::try_from(length).ok().filter(|length| *length != NONE).expect("a length is below 4 GiB")
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
            &[0, 0, 0, 0],
            &8_i64.to_le_bytes(),
            &[0],
            &0_i64.to_le_bytes(),
            &1_u32.to_le_bytes(),
            &[1, 0, 0, 0, b'k'],
            &[0xff; 4],
            &[0, 0, 0, 0],
        ]
        .concat();
        let expected = [
            Record {
                id: "a/1".to_owned(),
                offset: 7,
                timestamp: Timestamp::CreateTime(-5),
                attempt: 2,
                key: None,
                value: Some(Vec::new()),
                headers: vec![Header { name: "h".to_owned(), value: Some(vec![0xff, 0]) }],
            },
            Record {
                id: String::new(),
                offset: 8,
                timestamp: Timestamp::None,
                attempt: 1,
                key: Some(b"k".to_vec()),
                value: None,
                headers: Vec::new(),
            },
        ];
        assert_eq!(records(&buffer).as_deref(), Ok(&expected[..]));
        for end in 0..buffer.len() {
            assert!(records(&buffer[..end]).is_err(), "{end} bytes are too few");
        }
    }

    #[test]
    fn outcomes_are_written_as_the_contract_says() {
        let reason = || Reason { code: "c".to_owned(), detail: String::new() };
        let output = Output {
            topic: "t".to_owned(),
            partition: Some(3),
            timestamp_ms: None,
            key: None,
            value: Some(b"v".to_vec()),
            headers: vec![Header { name: "h".to_owned(), value: None }],
        };
        let written = outcomes(&[
            Outcome::Ack(vec![output]),
            Outcome::Skip,
            Outcome::Retry(RetryRequest { after_ms: Some(9), reason: reason(), unavailable: true }),
            Outcome::DeadLetter(reason()),
            Outcome::Untouched,
        ]);
        let expected = [
            &[0, 1, 0, 0, 0][..],
            &[1, 0, 0, 0, b't', 1, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, b'v'],
            &[1, 0, 0, 0, 1, 0, 0, 0, b'h', 0xff, 0xff, 0xff, 0xff],
            &[1],
            &[2, 3, 9, 0, 0, 0, 1, 0, 0, 0, b'c', 0, 0, 0, 0],
            &[3, 1, 0, 0, 0, b'c', 0, 0, 0, 0],
            &[4],
        ];
        assert_eq!(written, expected.concat());
    }
}
