//! Records on their way out: topics, batches and their reports.

use std::ffi::CString;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock, Weak};

use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaErrorCode as Code;
use tidemill_core::record::Offset;

use super::sync::{AtomicBool, AtomicPtr, AtomicUsize, Notify, Ordering};
use super::{Event, Native, Queue};
use crate::broker::{Header, Outgoing};

/// A topic to produce to, or to read without a group.
pub(in super::super) struct Topic {
    topic: NonNull<rd::rd_kafka_topic_t>,
    client: Arc<dyn Native>,
}

// SAFETY: librdkafka's topics are counted references and may be used and given back on any thread.
unsafe impl Send for Topic {}
// SAFETY: as above.
unsafe impl Sync for Topic {}

impl Topic {
    /// `None` when the name is impossible: empty, too long, or with a zero byte.
    pub(in super::super) fn new(client: Arc<dyn Native>, name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: the client lives; null means the client's own topic settings.
        let topic = unsafe { rd::rd_kafka_topic_new(client.native(), name.as_ptr(), ptr::null_mut()) };
        Some(Self { topic: NonNull::new(topic)?, client })
    }

    /// Begins to fetch a partition into a queue, without a group. Only one reader a partition and client.
    pub(in super::super) fn consume(&self, partition: i32, from: Offset, into: &Queue) -> Result<(), Code> {
        // SAFETY: topic and queue live, of one client.
        let refused =
            unsafe { rd::rd_kafka_consume_start_queue(self.topic.as_ptr(), partition, from, into.queue.as_ptr()) };
        // SAFETY: reads this thread's last error.
        if refused == 0 { Ok(()) } else { Err(unsafe { rd::rd_kafka_last_error() }.into()) }
    }

    /// Ends [`Topic::consume`].
    pub(in super::super) fn consume_no_more(&self, partition: i32) {
        // SAFETY: the topic lives; stopping what was not started is refused by the library.
        unsafe { rd::rd_kafka_consume_stop(self.topic.as_ptr(), partition) };
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once.
        unsafe { rd::rd_kafka_topic_destroy(self.topic.as_ptr()) };
    }
}

/// What became of a produced record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Report {
    pub(in super::super) code: Code,
    pub(in super::super) persistence: Persistence,
    pub(in super::super) partition: i32,
    pub(in super::super) offset: Offset,
}

/// Whether a record is in the log, as far as the library knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Persistence {
    /// It was never sent, or surely refused.
    No,
    /// It was sent and not answered.
    Possible,
    /// It was acknowledged.
    Yes,
}

/// Records that are produced together: one countdown for all, and no allocation for each.
///
/// It holds the records until each has its report, because the library reads their values where they lie.
pub(in super::super) struct Batch {
    /// Shared with whoever may have to send them again.
    records: Arc<Vec<Outgoing>>,
    slots: Box<[Slot]>,
    /// Slots without a report. Invariant: while it is above 0, the batch holds one reference to itself.
    open: AtomicUsize,
    /// Whether a report is other than good.
    failed: AtomicBool,
    all_reported: Notify,
}

/// The place of one record's report; its address is what the library carries along.
struct Slot {
    batch: AtomicPtr<Batch>,
    report: OnceLock<Report>,
}

impl Slot {
    fn keep(&self, report: Report) {
        let kept = self.report.set(report);
        debug_assert!(kept.is_ok(), "a record has one report");
    }
}

impl Batch {
    /// A batch of these records, at least one.
    pub(in super::super) fn new(records: Arc<Vec<Outgoing>>) -> Arc<Self> {
        assert!(!records.is_empty(), "a batch without records would never end");
        let batch = Arc::new_cyclic(|this: &Weak<Self>| {
            let batch = this.as_ptr().cast_mut();
            let slot = |_| Slot { batch: AtomicPtr::new(batch), report: OnceLock::new() };
            let slots = records.iter().map(slot).collect();
            let open = AtomicUsize::new(records.len());
            Self { records, slots, open, failed: AtomicBool::new(false), all_reported: Notify::new() }
        });
        // The batch's reference to itself, which `close` gives back.
        std::mem::forget(Arc::clone(&batch));
        batch
    }

    /// The records.
    pub(in super::super) fn records(&self) -> &[Outgoing] {
        &self.records
    }

    /// Ends the record at this place, which is not with the library, with a refusal.
    pub(in super::super) fn refuse(&self, at: usize, code: Code) {
        self.failed.store(true, Ordering::Release);
        self.slots[at].keep(Report { code, persistence: Persistence::No, partition: -1, offset: -1 });
        // SAFETY: `self` lives during the call, and the record at `at` had no report before.
        unsafe { Self::close(self, 1) };
    }

    /// # Safety
    /// `batch` lives, and so many of its slots got their only report since the last call.
    unsafe fn close(batch: *const Self, reports: usize) {
        // SAFETY: the caller's promise. The reference to itself is given back once: `open` reaches 0 once.
        unsafe {
            if (*batch).open.fetch_sub(reports, Ordering::AcqRel) == reports {
                (*batch).all_reported.notify_one();
                Arc::decrement_strong_count(batch);
            }
        }
    }

    /// Waits until each record has its report. Cancel-safe; for one waiter.
    pub(in super::super) async fn reported(&self) {
        while self.open.load(Ordering::Acquire) > 0 {
            self.all_reported.notified().await;
        }
    }

    /// Whether each record is stored.
    pub(in super::super) fn is_stored(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0 && !self.failed.load(Ordering::Acquire)
    }

    /// Whether any record may be stored, as far as it is reported by now.
    pub(in super::super) fn may_be_stored(&self) -> bool {
        let never = |slot: &Slot| slot.report.get().is_some_and(|report| report.persistence == Persistence::No);
        !self.slots.iter().all(never)
    }

