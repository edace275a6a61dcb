//! What a key-value store promises.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;

use crate::store::{KeyPage, KeyValue, KeyValueError, limits};

/// Bounds with which the contract's stores are opened.
pub(crate) const VALUE_BYTES_MAX: usize = 64 << 10;
/// The same for all of a store.
pub(crate) const BYTES_MAX: usize = 2 << 20;

/// An empty store, and whatever must live as long.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn KeyValue>,
    pub(crate) clock: Clock,
    pub(crate) _keep: Option<tempfile::TempDir>,
}

/// The store's time, which stands until it is moved.
#[derive(Clone, Default)]
pub(crate) struct Clock(Arc<AtomicI64>);

impl Clock {
    pub(crate) fn now(&self) -> limits::Now {
        let ms = self.0.clone();
        Arc::new(move || ms.load(Ordering::SeqCst))
    }

    fn advance(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

const TTL: Duration = Duration::from_millis(100);

fn text(text: &str) -> String {
    text.to_owned()
}

async fn get(store: &Arc<dyn KeyValue>, key: &str) -> Option<Vec<u8>> {
    store.get(text(key)).await.expect("get")
}

pub(crate) async fn what_is_set_is_there(Opened { store, _keep, .. }: Opened) {
    assert_eq!(get(&store, "a").await, None);
    assert!(!store.exists(text("a")).await.expect("exists"));
    for value in [&b"one"[..], b"", &[0, 255, 128]] {
        store.set(text("a"), value.to_vec()).await.expect("set");
        assert_eq!(get(&store, "a").await.as_deref(), Some(value));
        assert!(store.exists(text("a")).await.expect("exists"));
    }
    store.set(text(""), b"the empty key".to_vec()).await.expect("set");
    assert_eq!(get(&store, "").await.as_deref(), Some(&b"the empty key"[..]));
}

pub(crate) async fn what_is_deleted_is_gone(Opened { store, _keep, .. }: Opened) {
    store.set(text("a"), vec![1]).await.expect("set");
    store.delete(text("a")).await.expect("delete");
    assert_eq!(get(&store, "a").await, None);
    store.delete(text("a")).await.expect("deleting what is not there is fine");
}

pub(crate) async fn expired_keys_are_gone(Opened { store, clock, _keep }: Opened) {
    for key in ["a", "b", "c"] {
        store.set_with_ttl(text(key), vec![1], TTL).await.expect("set");
    }
    clock.advance(99);
    assert_eq!(get(&store, "a").await, Some(vec![1]));
    clock.advance(1);
    assert_eq!(get(&store, "a").await, None);
    assert!(!store.exists(text("b")).await.expect("exists"));
    assert_eq!(store.list_keys(None).await, Ok(KeyPage { keys: vec![], cursor: None }));
    assert_eq!(store.get_many(vec![text("c")]).await, Ok(vec![None]));
    assert_eq!(store.increment(text("a"), 5).await, Ok(5), "an expired counter starts again");
}

pub(crate) async fn a_plain_set_drops_the_expiry(Opened { store, clock, _keep }: Opened) {
    store.set_with_ttl(text("a"), vec![1], TTL).await.expect("set");
    store.set(text("a"), vec![2]).await.expect("set");
    store.set_with_ttl(text("n"), b"1".to_vec(), TTL).await.expect("set");
    assert_eq!(store.increment(text("n"), 1).await, Ok(2));
    clock.advance(100);
    assert_eq!(get(&store, "a").await, Some(vec![2]));
    assert_eq!(get(&store, "n").await, None, "adding keeps the expiry");
}

pub(crate) async fn counters_add_up_from_many_at_once(Opened { store, _keep, .. }: Opened) {
    let adders = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..25 {
                store.increment(text("n"), 2).await.expect("increment");
            }
        })
    });
    join_all(adders).await.into_iter().for_each(|adder| adder.expect("an adder"));
    assert_eq!(get(&store, "n").await.as_deref(), Some(&b"400"[..]));
    assert_eq!(store.increment(text("n"), 0).await, Ok(400));
}

pub(crate) async fn what_is_no_counter_stays_as_it_is(Opened { store, _keep, .. }: Opened) {
    for value in [&b"x"[..], b"", b"-1", b"+1", b" 1", b"18446744073709551616", &[0xFF]] {
        store.set(text("a"), value.to_vec()).await.expect("set");
        assert_eq!(store.increment(text("a"), 1).await, Err(KeyValueError::NotANumber { key: text("a") }));
        assert_eq!(get(&store, "a").await.as_deref(), Some(value));
    }
    assert_eq!(store.increment(text("n"), u64::MAX).await, Ok(u64::MAX));
    assert_eq!(store.increment(text("n"), 1).await, Err(KeyValueError::Overflow { key: text("n") }));
    assert_eq!(store.increment(text("n"), 0).await, Ok(u64::MAX));
}

pub(crate) async fn a_claim_is_one_records(Opened { store, _keep, .. }: Opened) {
    assert_eq!(store.claim(text("k"), text("t/0/1/9"), None).await, Ok(true));
    assert_eq!(store.claim(text("k"), text("t/0/2/9"), None).await, Ok(false));
    assert_eq!(store.claim(text("k"), text("t/0/1/9"), None).await, Ok(true), "a retry of the same record goes on");
    assert_eq!(get(&store, "k").await.as_deref(), Some(&b"t/0/1/9"[..]));
    store.delete(text("k")).await.expect("delete");
    assert_eq!(store.claim(text("k"), text("t/0/2/9"), None).await, Ok(true), "a key that was given back is free");
}

