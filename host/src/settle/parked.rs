//! The parked topic: writes it, and waits until that is acknowledged.
//!
//! A handler has one for each of its topics, with as many partitions: a record is parked in the partition with its own
//! number.

mod entry;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::lanes::LaneId;
use tidemill_core::offset_set::OffsetSet;
use tidemill_core::partition::CallRecord;
use tidemill_core::record::{Offset, TopicPartition};
use tokio_util::sync::CancellationToken;

pub use self::entry::Why;
pub(crate) use self::entry::{Entry, restored, source_of};
use self::entry::{Way, notice, parked, receipt};
use super::Stop;
use super::dead_letter::{DELAY_MAX, DELAY_MIN, STALLED_INTERVAL};
use super::letter::Size;
use super::told::Told;
use crate::broker::{Outgoing, Position, Producer, SendError, WhenFull};
use crate::fault::Fault;

/// A record that is to be parked, and why, if it is the one that failed.
#[derive(Debug)]
pub(crate) struct ToPark {
    pub(crate) record: CallRecord,
    pub(crate) failure: Option<Stop>,
}

/// What was to be written was not before the partition was revoked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GivenUp;

/// Writes the parked topics of one handler.
pub struct ParkedTopics {
    handler: Arc<str>,
    producer: Arc<dyn Producer>,
    stalled: Told,
}

impl ParkedTopics {
    /// Those of a handler.
    pub fn new(handler: Arc<str>, producer: Arc<dyn Producer>) -> Self {
        Self { handler, producer, stalled: Told::default() }
    }

    /// Where a partition's records are parked.
    pub(crate) fn place_of(&self, from: &TopicPartition) -> TopicPartition {
        TopicPartition::new(topic_for(&from.topic, &self.handler), from.partition)
    }

    /// Notes who has the partition from now on. Answers where that stands: what is behind it counts only if it is this owner's.
    pub(crate) async fn claim(&self, place: &TopicPartition, owner: &Arc<str>) -> Result<Offset, SendError> {
        self.send_one(notice(place, owner)).await
    }

    /// The same, where somebody else's notice came in between; returns once it is acknowledged, however long it takes.
    pub(crate) async fn claim_again(
        &self,
        place: &TopicPartition,
        owner: &Arc<str>,
        revoked: &CancellationToken,
    ) -> Result<(), GivenUp> {
        self.insist(place, || notice(place, owner), revoked).await
    }

    /// Notes that parked records were handled; returns once that is acknowledged, however long it takes.
    pub(crate) async fn note(
        &self,
        place: &TopicPartition,
        handled: &OffsetSet,
        revoked: &CancellationToken,
    ) -> Result<(), GivenUp> {
        self.insist(place, || receipt(place, handled), revoked).await
    }

    async fn insist(
        &self,
        place: &TopicPartition,
        entry: impl Fn() -> Outgoing,
        revoked: &CancellationToken,
    ) -> Result<(), GivenUp> {
        let mut delay = DELAY_MIN;
        loop {
            match self.send_one(entry()).await {
                Ok(_) => return Ok(()),
                Err(error) => self.tell(place, 1, &error),
            }
            wait(&mut delay, revoked).await?;
        }
    }

    async fn send_one(&self, entry: Outgoing) -> Result<Offset, SendError> {
        let silent = || Err(SendError::Unknown("the producer gave no answer".to_owned()));
        let sent = self.producer.send(vec![entry], WhenFull::Wait).await.pop().unwrap_or_else(silent);
        sent.and_then(known)
    }

    /// Parks records; returns where each lies, once that is acknowledged. While they can't be written they wait, and that is
    /// said. Once the partition is revoked what can't be written is given up: `None`, and so is all of a lane behind it.
    ///
    /// The records of a lane stand in order: each says behind which one of those that are sent with it, and does not count
    /// where that one was not written. It is written again behind it.
    pub(crate) async fn park(
        &self,
        from: &TopicPartition,
        owner: &Arc<str>,
        records: &[ToPark],
        revoked: &CancellationToken,
    ) -> Vec<Option<Offset>> {
        if Fault::ParkedNotAwaited.is_on() {
            return records.iter().map(|to_park| Some(to_park.record.record.offset())).collect();
        }
        let place = self.place_of(from);
        let mut places = vec![None; records.len()];
        let mut open: Vec<(usize, Size)> = (0..records.len()).map(|index| (index, Size::Whole)).collect();
        let mut delay = DELAY_MIN;
        loop {
            let way = Way { from, place: &place, owner };
            let mut last_of: BTreeMap<LaneId, Offset> = BTreeMap::new();
            let entry = |(index, size): &(usize, Size)| {
                let to_park = &records[*index];
                let behind = last_of.insert(to_park.record.lane, to_park.record.record.offset());
                parked(&way, to_park, behind, *size)
            };
            let entries = open.iter().map(entry).collect();
            let results = self.producer.send(entries, WhenFull::Wait).await.into_iter();
            let silent = || Err(SendError::Unknown("the producer gave no answer".to_owned()));
            let mut failed_lanes: Vec<LaneId> = Vec::new();
            let mut failure = None;
            let mut left = Vec::new();
            for ((index, size), result) in open.into_iter().zip(results.chain(std::iter::repeat_with(silent))) {
                let lane = records[index].record.lane;
                match result.and_then(known) {
                    Ok(at) if !failed_lanes.contains(&lane) => places[index] = Some(at),
                    Ok(_ahead_of_its_turn) => left.push((index, size)),
                    Err(error) => {
                        failed_lanes.push(lane);
                        let shorter = matches!(error, SendError::TooLarge(_)) && size == Size::Whole;
                        left.push((index, if shorter { Size::Bare } else { size }));
                        failure = failure.or((!shorter).then_some(error));
                    }
                }
            }
            open = left;
            if open.is_empty() {
                if self.stalled.is_over() {
                    tracing::info!(handler = &*self.handler, topic = &*place.topic, "records can be parked again");
                }
                return places;
            }
            let Some(error) = failure else { continue };
            self.tell(&place, open.len(), &error);
            if wait(&mut delay, revoked).await.is_err() {
                return places;
            }
        }
    }

