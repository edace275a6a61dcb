//! Stories of many partitions: hosts that crash, are cut off, freeze, stop and come back, rebalances, partitions that are
//! added, retention that is faster than the hosts, swaps, pauses, parked keys, and a broker and a database on which everything
//! goes wrong now and then.
//!
//! The hosts are real: each is a [`Group`] with all of its rooms, from receiving to committing. What they stand on is not: the
//! broker, the group's coordinator, the guest and the database live in this process, on one thread and a clock that is only
//! advanced while nobody has anything to do. So a story is played in milliseconds, and the same number tells the same story
//! to the last entry: no room throws dice of its own or asks for the time.
//!
//! What can be seen from outside is written down as a *trace*, and the *judge* holds it against the promises. A broken one is
//! told with its number and its whole trace; these play it again:
//!
//! ```text
//! TIDEMILL_SIM_SEED=1234 cargo test -p tidemill stories_      only this story, in each mode of delivery
//! TIDEMILL_SIM_STORIES=20000 cargo test -p tidemill stories_  so many of each mode, not the usual number
//! ```

mod bank;
mod broker;
mod coordinator;
mod guest;
mod hosts;
mod judge;
mod parked;
mod producer;
mod story;
mod trace;
mod transactions;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tidemill_core::transaction::Limits;
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, sleep_until};

use self::hosts::Hosts;
use self::story::{Act, HORIZON, Mode, Plan, Rates};
use self::trace::{Entry, fingerprint};
use self::world::World;
#[cfg(feature = "fault-injection")]
use crate::fault::{Fault, tests::choose};
use crate::store::offsets::Place;

/// Stories of each mode that are played when nobody says how many.
const STORIES: u64 = 500;
/// Once all is well, everything is worked off within so long.
const RECOVERY: Duration = Duration::from_secs(120);

#[test]
fn stories_at_least_once_lose_nothing_and_repeat_only_what_was_not_committed() {
    play_all(Mode::AtLeastOnce);
}

#[test]
fn stories_at_most_once_call_nobody_twice() {
    play_all(Mode::AtMostOnce);
}

#[test]
fn stories_exactly_once_on_kafka_show_each_output_once() {
    play_all(Mode::Kafka);
}

#[test]
fn stories_exactly_once_in_a_database_book_each_record_once() {
    play_all(Mode::Database);
}

/// A host that was cut off while its transaction was on its way gets its partitions again: the transaction is over, one way
/// or the other, before it finds out where they begin.
#[test]
fn stories_of_hosts_that_come_back_commit_nothing_behind_what_was_read() {
    let millis = Duration::from_millis;
    let acts = [(millis(0), Act::Start(0)), (millis(1000), Act::Write(0, 4)), (millis(1100), Act::Cut(0, 7500))];
    for seed in 0..50 {
        let transaction = Limits { interval: millis(150), records_max: 30, bytes_max: usize::MAX / 2 };
        let plan = Plan::new(seed, Mode::Kafka);
        let plan = Plan { hosts: 1, rates: Rates::default(), transaction, acts: acts.to_vec(), ..plan };
        told(&plan).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

#[test]
fn stories_that_park_keys_call_each_key_in_order_and_lose_nothing_of_it() {
    play_all(Mode::Parking);
}

#[test]
fn the_same_number_tells_the_same_story() {
    for mode in Mode::ALL {
        for seed in 0..10 {
            let plan = Plan::new(seed, mode);
            let (first, second) = (play(&plan).trace, play(&plan).trace);
            let parts = first.iter().zip(&second).find(|(one, other)| one != other);
            assert!(parts.is_none(), "seed {seed} of {mode:?} parts ways: {parts:?}");
            assert_eq!(fingerprint(&first), fingerprint(&second), "seed {seed} of {mode:?}");
        }
    }
}

/// The judge is judged: each way in which the host can be broken is caught.
#[cfg(feature = "fault-injection")]
#[test]
fn stories_catch_a_host_that_is_broken() {
    let breakages = [
        (Fault::CommitBeforeSuccess, Mode::AtLeastOnce),
        (Fault::IgnoreEpoch, Mode::AtLeastOnce),
        (Fault::DropOnFull, Mode::AtLeastOnce),
        (Fault::CommitPastGap, Mode::AtLeastOnce),
        (Fault::LetterNotAwaited, Mode::AtLeastOnce),
        (Fault::OffsetsOutsideTransaction, Mode::Kafka),
        (Fault::NewTransactionAfterUnknown, Mode::Kafka),
        (Fault::OffsetApart, Mode::Database),
        (Fault::IgnoreFence, Mode::Database),
        (Fault::ParkedNotAwaited, Mode::Parking),
    ];
    for (fault, mode) in breakages {
        choose(Some(fault));
        let caught = (0..STORIES).find_map(|seed| Some((seed, told(&Plan::new(seed, mode)).err()?)));
        choose(None);
        let (seed, broken) = caught.unwrap_or_else(|| panic!("{fault:?} is not caught in {STORIES} stories"));
        assert!(told(&Plan::new(seed, mode)).is_ok(), "{fault:?} has nothing to do with what is wrong in {seed}");
        eprintln!("{fault:?}: seed {seed}: {}", broken.lines().next().unwrap_or_default());
    }
}

/// Plays as many stories of a mode as it is told to, or the one.
fn play_all(mode: Mode) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("TIDEMILL_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDEMILL_SIM_STORIES").unwrap_or(STORIES),
    };
    let (stories, started, mut entries) = (seeds.end - seeds.start, std::time::Instant::now(), 0);
    for seed in seeds {
        let plan = Plan::new(seed, mode);
        match told(&plan) {
            Ok(played) => entries += played,
            Err(broken) => panic!("TIDEMILL_SIM_SEED={seed} of {mode:?}\n{broken}"),
        }
    }
    eprintln!("{mode:?}: {stories} stories with {entries} entries in {:?}", started.elapsed());
}

