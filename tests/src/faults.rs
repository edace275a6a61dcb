//! Faults as data: what is done to a running Tidemill, in which modes of delivery, and what may come of it.
//!
//! A row of the table is one fault in one mode. Its [`Stage`] has real servers, a load through an ingest of its own and
//! hosts that do the work; the fault comes while records are in flight, and the judge sees everything at the end.

mod broker;
mod database;
mod host;
pub mod lab;
mod link;
pub mod mode;
mod records;
pub mod report;
pub mod runner;
mod soak;
pub mod stage;

use std::time::Duration;

use anyhow::Result;

use self::mode::{AT_LEAST_ONCE, AT_MOST_ONCE, EXACTLY_ONCE_KAFKA, Mode};
use self::stage::{Plan, Stage};

/// How long a member may be silent before its group goes on without it, in the tests.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(4);

/// Something that happens to a host or to what it depends on.
pub struct Fault {
    /// Its name, for `--only` and for the table.
    pub name: &'static str,
    /// What is done, for the table.
    pub story: &'static str,
    /// The modes that it is run in.
    pub modes: &'static [&'static Mode],
    /// How many of them the quick form takes.
    pub quick_modes: usize,
    /// What it is done to.
    pub plan: Plan,
    /// How often it comes in the full form. In the quick one it comes once.
    pub times: u32,
    /// What the recovery time is counted from and to.
    pub clock: &'static str,
    /// What the recovery time should stay below.
    pub aim: Option<Duration>,
    /// Does it once, and waits until it is over.
    pub inject: fn(&mut Stage, Form) -> Result<()>,
}

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Each fault once, within 12 minutes for all.
    Quick,
    /// As often and as long as it takes to be sure.
    Full,
}

const WITHIN_A_SECOND: Option<Duration> = Some(Duration::from_secs(1));
const WITHIN_TWO_SECONDS: Option<Duration> = Some(Duration::from_secs(2));
const SESSION_AND_TWO_SECONDS: Option<Duration> = Some(SESSION_TIMEOUT.saturating_add(Duration::from_secs(2)));

