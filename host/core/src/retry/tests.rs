use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy(attempts_max: u32) -> RetryPolicy {
    RetryPolicy::new(attempts_max, Duration::from_millis(100), SECOND).expect("valid")
}

/// A record's failure that came after so many others, all of which cost an attempt.
fn failed(class: Class, tries: u32) -> Failed {
    Failed { class, tries, charged: tries, age: Duration::ZERO, asked: None }
}

#[test]
fn contradictions_are_refused_with_the_cure() {
    let error = RetryPolicy::new(0, SECOND, SECOND).expect_err("no attempt");
    assert_eq!(error.to_string(), "`attempts_max` is 0; use 1 to never retry");
    let error = RetryPolicy::new(1, 2 * SECOND, SECOND).expect_err("reversed");
    assert_eq!(error.to_string(), "`delay_min` (2s) is longer than `delay_max` (1s)");
}

#[test]
fn delays_double_up_to_the_cap_and_jitter_stays_in_the_upper_half() {
    let delays = |dice| {
        (1..=6)
            .map(|tries| match policy(10).decide(failed(Class::Trap, tries), dice) {
                Decision::RetryAfter(delay) => delay.as_millis(),
                Decision::End(_) => 0,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(delays(1.0), [100, 200, 400, 800, 1000, 1000]);
    assert_eq!(delays(0.0), [50, 100, 200, 400, 500, 500]);
}

#[test]
fn a_spent_budget_ends_as_the_policy_says() {
    assert!(matches!(policy(3).decide(failed(Class::Retry, 2), 0.5), Decision::RetryAfter(_)));
    assert_eq!(policy(3).decide(failed(Class::Retry, 3), 0.5), Decision::End(Exhausted::DeadLetter));
    for end in [Exhausted::DeadLetter, Exhausted::Park, Exhausted::Stop, Exhausted::Drop] {
        assert_eq!(policy(3).exhausted(end).decide(failed(Class::Trap, 3), 0.5), Decision::End(end));
    }
}

#[test]
fn an_unavailable_dependency_costs_nothing_however_long() {
    let away = Failed { charged: 1, age: 1000 * SECOND, ..failed(Class::Unavailable, 1_000_000) };
    let patient = RetryPolicy::new(1, Duration::from_millis(100), 30 * SECOND).expect("valid");
    assert_eq!(patient.decide(away, 1.0), Decision::RetryAfter(2 * SECOND), "it flows again soon after it is back");
    let patient = policy(1).aged(Some(SECOND));
    assert_eq!(patient.decide(away, 1.0), Decision::RetryAfter(SECOND));
}

#[test]
fn an_unavailable_dependency_is_charged_where_the_policy_says_so() {
    let strict = policy(2).unavailable(Unavailable::Exhaust);
    assert!(strict.charges(Class::Unavailable) && !policy(2).charges(Class::Unavailable));
    assert!(matches!(strict.decide(failed(Class::Unavailable, 1), 0.5), Decision::RetryAfter(_)));
    assert_eq!(strict.decide(failed(Class::Unavailable, 2), 0.5), Decision::End(Exhausted::DeadLetter));
    assert!(!strict.charges(Class::HostShortage), "what the host is short of is never a record's fault");
}

#[test]
fn what_can_never_work_is_not_tried_again() {
    for class in [Class::Rejected, Class::Malformed] {
        assert_eq!(policy(100).decide(failed(class, 1), 0.5), Decision::End(Exhausted::DeadLetter));
        let stop = policy(100).exhausted(Exhausted::Stop);
        assert_eq!(stop.decide(failed(class, 1), 0.5), Decision::End(Exhausted::Stop));
    }
}

#[test]
fn the_last_attempt_begins_when_the_age_is_reached_and_not_later() {
    let aged = policy(1000).aged(Some(10 * SECOND));
    let at = |age_millis| Failed { age: Duration::from_millis(age_millis), ..failed(Class::Retry, 9) };
    assert_eq!(aged.decide(at(0), 1.0), Decision::RetryAfter(SECOND));
    assert_eq!(aged.decide(at(9_700), 1.0), Decision::RetryAfter(Duration::from_millis(300)));
    assert_eq!(aged.decide(at(10_000), 1.0), Decision::End(Exhausted::DeadLetter));
}

#[test]
fn a_guest_chooses_its_delay_within_the_operators_cap() {
    let asked = |class, millis| {
        policy(9).decide(Failed { asked: Some(Duration::from_millis(millis)), charged: 1, ..failed(class, 1) }, 0.5)
    };
    assert_eq!(asked(Class::Retry, 7), Decision::RetryAfter(Duration::from_millis(7)));
    assert_eq!(
        asked(Class::Unavailable, 0),
        Decision::RetryAfter(Duration::from_millis(100)),
        "what costs nothing is not tried in a circle"
    );
    assert_eq!(asked(Class::Retry, 70_000), Decision::RetryAfter(SECOND));
}

fn any_policy() -> impl Strategy<Value = RetryPolicy> {
    let ends = prop::sample::select(vec![Exhausted::DeadLetter, Exhausted::Stop, Exhausted::Drop]);
    let away = prop::sample::select(vec![Unavailable::Wait, Unavailable::Exhaust]);
    let age_max = prop::option::of(0_u64..20_000).prop_map(|millis| millis.map(Duration::from_millis));
    (1_u32..8, 0_u64..500, 0_u64..5000, age_max, ends, away).prop_map(
        |(attempts_max, delay_min, more, age_max, exhausted, unavailable)| {
            let (min, max) = (Duration::from_millis(delay_min), Duration::from_millis(delay_min + more));
            let policy = RetryPolicy::new(attempts_max, min, max).expect("valid");
            policy.aged(age_max).exhausted(exhausted).unavailable(unavailable)
        },
    )
}

/// One failure after another: which class, what the guest asked for, how long the call took, and the dice.
fn failures() -> impl Strategy<Value = Vec<(Class, Option<u64>, u64, f64)>> {
    let failure =
        (prop::sample::select(Class::ALL.to_vec()), prop::option::of(0_u64..10_000), 0_u64..3000, 0.0_f64..1.0);
    prop::collection::vec(failure, 1..40)
}

proptest! {
    /// The life of one failing record against a list of everything that happened to it: it ends exactly when the list says
    /// that it must, as the policy says, and until then it waits within the bounds.
    #[test]
    fn agrees_with_a_list_of_all_failures(policy in any_policy(), failures in failures()) {
        let mut now = Duration::ZERO;
        // When each failure was, and whether it cost an attempt.
        let mut past: Vec<(Duration, bool)> = Vec::new();
        for (class, asked, took, dice) in failures {
            now += Duration::from_millis(took);
            let costs = match class {
                Class::HostShortage => false,
                Class::Unavailable => policy.unavailable == Unavailable::Exhaust,
                Class::Retry | Class::Rejected | Class::Trap | Class::Deadline | Class::Memory | Class::Malformed => true,
            };
            past.push((now, costs));
            // Since the oldest failure behind which every one cost an attempt.
            let failing = past.iter().rev().take_while(|(_, costs)| *costs).last();
            let age = failing.map_or(Duration::ZERO, |(since, _)| now - *since);
            let charged = past.iter().filter(|(_, costs)| *costs).count() as u32;
            let asked = asked.map(Duration::from_millis);
            let decision = policy.decide(Failed { class, tries: past.len() as u32, charged, age, asked }, dice);

            let never = class == Class::Rejected || class == Class::Malformed;
            let spent = charged >= policy.attempts_max || policy.age_max.is_some_and(|age_max| age >= age_max);
            if never || (costs && spent) {
                prop_assert_eq!(decision, Decision::End(policy.exhausted));
                return Ok(());
            }
            let Decision::RetryAfter(delay) = decision else { panic!("{class:?} ended early: {past:?}") };
            prop_assert!(delay <= policy.delay_max);
            if costs {
                prop_assert!(policy.age_max.is_none_or(|age_max| age + delay <= age_max), "no attempt begins too late");
            } else {
                prop_assert!(delay >= policy.delay_min / 2, "what costs nothing is not tried in a circle");
            }
            now += delay;
        }
    }
}
