//! What most promises have in common: a topic, a ledger, a sink, a handler that stores, and the judge at the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use xtask::lab::wait;

use crate::checker::{self, Commit, Evidence, Faults, Stored, Summary};
use crate::client::{Load, Report};
use crate::host::{Handler, Host, Setup};
use crate::ledger::{Body, Fate, Ledger, Place};
use crate::raw_headers::RawHeader;
use crate::results::Results;
use crate::sampler::Sampler;
use crate::sink::Sink;
use crate::topics::Kept;
use crate::{names, servers, topics};

/// One topic that one handler stores from.
pub struct Scenario {
    /// `bootstrap.servers`.
    pub bootstrap: String,
    /// The topic; its dead letters go to the same with `.dlq` behind.
    pub topic: String,
    /// The name of the handler and its group.
    pub handler: String,
    /// Where it stores.
    pub sink: Sink,
    /// What was sent.
    pub ledger: Arc<Ledger>,
    /// Holds the ledger's file.
    _folder: TempDir,
}

/// A record that ingest would not take.
#[derive(Debug, Clone)]
pub struct Odd {
    body: Body,
    /// As it is written.
    pub kept: Kept,
}

impl Odd {
    /// The only record of this producer and key, with a header.
    pub fn new(producer: &str, key: &str, header: RawHeader) -> Odd {
        let body = Body::new(producer, key, 0);
        let kept = Kept::new(Some(key.as_bytes()), Some(&body.to_bytes()));
        Odd { body, kept: Kept { headers: vec![header], ..kept } }
    }
}

impl Scenario {
    /// On the shared servers.
    pub fn new(partitions: i32) -> Result<Scenario> {
        Scenario::with(&servers::kafka(), partitions, Sink::new())
    }

    /// With a sink that takes this long for each record.
    pub fn slow(partitions: i32, delay: Duration) -> Result<Scenario> {
        Scenario::with(&servers::kafka(), partitions, Sink::new().slow(delay))
    }

    /// On servers of the test's own.
    pub fn with(bootstrap: &str, partitions: i32, sink: Sink) -> Result<Scenario> {
        let scenario = Scenario::without_letters(bootstrap, partitions, sink)?;
        topics::create(bootstrap, &dead_letters(&scenario.topic), 1)?;
        Ok(scenario)
    }

    /// The same without a topic for dead letters.
    pub fn without_letters(bootstrap: &str, partitions: i32, sink: Sink) -> Result<Scenario> {
        let topic = names::unique("records");
        topics::create(bootstrap, &topic, partitions)?;
        let folder = tempfile::Builder::new().prefix("tidemill-ledger-").tempdir()?;
        let ledger = Arc::new(Ledger::new(folder.path())?);
        let (bootstrap, handler) = (bootstrap.to_owned(), names::unique("store"));
        Ok(Scenario { bootstrap, topic, handler, sink, ledger, _folder: folder })
    }

    /// The handler that stores, with more of its manifest.
    pub fn handler(&self, manifest: &str) -> Handler {
        let manifest = format!("topics = [\"{}\"]\n{manifest}\n[grants]\nsql = [\"main\"]\n", self.topic);
        Handler::new(&self.handler, "store", &manifest).migration(&self.sink.migration())
    }

    /// A host with ingest of the topic and the database, and no handler yet.
    pub fn setup(&self) -> Setup {
        Setup::on_kafka(&self.bootstrap, &[&self.topic]).database(self.sink.url())
    }

    /// Sends a load through a host's ingest.
    pub fn send(&self, host: &Host, load: &Load) -> Result<Report> {
        load.send(&host.ingest()?, &self.topic, &self.ledger)
    }

    /// Writes records to the topic itself, and notes them as accepted: they are in the log for certain.
    pub fn write_past_ingest(&self, records: &[Odd]) -> Result<()> {
        let kept: Vec<Kept> = records.iter().map(|odd| odd.kept.clone()).collect();
        topics::produce(&self.bootstrap, &self.topic, &kept)?;
        let there = topics::read(&self.bootstrap, &self.topic)?;
        for odd in records {
            let written = there.iter().find(|kept| kept.value == odd.kept.value);
            let place = written.context("what was acknowledged is there")?.place;
            self.ledger.resolve(&odd.body, Fate::Acked(place));
        }
        Ok(())
    }

