//! The calls of librdkafka that rdkafka does not offer, behind safe types. The only `unsafe` of the broker.
//!
//! Why each is needed: the batch call takes half the CPU per record of rdkafka's polling; rdkafka panics on a header
//! name that is not UTF-8, and can't produce one; only the message's status tells whether a record may be stored.

#![allow(unsafe_code, reason = "librdkafka's C interface; each block says why it is sound")]

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::bindings as rd;
use rdkafka::config::{NativeClientConfig, RDKafkaLogLevel};
use rdkafka::types::{RDKafka, RDKafkaErrorCode as Code};
use tidemill_core::record::{Offset, TopicPartition};

use crate::sync::{self, Notify};

#[cfg(test)]
mod interleavings;
mod message;
mod produce;
pub(super) mod transaction;

pub(super) use self::message::Message;
pub(super) use self::produce::{Batch, Persistence, Report, Topic, produce};

/// A living librdkafka client. Queues, topics and messages keep it alive, because the library forbids to outlive it.
pub(super) trait Native: Send + Sync + 'static {
    /// The client's pointer, valid as long as `self`.
    fn native(&self) -> *mut RDKafka;
}

/// Which queues wake whom. Shared by all queues of one client.
///
/// A partition has one native queue for its whole life, and one wake-up on it: a reader that is dropped late must not
/// take away the wake-up of the reader after it.
#[derive(Debug, Default)]
pub(super) struct Wakers(Mutex<HashMap<TopicPartition, Arc<Notify>>>);

/// A queue of librdkafka and what to do when it gets its first entry.
pub(super) struct Queue {
    queue: NonNull<rd::rd_kafka_queue_t>,
    wake: Arc<Notify>,
    /// A partition's queue takes itself out of the wakers when it is dropped.
    registered: Option<(TopicPartition, Arc<Wakers>)>,
    /// Taken and not yet given back, in order. Invariant: each is a living message, owned by this value.
    taken: VecDeque<NonNull<rd::rd_kafka_message_t>>,
    client: Arc<dyn Native>,
}

// SAFETY: librdkafka's queues and messages may be used and destroyed on any thread, and this value alone owns them.
unsafe impl Send for Queue {}
// SAFETY: as above; `&self` offers only calls that lock inside of the library. Messages are reached by `&mut` only.
unsafe impl Sync for Queue {}

impl Queue {
    /// Splits a partition's records from the consumer's main queue into this one. `None` when the name is impossible.
    ///
    /// Must happen before the partition is assigned: otherwise records that were fetched already come out of the main
    /// queue, and order breaks.
    pub(super) fn split(client: Arc<dyn Native>, of: &TopicPartition, wakers: &Arc<Wakers>) -> Option<Self> {
        let topic = CString::new(&*of.topic).ok()?;
        // SAFETY: the client lives; the topic's text is only read during the call.
        let queue = unsafe { rd::rd_kafka_queue_get_partition(client.native(), topic.as_ptr(), of.partition) };
        let queue = NonNull::new(queue)?;
        // SAFETY: the queue was just given to us. Null takes its forwarding to the main queue away.
        unsafe { rd::rd_kafka_queue_forward(queue.as_ptr(), ptr::null_mut()) };
        let registered = Some((of.clone(), Arc::clone(wakers)));
        let this = Self::of(queue, registered, client);
        let mut wakers = wakers.0.lock().unwrap_or_else(PoisonError::into_inner);
        this.enable();
        wakers.insert(of.clone(), Arc::clone(&this.wake));
        Some(this)
    }

    /// A queue of its own, for the answer to one request.
    pub(super) fn new(client: Arc<dyn Native>) -> Self {
        // SAFETY: the client lives.
        let queue = unsafe { rd::rd_kafka_queue_new(client.native()) };
        let queue = NonNull::new(queue).expect("librdkafka always makes a queue");
        let this = Self::of(queue, None, client);
        this.enable();
        this
    }

    /// The client's main queue: logs, errors and delivery reports. It is polled, not waited for.
    pub(super) fn main(client: Arc<dyn Native>) -> Self {
        // SAFETY: the client lives.
        let queue = unsafe { rd::rd_kafka_queue_get_main(client.native()) };
        let queue = NonNull::new(queue).expect("each client has a main queue");
        Self::of(queue, None, client)
    }

    fn of(
        queue: NonNull<rd::rd_kafka_queue_t>,
        registered: Option<(TopicPartition, Arc<Wakers>)>,
        client: Arc<dyn Native>,
    ) -> Self {
        Self { queue, wake: Arc::default(), registered, taken: VecDeque::new(), client }
    }

