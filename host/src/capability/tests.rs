//! Host calls without a guest: what the operator granted works, and nothing else does.

mod backends;
mod limits;
mod sql;

use expect_test::expect;
use tidemill_core::grants::Grants;
use wasmtime::component::Resource;

use self::backends::{Script, names, view, with};
use super::*;
use crate::broker::SendError;
use crate::guest::bindings::tidemill::guest::{kv_extra, producer, secrets};
use crate::guest::bindings::wasi::config::store as config_store;
use crate::guest::bindings::wasi::keyvalue::store::HostBucket;
use crate::guest::bindings::wasi::keyvalue::{atomics, batch, store};
use crate::guest::bindings::wasi::logging::logging;

impl CapabilityView for View {
    fn capabilities(&mut self) -> &mut View {
        self
    }
}

#[test]
fn every_offered_interface_is_linked() {
    let one_of_each = [
        ("tidemill:guest/producer@0.1.0", "send"),
        ("tidemill:guest/kv-extra@0.1.0", "claim"),
        ("tidemill:guest/secrets@0.1.0", "get"),
        ("tidemill:guest/sql@0.1.0", "current"),
        ("wasi:config/store@0.2.0-rc.1", "get"),
        ("wasi:keyvalue/store@0.2.0-draft", "open"),
        ("wasi:keyvalue/atomics@0.2.0-draft", "increment"),
        ("wasi:keyvalue/batch@0.2.0-draft", "get-many"),
        ("wasi:logging/logging@0.1.0-draft", "log"),
    ];
    let mut linker = Linker::<View>::new(&wasmtime::Engine::default());
    add_to_linker(&mut linker).expect("linked once");
    for (interface, function) in one_of_each {
        assert!(is_offered(interface), "{interface}");
        let mut instance = linker.instance(interface).expect("an interface");
        let again = instance.func_wrap(function, |_, (): ()| Ok(()));
        assert!(again.is_err(), "`{interface}` has no `{function}` yet");
    }
}

/// What a guest hands to a method: it keeps the handle.
fn lend<T: 'static>(resource: &Resource<T>) -> Resource<T> {
    Resource::new_borrow(resource.rep())
}

#[tokio::test]
async fn a_granted_bucket_works() {
    let mut view = view();
    let bucket = store::Host::open(&mut view, "totals".into()).await.expect("no trap").expect("granted");
    view.set(lend(&bucket), "a".into(), b"1".to_vec()).await.expect("no trap").expect("set");
    assert_eq!(view.get(lend(&bucket), "a".into()).await.expect("no trap").expect("get"), Some(b"1".to_vec()));
    assert_eq!(view.get(lend(&bucket), "b".into()).await.expect("no trap").expect("get"), None);
    assert!(view.exists(lend(&bucket), "a".into()).await.expect("no trap").expect("exists"));
    let sum = atomics::Host::increment(&mut view, lend(&bucket), "a".into(), 41).await.expect("no trap");
    assert_eq!(sum.expect("a number"), 42);
    view.delete(lend(&bucket), "a".into()).await.expect("no trap").expect("delete");

    let pairs = vec![("x".to_owned(), b"X".to_vec()), ("y".to_owned(), b"Y".to_vec())];
    batch::Host::set_many(&mut view, lend(&bucket), pairs).await.expect("no trap").expect("set");
    let keys = names(["y", "z", "x"]);
    let many = batch::Host::get_many(&mut view, lend(&bucket), keys).await.expect("no trap").expect("get");
    assert_eq!(many, [Some(("y".to_owned(), b"Y".to_vec())), None, Some(("x".to_owned(), b"X".to_vec()))]);
    batch::Host::delete_many(&mut view, lend(&bucket), names(["y"])).await.expect("no trap").expect("delete");
    let page = view.list_keys(lend(&bucket), None).await.expect("no trap").expect("list");
    assert_eq!((page.keys, page.cursor), (names(["x"]), None));

    let text = view.set(lend(&bucket), "w".into(), b"word".to_vec()).await.expect("no trap");
    text.expect("set");
    let wrong = atomics::Host::increment(&mut view, lend(&bucket), "w".into(), 1).await.expect("no trap");
    assert!(matches!(wrong, Err(store::Error::Other(text)) if text.contains("`w` is not a decimal number")));
    assert_eq!(view.end().await.unavailable, None, "a guest's own mistake is no store that is away");
}