    fn tell(&self, place: &TopicPartition, entries: usize, error: &SendError) {
        if self.stalled.is_due(STALLED_INTERVAL) {
            tracing::error!(
                handler = &*self.handler, topic = &*place.topic, partition = place.partition, entries, %error,
                mend = cure(error, place), "the parked topic can't be written; the keys wait, and nothing is skipped"
            );
        }
    }
}

/// The topic in which a handler's records of a topic are parked.
pub fn topic_for(source: &str, handler: &str) -> String {
    format!("{source}.{handler}.parked")
}

/// An acknowledgement without an offset is none: where the record lies is not known.
fn known(position: Position) -> Result<Offset, SendError> {
    if position.offset == Position::UNKNOWN {
        let cure = "the producer does not wait for acknowledgements of the parked topic; leave it out of its `acks`";
        return Err(SendError::Rejected(cure.to_owned()));
    }
    Ok(position.offset)
}

async fn wait(delay: &mut Duration, revoked: &CancellationToken) -> Result<(), GivenUp> {
    tokio::select! {
        biased;
        () = tokio::time::sleep(*delay) => {
            *delay = (*delay * 2).min(DELAY_MAX);
            Ok(())
        }
        () = revoked.cancelled() => Err(GivenUp),
    }
}

/// What an operator can do about a parked topic that can't be written.
fn cure(error: &SendError, place: &TopicPartition) -> String {
    let TopicPartition { topic, partition } = place;
    match error {
        SendError::NoSuchTopic(_) => format!(
            "make it with as many partitions as the source, at least {}: tidemill topic create {topic} --partitions N; \
             and keep it for ever: kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics \
             --entity-name {topic} --add-config retention.ms=-1,retention.bytes=-1",
            partition + 1
        ),
        SendError::Denied(_) => format!(
            "allow it: kafka-acls.sh --bootstrap-server HOST:PORT --add --allow-principal User:NAME \
             --operation Write --operation Read --operation Describe --topic {topic}"
        ),
        SendError::TooLarge(_) => format!(
            "let the topic take it: kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics \
             --entity-name {topic} --add-config max.message.bytes=BYTES; on the embedded log raise `record_bytes_max`"
        ),
        SendError::Rejected(_) => format!("do what the words ask for at topic `{topic}`"),
        SendError::QueueFull | SendError::Unavailable(_) | SendError::Unknown(_) => {
            "nothing: it goes on by itself once the broker answers".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tidemill_core::parked::Written;
    use tidemill_core::record::Record;

    use super::entry::tests::in_the_log;
    use super::*;

    /// Answers as it is told, and keeps what it was sent.
    struct Scripted {
        answers: Mutex<VecDeque<Vec<Result<i64, SendError>>>>,
        sent: Mutex<Vec<Vec<Outgoing>>>,
    }

    impl Producer for Scripted {
        fn send(&self, records: Vec<Outgoing>, _: WhenFull) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
            self.sent.lock().expect("not poisoned").push(records);
            let answers = self.answers.lock().expect("not poisoned").pop_front().expect("an answer is left");
            let position = |answer: Result<i64, _>| answer.map(|offset| Position { partition: 0, offset });
            std::future::ready(answers.into_iter().map(position).collect()).boxed()
        }

        fn ready(&self) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_parked_ahead_of_its_turn_does_not_count_and_is_parked_again_in_order() {
        let away = || Err(SendError::Unavailable("away".to_owned()));
        let answers = [vec![away(), Ok(10), Ok(11)], vec![Ok(20), Ok(21)]];
        let producer = Arc::new(Scripted { answers: Mutex::new(answers.into()), sent: Mutex::default() });
        let topics = ParkedTopics::new("h".into(), Arc::clone(&producer) as Arc<dyn Producer>);
        let to_park = |(offset, lane): (Offset, LaneId)| ToPark {
            record: CallRecord {
                record: Record::single(offset, Some(b"k"), None),
                lane,
                tries: 0,
                charged: 0,
                age: Duration::ZERO,
            },
            failure: None,
        };
        let records: Vec<ToPark> = [(5, 0), (6, 0), (7, 1)].into_iter().map(to_park).collect();
        let from = TopicPartition::new("orders", 0);
        let places = topics.park(&from, &"me".into(), &records, &CancellationToken::new()).await;
        assert_eq!(places, [Some(20), Some(21), Some(11)]);
        let sent = producer.sent.lock().expect("not poisoned");
        let read = |records: &Vec<Outgoing>| {
            let behind = |outgoing| {
                let Entry::Parked(Written { source, behind, .. }) = Entry::of(&in_the_log(outgoing)) else {
                    panic!("it is parked")
                };
                (source.offset, behind)
            };
            records.iter().map(behind).collect::<Vec<_>>()
        };
        assert_eq!(read(&sent[0]), [(5, None), (6, Some(5)), (7, None)]);
        assert_eq!(read(&sent[1]), [(5, None), (6, Some(5))]);
    }
}