/// Plays a story and judges it. The number of entries, or what is broken with all that led to it.
fn told(plan: &Plan) -> Result<usize, String> {
    let Played { trace, ended } = play(plan);
    let broken = match judge::judge(plan, &trace) {
        Ok(()) => ended.err(),
        Err(broken) => Some(broken),
    };
    let Some(broken) = broken else { return Ok(trace.len()) };
    let lines: Vec<String> = trace.iter().map(Entry::to_string).collect();
    Err(format!("{broken}\n\n{plan}\n{}\n\n{broken}", lines.join("\n")))
}

struct Played {
    trace: Vec<Entry>,
    /// Whether everything was worked off, and all hosts ended.
    ended: Result<(), String>,
}

fn play(plan: &Plan) -> Played {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    // The jitter of back-off.
    fastrand::seed(plan.seed);
    runtime.block_on(async {
        let world = World::new(plan.clone());
        let ended = live(&world).await;
        let trace = std::mem::take(&mut world.lock().trace);
        Played { trace, ended }
    })
}

/// All acts in turn, then a good end.
async fn live(world: &Arc<World>) -> Result<(), String> {
    let began = Instant::now();
    let mut hosts = Hosts::new(world);
    for (at, act) in &world.plan.acts {
        sleep_until(began + *at).await;
        hosts.act(*act);
    }
    sleep_until(began + HORIZON).await;
    hosts.heal();
    let well = Instant::now();
    while !(world.is_worked_off() && world.lock().parked.lying.all().next().is_none()) {
        if well.elapsed() > RECOVERY {
            if world.is_worked_off() {
                // The judge knows whether what is parked may be.
                break;
            }
            return Err(format!("what is left is not worked off within {RECOVERY:?}"));
        }
        sleep(Duration::from_millis(100)).await;
    }
    hosts.end().await
}

impl World {
    /// Whether each partition is committed up to its end, by the database too where that keeps offsets.
    fn is_worked_off(&self) -> bool {
        let state = self.lock();
        if state.group.is_behind(state.partitions) {
            return false;
        }
        let place = |partition| Place { group: super::GROUP.to_owned(), topic: super::TOPIC.to_owned(), partition };
        (0..state.partitions).all(|partition| {
            let (group, end) = (state.group.committed[partition as usize], state.end(partition));
            let booked = self.plan.mode != Mode::Database || state.rows.next(&place(partition)).unwrap_or(0) >= end;
            booked && group.unwrap_or(0) >= end
        })
    }
}