    /// Begins to watch the handler's commits; dead letters count as settled.
    pub fn watch_commits(&self) -> Result<Sampler> {
        self.watch(&self.handler, &Results::Table(self.sink.clone()))
    }

    /// The same for another group, and for results elsewhere.
    pub fn watch(&self, group: &str, results: &Results) -> Result<Sampler> {
        let (bootstrap, letters) = (self.bootstrap.clone(), dead_letters(&self.topic));
        let mut stored_below = results.counter()?;
        let mut dead: BTreeSet<Place> = BTreeSet::new();
        Sampler::start(&self.bootstrap, group, &self.topic, move |partition, offset| {
            let stored = stored_below(partition, offset)?;
            if stored < offset {
                dead.extend(dead_in(&bootstrap, &letters)?.iter().map(|letter| letter.place));
            }
            let dead = dead.iter().filter(|place| place.partition == partition && place.offset < offset).count();
            Ok(stored + i64::try_from(dead)?)
        })
    }

    /// Waits until the group has committed every record of the topic.
    pub fn wait_until_committed(&self, deadline: Duration) -> Result<()> {
        self.wait_until_group_committed(&self.handler, deadline)
    }

    /// Waits until this group has committed every record of the topic.
    pub fn wait_until_group_committed(&self, group: &str, deadline: Duration) -> Result<()> {
        let group = topics::Group::new(&self.bootstrap, group, &self.topic)?;
        wait::until("all records to be committed", deadline, || {
            let ends = topics::ends(&self.bootstrap, &self.topic)?;
            let committed = group.committed()?;
            let is_at_end = |(end, offset): (&i64, &Option<i64>)| offset.unwrap_or(0) == *end;
            Ok(ends.iter().zip(&committed).all(is_at_end).then_some(()))
        })
    }

    /// Waits until this many different records are stored.
    pub fn wait_until_stored(&self, records: usize, deadline: Duration) -> Result<()> {
        let what = format!("{records} records to be stored");
        wait::until(&what, deadline, || Ok((self.sink.count()? >= records).then_some(())))
    }

    /// The dead letters, each as the record that it stands for; none while there is no topic for them.
    pub fn dead(&self) -> Result<Vec<Stored>> {
        dead_in(&self.bootstrap, &dead_letters(&self.topic))
    }

    /// Everything for the judge.
    pub fn evidence(&self, commits: Vec<Commit>) -> Result<Evidence> {
        self.evidence_in(&Results::Table(self.sink.clone()), commits)
    }

    /// The same with results elsewhere.
    pub fn evidence_in(&self, results: &Results, commits: Vec<Commit>) -> Result<Evidence> {
        let (sent, stored, dead) = (self.ledger.fates(), results.stored()?, self.dead()?);
        Ok(Evidence { sent, stored, dead, commits, ..Evidence::default() })
    }

    /// How many records are stored that the group has not committed: what comes again after a crash now.
    pub fn stored_and_not_committed(&self) -> Result<usize> {
        let committed = topics::committed(&self.bootstrap, &self.handler, &self.topic)?;
        let above = self.sink.stored()?.into_iter().filter(|stored| {
            let partition = usize::try_from(stored.place.partition).expect("a partition is not negative");
            stored.place.offset >= committed[partition].unwrap_or(0)
        });
        Ok(above.count())
    }

    /// Asks the judge, and says what it counted.
    pub fn judge(&self, commits: Vec<Commit>, repeats_max: usize) -> Result<Result<Summary, Faults>> {
        let verdict = checker::check(&self.evidence(commits)?, repeats_max);
        if let Ok(summary) = &verdict {
            eprintln!("{summary:?}, at most {repeats_max} repeats allowed");
        }
        Ok(verdict)
    }
}

fn dead_in(bootstrap: &str, letters: &str) -> Result<Vec<Stored>> {
    if !topics::exists(bootstrap, letters)? {
        return Ok(Vec::new());
    }
    topics::read(bootstrap, letters)?.iter().map(topics::Kept::as_dead_letter).collect()
}

/// The default name of a topic's dead-letter topic.
pub fn dead_letters(topic: &str) -> String {
    format!("{topic}.dlq")
}
