//! The guests' monotonic clock: a wait ends when it is over, and not some ticks of the runtime's timer later.
//!
//! That timer has a tick each millisecond and waits for whole ones: a guest that wants to wait for 2.5 ms would wait for up to 4.
//! It is left to wait for the long part; the last stretch is kept by a thread that does nothing else.

use std::collections::BTreeMap;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

use super::instance::State;

/// The last stretch of a wait. The timer's two ticks are well within it, and no alarm is kept for longer, whatever becomes of
/// who asked for it: that bounds how many there are.
const LAST_STRETCH: Duration = Duration::from_millis(4);

/// Puts the clock in the place of WASI's own.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let added = monotonic_clock::add_to_linker::<State, HasClock>(linker, State::clock);
    linker.allow_shadowing(false);
    added
}

/// What a guest's clock needs of its instance.
pub(super) struct Clock<'a> {
    pub(super) table: &'a mut ResourceTable,
    /// It counts from here.
    pub(super) origin: Instant,
}

struct HasClock;

impl HasData for HasClock {
    type Data<'a> = Clock<'a>;
}

impl Clock<'_> {
    fn wait(&mut self, wait: Wait) -> wasmtime::Result<Resource<DynPollable>> {
        let wait = self.table.push(wait)?;
        subscribe(self.table, wait)
    }
}

impl monotonic_clock::Host for Clock<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.origin.elapsed().as_nanos().try_into().unwrap_or(u64::MAX))
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(1)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.wait(Wait::until(self.origin, Duration::from_nanos(when)))
    }

    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.wait(Wait::until(Instant::now(), Duration::from_nanos(duration)))
    }
}

/// What a guest waits for.
enum Wait {
    /// A moment. Who polls for one that is over lets others run first.
    Until(Instant),
    /// A moment that no clock will reach.
    Never,
}

impl Wait {
    fn until(from: Instant, after: Duration) -> Self {
        from.checked_add(after).map_or(Self::Never, Self::Until)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Wait {
    async fn ready(&mut self) {
        match self {
            Self::Until(moment) => until(*moment).await,
            Self::Never => std::future::pending().await,
        }
    }
}

async fn until(moment: Instant) {
    if moment <= Instant::now() {
        // A guest that polls with no time to wait would else starve what it polls for.
        return tokio::task::yield_now().await;
    }
    if let Some(alarms) = &*ALARMS {
        if let Some(long) = moment.checked_sub(LAST_STRETCH)
            && long > Instant::now()
        {
            tokio::time::sleep_until(long.into()).await;
        }
        // The thread does not end.
        let _rung = alarms.set(moment).await;
    } else {
        tokio::time::sleep_until(moment.into()).await;
    }
}

/// One thread for all guests; `None` where there is none to be had, and then waits are as long as the runtime's timer makes them.
static ALARMS: LazyLock<Option<&'static Alarms>> = LazyLock::new(|| {
    let alarms: &'static Alarms = Box::leak(Box::default());
    let thread = thread::Builder::new().name("guest-alarms".to_owned()).spawn(|| alarms.ring());
    thread.inspect_err(|error| tracing::warn!(%error, "no thread for guests' waits: they take some ms longer")).ok()?;
    Some(alarms)
});

/// Moments at which somebody is to be woken.
#[derive(Debug, Default)]
struct Alarms {
    set: Mutex<Set>,
    sooner: Condvar,
}

#[derive(Debug, Default)]
struct Set {
    /// By moment, and by a number that tells those of one moment apart.
    alarms: BTreeMap<(Instant, u64), oneshot::Sender<()>>,
    /// The last of the numbers.
    number: u64,
}

impl Alarms {
    /// Resolves at this moment. Who stops waiting leaves its alarm behind until then.
    fn set(&self, moment: Instant) -> oneshot::Receiver<()> {
        let (alarm, rung) = oneshot::channel();
        let mut set = self.lock();
        set.number += 1;
        let key = (moment, set.number);
        set.alarms.insert(key, alarm);
        if set.alarms.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.sooner.notify_one();
        }
        rung
    }

    fn ring(&self) {
        let mut set = self.lock();
        loop {
            let later = set.alarms.split_off(&(Instant::now(), u64::MAX));
            let due = std::mem::replace(&mut set.alarms, later);
            if !due.is_empty() {
                drop(set);
                for alarm in due.into_values() {
                    // Who asked for it may be gone.
                    let _heard = alarm.send(());
                }
                set = self.lock();
                continue;
            }
            let first = set.alarms.first_key_value();
            let next = first.map(|((moment, _), _)| moment.saturating_duration_since(Instant::now()));
            set = match next {
                Some(wait) => self.sooner.wait_timeout(set, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => self.sooner.wait(set).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn each_wait_ends_and_none_before_its_time() {
        let start = Instant::now();
        let waits = (0..500_u64).map(|number| {
            let moment = start + Duration::from_micros(number * 7919 % 20_000);
            async move {
                until(moment).await;
                assert!(Instant::now() >= moment, "it ends before its time");
            }
        });
        join_all(waits).await;
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_no_alarm_behind() {
        let alarms = ALARMS.expect("there is a thread");
        let far = Instant::now() + Duration::from_secs(3600);
        let ended = tokio::time::timeout(Duration::from_millis(1), until(far)).await;
        assert!(ended.is_err(), "it waits");
        let kept = alarms.lock().alarms.keys().any(|(moment, _)| *moment == far);
        assert!(!kept, "a wait that is far from over has no alarm yet");
    }
}