/// All faults, those first that matter most.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "host-killed",
        story: "kill -9 of one of two hosts at a random moment; another one is started afterwards",
        modes: &[&AT_LEAST_ONCE, &AT_MOST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 2, ..Plan::TABLE },
        times: 30,
        clock: "the kill → all that was there then is committed",
        aim: SESSION_AND_TWO_SECONDS,
        inject: host::killed,
    },
    Fault {
        name: "host-terminated",
        story: "SIGTERM of one of two hosts under load; another one is started afterwards",
        modes: &[&AT_LEAST_ONCE, &AT_MOST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 2, ..Plan::TABLE },
        times: 30,
        clock: "the signal → the process has ended",
        aim: WITHIN_A_SECOND,
        inject: host::terminated,
    },
    Fault {
        name: "host-frozen",
        story: "SIGSTOP of the only host past its session timeout; another one takes over and finishes; SIGCONT",
        modes: &[&AT_LEAST_ONCE, &AT_MOST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, ..Plan::TOPIC },
        times: 10,
        clock: "the stop → all that was there then is committed",
        aim: SESSION_AND_TWO_SECONDS,
        inject: host::frozen,
    },
    Fault {
        name: "ingest-killed",
        story: "kill -9 of the host that takes records in, amid requests; it is started again",
        modes: &[&AT_LEAST_ONCE],
        quick_modes: 1,
        plan: Plan { hosts: 1, ..Plan::TABLE },
        times: 10,
        clock: "the kill → the next record is accepted",
        aim: None,
        inject: host::ingest_killed,
    },
    Fault {
        name: "rebalance-storm",
        story: "hosts join and leave, each as soon as the one before works or has ended",
        modes: &[&AT_LEAST_ONCE, &AT_MOST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, partitions: 8, ..Plan::TABLE },
        times: 5,
        clock: "a host begins to join or leave → all that was there then is committed",
        aim: None,
        inject: host::storm,
    },
    Fault {
        name: "broker-killed-of-three",
        story: "kill -9 of each of three brokers in turn (leaders, the group's coordinator), each started again",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { nodes: 3, hosts: 1, partitions: 6, ..Plan::TABLE },
        times: 5,
        clock: "the kill → all that was there then is committed, the broker still away",
        aim: None,
        inject: broker::killed_of_three,
    },
    Fault {
        name: "broker-killed",
        story: "kill -9 of the only broker, which is started again",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, ..Plan::TABLE },
        times: 5,
        clock: "the broker serves again → all that was there before is committed",
        aim: None,
        inject: broker::killed,
    },
    Fault {
        name: "broker-frozen",
        story: "SIGSTOP of one of three brokers until its leaders have moved; SIGCONT",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { nodes: 3, hosts: 1, partitions: 6, ..Plan::TABLE },
        times: 6,
        clock: "the stop → all that was there then is committed",
        aim: None,
        inject: broker::frozen,
    },
    Fault {
        name: "leaders-moved",
        story: "each partition gets another of its three replicas as its leader, by order",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { nodes: 3, hosts: 1, partitions: 6, ..Plan::TABLE },
        times: 5,
        clock: "the leaders have moved → all that was there before is committed",
        aim: None,
        inject: broker::leaders_moved,
    },
    Fault {
        name: "database-stopped",
        story: "PostgreSQL is stopped in order, is away for seconds and is started again",
        modes: &[&AT_LEAST_ONCE],
        quick_modes: 1,
        plan: Plan { hosts: 1, ..Plan::TABLE },
        times: 5,
        clock: "the database serves again → the next record is stored",
        aim: WITHIN_TWO_SECONDS,
        inject: database::stopped,
    },
    Fault {
        name: "database-killed",
        story: "kill -9 of PostgreSQL while sessions are within COMMIT; it is started again and recovers",
        modes: &[&AT_LEAST_ONCE],
        quick_modes: 1,
        plan: Plan { hosts: 1, commit_delay: Duration::from_millis(4), ..Plan::TABLE },
        times: 5,
        clock: "the database serves again → the next record is stored",
        aim: WITHIN_TWO_SECONDS,
        inject: database::killed,
    },
    Fault {
        name: "database-slow",
        story: "each answer of PostgreSQL takes 150 ms more, for seconds",
        modes: &[&AT_LEAST_ONCE],
        quick_modes: 1,
        plan: Plan { hosts: 1, behind_proxies: true, ..Plan::TABLE },
        times: 3,
        clock: "the database is quick again → all that was there then is committed",
        aim: None,
        inject: database::slow,
    },
    Fault {
        name: "poison",
        story: "among good records some that are refused, trap, run for ever, take all memory or can't be shown to a guest",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, guest: "poison", manifest: records::POISON, ..Plan::TOPIC },
        times: 3,
        clock: "the records are written → each has its dead letter",
        aim: None,
        inject: records::poison,
    },
    Fault {
        name: "guest-swapped",
        story: "each second another build of the guest: good ones, files that are none, and one that asks for all again",
        modes: &[&AT_LEAST_ONCE],
        quick_modes: 1,
        plan: Plan { hosts: 1, ..Plan::TABLE },
        times: 3,
        clock: "the last swap → all that was there then is committed",
        aim: None,
        inject: records::swapped,
    },
    Fault {
        name: "connections-cut",
        story: "all connections to the broker are reset and none is taken for seconds",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, behind_proxies: true, ..Plan::TABLE },
        times: 5,
        clock: "connections are possible again → all that was there before is committed",
        aim: None,
        inject: link::cut,
    },
    Fault {
        name: "connections-slow",
        story: "what goes to the broker and comes from it takes 200 ms more each way, for seconds",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, behind_proxies: true, ..Plan::TABLE },
        times: 3,
        clock: "the link is quick again → all that was there then is committed",
        aim: None,
        inject: link::slow,
    },
    Fault {
        name: "connections-half-open",
        story: "connections to the broker stay open and carry nothing, past the session timeout",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, behind_proxies: true, ..Plan::TABLE },
        times: 3,
        clock: "the link carries again → all that was there before is committed",
        aim: None,
        inject: link::silent,
    },
    Fault {
        name: "letters-missing",
        story: "there is no topic for dead letters; it is made while a record waits for it",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, guest: "poison", letters: false, ..Plan::TOPIC },
        times: 1,
        clock: "the topic is made → the dead letter is in it",
        aim: None,
        inject: records::letters_missing,
    },
    Fault {
        name: "letters-denied",
        story: "the host may not write dead letters; the right is given while a record waits for it",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, guest: "poison", ..Plan::TOPIC },
        times: 1,
        clock: "the right is given → the dead letter is in the topic",
        aim: None,
        inject: records::letters_denied,
    },
    Fault {
        name: "letter-too-large",
        story: "the topic for dead letters takes no record of the size; its limit is raised while one waits",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, guest: "poison", ..Plan::TOPIC },
        times: 1,
        clock: "the limit is raised → the dead letter is in the topic",
        aim: None,
        inject: records::letter_too_large,
    },
    Fault {
        name: "records-expired",
        story: "records are deleted from the log before they are read, while the handler is held up",
        modes: &[&AT_LEAST_ONCE],
        quick_modes: 1,
        plan: Plan { hosts: 1, manifest: records::LITTLE_AHEAD, ..Plan::TABLE },
        times: 3,
        clock: "the handler is no longer held up → all that is left is committed",
        aim: None,
        inject: records::expired,
    },
    Fault {
        name: "disk-full",
        story: "the broker's disk is full, the broker ends; there is room again and it is started again",
        modes: &[&AT_LEAST_ONCE],
        quick_modes: 1,
        plan: Plan { hosts: 1, small_disk: true, ..Plan::TABLE },
        times: 1,
        clock: "the broker serves again → all that was there before is committed",
        aim: None,
        inject: broker::disk_full,
    },
    Fault {
        name: "soak",
        story: "64 partitions under load without a fault; memory is sampled each second",
        modes: &[&AT_LEAST_ONCE, &EXACTLY_ONCE_KAFKA],
        quick_modes: 1,
        plan: Plan { hosts: 1, partitions: 64, keys: 640, rate: 500.0, delay: Duration::ZERO, ..Plan::TABLE },
        times: 1,
        clock: "the end of the load → all is committed",
        aim: None,
        inject: soak::soak,
    },
];
