//! Folders come, change and go: over the embedded log in memory, with real components.

mod refusals;
mod swaps;

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::time::SystemTime;

use tempfile::TempDir;
use tidemill_core::record::{Offset, TopicPartition};
use tokio::time::timeout;

use super::*;
use crate::broker::tests::watched::{PATIENCE, Watched};
use crate::broker::{Outgoing, WhenFull};
use crate::guest::tests::odd::Odd;
use crate::guest::tests::{engine, prebuilt};

const MANIFEST: &str = "topics = [\"in\"]\ncommit_interval = \"2ms\"\n";

#[tokio::test]
async fn a_new_folder_becomes_a_running_handler() {
    let mut world = World::new().await;
    world.store(3).await;
    world.follow().await;
    assert!(world.roster.states().is_empty());
    world.put("h/handler.toml", MANIFEST);
    world.put("h/h.wasm", guest(1));
    world.put(".h/handler.toml", MANIFEST);
    world.put("notes/readme.md", "no manifest, no handler");
    world.follow().await;
    assert_eq!(world.roster.states().into_keys().collect::<Vec<_>>(), ["h"]);
    world.committed("h", 3).await;
}

#[tokio::test]
async fn a_removed_folder_drains_its_handler_and_leaves_nothing() {
    let mut world = World::with(&guest(1)).await;
    world.store(3).await;
    world.committed("h", 3).await;
    let running = world.running("h");
    std::fs::remove_dir_all(world.path("h")).expect("removed");
    world.follow().await;
    assert!(world.roster.states().is_empty());
    assert!(running.take_task().is_none() && !running.membership.is_joined(), "it has left its group");
    assert!(!world.metrics.render().contains("handler=\"h\""));
    world.store(2).await;
    world.put("h/handler.toml", MANIFEST);
    world.put("h/h.wasm", guest(1));
    world.follow().await;
    world.committed("h", 5).await;
    assert!(!world.commits("h").contains(&0), "it goes on where it left");
}

#[tokio::test]
async fn the_folder_is_followed_until_the_stop_which_drains_every_handler() {
    let world = World::with(&guest(1)).await;
    let stop = CancellationToken::new();
    let World { fleet, broker, roster, home, .. } = world;
    let task = tokio::spawn(fleet.run(stop.clone()));
    // Outside first: it comes whole.
    let outside = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(outside.path().join("later")).expect("a folder");
    std::fs::write(outside.path().join("later/handler.toml"), MANIFEST).expect("written");
    std::fs::write(outside.path().join("later/later.wasm"), guest(2)).expect("written");
    std::fs::rename(outside.path().join("later"), home.path().join("later")).expect("the same file system");
    store(&broker, 3).await;
    for group in ["h", "later"] {
        broker.committed(group, &from(), 3).await;
    }
    let all: Vec<_> = ["h", "later"].iter().filter_map(|name| roster.get(name)).collect();
    stop.cancel();
    timeout(PATIENCE, task).await.expect("it ends").expect("it does not panic");
    assert_eq!(all.len(), 2);
    for running in all {
        assert!(running.take_task().is_none() && !running.membership.is_joined(), "it has left its group");
    }
}

