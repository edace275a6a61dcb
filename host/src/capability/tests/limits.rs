//! Backends that hang or are away: the guest gets its answer in time, and the attempt knows who is to blame.

use tidemill_core::grants::Grants;

use super::backends::{Broken, Script, configured, granted, with};
use super::*;
use crate::store::KeyValueError;

fn broken(error: Option<KeyValueError>) -> View {
    let mut backends = configured(&Script::default());
    backends.kv.insert("totals".to_owned(), Arc::new(Broken(error)));
    granted(Grants { kv: ["totals".to_owned()].into(), ..Grants::default() }, &backends, &Default::default())
}

async fn get(view: &mut View) -> Result<Option<Vec<u8>>, store::Error> {
    let bucket = store::Host::open(view, "totals".into()).await.expect("no trap").expect("granted");
    HostBucket::get(view, bucket, "a".into()).await.expect("no trap")
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_unavailable_before_the_deadline() {
    let mut view = broken(None);
    let started = Instant::now();
    let Err(store::Error::Other(text)) = get(&mut view).await else { panic!("the store never answers") };
    assert_eq!(text, "the store is unavailable: no answer in 9000 ms, which is what the call had left for it");
    assert_eq!(started.elapsed().as_secs(), 9, "a tenth is left to the guest");
    let effects = view.end().await;
    assert_eq!(
        effects.unavailable.as_deref(),
        Some("`kv`: no answer in 9000 ms, which is what the call had left for it")
    );
    assert_eq!(view.end().await.unavailable, None, "effects belong to one call");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_used_up_its_time_can_not_blame_the_store() {
    let mut view = broken(None);
    tokio::time::advance(Duration::from_secs(8)).await;
    assert!(get(&mut view).await.is_err());
    assert_eq!(view.end().await.unavailable, None);
}

#[tokio::test]
async fn a_store_that_is_away_or_full_blames_no_record() {
    let away = KeyValueError::Unavailable("connection refused".to_owned());
    let full = KeyValueError::Full { limit: "bytes_max", max: 64 };
    let own = KeyValueError::NotANumber { key: "a".to_owned() };
    for (error, expected) in [
        (away, Some("the store is unavailable: connection refused")),
        (full, Some("the store is full: `bytes_max` is 64")),
        (own, None),
    ] {
        let mut view = broken(Some(error));
        assert!(get(&mut view).await.is_err());
        assert_eq!(view.end().await.unavailable.as_deref(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_hangs_leaves_the_outcome_unknown() {
    let grants = Grants { produce: ["out".to_owned()].into(), ..Grants::default() };
    let mut view = with(grants, &Script::hanging(), &Default::default());
    let sent = producer::Host::send(&mut view, vec![outgoing("out"), outgoing("out")]).await.expect("no trap");
    assert!(matches!(sent, Err(producer::Error::OutcomeUnknown(_))));
    let effects = view.end().await;
    assert_eq!(effects.sent_at_once, 2, "they may be in the log");
    assert!(effects.unavailable.is_some());
}

#[tokio::test]
async fn handles_are_bounded_and_more_of_them_trap() {
    let mut view = backends::view();
    for _ in 0..RESOURCES_MAX {
        store::Host::open(&mut view, "totals".into()).await.expect("below the bound").expect("granted");
    }
    assert!(store::Host::open(&mut view, "totals".into()).await.is_err());
}
