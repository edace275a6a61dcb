//! Another component takes over, and an operator goes back.

use super::*;

#[tokio::test]
async fn a_component_is_swapped_in_by_renaming_a_file_over_it() {
    check("h/h.wasm", |world, component| {
        world.put("h/new", component);
        std::fs::rename(world.path("h/new"), world.path("h/h.wasm")).expect("renamed");
    })
    .await;
}

#[tokio::test]
async fn a_component_is_swapped_in_by_copying_over_it() {
    check("h/h.wasm", |world, component| world.put("h/h.wasm", component)).await;
}

/// As Kubernetes does with a ConfigMap: all files change by the rename of one link.
#[tokio::test]
async fn a_component_is_swapped_in_by_turning_a_link() {
    let mut world = World::new().await;
    mount(&world, 1);
    symlink("..data/handler.toml", world.path("h/handler.toml")).expect("linked");
    symlink("..data/h.wasm", world.path("h/h.wasm")).expect("linked");
    world.follow().await;
    assert!(world.runs(&guest(1)));
    mount(&world, 2);
    swapped(&mut world, &guest(2)).await;
}

/// Makes a folder with a component and turns `..data` to it.
fn mount(world: &World, number: u32) {
    world.put(&format!("h/..{number}/handler.toml"), MANIFEST);
    world.put(&format!("h/..{number}/h.wasm"), guest(number));
    symlink(format!("..{number}"), world.path("h/..next")).expect("linked");
    std::fs::rename(world.path("h/..next"), world.path("h/..data")).expect("renamed");
}

#[tokio::test]
async fn a_component_is_swapped_in_under_another_name() {
    check("h/h-1.wasm", |world, component| {
        std::fs::remove_file(world.path("h/h-1.wasm")).expect("removed");
        world.put("h/h-2.wasm", component);
    })
    .await;
}

#[tokio::test]
async fn swaps_while_records_flow_lose_none() {
    let mut world = World::with(&guest(0)).await;
    for round in 1..=6 {
        world.store(50).await;
        world.put("h/h.wasm", guest(round));
        world.follow().await;
        world.store(50).await;
    }
    world.committed("h", 600).await;
    assert!(world.runs(&guest(6)));
}

#[tokio::test]
async fn what_an_operator_went_back_from_is_not_taken_again_until_the_file_changes() {
    let mut world = World::with(&guest(1)).await;
    world.put("h/h.wasm", guest(2));
    world.follow().await;
    let running = world.running("h");
    running.live.roll_back(|_| ()).await.expect("there is one before");
    world.follow().await;
    assert!(world.runs(&guest(1)));
    // The same bytes, copied once more.
    world.put("h/h.wasm", guest(2));
    world.follow().await;
    assert!(world.runs(&guest(1)));
    assert_eq!((world.refused("h"), world.rejected_loads("h")), (None, 0));
    world.put("h/h.wasm", guest(3));
    world.follow().await;
    assert!(world.runs(&guest(3)));
    world.store(1).await;
    world.committed("h", 1).await;
}

#[tokio::test]
async fn what_an_operator_went_back_from_is_not_taken_after_a_restart_either() {
    let mut world = World::with(&guest(1)).await;
    world.put("h/h.wasm", guest(2));
    world.follow().await;
    let rollbacks = Arc::clone(&world.fleet.parts.rollbacks);
    let kept = world.running("h").live.roll_back(|rollback| rollbacks.keep("h", rollback)).await;
    kept.expect("there is one before").expect("it is kept");
    let mut world = world.restarted().await;
    assert!(world.runs(&guest(1)), "of a file that is gone");
    world.put("h/handler.toml", format!("{MANIFEST}concurrency = 2\n"));
    world.follow().await;
    assert!(world.runs(&guest(1)), "a changed manifest changes nothing of it");
    assert_eq!(world.running("h").live.view().set_aside, [digest(&guest(2))]);
    world.store(1).await;
    world.committed("h", 1).await;
    for number in [3, 2] {
        world.put("h/h.wasm", guest(number));
        world.follow().await;
        assert!(world.runs(&guest(number)), "once another file came, the old one is a new deployment");
    }
    assert!(world.restarted().await.runs(&guest(2)));
}

#[tokio::test]
async fn one_whose_good_build_is_gone_waits_for_a_file_and_holds_nobody_up() {
    let mut world = World::new().await;
    for name in ["h", "other"] {
        world.put(&format!("{name}/handler.toml"), MANIFEST.replace("topics", &format!("group = \"{name}\"\ntopics")));
        world.put(&format!("{name}/{name}.wasm"), guest(2));
    }
    let rollback = Rollback { live: "0".repeat(64), set_aside: vec![digest(&guest(2))] };
    world.fleet.parts.rollbacks.keep("h", &rollback).expect("it is kept");
    world.fleet.start().await.expect("the host starts");
    world.running("other");
    let why = world.refused("h").expect("it does not run");
    assert!(
        why.contains("000000000000 that ran instead is not kept compiled") && why.contains("rolled-back/h"),
        "{why}"
    );
    world.put("h/h.wasm", guest(1));
    world.follow().await;
    assert!(world.runs(&guest(1)));
    assert_eq!(world.fleet.parts.rollbacks.of("h"), None, "it is over");
}

/// Runs a handler from this file, then deploys another component.
async fn check(file: &str, deploy: impl FnOnce(&World, &[u8])) {
    let mut world = World::new().await;
    world.put("h/handler.toml", MANIFEST);
    world.put(file, guest(1));
    world.follow().await;
    assert!(world.runs(&guest(1)));
    deploy(&world, &guest(2));
    swapped(&mut world, &guest(2)).await;
}

/// Follows the folder: the component takes over, the handler goes on, and no record is left out.
async fn swapped(world: &mut World, component: &[u8]) {
    let running = world.running("h");
    world.store(3).await;
    world.committed("h", 3).await;
    world.follow().await;
    assert_eq!(world.refused("h"), None);
    assert!(world.runs(component));
    assert!(Arc::ptr_eq(&running, &world.running("h")), "the handler has not left its group");
    world.store(3).await;
    world.committed("h", 6).await;
    world.follow().await;
    assert_eq!(world.metrics.handler("h").swaps.get(), 1, "once");
}
