//! The transactional producer's calls. All but [`begin`] wait on the calling thread, for at most the time that is given.

use std::ffi::c_int;
use std::ptr::NonNull;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::{Native, text};

/// A group member as it was when this was taken: its generation and its id, which the coordinator checks.
#[derive(Debug)]
pub(in super::super) struct GroupMetadata(NonNull<rd::rd_kafka_consumer_group_metadata_t>);

// SAFETY: a plain structure that nobody changes once it is made; it may be read and destroyed on any thread.
unsafe impl Send for GroupMetadata {}
// SAFETY: as above.
unsafe impl Sync for GroupMetadata {}

impl GroupMetadata {
    /// The consumer's place now; `None` while it has no place that a coordinator would check: it would accept anything then.
    pub(in super::super) fn of(consumer: &dyn Native) -> Option<Self> {
        // SAFETY: the client lives; the answer is ours, and destroyed by `drop`.
        let this = Self(NonNull::new(unsafe { rd::rd_kafka_consumer_group_metadata(consumer.native()) })?);
        // SAFETY: it lives as long as `this`.
        let generation = unsafe { rd::rd_kafka_consumer_group_metadata_generation_id(this.0.as_ptr()) };
        // Below zero before the first; the newer protocol counts from 0, which is "not yet".
        (generation > 0 && !this.member_id().is_empty()).then_some(this)
    }

    /// The id that the coordinator knows the member by; another one after it was expelled.
    pub(in super::super) fn member_id(&self) -> String {
        // SAFETY: the text is the structure's, and copied before this returns.
        unsafe { text(rd::rd_kafka_consumer_group_metadata_member_id(self.0.as_ptr())) }
    }
}

impl Drop for GroupMetadata {
    fn drop(&mut self) {
        // SAFETY: ours, and destroyed once.
        unsafe { rd::rd_kafka_consumer_group_metadata_destroy(self.0.as_ptr()) };
    }
}

/// Why a transactional call failed, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({code})")]
pub(in super::super) struct Failure {
    pub(in super::super) code: Code,
    pub(in super::super) text: String,
    /// The client can only be dropped.
    pub(in super::super) fatal: bool,
    /// The same call may succeed later, and goes on with what the failed one began.
    pub(in super::super) retriable: bool,
}

/// Takes the client's transactional id over.
pub(in super::super) fn init(client: &dyn Native, millis: c_int) -> Result<(), Failure> {
    // SAFETY: the client lives.
    unsafe { taken(rd::rd_kafka_init_transactions(client.native(), millis)) }
}

/// Begins a transaction, which no broker hears of before its first record.
pub(in super::super) fn begin(client: &dyn Native) -> Result<(), Failure> {
    // SAFETY: the client lives.
    unsafe { taken(rd::rd_kafka_begin_transaction(client.native())) }
}

/// Sends what is queued at once, whatever lingers, and waits for the reports. False: not in time.
pub(in super::super) fn flush(client: &dyn Native, millis: c_int) -> bool {
    // SAFETY: the client lives.
    Code::from(unsafe { rd::rd_kafka_flush(client.native(), millis) }) == Code::NoError
}

/// Adds a group's offsets to the transaction.
pub(in super::super) fn send_offsets(
    client: &dyn Native,
    offsets: &TopicPartitionList,
    member: &GroupMetadata,
    millis: c_int,
) -> Result<(), Failure> {
    // SAFETY: client, list and metadata live; the library copies what it keeps.
    unsafe {
        let (offsets, member) = (offsets.ptr(), member.0.as_ptr());
        taken(rd::rd_kafka_send_offsets_to_transaction(client.native(), offsets, member, millis))
    }
}

/// Commits the transaction.
pub(in super::super) fn commit(client: &dyn Native, millis: c_int) -> Result<(), Failure> {
    // SAFETY: the client lives.
    unsafe { taken(rd::rd_kafka_commit_transaction(client.native(), millis)) }
}

/// Aborts the transaction; records that are not sent yet never are.
pub(in super::super) fn abort(client: &dyn Native, millis: c_int) -> Result<(), Failure> {
    // SAFETY: the client lives.
    unsafe { taken(rd::rd_kafka_abort_transaction(client.native(), millis)) }
}

/// # Safety
/// `error` is null or an error that nobody else destroys.
unsafe fn taken(error: *mut rd::rd_kafka_error_t) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise; the text is copied before the error is destroyed.
    unsafe {
        let failure = Failure {
            code: rd::rd_kafka_error_code(error).into(),
            text: text(rd::rd_kafka_error_string(error)),
            fatal: rd::rd_kafka_error_is_fatal(error) != 0,
            retriable: rd::rd_kafka_error_is_retriable(error) != 0,
        };
        rd::rd_kafka_error_destroy(error);
        Err(failure)
    }
}