#[tokio::test]
async fn what_is_not_granted_is_denied_counted_and_named() {
    let metrics = crate::metrics::Metrics::new();
    let mut view = with(Grants::default(), &Script::default(), &metrics);
    let open = store::Host::open(&mut view, "totals".into()).await.expect("no trap");
    assert!(matches!(open, Err(store::Error::AccessDenied)));
    let claim =
        kv_extra::Host::claim(&mut view, "totals".into(), "k".into(), "id".into(), None).await.expect("no trap");
    let Err(kv_extra::Error::AccessDenied(text)) = claim else { panic!("denied, but {claim:?}") };
    assert_eq!(text, "`totals` is not granted; add it to `kv` under `[grants]` in the handler's manifest");
    assert_eq!(secrets::Host::get(&mut view, "token".into()).expect("no trap"), None);
    let rendered = metrics.render();
    let counts: String = rendered.lines().filter(|line| line.contains("host_call") && line.ends_with(" 2")).collect();
    assert!(counts.contains("capability=\"kv\",result=\"denied\""), "{rendered}");
    assert_eq!(view.end().await.unavailable, None);
}

#[tokio::test]
async fn a_key_is_claimed_for_one_record_and_expires() {
    let mut view = view();
    for (record, expected) in [("t/0/1/9", true), ("t/0/1/9", true), ("t/0/2/9", false)] {
        let claim = kv_extra::Host::claim(&mut view, "totals".into(), "k".into(), record.into(), Some(60_000));
        assert_eq!(claim.await.expect("no trap").expect("claim"), expected, "{record}");
    }
    let set = kv_extra::Host::set_with_ttl(&mut view, "totals".into(), "t".into(), b"v".to_vec(), 60_000).await;
    set.expect("no trap").expect("set");
    let large = vec![0; 2 << 20];
    let set = kv_extra::Host::set_with_ttl(&mut view, "totals".into(), "t".into(), large, 60_000).await;
    assert!(matches!(set.expect("no trap"), Err(kv_extra::Error::TooLarge(size)) if size == 2 << 20));
}

#[tokio::test]
async fn configuration_and_granted_secrets_are_read() {
    let mut view = view();
    let get = |view: &mut View, key: &str| config_store::Host::get(view, key.into()).expect("no trap").expect("get");
    assert_eq!(get(&mut view, "currency").as_deref(), Some("EUR"));
    assert_eq!(get(&mut view, "Currency"), None);
    let all = config_store::Host::get_all(&mut view).expect("no trap").expect("get");
    assert_eq!(all, [("currency".to_owned(), "EUR".to_owned())]);
    assert_eq!(secrets::Host::get(&mut view, "token".into()).expect("no trap").as_deref(), Some("hunter2"));
    assert_eq!(secrets::Host::get(&mut view, "other".into()).expect("no trap"), None);
}

fn outgoing(topic: &str) -> producer::Outgoing {
    producer::Outgoing {
        topic: topic.into(),
        partition: None,
        timestamp_ms: None,
        key: None,
        value: None,
        headers: vec![],
    }
}

#[tokio::test]
async fn records_are_sent_at_once_to_granted_topics_alone() {
    let script = Script::default();
    let mut view =
        with(Grants { produce: ["out".to_owned()].into(), ..Grants::default() }, &script, &Default::default());
    let sent = producer::Host::send(&mut view, vec![outgoing("out"), outgoing("out")]).await.expect("no trap");
    let positions: Vec<_> = sent.expect("sent").into_iter().map(|at| (at.topic, at.partition, at.offset)).collect();
    assert_eq!(positions, [("out".to_owned(), 0, 0), ("out".to_owned(), 0, 1)]);

    let denied = producer::Host::send(&mut view, vec![outgoing("out"), outgoing("secret")]).await.expect("no trap");
    assert!(matches!(denied, Err(producer::Error::AccessDenied(text)) if text.starts_with("`secret` is not granted")));
    assert_eq!(script.sent(), 2, "all or none");
    assert_eq!(view.end().await.sent_at_once, 2);
}

