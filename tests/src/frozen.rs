//! A host that is frozen for longer than its session: the group goes on without it, and then it wakes up amid its work.
//!
//! Its handler forwards to a topic, since a database would hold the locks of the frozen host's transactions.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::lab::wait;

use crate::checker::Evidence;
use crate::client::Load;
use crate::host::{Handler, Setup};
use crate::results::{Forwarded, Results};
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
    topics::create(&scenario.bootstrap, &out, 1)?;
    let results = Results::Topic(Forwarded::from(&scenario, &out));
    let setup = Setup::on_kafka(&scenario.bootstrap, &[&scenario.topic]).handler(handler(&scenario, &group, &out));
    let setup = fault.map_or(setup.clone(), |fault| setup.fault(fault));
    let commits = scenario.watch(&group, &results)?;
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
    let evidence = scenario.evidence_in(&results, commits.stop()?)?;
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
