//! One host's producer: in order, sometimes late, refused, or without an answer.

use std::str;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use tidemill_core::record::Offset;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::broker::SimBroker;
use super::parked::is_of_parked;
use super::trace::{Answer, Sent, Source, What};
use super::world::State;
use crate::broker::{Outgoing, Position, Producer, SendError, WhenFull};
use crate::settle::letter::header;

/// Where outputs go. What lies in it names the record that it belongs to.
pub(super) const OUT: &str = "out";
/// How long something waits to be sent.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(8);

pub(super) struct SimProducer {
    broker: SimBroker,
    /// When what was sent last is at the broker.
    busy_until: Mutex<Instant>,
}

impl SimProducer {
    pub(super) fn new(broker: SimBroker) -> Self {
        Self { broker, busy_until: Mutex::new(Instant::now()) }
    }
}

impl Producer for SimProducer {
    fn send(&self, records: Vec<Outgoing>, _: WhenFull) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        let broker = self.broker.clone();
        let arrives = {
            let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
            let millis = broker.world.lock().dice.u64(1..20);
            *busy_until = Instant::now().max(*busy_until) + Duration::from_millis(millis);
            *busy_until
        };
        async move {
            broker.life.alive().await;
            let (answer, answered) = oneshot::channel();
            // Dropping what waits for the answer does not unsend it.
            tokio::spawn(async move {
                tokio::time::sleep_until(arrives).await;
                let up = broker.life.up_within(MESSAGE_DEADLINE).await;
                let _nobody_waits = answer.send(broker.store(&records, up));
            });
            match answered.await {
                Ok(results) => results,
                Err(_) => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn ready(&self) -> bool {
        true
    }
}

impl SimBroker {
    /// What arrives is stored, or not, and the answer comes, or not.
    fn store(&self, records: &[Outgoing], up: bool) -> Vec<Result<Position, SendError>> {
        let mut state = self.world.lock();
        let store = |record: &Outgoing| {
            if is_of_parked(record) {
                return self.store_parked(&mut state, record, up);
            }
            let (source, sent) = named(record);
            let result = if up { self.store_one(&mut state, record, source, sent) } else { Err(timed_out()) };
            let answer = match &result {
                Ok(_) => Answer::Stored,
                Err(SendError::TooLarge(_) | SendError::Rejected(_)) => Answer::Refused,
                Err(_) => Answer::Failed,
            };
            self.world.note_in(&mut state, What::Answered(self.life.host, source, sent, answer));
            result
        };
        records.iter().map(store).collect()
    }

    fn store_one(
        &self,
        state: &mut State,
        record: &Outgoing,
        source: Source,
        sent: Sent,
    ) -> Result<Position, SendError> {
        if is_large(record) {
            return Err(too_large());
        }
        let topic = if sent == Sent::Letter { "letters" } else { "outputs" };
        if state.away.contains(topic) {
            return Err(if state.dice.bool() { SendError::Denied(topic.to_owned()) } else { timed_out() });
        }
        if state.mishap(|rates| rates.send) {
            match state.dice.u8(..4) {
                0 => return Err(SendError::Unavailable("no leader".to_owned())),
                1 => return Err(timed_out()),
                2 => return Err(SendError::QueueFull),
                _ => {}
            }
            self.world.note_in(state, What::Stored(source, sent));
            return Err(timed_out());
        }
        self.world.note_in(state, What::Stored(source, sent));
        Ok(Position { partition: 0, offset: 0 })
    }
}

pub(super) fn timed_out() -> SendError {
    SendError::Unknown("time-out".to_owned())
}

pub(super) fn too_large() -> SendError {
    SendError::TooLarge("more than the topic allows".to_owned())
}

/// An output that belongs to a record.
pub(super) fn output((partition, offset): Source, place: usize, large: bool) -> Outgoing {
    let size = if large { " large" } else { "" };
    Outgoing {
        topic: OUT.into(),
        partition: Some(0),
        timestamp_ms: None,
        key: None,
        value: Some(format!("{partition} {offset} {place}{size}").into_bytes().into()),
        headers: Vec::new(),
    }
}

pub(super) fn is_large(record: &Outgoing) -> bool {
    record.value.as_ref().is_some_and(|value| value.ends_with(b"large"))
}

/// Which record something belongs to, and what it is of it.
pub(super) fn named(record: &Outgoing) -> (Source, Sent) {
    if *record.topic == *OUT {
        let value = record.value.as_deref().unwrap_or_default();
        let words: Vec<&str> = str::from_utf8(value).expect("text").split(' ').collect();
        let number = |word: usize| words[word].parse::<Offset>().expect("a number");
        return ((number(0) as i32, number(1)), Sent::Output(number(2) as usize));
    }
    let header = |name: &str| {
        let found = record.headers.iter().rev().find(|header| header.name == name.as_bytes());
        let value = found.and_then(|header| header.value.as_deref()).expect("each letter has it");
        str::from_utf8(value).expect("text").parse::<Offset>().expect("a number")
    };
    ((header(header::PARTITION) as i32, header(header::OFFSET)), Sent::Letter)
}