#[tokio::test]
async fn what_the_broker_says_reaches_the_guest_and_the_attempt() {
    let text = "all brokers are down".to_owned();
    let cases = [
        (SendError::Unavailable(text.clone()), "Unavailable", true, 0),
        (SendError::QueueFull, "Unavailable", true, 0),
        (SendError::Unknown(text.clone()), "OutcomeUnknown", true, 1),
        (SendError::TooLarge(text.clone()), "TooLarge(0)", false, 0),
        (SendError::Denied(text.clone()), "AccessDenied", false, 0),
        (SendError::NoSuchTopic(text.clone()), "AccessDenied", false, 0),
        (SendError::Rejected(text), "AccessDenied", false, 0),
    ];
    for (error, expected, away, maybe_sent) in cases {
        let grants = Grants { produce: ["out".to_owned()].into(), ..Grants::default() };
        let mut view = with(grants, &Script::failing(error.clone()), &Default::default());
        let sent = producer::Host::send(&mut view, vec![outgoing("out")]).await.expect("no trap");
        let given = format!("{:?}", sent.expect_err("the broker failed"));
        assert!(given.contains(expected), "{error:?} -> {given}");
        let effects = view.end().await;
        assert_eq!((effects.unavailable.is_some(), effects.sent_at_once), (away, maybe_sent), "{error:?}");
    }
}

#[tokio::test]
async fn nothing_is_sent_beside_a_transaction() {
    let script = Script::default();
    let mut view =
        with(Grants { produce: ["out".to_owned()].into(), ..Grants::default() }, &script, &Default::default());
    view.begin(
        TopicPartition::new("in", 0),
        Guarantee::KafkaTransaction,
        None,
        Instant::now() + Duration::from_secs(5),
    );
    let sent = producer::Host::send(&mut view, vec![outgoing("out")]).await.expect("no trap");
    assert!(matches!(sent, Err(producer::Error::AccessDenied(text)) if text.contains("return them with `ack`")));
    assert_eq!(script.sent(), 0);
}

#[test]
fn a_guest_speaks_in_the_log_with_its_place() {
    let lines = backends::Lines::default();
    let subscriber = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(lines.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut view = view();
        view.begin(TopicPartition::new("orders", 3), Guarantee::AtLeastOnce, None, Instant::now());
        let mut log =
            |level, message: &str| logging::Host::log(&mut view, level, "ctx".into(), message.into()).expect("no trap");
        log(logging::Level::Debug, "nobody listens");
        log(logging::Level::Info, "first\nsecond");
        log(logging::Level::Critical, "broken");
    });
    expect![[r#"
         INFO guest: first\nsecond handler="orders" revision="0123456789ab" topic="orders" partition=3 context="ctx"
        ERROR guest: broken handler="orders" revision="0123456789ab" topic="orders" partition=3 context="ctx"
    "#]]
    .assert_eq(&lines.text());
}

#[test]
fn a_grant_that_is_not_configured_is_refused_with_the_known_names() {
    let resolve = |grants: Grants| {
        let configured = backends::configured(&Script::default());
        Granted::resolve("orders", &grants, &BTreeMap::new(), &configured)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    let one = |name: &str| [name.to_owned()].into();
    assert_eq!(resolve(Grants { produce: one("any"), kv: one("totals"), ..Grants::default() }), Ok(()));
    let texts = [
        resolve(Grants { kv: one("total"), ..Grants::default() }),
        resolve(Grants { sql: one("shop"), ..Grants::default() }),
        resolve(Grants { secrets: one("key"), ..Grants::default() }),
    ];
    let texts: String = texts.into_iter().map(|text| text.expect_err("refused") + "\n").collect();
    expect![[r#"
        `grants.kv` names `total`, which is not configured; add `[kv.total]` to tidemill.toml, or name one of: `totals`
        `grants.sql` names `shop`, which is not configured; add `[sql.shop]` to tidemill.toml
        `grants.secrets` names `key`, which is not configured; add `key = "${NAME}"` under `[secrets]` to tidemill.toml, or name one of: `token`
    "#]]
    .assert_eq(&texts);
}

#[test]
fn an_import_without_a_grant_is_refused_with_the_key_to_add() {
    let grants = Grants { kv: ["totals".to_owned()].into(), ..Grants::default() };
    let granted = Granted::resolve("orders", &grants, &BTreeMap::new(), &backends::configured(&Script::default()))
        .expect("resolved");
    let used =
        granted.demands(["wasi:io/poll@0.2.6", "wasi:logging/logging@0.1.0-draft", "wasi:keyvalue/store@0.2.0-draft"]);
    let used: Vec<_> = used.expect("granted").into_iter().collect();
    assert_eq!(used, ["wasi:keyvalue/store@0.2.0-draft", "wasi:logging/logging@0.1.0-draft"]);
    let refused = granted.demands(["tidemill:guest/sql@0.1.0"]).expect_err("nothing granted");
    assert_eq!(
        refused.to_string(),
        "the guest imports `tidemill:guest/sql@0.1.0`, but nothing of it is granted; add `sql = [\"NAME\"]` under `[grants]` in the handler's manifest, or build the guest without the import"
    );
}