    /// Where records are stored.
    pub(in super::super) fn stored(&self) -> impl Iterator<Item = (Arc<str>, i32, Offset)> {
        let each = self.records.iter().zip(&self.slots);
        each.filter_map(|(record, slot)| match slot.report.get()? {
            Report { code: Code::NoError, partition, offset, .. } if *offset >= 0 => {
                Some((Arc::clone(&record.topic), *partition, *offset))
            }
            _ => None,
        })
    }

    /// What became of the record at this place; known once all are [`reported`](Self::reported).
    pub(in super::super) fn report(&self, at: usize) -> Option<Report> {
        self.slots[at].report.get().copied()
    }
}

/// Queues the batch's record at this place for sending. Its report comes with a later event, unless this fails.
pub(in super::super) fn produce(topic: &Topic, batch: &Batch, at: usize) -> Result<(), Code> {
    let (record, slot) = (&batch.records[at], &batch.slots[at]);
    use rd::rd_kafka_vtype_t as Kind;
    let mem = |bytes: &Option<bytes::Bytes>| {
        let (ptr, size) = bytes.as_ref().map_or((ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()));
        rd::rd_kafka_vu_s__bindgen_ty_1 {
            mem: rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr: ptr.cast_mut().cast(), size },
        }
    };
    let headers = headers_of(&record.headers)?;
    // Zero means "now" to the library.
    let timestamp = record.timestamp_ms.unwrap_or(0);
    let given = |vtype, u| rd::rd_kafka_vu_t { vtype, u };
    let arguments = [
        given(Kind::RD_KAFKA_VTYPE_RKT, rd::rd_kafka_vu_s__bindgen_ty_1 { rkt: topic.topic.as_ptr() }),
        given(Kind::RD_KAFKA_VTYPE_PARTITION, rd::rd_kafka_vu_s__bindgen_ty_1 { i32_: record.partition.unwrap_or(-1) }),
        // Neither copied nor given away: the value stays the batch's.
        given(Kind::RD_KAFKA_VTYPE_MSGFLAGS, rd::rd_kafka_vu_s__bindgen_ty_1 { i: 0 }),
        given(Kind::RD_KAFKA_VTYPE_VALUE, mem(&record.value)),
        given(Kind::RD_KAFKA_VTYPE_KEY, mem(&record.key)),
        given(Kind::RD_KAFKA_VTYPE_TIMESTAMP, rd::rd_kafka_vu_s__bindgen_ty_1 { i64_: timestamp }),
        given(
            Kind::RD_KAFKA_VTYPE_OPAQUE,
            rd::rd_kafka_vu_s__bindgen_ty_1 { ptr: ptr::from_ref(slot).cast_mut().cast() },
        ),
        given(Kind::RD_KAFKA_VTYPE_HEADERS, rd::rd_kafka_vu_s__bindgen_ty_1 { headers }),
    ];
    let count = if headers.is_null() { arguments.len() - 1 } else { arguments.len() };
    // SAFETY: topic and client live; the key is copied during the call; the batch, and with it the value and the slot, lives
    // until its last report, and the library reads a value no more once it has reported it. An error is ours to destroy, and
    // with it the headers, which the library takes on success only.
    unsafe {
        let error = rd::rd_kafka_produceva(topic.client.native(), arguments.as_ptr(), count);
        if error.is_null() {
            return Ok(());
        }
        let code = Code::from(rd::rd_kafka_error_code(error));
        rd::rd_kafka_error_destroy(error);
        if !headers.is_null() {
            rd::rd_kafka_headers_destroy(headers);
        }
        Err(code)
    }
}

/// # Safety
/// The event lives, and reports deliveries of [`produce`].
pub(super) unsafe fn settle(event: *mut rd::rd_kafka_event_t) -> Event {
    let (mut reports, mut stored) = (0, 0);
    // SAFETY: the messages are the event's. The opaque pointer is the slot of `produce`, in a batch that lives until
    // its last report.
    unsafe {
        while let Some(message) = rd::rd_kafka_event_message_next(event).as_ref() {
            let persistence = match rd::rd_kafka_message_status(message) {
                rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED => Persistence::No,
                rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED => Persistence::Possible,
                rd::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_PERSISTED => Persistence::Yes,
            };
            let slot = &*message._private.cast::<Slot>().cast_const();
            let batch = slot.batch.load(Ordering::Relaxed);
            let code = Code::from(message.err);
            if code != Code::NoError {
                (*batch).failed.store(true, Ordering::Release);
            }
            slot.keep(Report { code, persistence, partition: message.partition, offset: message.offset });
            Batch::close(batch, 1);
            reports += 1;
            stored += usize::from(persistence == Persistence::Yes);
        }
    }
    Event::Delivered { reports, stored }
}

/// The library's list of headers; null when there are none.
fn headers_of(headers: &[Header]) -> Result<*mut rd::rd_kafka_headers_t, Code> {
    if headers.is_empty() {
        return Ok(ptr::null_mut());
    }
    // SAFETY: the list is new and ours; names and values are copied, with their lengths.
    unsafe {
        let list = rd::rd_kafka_headers_new(headers.len());
        for header in headers {
            let (name, name_len) = (header.name.as_ptr().cast(), header.name.len());
            let (value, len) =
                header.value.as_ref().map_or((ptr::null(), 0), |value| (value.as_ptr().cast(), value.len()));
            let answer = rd::rd_kafka_header_add(list, name, name_len as isize, value, len as isize);
            if Code::from(answer) != Code::NoError {
                rd::rd_kafka_headers_destroy(list);
                return Err(answer.into());
            }
        }
        Ok(list)
    }
}
