//! What can't be loaded changes nothing (REV-4), is counted once and is told.

use super::*;
use crate::store::Sql;
use crate::store::sqlite::{self, Sqlite};

#[tokio::test]
async fn a_file_that_is_no_handler_is_refused_and_the_revision_before_goes_on() {
    let whole = guest(2);
    let module = wat::parse_str(Odd::default().module()).expect("text");
    let bad: [(&[u8], &str); 5] = [
        (b"", "the file is empty"),
        (b"#!/bin/sh\n", "the file is not WebAssembly"),
        (&whole[..whole.len() / 2], "the component is broken or not whole"),
        (&module, "the file is a core module"),
        (&prebuilt("refusing"), "the guest refuses to run"),
    ];
    let mut world = World::with(&guest(1)).await;
    let running = world.running("h");
    for (count, (bytes, why)) in (1..).zip(bad) {
        world.put("h/h.wasm", bytes);
        world.follow().await;
        world.follow().await;
        assert_eq!(world.rejected_loads("h"), count, "once");
        let told = world.refused("h").expect("it is told");
        assert!(told.contains(why), "{told}");
        assert!(world.runs(&guest(1)), "REV-4");
        world.store(1).await;
        world.committed("h", count as Offset).await;
    }
    assert!(Arc::ptr_eq(&running, &world.running("h")));
    world.put("h/h.wasm", whole);
    world.follow().await;
    assert_eq!(world.refused("h"), None);
    assert!(world.runs(&guest(2)));
    assert_eq!(world.rejected_loads("h"), 5);
}

#[tokio::test]
async fn a_new_folder_that_is_refused_is_told_until_it_is_mended_or_gone() {
    let mut world = World::new().await;
    world.put("h/handler.toml", MANIFEST);
    world.follow().await;
    let told = world.refused("h").expect("it is told");
    assert!(told.contains("the folder has no .wasm file"), "{told}");
    assert!(world.roster.get("h").is_none());
    std::fs::remove_dir_all(world.path("h")).expect("removed");
    world.follow().await;
    assert!(world.roster.states().is_empty());
    world.put("h/handler.toml", MANIFEST);
    world.put("h/h.wasm", guest(1));
    world.follow().await;
    assert_eq!(world.refused("h"), None);
    assert!(world.runs(&guest(1)));
}

#[tokio::test]
async fn a_refusal_ends_when_the_folder_is_again_as_it_was() {
    let mut world = World::with(&guest(1)).await;
    std::fs::rename(world.path("h/h.wasm"), world.path("h/kept")).expect("renamed");
    world.put("h/h.wasm", "no component");
    world.follow().await;
    assert!(world.refused("h").is_some());
    std::fs::rename(world.path("h/kept"), world.path("h/h.wasm")).expect("renamed");
    world.follow().await;
    assert_eq!(world.refused("h"), None);
    assert!(world.runs(&guest(1)));
}

#[tokio::test]
async fn a_changed_manifest_is_applied_or_refused_whole() {
    let mut world = World::with(&guest(1)).await;
    world.store(1).await;
    world.committed("h", 1).await;
    let old = world.running("h");
    // A wrong manifest beside a good component, then a good manifest beside a wrong component.
    world.put("h/handler.toml", format!("group = \"other\"\nconcurrency = 0\n{MANIFEST}"));
    world.put("h/h.wasm", guest(2));
    world.follow().await;
    let told = world.refused("h").expect("it is told");
    assert!(told.contains("`concurrency` is 0"), "{told}");
    world.put("h/handler.toml", format!("group = \"other\"\n{MANIFEST}"));
    world.put("h/h.wasm", "no component");
    world.follow().await;
    let told = world.refused("h").expect("it is told");
    assert!(told.contains("the file is not WebAssembly"), "{told}");
    assert!(world.runs(&guest(1)), "REV-4");
    assert!(Arc::ptr_eq(&old, &world.running("h")) && old.membership.is_joined());
    assert_eq!(world.rejected_loads("h"), 2);

    world.put("h/h.wasm", guest(3));
    world.follow().await;
    assert_eq!(world.refused("h"), None);
    assert!(world.runs(&guest(3)));
    assert!(!old.membership.is_joined(), "it has left its group");
    assert_eq!(world.running("h").spec.consumer.subscription.group, "other");
    world.committed("other", 1).await;
}

#[tokio::test]
async fn a_group_belongs_to_one_handler_until_that_is_gone() {
    let mut world = World::with(&guest(1)).await;
    world.put("second/handler.toml", format!("group = \"h\"\n{MANIFEST}"));
    world.put("second/second.wasm", guest(2));
    for _ in 0..2 {
        world.follow().await;
        let told = world.refused("second").expect("it is told");
        assert!(told.contains("group `h` is `h`'s already"), "{told}");
        pass(LOOK_AGAIN_INTERVAL).await;
    }
    assert!(world.roster.get("second").is_none());
    assert_eq!(world.rejected_loads("second"), 1, "the same folder is looked at again and counted once");
    std::fs::remove_dir_all(world.path("h")).expect("removed");
    world.follow().await;
    assert!(world.roster.get("second").is_some() && world.refused("second").is_none());
    world.store(1).await;
    world.committed("h", 1).await;
}

/// A handler that wants another's group goes on with its own, and with its own component.
#[tokio::test]
async fn a_handler_that_changes_to_a_taken_group_goes_on_as_before() {
    let mut world = World::with(&guest(1)).await;
    world.put("second/handler.toml", MANIFEST);
    world.put("second/second.wasm", guest(1));
    world.follow().await;
    world.put("h/handler.toml", format!("group = \"second\"\n{MANIFEST}"));
    world.put("h/h.wasm", guest(2));
    world.follow().await;
    let told = world.refused("h").expect("it is told");
    assert!(told.contains("group `second` is `second`'s already"), "{told}");
    assert!(world.runs(&guest(1)), "REV-4");
    world.store(1).await;
    world.committed("h", 1).await;
}

#[tokio::test]
async fn a_schema_changes_only_for_a_component_that_can_be_taken_and_before_it_takes_over() {
    let mut world = World::new().await;
    let file = sqlite::Config::new(world.home.path().join("main.db"));
    let database: Arc<dyn Sql> = Arc::new(Sqlite::open(file).await.expect("a database"));
    world.fleet.parts.backends.sql.insert("main".to_owned(), Arc::clone(&database));
    world.put("h/handler.toml", format!("grants.sql = [\"main\"]\n{MANIFEST}"));
    world.put("h/h.wasm", guest(1));
    world.follow().await;
    let made = async || {
        let mut connection = database.connect().await.expect("a connection");
        connection.query("SELECT a FROM made".to_owned(), Vec::new()).await.is_ok()
    };

    world.put("h/migrations/V1__made.sql", "CREATE TABLE made (a INTEGER)");
    world.put("h/h.wasm", "no component");
    world.follow().await;
    assert!(world.refused("h").is_some() && !made().await, "REV-4");
    world.put("h/h.wasm", guest(2));
    world.follow().await;
    assert_eq!(world.refused("h"), None);
    assert!(made().await && world.runs(&guest(2)));

    world.put("h/migrations/V2__wrong.sql", "CREATE TABEL");
    world.put("h/h.wasm", guest(3));
    world.follow().await;
    assert!(world.refused("h").is_some() && world.runs(&guest(2)), "REV-4");
}

/// Lets time pass without waiting for it.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