#[tokio::test]
async fn a_host_starts_with_all_of_its_handlers_or_with_none() {
    let mut world = World::new().await;
    for name in ["a", "b", "c"] {
        world.put(&format!("{name}/handler.toml"), MANIFEST);
        world.put(&format!("{name}/{name}.wasm"), guest(1));
    }
    world.put("b/b.wasm", "no component");
    world.put("c/handler.toml", format!("group = \"a\"\n{MANIFEST}"));
    let errors = world.fleet.start().await.expect_err("two are wrong");
    let why: Vec<String> = errors.iter().map(HandlerError::to_string).collect();
    assert!(why[0].starts_with("handler `b`: the file is not WebAssembly"), "{why:?}");
    assert!(why[1].starts_with("handler `c`: group `a` is `a`'s already"), "{why:?}");
    assert!(world.running("a").take_task().is_none() && world.running("a").stop.is_cancelled());
    assert_eq!(world.fleet.check().await.expect_err("two are wrong").len(), 2);
    world.put("b/b.wasm", guest(1));
    world.put("c/handler.toml", MANIFEST);
    assert_eq!(world.fleet.check().await.expect("all is well"), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_paused_handler_stays_so_however_often_it_starts() {
    let mut world = World::with(&guest(1)).await;
    assert!(!world.running("h").membership.is_paused());
    world.fleet.parts.pauses.set("h", true).expect("it is kept");
    world.put("h/handler.toml", format!("{MANIFEST}concurrency = 2\n"));
    world.follow().await;
    assert!(world.running("h").membership.is_paused());
    assert_eq!(world.metrics.handler("h").paused.get(), 1);
    world.store(1).await;
    world.fleet.parts.pauses.set("h", false).expect("it ends");
    world.running("h").membership.pause(false);
    world.committed("h", 1).await;
}

/// A handlers' folder and who follows it.
struct World {
    home: TempDir,
    fleet: Fleet<Watched>,
    broker: Watched,
    roster: Arc<Roster>,
    metrics: Metrics,
    /// Files are dated a second apart, long ago: none of them is still being written.
    written: Cell<u64>,
}

impl World {
    async fn new() -> Self {
        let broker = Watched::new(|_, _| ());
        broker.admin().expect("an admin").create_topic("in", 1, None).await.expect("the topic is made");
        Self::on(broker, tempfile::tempdir().expect("a folder"))
    }

    /// A host on this broker and folder.
    fn on(broker: Watched, home: TempDir) -> Self {
        let producer = broker.producer(&BTreeMap::new()).expect("a producer");
        let metrics = Metrics::new();
        let backends = Backends {
            kv: BTreeMap::new(),
            sql: BTreeMap::new(),
            secrets: BTreeMap::new(),
            producer: Arc::clone(&producer),
        };
        let state = home.path().join(".state");
        let parts = Parts {
            broker: broker.clone(),
            producer,
            engine: engine(),
            backends,
            metrics: metrics.clone(),
            budget: Budget::new(usize::MAX, metrics.held_bytes()),
            pauses: Arc::new(Pauses::new(&state)),
            rollbacks: Arc::new(Rollbacks::new(&state)),
        };
        let roster = Arc::<Roster>::default();
        let fleet = Fleet::new(home.path().to_owned(), parts, Arc::clone(&roster));
        Self { home, fleet, broker, roster, metrics, written: Cell::new(0) }
    }

    /// The host ends, and another one starts in its place.
    async fn restarted(self) -> Self {
        let Self { home, fleet, broker, written, .. } = self;
        fleet.stop_all().await;
        let mut world = Self { written, ..Self::on(broker, home) };
        world.fleet.start().await.expect("the host starts");
        world
    }

    /// With a handler `h` that runs this component.
    async fn with(component: &[u8]) -> Self {
        let mut world = Self::new().await;
        world.put("h/handler.toml", MANIFEST);
        world.put("h/h.wasm", component);
        world.follow().await;
        assert!(world.runs(component));
        world
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    /// Writes a file in place, as `cp` does.
    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        std::fs::write(&path, bytes).expect("written");
        let written = self.written.replace(self.written.get() + 1);
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + written);
        File::options().write(true).open(&path).and_then(|file| file.set_modified(then)).expect("it has a time");
    }

    async fn follow(&mut self) {
        self.fleet.follow().await;
    }

    fn running(&self, name: &str) -> Arc<Running> {
        self.roster.get(name).expect("it runs")
    }

    /// Whether this is the component that `h` runs, and is seen to run.
    fn runs(&self, component: &[u8]) -> bool {
        let live = self.running("h").live.digest();
        let short = crate::attempt::short(&live);
        let seen = format!("tidemill_guest_live{{handler=\"h\",revision=\"{short}\"}} 1");
        assert!(self.metrics.render().contains(&seen), "the metrics say that another one is live");
        *live == *digest(component)
    }

    fn refused(&self, name: &str) -> Option<String> {
        self.roster.states().remove(name).and_then(|state| state.refused)
    }

    fn rejected_loads(&self, name: &str) -> u64 {
        self.metrics.handler(name).rejected_loads.get()
    }

    async fn store(&self, records: usize) {
        store(&self.broker, records).await;
    }

    fn commits(&self, group: &str) -> Vec<Offset> {
        self.broker.commits(group, &from())
    }

    async fn committed(&self, group: &str, offset: Offset) {
        self.broker.committed(group, &from(), offset).await;
    }
}

fn from() -> TopicPartition {
    TopicPartition::new("in", 0)
}

/// A component that skips each record; another number is another one.
fn guest(mark: u32) -> Vec<u8> {
    Odd { mark, ..Odd::default() }.build()
}

async fn store(broker: &Watched, records: usize) {
    let record = Outgoing {
        topic: "in".into(),
        partition: Some(0),
        timestamp_ms: None,
        key: None,
        value: None,
        headers: Vec::new(),
    };
    let producer = broker.producer(&BTreeMap::new()).expect("a producer");
    let stored = producer.send(vec![record; records], WhenFull::Wait).await;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
}
