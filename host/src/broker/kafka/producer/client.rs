//! One librdkafka producer and the thread that serves it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::c_int;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::Client as LibraryClient;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::types::{RDKafka, RDKafkaType};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::Unqueued;
use crate::broker::kafka::config::refused_by_library;
use crate::broker::kafka::ends::{ends, left};
use crate::broker::kafka::errors::code_of;
use crate::broker::kafka::ffi::{self, Event, Native, Queue, Topic};
use crate::broker::kafka::listener::Listener;
use crate::broker::{BrokerError, SendError};

/// How long the thread waits for an event before it looks whether it should end.
const POLL_MILLIS: c_int = 200;

/// How long a client that is no longer used may still deliver what it has.
const PARTING_DEADLINE: Duration = Duration::from_secs(10);

/// How long one try to reach a broker takes at most, and the pause between two.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a topic that nobody knows yet is waited for: it may just have been made.
const NEW_TOPIC_DEADLINE: Duration = Duration::from_secs(2);

/// How soon a topic without a leader is asked for again.
const NEW_TOPIC_INTERVAL: Duration = Duration::from_millis(50);

/// Topics that are kept at hand; a producer of more looks them up anew.
const TOPICS_MAX: usize = 1024;

/// One librdkafka client. Its thread is always the last to hold it, because giving it back blocks.
pub(super) struct Client {
    topics: Mutex<HashMap<Arc<str>, Arc<Topic>>>,
    library: Arc<Library>,
    /// Records with the library and not reported yet.
    in_flight: AtomicUsize,
    /// Told after each event that reported deliveries: there is room, or nothing in flight.
    reported: Notify,
    /// Whether a broker answered of late.
    up: AtomicBool,
    probing: AtomicBool,
    /// A fatal error: it takes no record any more.
    dead: AtomicBool,
    /// Nobody sends by it any more: its thread ends once nothing is in flight.
    parting: AtomicBool,
}

/// What topics and queues keep alive.
struct Library(LibraryClient<Listener>);

impl Native for Library {
    fn native(&self) -> *mut RDKafka {
        self.0.native_ptr()
    }
}

/// How far records came to the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    /// All are with it, or refused one by one.
    All,
    /// There is no room for the next.
    Full,
    /// It takes none any more.
    Dead,
}

impl Client {
    /// Makes a client. It connects on its own, but reports only once [`serve`] runs.
    pub(super) fn new(config: &ClientConfig) -> Result<Self, BrokerError> {
        let native = config.create_native_config().map_err(refused_by_library)?;
        ffi::report_events(&native);
        let listener = Listener::new("producer");
        let library = LibraryClient::new(config, native, RDKafkaType::RD_KAFKA_PRODUCER, listener);
        Ok(Self {
            topics: Mutex::default(),
            library: Arc::new(Library(library.map_err(refused_by_library)?)),
            in_flight: AtomicUsize::new(0),
            reported: Notify::new(),
            up: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            parting: AtomicBool::new(false),
        })
    }

    /// Whether it can reach a broker, as far as it knows.
    pub(super) fn ready(&self) -> bool {
        self.up.load(Ordering::Relaxed) && !self.dead.load(Ordering::Relaxed)
    }

    /// Raises a fatal error.
    #[cfg(test)]
    pub(super) fn fail(&self) {
        ffi::fail(&*self.library);
    }

    /// The fatal error that it had, if any.
    pub(super) fn fatal(&self) -> Option<(Code, String)> {
        self.library.0.fatal_error()
    }

    /// Tells its thread that nobody sends by it any more.
    pub(super) fn part(&self) {
        self.parting.store(true, Ordering::SeqCst);
    }

    /// The same, and gives up at once what is not acknowledged.
    pub(super) fn part_at_once(&self) {
        self.purge();
        self.part();
    }

    /// Gives up what is not acknowledged: each record is reported then, as never sent or as unknown.
    pub(super) fn purge(&self) {
        ffi::purge(&*self.library);
    }

    /// Waits until nothing is in flight.
    pub(super) async fn all_reported(&self) {
        loop {
            let mut reported = pin!(self.reported());
            reported.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            reported.await;
        }
    }

