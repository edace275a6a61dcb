use super::*;

#[test]
fn all_stored_once_is_well() {
    let summary = check(&evidence(&[0, 1, 2], &[0, 1, 2]), 0).unwrap();
    assert_eq!(summary, Summary { acked: 3, stored: 3, ..Summary::default() });
}

#[test]
fn an_accepted_record_that_no_sink_has_is_lost() {
    faulty(evidence(&[0, 1, 2], &[0, 2]), |fault| matches!(fault, Fault::Lost(body) if body.seq == 1));
}

#[test]
fn a_dead_letter_is_not_lost() {
    let mut evidence = evidence(&[0, 1, 2], &[0, 2]);
    evidence.dead.push(stored(1));
    assert_eq!(check(&evidence, 0).unwrap().dead, 1);
}

#[test]
fn a_record_that_nobody_sent_is_invented() {
    faulty(evidence(&[0, 1], &[0, 1, 2]), |fault| matches!(fault, Fault::Invented(place) if place.offset == 2));
}

#[test]
fn a_record_that_was_refused_is_invented() {
    let mut evidence = evidence(&[0, 1], &[0, 1]);
    evidence.sent.insert(Body::new("p", "k", 1), Fate::Failed);
    faulty(evidence, |fault| matches!(fault, Fault::Invented(place) if place.offset == 1));
}

#[test]
fn a_record_whose_sending_is_unknown_may_be_there_or_not() {
    let mut evidence = evidence(&[0, 1, 2], &[0, 1]);
    evidence.sent.insert(Body::new("p", "k", 1), Fate::Unknown);
    evidence.sent.insert(Body::new("p", "k", 2), Fate::Unknown);
    assert_eq!(check(&evidence, 0).unwrap().acked, 1);
}

#[test]
fn another_place_than_the_answer_said_is_misplaced() {
    let mut evidence = evidence(&[0], &[0]);
    evidence.stored[0].place.offset = 5;
    faulty(evidence, |fault| matches!(fault, Fault::Misplaced(_)));
}

#[test]
fn another_key_is_misplaced() {
    let mut evidence = evidence(&[0], &[0]);
    evidence.stored[0].key = None;
    faulty(evidence, |fault| matches!(fault, Fault::Misplaced(_)));
}

#[test]
fn repeats_are_counted_against_their_bound() {
    let twice = evidence(&[0, 1], &[0, 1, 0, 1]);
    assert_eq!(check(&twice, 2).unwrap().repeated, 2);
    faulty_within(twice, 1, |fault| matches!(fault, Fault::Repeated { count: 2, bound: 1 }));
}

#[test]
fn a_repeat_is_not_out_of_order_but_an_overtaking_is() {
    check(&evidence(&[0, 1, 2], &[0, 1, 0, 1, 2]), 2).unwrap();
    faulty(evidence(&[0, 1], &[1, 0]), |fault| matches!(fault, Fault::OutOfOrder(place) if place.offset == 0));
}

#[test]
fn a_commit_that_falls_or_runs_ahead_is_seen() {
    let mut fell = evidence(&[0, 1], &[0, 1]);
    fell.commits = vec![commit(2, 0), commit(1, 0)];
    faulty(fell, |fault| matches!(fault, Fault::CommitFell { from: 2, to: 1, .. }));
    let mut ahead = evidence(&[0, 1], &[0, 1]);
    ahead.commits = vec![commit(1, 0), commit(2, 1)];
    faulty(ahead, |fault| matches!(fault, Fault::CommitAhead { committed: 2, unsettled: 1, .. }));
}

#[test]
fn what_may_be_lost_is_counted_and_no_fault() {
    let loses_one = evidence(&[0, 1], &[1]);
    let verdict = judge(&loses_one, &Allowed { losses: 1, ..Allowed::default() });
    assert_eq!((verdict.summary.lost, verdict.faults.0.len()), (1, 0));
    assert_eq!(judge(&loses_one, &Allowed::default()).faults.checks(), ["nothing lost"]);
}

