//! The prebuilt guests, written with the SDK, behave as their first lines say.

use super::*;

#[tokio::test]
async fn an_sdk_guest_that_takes_its_time_suspends_and_answers() {
    let live = load_bytes(prebuilt("slow"), Grants::default()).await.expect("it loads");
    let started = tokio::time::Instant::now();
    assert_eq!(call(&live, 1).await.outcomes, Ok(vec![Outcome::Ack(vec![])]));
    assert!(started.elapsed() >= Duration::from_millis(100), "it sleeps 100 ms");
}

#[tokio::test]
async fn each_misbehaving_sdk_guest_fails_by_its_class() {
    for (name, expected) in
        [("trapping", Class::Trap), ("looping", Class::Deadline), ("slow", Class::Deadline), ("hungry", Class::Memory)]
    {
        let live = load_bytes(prebuilt(name), Grants::default()).await.expect("it loads");
        let deadline = if name == "hungry" { Duration::from_secs(10) } else { Duration::from_millis(50) };
        let error = call_within(&live, 1, deadline).await.outcomes.expect_err("the call fails");
        assert_eq!(error.class, expected, "{name}: {error}");
    }
}

#[tokio::test]
async fn a_refusing_sdk_guest_says_why() {
    let error = load_bytes(prebuilt("refusing"), Grants::default()).await.err().expect("it does not go live");
    assert!(error.to_string().contains("this guest always refuses"), "{error}");
}

#[tokio::test]
async fn an_sdk_guest_answers_untouched_behind_a_retry_of_the_same_key() {
    let live = load_bytes(prebuilt("flaky"), Grants::default()).await.expect("it loads");
    let outcomes = call(&live, 2).await.outcomes.expect("it answers");
    assert!(matches!(&outcomes[..], [Outcome::Retry { .. }, Outcome::Untouched]), "{outcomes:?}");
}