    fn enable(&self) {
        /// Runs on librdkafka's threads, under the queue's lock.
        unsafe extern "C" fn first_entry(_client: *mut RDKafka, wake: *mut c_void) {
            // SAFETY: it is the pointer of `enable`, whose `Notify` lives until the call is disabled or replaced.
            let wake = unsafe { &*wake.cast::<Notify>() };
            // A permit is kept when nobody waits, so that no entry is forgotten.
            wake.notify_one();
        }
        // SAFETY: the queue lives. The `Notify` lives until `drop` disables this under the lock of `Wakers`, or until a
        // newer queue of the partition has replaced it; librdkafka calls and replaces under the queue's own lock.
        unsafe {
            let wake = Arc::as_ptr(&self.wake).cast_mut().cast();
            rd::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), Some(first_entry), wake);
        }
    }

    /// What is told, with a permit that stays, when the queue gets its first entry.
    pub(super) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Waits until something came since the queue was last seen empty; may also return without reason. Cancel-safe.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// How many messages one call takes at most.
    const TAKE_MAX: usize = 512;

    /// Takes up to `count` messages that are there, in order, without waiting; says how many.
    pub(super) fn take(&mut self, count: usize) -> usize {
        self.take_within(count, 0)
    }

    /// Takes up to `count` messages, waiting on this thread until there are so many or the time is over.
    pub(super) fn take_within(&mut self, count: usize, millis: c_int) -> usize {
        let mut room = [ptr::null_mut(); Self::TAKE_MAX];
        let count = count.min(room.len());
        // SAFETY: `room` has space for `count` pointers, and the queue lives.
        let got = unsafe { rd::rd_kafka_consume_batch_queue(self.queue.as_ptr(), millis, room.as_mut_ptr(), count) };
        let got = usize::try_from(got).unwrap_or(0);
        self.taken.extend(room[..got].iter().copied().filter_map(NonNull::new));
        got
    }

    /// How many messages are taken and not yet dropped.
    pub(super) fn taken(&self) -> usize {
        self.taken.len()
    }

    /// The oldest message that is taken and not yet dropped.
    pub(super) fn front(&mut self) -> Option<Message<'_>> {
        // SAFETY: taken messages live until `drop_front` or `drop`, which both need `&mut self`.
        self.taken.front().map(|message| Message(unsafe { message.as_ref() }))
    }

    /// Gives the oldest taken message back to the library.
    pub(super) fn drop_front(&mut self) {
        if let Some(message) = self.taken.pop_front() {
            // SAFETY: it was ours, and nothing borrows from it any more.
            unsafe { rd::rd_kafka_message_destroy(message.as_ptr()) };
        }
    }

    /// The next event of a queue that has events and no messages; waits on this thread for at most the given time.
    pub(super) fn poll(&self, millis: c_int) -> Option<Event> {
        // SAFETY: the queue lives; the event is ours and destroyed below, after the last use of what it lends.
        unsafe {
            let event = NonNull::new(rd::rd_kafka_queue_poll(self.queue.as_ptr(), millis))?;
            let told = read_event(event);
            rd::rd_kafka_event_destroy(event.as_ptr());
            Some(told)
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        while !self.taken.is_empty() {
            self.drop_front();
        }
        let disable = || {
            // SAFETY: the queue lives. Once this returns, nobody calls the wake-up any more.
            unsafe { rd::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut()) };
        };
        if let Some((partition, wakers)) = &self.registered {
            let mut wakers = wakers.0.lock().unwrap_or_else(PoisonError::into_inner);
            if wakers.get(partition).is_some_and(|current| Arc::ptr_eq(current, &self.wake)) {
                wakers.remove(partition);
                disable();
            }
        } else {
            disable();
        }
        // SAFETY: our reference, given back once.
        unsafe { rd::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// The oldest kept offset of a partition and the next to be written, each as the last fetch told it.
pub(super) fn known_ends(client: &dyn Native, topic: &CStr, partition: i32) -> (Option<Offset>, Option<Offset>) {
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client lives; the topic's text is read during the call; the offsets are written.
    let answer =
        unsafe { rd::rd_kafka_get_watermark_offsets(client.native(), topic.as_ptr(), partition, &mut low, &mut high) };
    let known = |offset: Offset| (Code::from(answer) == Code::NoError && offset >= 0).then_some(offset);
    (known(low), known(high))
}

/// What a queue of events tells.
pub(super) enum Event {
    /// So many records have their reports, and so many of them are stored.
    Delivered { reports: usize, stored: usize },
    /// A client-wide error.
    Error { code: Code, fatal: bool, text: String },
    /// A line for the log.
    Log { level: RDKafkaLogLevel, facility: String, text: String },
    /// The answer to a commit.
    Committed(Result<(), Code>),
    /// Something that nobody here waits for.
    Other,
}

/// # Safety
/// The event lives, and its delivery reports carry the slots of [`produce`].
unsafe fn read_event(event: NonNull<rd::rd_kafka_event_t>) -> Event {
    let event = event.as_ptr();
    // SAFETY: the caller's promise. Texts and lists are the event's own and copied before this returns.
    unsafe {
        match rd::rd_kafka_event_type(event) {
            rd::RD_KAFKA_EVENT_DR => produce::settle(event),
            rd::RD_KAFKA_EVENT_ERROR => Event::Error {
                code: rd::rd_kafka_event_error(event).into(),
                fatal: rd::rd_kafka_event_error_is_fatal(event) != 0,
                text: text(rd::rd_kafka_event_error_string(event)),
            },
            rd::RD_KAFKA_EVENT_LOG => {
                let (mut facility, mut line, mut level) = (ptr::null(), ptr::null(), 0);
                rd::rd_kafka_event_log(event, &mut facility, &mut line, &mut level);
                Event::Log { level: log_level(level), facility: text(facility), text: text(line) }
            }
            rd::RD_KAFKA_EVENT_OFFSET_COMMIT => Event::Committed(committed(event)),
            _ => Event::Other,
        }
    }
}

/// # Safety
/// As for [`read_event`], of an answer to a commit.
unsafe fn committed(event: *mut rd::rd_kafka_event_t) -> Result<(), Code> {
    // SAFETY: the list is the event's, with `cnt` elements.
    unsafe {
        let overall = Code::from(rd::rd_kafka_event_error(event));
        if overall != Code::NoError {
            return Err(overall);
        }
        let Some(list) = rd::rd_kafka_event_topic_partition_list(event).as_ref() else { return Ok(()) };
        let failed = (0..list.cnt).map(|at| Code::from((*list.elems.add(at as usize)).err));
        failed.into_iter().find(|code| *code != Code::NoError).map_or(Ok(()), Err)
    }
}

/// # Safety
/// `text` is null or ends with a zero byte.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// The levels are syslog's.
fn log_level(level: c_int) -> RDKafkaLogLevel {
    match level {
        0..=3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}

/// Asks the coordinator to keep offsets; the answer comes to `answer` as [`Event::Committed`].
pub(super) fn commit(offsets: &rdkafka::TopicPartitionList, answer: &Queue) -> Result<(), Code> {
    let client = answer.client.native();
    // SAFETY: client, list and queue live; the library copies the list.
    let refused =
        unsafe { rd::rd_kafka_commit_queue(client, offsets.ptr(), answer.queue.as_ptr(), None, ptr::null_mut()) };
    let code = Code::from(refused);
    if code == Code::NoError { Ok(()) } else { Err(code) }
}

/// Asks any broker for what the client knows already, to see whether one answers. Blocks.
pub(super) fn reach(client: &dyn Native, millis: c_int) -> Result<(), Code> {
    let mut metadata = ptr::null();
    // SAFETY: the client lives; the answer is written on success, and destroyed once.
    unsafe {
        let code = Code::from(rd::rd_kafka_metadata(client.native(), 0, ptr::null_mut(), &mut metadata, millis));
        if code != Code::NoError {
            return Err(code);
        }
        rd::rd_kafka_metadata_destroy(metadata);
    }
    Ok(())
}

/// Raises a fatal error, as if the library had found one.
#[cfg(test)]
pub(super) fn fail(client: &dyn Native) {
    let out_of_order = rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    // SAFETY: the client lives; the text is read during the call.
    unsafe { rd::rd_kafka_test_fatal_error(client.native(), out_of_order, c"by a test".as_ptr()) };
}

/// Gives up all records that are not acknowledged: each is reported soon.
pub(super) fn purge(client: &dyn Native) {
    // SAFETY: the client lives.
    unsafe { rd::rd_kafka_purge(client.native(), rd::RD_KAFKA_PURGE_F_QUEUE | rd::RD_KAFKA_PURGE_F_INFLIGHT) };
}

/// Makes a producer's client report deliveries, errors and logs as events.
pub(super) fn report_events(config: &NativeClientConfig) {
    let events = rd::RD_KAFKA_EVENT_DR | rd::RD_KAFKA_EVENT_ERROR;
    // SAFETY: the configuration lives.
    unsafe { rd::rd_kafka_conf_set_events(config.ptr(), events) };
}