#[test]
fn what_the_log_itself_forgot_is_not_lost() {
    let mut expired = evidence(&[0, 1, 2, 3], &[0, 3]);
    expired.commits = vec![commit(1, 0), commit(4, 2)];
    expired.expired = expired_at(1..3);
    check(&expired, 0).unwrap();
    expired.expired = expired_at(1..2);
    faulty(expired.clone(), |fault| matches!(fault, Fault::Lost(body) if body.seq == 2));
    faulty(expired, |fault| matches!(fault, Fault::CommitAhead { committed: 4, unsettled: 1, .. }));
}

#[test]
fn what_was_settled_before_the_log_forgot_is_not_excused() {
    let mut expired = evidence(&[0, 1, 2], &[2]);
    expired.commits = vec![commit(1, 1)];
    expired.expired = expired_at(1..2);
    faulty(expired.clone(), |fault| matches!(fault, Fault::Lost(body) if body.seq == 0));
    faulty(expired, |fault| matches!(fault, Fault::CommitAhead { committed: 1, unsettled: 1, .. }));
}

#[test]
fn a_redelivery_from_below_a_commit_is_seen() {
    let mut again = evidence(&[0, 1, 2], &[0, 1, 1, 2]);
    let standing = |written, committed| Standing { written, committed: BTreeMap::from([(0, committed)]) };
    again.moments = vec![standing(1, 1)];
    check(&again, 1).unwrap();
    again.moments = vec![standing(1, 2)];
    faulty_within(again.clone(), 1, |fault| matches!(fault, Fault::Reread(place) if place.offset == 1));
    // What was stored again before the fault is not its doing.
    again.moments = vec![standing(2, 2)];
    check(&again, 1).unwrap();
}

#[test]
fn what_a_host_had_in_hand_that_stood_still_may_come_late_and_nothing_else() {
    let mut woken = evidence(&[0, 1, 2], &[1, 2, 0]);
    woken.late = BTreeSet::from([place(0)]);
    check(&woken, 0).unwrap();
    woken.stored = evidence(&[], &[2, 1, 0]).stored;
    faulty(woken, |fault| matches!(fault, Fault::OutOfOrder(place) if place.offset == 1));
    let mut twice = evidence(&[0, 1], &[0, 1, 0]);
    twice.late = BTreeSet::from([place(0)]);
    faulty(twice, |fault| matches!(fault, Fault::Repeated { count: 1, bound: 0 }));
}

#[test]
fn one_who_read_along_and_saw_something_else_is_believed() {
    let mut watched = evidence(&[0, 1], &[0, 1]);
    watched.read_along = Some(BTreeSet::from([0, 1]));
    check(&watched, 0).unwrap();
    watched.read_along = Some(BTreeSet::from([0, 1, 2]));
    faulty(watched, |fault| matches!(fault, Fault::ReadersDiffer(1)));
}

fn expired_at(offsets: std::ops::Range<i64>) -> Expired {
    BTreeMap::from([(0, vec![offsets])])
}

fn evidence(sent: &[i64], order: &[i64]) -> Evidence {
    let sent = sent.iter().map(|offset| (body(*offset), Fate::Acked(place(*offset)))).collect();
    let written =
        |(written, offset): (usize, &i64)| Stored { written: i64::try_from(written).unwrap(), ..stored(*offset) };
    Evidence { sent, stored: order.iter().enumerate().map(written).collect(), ..Evidence::default() }
}

fn body(offset: i64) -> Body {
    Body::new("p", "k", offset.unsigned_abs())
}

fn place(offset: i64) -> Place {
    Place { partition: 0, offset }
}

fn stored(offset: i64) -> Stored {
    Stored { place: place(offset), written: 0, key: Some(b"k".to_vec()), value: Some(body(offset).to_bytes()) }
}

fn commit(offset: i64, unsettled: i64) -> Commit {
    Commit { partition: 0, offset, unsettled }
}

fn faulty(evidence: Evidence, is_so: impl Fn(&Fault) -> bool) {
    faulty_within(evidence, 0, is_so);
}

fn faulty_within(evidence: Evidence, repeats_max: usize, is_so: impl Fn(&Fault) -> bool) {
    let faults = check(&evidence, repeats_max).unwrap_err();
    assert!(faults.any(is_so), "{faults}");
}
