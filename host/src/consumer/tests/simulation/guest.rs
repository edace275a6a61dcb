//! The guest: what becomes of a record is a matter of the record, of the revision, and of chance. Which revision is live is
//! decided by what decides it for real guests: a host's [`Succession`](crate::guest::succession::Succession).

use std::sync::Arc;
use std::time::Duration;

use tidemill_core::partition::CallRecord;
use tidemill_core::retry::Class;

use super::broker::SimBroker;
use super::producer::output;
use super::story::Mode;
use super::trace::{Said, Source, What};
use super::world::{Revision, State};
use crate::attempt::Attempt;
use crate::guest::succession::Runs;
use crate::guest::{CallError, Outcome, Reason};
use crate::store::Value;

/// After this long a call is stopped.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// A revision of the guest on one host.
pub(super) struct Guest {
    broker: SimBroker,
    revision: Revision,
    digest: Arc<str>,
}

/// What a record does to its guest, by its nature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// So many outputs.
    Good(usize),
    Skipped,
    /// Fails so often.
    Flaky(u32),
    Poison,
    /// Traps the call that it is in.
    Trap,
    /// Takes so many milliseconds.
    Slow(u64),
    /// Its output is larger than the broker takes.
    Large,
}

/// One call, decided when it begins.
struct Fate {
    took: Duration,
    said: Result<Vec<(Said, bool)>, Class>,
}

impl Guest {
    pub(super) fn new(broker: &SimBroker, revision: Revision) -> Arc<Self> {
        let digest = format!("revision {}", revision.number).into();
        Arc::new(Self { broker: broker.clone(), revision, digest })
    }

    pub(super) fn number(&self) -> u32 {
        self.revision.number
    }

    fn nature(&self, (partition, offset): Source, state: &State) -> Nature {
        let plan = &self.broker.world.plan;
        let mut dice = fastrand::Rng::with_seed(plan.seed ^ ((partition as u64) << 32) ^ offset as u64);
        let good = Nature::Good(dice.usize(..3));
        match dice.u8(..100) {
            _ if state.well => good,
            0..8 => Nature::Skipped,
            8..20 => Nature::Flaky(dice.u32(1..4)),
            20..26 => Nature::Poison,
            26..31 => Nature::Trap,
            31..34 => Nature::Slow(dice.u64(100..3000)),
            34..37 if plan.has_large() => Nature::Large,
            _ => good,
        }
    }

    fn fate(&self, partition: i32, records: &[CallRecord], state: &mut State) -> Fate {
        let mut millis = state.dice.u64(..20);
        let mut trap = self.revision.worse && !state.well && state.dice.u8(..3) == 0;
        let mut said = Vec::with_capacity(records.len());
        for record in records {
            let (mut what, mut large) = (Said::Ack(0), false);
            match self.nature((partition, record.record.offset()), state) {
                Nature::Good(outputs) => what = Said::Ack(outputs),
                Nature::Skipped => what = Said::Skip,
                Nature::Flaky(times) if record.tries < times => what = Said::Retry,
                Nature::Flaky(_) => what = Said::Ack(1),
                Nature::Poison => what = Said::Never,
                Nature::Trap => trap = true,
                Nature::Slow(more) => millis += more,
                Nature::Large => (what, large) = (Said::Ack(1), true),
            }
            if state.mishap(|rates| rates.guest) {
                what = [Said::Retry, Said::Untouched, Said::Away][state.dice.usize(..3)];
            }
            said.push((what, large));
        }
        let took = Duration::from_millis(millis);
        if took >= DEADLINE {
            return Fate { took: DEADLINE, said: Err(Class::Deadline) };
        }
        if trap {
            return Fate { took, said: Err(Class::Trap) };
        }
        if state.mishap(|rates| rates.guest) {
            let class = [Class::Memory, Class::HostShortage, Class::Trap][state.dice.usize(..3)];
            return Fate { took, said: Err(class) };
        }
        Fate { took, said: Ok(said) }
    }

    /// Writes down what is done in the delivery's transaction. False: the database is away.
    async fn book(&self, attempt: &mut Attempt, said: &[(Said, bool)]) -> bool {
        let Some(owner) = attempt.owner.clone() else { return true };
        let mut open = match owner.open().await {
            Ok(open) => open,
            Err(error) => {
                attempt.effects.unavailable = Some(error.to_string());
                return false;
            }
        };
        let mut well = true;
        for (record, _) in attempt.records.iter().zip(said).filter(|(_, (said, _))| matches!(said, Said::Ack(_))) {
            let params = vec![Value::Int(attempt.from.partition.into()), Value::Int(record.record.offset())];
            if let Err(error) = open.delivery().execute(String::new(), params).await {
                attempt.effects.unavailable = Some(error.to_string());
                well = false;
                break;
            }
        }
        attempt.effects.open = Some(open);
        well
    }
}

impl Runs for Guest {
    fn digest(&self) -> &Arc<str> {
        &self.digest
    }

    fn takes_over(&self) {}

    fn retire(&self) {}

    async fn call(&self, attempt: &mut Attempt) -> Result<Vec<Outcome>, CallError> {
        let SimBroker { world, life } = &self.broker;
        life.not_dead().await;
        let partition = attempt.from.partition;
        let (call, mut fate) = {
            let mut state = world.lock();
            state.calls += 1;
            let (call, revision) = (state.calls, self.revision.number);
            let offsets = attempt.records.iter().map(|record| record.record.offset()).collect();
            world.note_in(&mut state, What::Called { host: life.host, call, partition, offsets, revision });
            (call, self.fate(partition, &attempt.records, &mut state))
        };
        if world.plan.mode == Mode::Database
            && let Ok(said) = &fate.said
            && !self.book(attempt, &said.clone()).await
        {
            fate.said = Ok(vec![(Said::Away, false); attempt.records.len()]);
        }
        tokio::time::sleep(fate.took).await;
        life.alive().await;
        let said = fate.said.as_ref().map(|said| said.iter().map(|(said, _)| *said).collect());
        world.note(What::Returned { call, said: said.map_err(|class| class.name()) });
        match fate.said {
            Ok(said) => Ok((0..).zip(said).map(|(index, said)| outcome(attempt, index, said)).collect()),
            Err(class) => Err(CallError { class, detail: "by nature".to_owned() }),
        }
    }
}

fn outcome(attempt: &mut Attempt, index: usize, (said, large): (Said, bool)) -> Outcome {
    let source = (attempt.from.partition, attempt.records[index].record.offset());
    let reason = || Reason { code: "by-nature".to_owned(), detail: String::new() };
    match said {
        Said::Ack(outputs) => Outcome::Ack((0..outputs).map(|place| output(source, place, large)).collect()),
        Said::Skip => Outcome::Skip,
        Said::Retry => Outcome::Retry { after: None, reason: reason(), unavailable: false },
        Said::Away => {
            attempt.effects.unavailable.get_or_insert_with(|| "a store is away".to_owned());
            Outcome::Retry { after: None, reason: reason(), unavailable: true }
        }
        Said::Never => Outcome::DeadLetter(reason()),
        Said::Untouched => Outcome::Untouched,
    }
}
