//! A host that is frozen for longer than its session: the group goes on without it, and then it wakes up amid its work.
//!
//! Its handler forwards to a topic, since a database would hold the locks of the frozen host's transactions.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::lab::wait;

use crate::checker::{Evidence, Stored};
use crate::client::Load;
use crate::host::{Handler, Setup};
use crate::ledger::{Fate, Ledger, Place};
use crate::sampler::Sampler;
use crate::scenario::Scenario;
use crate::{names, topics};

const DEADLINE: Duration = Duration::from_secs(120);
/// Several commit intervals: a woken host has nothing to do, and this is its chance to do something wrong.
const CHANCE: Duration = Duration::from_secs(2);
/// Records that a partition has in hand at most: what a freeze may have delivered twice.
const IN_HAND_MAX: usize = 50;
const PARTITIONS: i32 = 4;

/// Freezes one of two hosts amid its work, lets the other one finish everything, and wakes it up again.
/// Answers the evidence, and how many repeats are within the promise.
pub fn run(fault: Option<&str>) -> Result<(Evidence, usize)> {
    let scenario = Scenario::new(PARTITIONS)?;
    let (out, group) = (names::unique("forwarded"), names::unique("slow"));
    topics::create(&scenario.bootstrap, &out, 2)?;
    let setup = Setup::on_kafka(&scenario.bootstrap, &[&scenario.topic]).handler(handler(&scenario, &group, &out));
    let setup = fault.map_or(setup.clone(), |fault| setup.fault(fault));
    let commits = watch_commits(&scenario, &group, &out)?;
    let mut frozen = setup.start()?;
    scenario.send(&frozen, &Load::batches("load", 2_000))?;
    wait::until("some records to be forwarded", DEADLINE, || {
        Ok((topics::ends(&scenario.bootstrap, &out)?.iter().sum::<i64>() > 100).then_some(()))
    })?;
    let rebalances = frozen.metrics()?.sum("tidemill_receive_rebalances_total", &[("kind", "lost")]);
    frozen.pause()?;
    let other = setup.start()?;
    scenario.wait_until_group_committed(&group, DEADLINE).context("the other host goes on alone")?;

    frozen.resume()?;
    wait::until("the woken host to notice that its partitions are lost", DEADLINE, || {
        let lost = frozen.metrics()?.sum("tidemill_receive_rebalances_total", &[("kind", "lost")]);
        Ok((lost > rebalances && frozen.admin("/readyz")?.0 == 200).then_some(()))
    })?;
    match fault {
        None => {
            thread::sleep(CHANCE);
            scenario.send(&other, &Load::batches("after", 200))?;
            scenario.wait_until_group_committed(&group, DEADLINE).context("both hosts go on together")?;
        }
        // A host that commits what is another one's moves the group back for good.
        Some(_) => wait::until("the broken host to move its group back", DEADLINE, || {
            let ends = topics::ends(&scenario.bootstrap, &scenario.topic)?;
            let committed = topics::committed(&scenario.bootstrap, &group, &scenario.topic)?;
            let fell = ends.iter().zip(committed).any(|(end, committed)| committed.is_some_and(|offset| offset < *end));
            Ok(fell.then_some(()))
        })?,
    }
    let (sent, stored) = (scenario.ledger.fates(), forwarded(&scenario.bootstrap, &out, &scenario.ledger)?);
    let evidence = Evidence { sent, stored, dead: scenario.dead()?, commits: commits.stop()? };
    Ok((evidence, IN_HAND_MAX * usize::try_from(PARTITIONS)?))
}

fn handler(scenario: &Scenario, group: &str, out: &str) -> Handler {
    let manifest = format!(
        "topics = [\"{}\"]\ngroup = \"{group}\"\n[batch]\nrecords_max = 10\n[buffer]\nrecords_max = {IN_HAND_MAX}\n\
         [consumer_properties]\n\"session.timeout.ms\" = \"6000\"\n\"heartbeat.interval.ms\" = \"1000\"\n\
         [grants]\nproduce = [\"{out}\"]\n[config]\nto = \"{out}\"\nms = \"20\"\n",
        scenario.topic
    );
    Handler::new("slow", "slow", &manifest)
}

fn watch_commits(scenario: &Scenario, group: &str, out: &str) -> Result<Sampler> {
    let (bootstrap, out, ledger) = (scenario.bootstrap.clone(), out.to_owned(), scenario.ledger.clone());
    Sampler::start(&scenario.bootstrap, group, &scenario.topic, move |partition, offset| {
        let mut below: Vec<Place> =
            forwarded(&bootstrap, &out, &ledger)?.into_iter().map(|stored| stored.place).collect();
        below.retain(|place| place.partition == partition && place.offset < offset);
        below.sort();
        below.dedup();
        Ok(i64::try_from(below.len())?)
    })
}

/// What was forwarded, in the order of its log; the ledger knows where each came from.
fn forwarded(bootstrap: &str, out: &str, ledger: &Ledger) -> Result<Vec<Stored>> {
    let fates = ledger.fates();
    let places = fates.iter().filter_map(|(body, fate)| match fate {
        Fate::Acked(place) => Some((body.to_bytes(), *place)),
        Fate::Failed | Fate::Unknown => None,
    });
    let places: BTreeMap<Vec<u8>, Place> = places.collect();
    let stored = |kept: topics::Kept| {
        // What nobody sent has no place, and the judge says so.
        let nowhere = Place { partition: -1, offset: kept.place.offset };
        let place = kept.value.as_ref().and_then(|value| places.get(value)).copied().unwrap_or(nowhere);
        Stored { place, key: kept.key, value: kept.value }
    };
    Ok(topics::read(bootstrap, out)?.into_iter().map(stored).collect())
}
