//! Records at a fixed rate, and when what was made of them came out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use xtask::lab::wait;

use super::micros;
use crate::topics;

const POLL: Duration = Duration::from_millis(20);

/// A record to be sent.
pub(crate) struct Sent<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    /// Its key is this and the partition.
    pub(crate) key: String,
    /// How long the guest takes for it.
    pub(crate) work: Duration,
}

/// An output that came out.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    topic: &'static str,
    /// Of the record that it was made of.
    partition: i32,
    pub(crate) key: String,
    /// The number of its record.
    number: u64,
    /// When its record was due, in microseconds.
    due: u64,
    arrived: u64,
}

impl Arrival {
    /// From when its record was due.
    pub(crate) fn latency(&self) -> Duration {
        Duration::from_micros(self.arrived.saturating_sub(self.due))
    }
}

/// Sends records, each when it is due.
pub(crate) struct Load {
    producer: ThreadedProducer<DefaultProducerContext>,
    origin: Instant,
}

impl Load {
    pub(crate) fn new(bootstrap: &str, meter: &Meter) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { producer: topics::producer(bootstrap, 0)?, origin: meter.origin }))
    }

    /// Sends so many records, so many a second.
    pub(crate) fn send<'a>(&self, rate: u64, records: u64, record: impl Fn(u64) -> Sent<'a>) {
        let start = micros(self.origin);
        (0..records).for_each(|number| self.send_one(start, rate, number, &record(number)));
    }

    /// Sends records until it is stopped.
    pub(crate) fn keep_sending(
        self: &Arc<Self>,
        rate: u64,
        record: impl Fn(u64) -> Sent<'static> + Send + 'static,
    ) -> Steady {
        let stop = Arc::new(AtomicBool::new(false));
        let (load, stopped) = (Arc::clone(self), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let start = micros(load.origin);
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                load.send_one(start, rate, number, &record(number));
                number += 1;
            }
            number
        });
        Steady { stop, thread }
    }

    fn send_one(&self, start: u64, rate: u64, number: u64, record: &Sent<'_>) {
        let due = start + number * 1_000_000 / rate;
        thread::sleep(Duration::from_micros(due.saturating_sub(micros(self.origin))));
        let key = format!("{}/{}", record.partition, record.key);
        let value = format!("{} {due} {number}", record.work.as_micros());
        topics::send(
            &self.producer,
            BaseRecord::to(record.topic).partition(record.partition).key(&key).payload(value.as_bytes()),
        );
    }
}

/// A load that goes on.
pub(crate) struct Steady {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Steady {
    /// Ends it, and answers how many records it has sent.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("sending does not panic")
    }
}

/// Reads outputs as they come, and notes when.
pub(crate) struct Meter {
    origin: Instant,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    stop: Arc<AtomicBool>,
}

impl Meter {
    /// Reads all partitions of these topics from their beginning.
    pub(crate) fn start(bootstrap: &str, topics: &[&'static str]) -> Result<Self> {
        let mut config = topics::client(bootstrap);
        config.set("group.id", "meter").set("enable.auto.commit", "false").set("fetch.queue.backoff.ms", "1");
        let consumer: BaseConsumer = config.create()?;
        let mut places = TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer.fetch_metadata(Some(topic), super::PATIENCE)?;
            let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            for partition in partitions {
                places.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
            }
        }
        consumer.assign(&places)?;
        let meter = Self { origin: Instant::now(), arrivals: Arc::default(), stop: Arc::default() };
        let (origin, arrivals, stop) = (meter.origin, Arc::clone(&meter.arrivals), Arc::clone(&meter.stop));
        let topics = topics.to_vec();
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // What failed is tried again; what is missing in the end is told then.
                let Some(Ok(message)) = consumer.poll(POLL) else { continue };
                let arrived = micros(origin);
                let topic = topics.iter().find(|topic| **topic == message.topic());
                if let Some(arrival) = topic.and_then(|topic| read(topic, &message, arrived)) {
                    lock(&arrivals).push(arrival);
                }
            }
        });
        Ok(meter)
    }

    pub(crate) fn now(&self) -> u64 {
        micros(self.origin)
    }

    pub(crate) fn forget(&self) {
        lock(&self.arrivals).clear();
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        lock(&self.arrivals).clone()
    }

    pub(crate) fn wait_for(&self, outputs: usize, patience: Duration) -> Result<()> {
        let arrived = || Ok((lock(&self.arrivals).len() >= outputs).then_some(()));
        wait::until(&format!("{outputs} outputs"), patience, arrived)
            .with_context(|| format!("only {} came", lock(&self.arrivals).len()))
    }

    /// Waits until each of so many records has come out: once at least, since a drain that is cut off repeats.
    pub(crate) fn wait_for_each(&self, records: u64, patience: Duration) -> Result<()> {
        wait::until(&format!("outputs of {records} records"), patience, || {
            let numbers: BTreeSet<u64> = lock(&self.arrivals).iter().map(|arrival| arrival.number).collect();
            Ok((numbers.len() as u64 >= records).then_some(()))
        })
    }

    /// Waits until outputs come into a topic.
    pub(crate) fn wait_for_topic(&self, topic: &str, since: u64, patience: Duration) -> Result<()> {
        wait::until(&format!("outputs in {topic}"), patience, || {
            Ok((!self.partitions_of(topic, since).is_empty()).then_some(()))
        })
    }

    /// The partitions whose outputs came into this topic.
    pub(crate) fn partitions_of(&self, topic: &str, since: u64) -> BTreeSet<i32> {
        let arrivals = lock(&self.arrivals);
        arrivals.iter().filter(|a| a.topic == topic && a.arrived >= since).map(|a| a.partition).collect()
    }

    /// For each partition the longest time without an output between two moments, in milliseconds; slow records don't count.
    pub(crate) fn gaps(&self, from: u64, to: u64, which: impl Fn(i32) -> bool) -> BTreeMap<i32, f64> {
        let mut times: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
        for arrival in lock(&self.arrivals).iter().filter(|arrival| arrival.key != super::SLOW_KEY) {
            if which(arrival.partition) {
                let times = times.entry(arrival.partition).or_insert_with(|| vec![from, to]);
                times.push(arrival.arrived.clamp(from, to));
            }
        }
        let longest = |mut times: Vec<u64>| {
            times.sort_unstable();
            times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
        };
        times.into_iter().map(|(partition, times)| (partition, longest(times) as f64 / 1e3)).collect()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn read(topic: &'static str, message: &impl Message, arrived: u64) -> Option<Arrival> {
    let (partition, key) = str::from_utf8(message.key()?).ok()?.split_once('/')?;
    let mut value = str::from_utf8(message.payload()?).ok()?.split(' ').skip(1);
    let due = value.next()?.parse().ok()?;
    let number = value.next()?.parse().ok()?;
    Some(Arrival { topic, partition: partition.parse().ok()?, key: key.to_owned(), number, due, arrived })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