    /// What the library's calls are made on.
    pub(super) fn native(&self) -> &dyn Native {
        &*self.library
    }

    /// How many records are with the library and not reported.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Resolves after the next event that reports deliveries.
    pub(super) fn reported(&self) -> Notified<'_> {
        self.reported.notified()
    }

    /// Gives records to the library in order, until it has no room.
    pub(super) fn queue(&self, unqueued: &mut Unqueued) -> Queued {
        let waiting = unqueued.batch.records().len() - unqueued.next;
        // Counted before, because the first reports may come while the last are still queued.
        self.in_flight.fetch_add(waiting, Ordering::AcqRel);
        let mut taken = 0;
        let queued = self.queue_counted(unqueued, &mut taken);
        if taken < waiting {
            self.in_flight.fetch_sub(waiting - taken, Ordering::AcqRel);
            self.reported.notify_waiters();
        }
        queued
    }

    fn queue_counted(&self, unqueued: &mut Unqueued, taken: &mut usize) -> Queued {
        let batch = Arc::clone(&unqueued.batch);
        let mut last: Option<(&Arc<str>, Arc<Topic>)> = None;
        while let Some(record) = batch.records().get(unqueued.next) {
            let topic = match &last {
                Some((name, topic)) if **name == record.topic => topic,
                Some(_) | None => match self.topic(&record.topic) {
                    Some(topic) => &last.insert((&record.topic, topic)).1,
                    None => {
                        unqueued.refuse_next(Code::InvalidTopic);
                        continue;
                    }
                },
            };
            match ffi::produce(topic, &batch, unqueued.next) {
                Ok(()) => {
                    *taken += 1;
                    unqueued.next += 1;
                }
                Err(Code::QueueFull) => return Queued::Full,
                Err(Code::Fatal) => {
                    self.dead.store(true, Ordering::SeqCst);
                    return Queued::Dead;
                }
                Err(code) => unqueued.refuse_next(code),
            }
        }
        Queued::All
    }

    fn topic(&self, name: &Arc<str>) -> Option<Arc<Topic>> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(topic) = topics.get(name) {
            return Some(Arc::clone(topic));
        }
        if topics.len() >= TOPICS_MAX {
            topics.clear();
        }
        let library: Arc<dyn Native> = Arc::clone(&self.library) as _;
        let topic = Arc::new(Topic::new(library, name)?);
        topics.insert(Arc::clone(name), Arc::clone(&topic));
        Some(topic)
    }

    /// Learns the topics' leaders and connects to them. Blocks at most until the deadline.
    pub(super) fn warm(&self, topics: &[Arc<str>], deadline: Instant) -> Result<(), SendError> {
        ffi::reach(&*self.library, millis_until(deadline)).map_err(|code| self.unavailable(&code.to_string()))?;
        self.up.store(true, Ordering::Relaxed);
        topics.iter().try_for_each(|topic| self.warm_topic(topic, deadline))
    }

    fn warm_topic(&self, topic: &Arc<str>, deadline: Instant) -> Result<(), SendError> {
        // The library forgets a topic that nobody holds.
        let _held = self.topic(topic).ok_or_else(|| SendError::NoSuchTopic(topic.to_string()))?;
        let unknown_until = deadline.min(Instant::now() + NEW_TOPIC_DEADLINE);
        loop {
            let code = match self.connect(topic, deadline) {
                Ok(()) => return Ok(()),
                Err(code) => code,
            };
            let (until, error) = match code {
                Code::UnknownTopicOrPartition | Code::UnknownTopic => {
                    (unknown_until, SendError::NoSuchTopic(topic.to_string()))
                }
                Code::InvalidTopic => return Err(SendError::NoSuchTopic(topic.to_string())),
                Code::TopicAuthorizationFailed => return Err(SendError::Denied(topic.to_string())),
                code => (deadline, self.unavailable(&code.to_string())),
            };
            if Instant::now() >= until {
                return Err(error);
            }
            std::thread::sleep(NEW_TOPIC_INTERVAL);
        }
    }

    /// How many partitions a topic has; none when it is not there. Blocks at most until the deadline.
    pub(super) fn partitions(&self, topic: &str, deadline: Instant) -> Result<i32, Code> {
        let metadata = self.library.0.fetch_metadata(Some(topic), left(deadline)).map_err(|error| code_of(&error))?;
        Ok(metadata.topics().first().map_or(0, |found| found.partitions().len() as i32))
    }

    /// Asks each leader of a topic something small, so that the connection stands.
    fn connect(&self, topic: &str, deadline: Instant) -> Result<(), Code> {
        let metadata = self.library.0.fetch_metadata(Some(topic), left(deadline)).map_err(|error| code_of(&error))?;
        let found = metadata.topics().first().ok_or(Code::UnknownTopic)?;
        if let Some(problem) = found.error() {
            return Err(problem.into());
        }
        let mut connected = BTreeSet::new();
        for partition in found.partitions() {
            if partition.leader() < 0 {
                return Err(Code::LeaderNotAvailable);
            }
            if connected.insert(partition.leader()) {
                ends(&self.library.0, topic, partition.id(), deadline)?;
            }
        }
        Ok(())
    }

    fn unavailable(&self, text: &str) -> SendError {
        SendError::Unavailable(self.library.0.context().with_cause(text))
    }

    /// Looks for a broker on a thread of its own until one answers; `ready` is false meanwhile, unless the first does.
    fn probe(self: &Arc<Self>) {
        if self.probing.swap(true, Ordering::SeqCst) {
            return;
        }
        let weak = Arc::downgrade(self);
        let probing = move || {
            while let Some(client) = weak.upgrade() {
                if client.parting.load(Ordering::SeqCst) || client.look() {
                    client.probing.store(false, Ordering::SeqCst);
                    return;
                }
                drop(client);
                std::thread::sleep(PROBE_INTERVAL);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("kafka probe".into()).spawn(probing) {
            self.probing.store(false, Ordering::SeqCst);
            tracing::warn!(%error, "no thread to look for a broker");
        }
    }

    fn look(&self) -> bool {
        let answered = ffi::reach(&*self.library, PROBE_INTERVAL.as_millis() as c_int).is_ok();
        self.up.store(answered, Ordering::Relaxed);
        answered
    }
}

/// Serves a client's events until nobody sends by it, then waits for what is in flight and gives the client back.
pub(super) fn serve(mut client: Arc<Client>, replace: impl Fn(&Arc<Client>)) {
    let events = Queue::main(Arc::clone(&client.library) as _);
    let mut parting_since = None;
    let mut purged = false;
    client.probe();
    loop {
        if let Some(event) = events.poll(POLL_MILLIS) {
            heed(&client, &event, &replace);
        }
        if !client.parting.load(Ordering::SeqCst) {
            continue;
        }
        let since = *parting_since.get_or_insert_with(Instant::now);
        if client.in_flight() == 0 {
            // Whoever queues just now holds it, too.
            client = match Arc::try_unwrap(client) {
                Ok(_last) => return,
                Err(client) => client,
            };
        }
        if since.elapsed() > PARTING_DEADLINE && !purged {
            client.purge();
            purged = true;
        }
    }
}

fn heed(client: &Arc<Client>, event: &Event, replace: &impl Fn(&Arc<Client>)) {
    let fatal = client.library.0.context().hear(event);
    match event {
        Event::Delivered { reports, stored } => {
            client.in_flight.fetch_sub(*reports, Ordering::AcqRel);
            client.reported.notify_waiters();
            if *stored > 0 {
                client.up.store(true, Ordering::Relaxed);
            } else {
                client.probe();
            }
        }
        Event::Error { code: Code::AllBrokersDown, .. } => {
            client.up.store(false, Ordering::Relaxed);
            client.probe();
        }
        Event::Error { .. } | Event::Log { .. } | Event::Committed(_) | Event::Other => {}
    }
    if let Some(cause) = fatal {
        tracing::error!(cause, "the producer has a fatal error");
        client.dead.store(true, Ordering::SeqCst);
        replace(client);
    }
}

pub(super) fn millis_until(deadline: Instant) -> c_int {
    left(deadline).as_millis().try_into().unwrap_or(c_int::MAX)
}