pub(crate) async fn an_expired_claim_is_anybodys(Opened { store, clock, _keep }: Opened) {
    assert_eq!(store.claim(text("k"), text("one"), Some(TTL)).await, Ok(true));
    clock.advance(60);
    assert_eq!(store.claim(text("k"), text("one"), Some(TTL)).await, Ok(true));
    clock.advance(60);
    assert_eq!(store.claim(text("k"), text("two"), Some(TTL)).await, Ok(false), "a retry renews the claim");
    clock.advance(40);
    assert_eq!(store.claim(text("k"), text("two"), Some(TTL)).await, Ok(true));
    assert_eq!(store.claim(text("k"), text("one"), Some(TTL)).await, Ok(false));
}

pub(crate) async fn many_claimants_have_one_winner(Opened { store, _keep, .. }: Opened) {
    for round in 0..20 {
        let claims = (0..8).map(|id| {
            let store = store.clone();
            tokio::spawn(async move { store.claim(format!("k{round}"), format!("r{id}"), None).await })
        });
        let won = join_all(claims).await.into_iter().filter(|claim| matches!(claim, Ok(Ok(true)))).count();
        assert_eq!(won, 1, "round {round}");
    }
}

pub(crate) async fn many_keys_at_once(Opened { store, _keep, .. }: Opened) {
    let pairs = [("a", 1), ("b", 2), ("a", 3)].map(|(key, value)| (text(key), vec![value]));
    store.set_many(pairs.to_vec()).await.expect("set_many");
    let keys = ["b", "x", "a", "b"].map(text).to_vec();
    assert_eq!(store.get_many(keys).await, Ok(vec![Some(vec![2]), None, Some(vec![3]), Some(vec![2])]));
    store.delete_many(["a", "x"].map(text).to_vec()).await.expect("delete_many");
    assert_eq!(store.get_many(["a", "b"].map(text).to_vec()).await, Ok(vec![None, Some(vec![2])]));
    assert_eq!(store.get_many(vec![]).await, Ok(vec![]));
}

pub(crate) async fn a_listing_has_each_key_once(Opened { store, _keep, .. }: Opened) {
    let stay = |i: usize| format!("stay{i:05}");
    for chunk in (0..2500).collect::<Vec<_>>().chunks(500) {
        let pairs = chunk.iter().flat_map(|i| [(stay(*i), vec![0]), (format!("go{i}"), vec![0])]);
        store.set_many(pairs.collect()).await.expect("set_many");
    }
    let (mut found, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = store.list_keys(cursor).await.expect("list_keys");
        assert!(page.keys.len() <= limits::PAGE_KEYS_MAX);
        found.extend(page.keys.into_iter().filter(|key| key.starts_with("stay")));
        pages += 1;
        let rewritten = (0..50).map(|i| (stay(i * 49), vec![1])).collect();
        store.set_many(rewritten).await.expect("what is written again keeps its place");
        store.delete_many((0..50).map(|i| format!("go{}", i * pages)).collect()).await.expect("delete_many");
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, (0..2500).map(stay).collect::<Vec<_>>());
    assert!(pages >= 5);
    assert_eq!(store.list_keys(Some(u64::MAX)).await, Ok(KeyPage { keys: vec![], cursor: None }));
}

pub(crate) async fn what_is_too_large_is_refused(Opened { store, _keep, .. }: Opened) {
    let too_large = |result| matches!(result, Err(KeyValueError::TooLarge { .. }));
    assert!(too_large(store.set(text("a"), vec![0; VALUE_BYTES_MAX + 1]).await));
    store.set(text("a"), vec![0; VALUE_BYTES_MAX]).await.expect("the largest value");
    assert!(too_large(store.set("k".repeat(limits::KEY_BYTES_MAX + 1), vec![]).await));
    store.set("k".repeat(limits::KEY_BYTES_MAX), vec![]).await.expect("the longest key");
    let pairs = (0..=limits::BATCH_KEYS_MAX).map(|i| (i.to_string(), vec![])).collect();
    assert!(too_large(store.set_many(pairs).await));
    let keys = vec![text("a"); 257];
    assert!(too_large(store.get_many(keys).await.map(drop)), "257 values of 64 KiB are more than 16 MiB");
}

pub(crate) async fn a_full_store_says_so(Opened { store, _keep, .. }: Opened) {
    let mut kept = 0;
    let error = loop {
        match store.set(format!("k{kept}"), vec![7; VALUE_BYTES_MAX]).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept * VALUE_BYTES_MAX <= BYTES_MAX, "the bound holds");
    };
    assert!(matches!(error, KeyValueError::Full { .. }), "{error}");
    assert!(kept > 20, "{kept}");
    assert_eq!(get(&store, "k0").await.map(|value| value.len()), Some(VALUE_BYTES_MAX), "what is there stays");
    let keys = (0..kept).map(|i| format!("k{i}")).collect();
    store.delete_many(keys).await.expect("a full store can be emptied");
    store.set(text("again"), vec![7; VALUE_BYTES_MAX]).await.expect("and used again");
}
