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
pub mod scene;
mod soak;
pub mod stage;
pub mod table;
mod transaction;

use std::time::Duration;

use anyhow::{Context, Result};

use self::mode::Mode;
use self::scene::Scene;
use self::stage::Stage;
use self::table::FAULTS;

/// How long a member may be silent before its group goes on without it, in the tests.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(4);
/// The same by the newer protocol, as the brokers say.
pub const NEWER_SESSION_TIMEOUT: Duration = Duration::from_secs(6);

/// Something that happens to a host or to what it depends on.
pub struct Fault {
    /// Its name, for `--only` and for the table.
    pub name: &'static str,
    /// What is done, for the table.
    pub story: &'static str,
    /// The modes that it is run in, in both forms.
    pub quick: &'static [&'static Mode],
    /// More modes, in the full form.
    pub full: &'static [&'static Mode],
    /// What it needs.
    pub scene: Scene,
    /// How often it comes in the full form. In the quick one it comes once.
    pub times: u32,
    /// What the recovery time is counted from and to.
    pub clock: &'static str,
    /// What the recovery time should stay below.
    pub aim: Option<Duration>,
    /// Does it once, and waits until it is over.
    pub inject: fn(&mut Stage) -> Result<()>,
}

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Whether each fault comes once, and all take at most 12 minutes.
    pub is_quick: bool,
    /// How long the soak takes.
    pub soak: Duration,
}

impl Form {
    /// Each fault once.
    pub const QUICK: Form = Form { is_quick: true, soak: Duration::from_secs(20) };
    /// As often and as long as it takes to be sure.
    pub const FULL: Form = Form { is_quick: false, soak: Duration::from_secs(3600) };
}

impl Fault {
    /// The one with this name.
    pub fn named(name: &str) -> Result<&'static Fault> {
        FAULTS.iter().find(|fault| fault.name == name).with_context(|| format!("there is no fault `{name}`"))
    }

    /// Those that a word chooses: the one with this name, or all whose names have it in them.
    pub fn chosen(word: Option<&str>) -> Vec<&'static Fault> {
        match word.and_then(|word| Fault::named(word).ok()) {
            Some(fault) => vec![fault],
            None => FAULTS.iter().filter(|fault| word.is_none_or(|word| fault.name.contains(word))).collect(),
        }
    }

    /// How often it comes.
    pub fn times(&self, form: Form) -> u32 {
        if form.is_quick { 1 } else { self.times }
    }
}
