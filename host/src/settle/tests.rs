mod transaction;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use tidemill_core::partition::{CallRecord, Verdict};
use tidemill_core::record::{ChunkBuilder, HeaderRef, Record, Timestamp, TopicPartition};
use tidemill_core::retry::{Class, RetryPolicy, Unavailable};
use tokio_util::sync::CancellationToken;

use super::letter::HeaderStyle;
use super::*;
use crate::attempt::Guarantee;
use crate::broker::{Position, Producer};
use crate::guest::{CallError, Called, Outcome, Reason};
use crate::metrics::Metrics;

#[tokio::test]
async fn a_record_is_settled_once_its_outputs_are_acknowledged() {
    let world = World::new(vec![]);
    let verdicts = world.settle("a b", Ok(vec![ack(2), Outcome::Skip])).await;
    assert_eq!(verdicts, [Verdict::Settled; 2]);
    assert_eq!(world.sent(), ["out", "out"]);
}

#[tokio::test]
async fn an_output_that_may_not_be_stored_brings_its_record_back_and_all_that_follow_it_in_their_order() {
    // Records a0, b1, a2: the outputs of a0 are not confirmed, those of a2 are out already.
    let world = World::new(vec![Err(SendError::Unknown("time-out".to_owned())), Ok(AT), Ok(AT)]);
    let verdicts = world.settle("a b a", Ok(vec![ack(1), ack(1), ack(1)])).await;
    assert!(matches!(verdicts[0], Verdict::Retry { charge: false, .. }), "{:?}", verdicts[0]);
    assert_eq!(verdicts[1..], [Verdict::Settled, Verdict::Untouched]);
}

#[tokio::test]
async fn a_record_whose_output_no_broker_takes_is_dead_lettered() {
    let world = World::new(vec![Err(SendError::TooLarge("1 MiB".to_owned()))]);
    let verdicts = world.settle("a", Ok(vec![ack(1)])).await;
    assert_eq!(verdicts, [Verdict::Settled]);
    assert_eq!(world.sent(), ["out", "in.dlq"]);
}

#[tokio::test]
async fn a_retry_holds_what_follows_in_its_lane_and_nothing_else() {
    let world = World::new(vec![]);
    let outcomes = vec![retry(false), ack(1), ack(1), Outcome::Skip];
    let verdicts = world.settle("a a b -", Ok(outcomes)).await;
    assert!(matches!(verdicts[0], Verdict::Retry { charge: true, .. }));
    assert_eq!(verdicts[1..], [Verdict::Untouched, Verdict::Settled, Verdict::Settled]);
    assert_eq!(world.sent(), ["out"], "ARCH-7: what is not settled has no outputs");
}

#[tokio::test]
async fn a_guest_is_believed_that_a_dependency_is_away_only_if_a_host_call_said_so() {
    for (seen, charge) in [(None, true), (Some("postgres is away".to_owned()), false)] {
        let world = World::new(vec![]);
        let mut attempt = attempt("a");
        attempt.effects.unavailable = seen;
        let verdicts = world.settler.settle(&attempt, called(Ok(vec![retry(true)]))).await.verdicts;
        assert!(matches!(verdicts[0], Verdict::Retry { charge: charged, .. } if charged == charge));
    }
}

#[tokio::test]
async fn a_call_that_failed_as_a_whole_blames_a_record_only_when_it_was_alone() {
    let trap = || Err(CallError { class: Class::Trap, detail: "unreachable".to_owned() });
    let world = World::new(vec![]);
    assert_eq!(world.settle("a b", trap()).await, [Verdict::Halve; 2]);
    assert!(matches!(world.settle("a", trap()).await[..], [Verdict::Retry { charge: true, .. }]));
}

#[tokio::test]
async fn at_most_once_each_outcome_stands_and_what_failed_is_a_dead_letter_at_once() {
    let world = World::new(vec![Err(SendError::Unknown("time-out".to_owned())), Ok(AT)]);
    let outcomes = vec![retry(true), ack(1), Outcome::Untouched, ack(1)];
    let verdicts = world.settle_once("a a a a", Ok(outcomes)).await;
    assert_eq!(verdicts, [Verdict::Settled, Verdict::Settled, Verdict::Untouched, Verdict::Settled]);
    assert_eq!(world.sent(), ["out", "out", "in.dlq", "in.dlq"], "the retry, and whose output may not be stored");
}

#[tokio::test]
async fn at_most_once_a_call_that_failed_as_a_whole_is_a_dead_letter_for_each_unless_the_guest_never_had_it() {
    let failed = |class| Err(CallError { class, detail: "it failed".to_owned() });
    for class in [Class::Trap, Class::Deadline, Class::Unavailable] {
        let world = World::new(vec![]);
        assert_eq!(world.settle_once("a a", failed(class)).await, [Verdict::Settled; 2]);
        assert_eq!(world.sent(), ["in.dlq", "in.dlq"]);
    }
    let world = World::new(vec![]);
    let verdicts = world.settle_once("a a", failed(Class::HostShortage)).await;
    assert!(matches!(verdicts[..], [Verdict::Retry { charge: false, .. }, Verdict::Untouched]), "{verdicts:?}");
}

#[tokio::test]
async fn a_shortage_of_the_host_is_nobodys_fault() {
    let world = World::new(vec![]);
    let short = Err(CallError { class: Class::HostShortage, detail: "no instance".to_owned() });
    let verdicts = world.settle("a a b", short).await;
    assert!(matches!(verdicts[0], Verdict::Retry { charge: false, .. }));
    assert_eq!(verdicts[1], Verdict::Untouched);
    assert!(matches!(verdicts[2], Verdict::Retry { charge: false, .. }));
}

#[tokio::test]
async fn a_dead_letter_keeps_every_byte_and_says_what_happened() {
    let world = World::new(vec![]);
    let mut chunk = ChunkBuilder::default();
    let headers = [
        HeaderRef { name: b"h", value: Some(b"1") },
        HeaderRef { name: b"h", value: None },
        HeaderRef { name: b"\xff", value: Some(b"\x00\x01") },
    ];
    chunk.push(7, Timestamp::Create(1234), Some(b"\xffkey"), None, headers);
    let record = Arc::new(chunk.build()).records().next().expect("one record");
    let mut attempt = attempt("");
    attempt.records = vec![CallRecord { record, lane: 0, tries: 0, charged: 0, age: Duration::ZERO }];
    let reason = Reason { code: "bad".to_owned(), detail: "é".repeat(2000) };
    world.settler.settle(&attempt, called(Ok(vec![Outcome::DeadLetter(reason)]))).await;

    let letter = world.letters().pop().expect("a letter was sent");
    assert_eq!((&*letter.topic, letter.timestamp_ms), ("in.dlq", Some(1234)));
    assert_eq!((letter.key.as_deref(), letter.value), (Some(&b"\xffkey"[..]), None));
    let kept: Vec<_> = letter.headers[..3].iter().map(|header| (&header.name[..], header.value.as_deref())).collect();
    assert_eq!(kept, headers.map(|header| (header.name, header.value)));
    let said: BTreeMap<&str, &str> = letter.headers[3..]
        .iter()
        .map(|header| (text(&header.name), text(header.value.as_deref().unwrap_or_default())))
        .collect();
    assert_eq!(said["tidemill.error.id"], "in/0/7/1234");
    assert_eq!(said["tidemill.error.class"], "malformed", "a header's name is not text");
    assert_eq!(said["tidemill.error.code"], "bad");
    assert_eq!(said["tidemill.error.revision"], "cafe");
    assert_eq!(said["tidemill.error.message"].len(), 1024, "a letter must not outgrow its record");
}

#[tokio::test(start_paused = true)]
async fn a_record_waits_for_as_long_as_its_dead_letter_cannot_be_written() {
    let away = || Err(SendError::Unavailable("no broker".to_owned()));
    let world = World::new((0..20).map(|_| away()).collect());
    let started = tokio::time::Instant::now();
    let verdicts = world.settle("a", Ok(vec![Outcome::DeadLetter(Reason::default())])).await;
    assert_eq!(verdicts, [Verdict::Settled]);
    assert_eq!(world.sent().len(), 21);
    assert!(started.elapsed() > Duration::from_secs(60), "with a back-off between attempts");
}

#[tokio::test]
async fn a_dead_letter_about_a_dead_letter_keeps_the_first_origin() {
    let world = World::new(vec![]);
    let mut chunk = ChunkBuilder::default();
    let first = [HeaderRef { name: b"tidemill.error.topic", value: Some(b"origin") }];
    chunk.push(0, Timestamp::None, None, Some(b"v"), first);
    let record = Arc::new(chunk.build()).records().next().expect("one record");
    let mut attempt = attempt("");
    attempt.records = vec![CallRecord { record, lane: 0, tries: 0, charged: 0, age: Duration::ZERO }];
    world.settler.settle(&attempt, called(Ok(vec![Outcome::DeadLetter(Reason::default())]))).await;
    let letter = world.letters().pop().expect("a letter was sent");
    let origins = letter.headers.iter().filter(|header| header.name == "tidemill.error.topic");
    assert_eq!(origins.map(|header| header.value.as_deref()).collect::<Vec<_>>(), [Some(&b"origin"[..])]);
}

#[tokio::test]
async fn in_a_kafka_transaction_outputs_and_letters_are_handed_on_and_nothing_is_sent() {
    let world = World::new(vec![]);
    let attempt = in_transaction("a b a c");
    let outcomes = vec![ack(2), Outcome::DeadLetter(Reason::default()), retry(false), Outcome::Skip];
    let Settlement { verdicts, produced, .. } = world.settler.settle(&attempt, called(Ok(outcomes))).await;
    assert!(matches!(verdicts[..], [Verdict::Settled, Verdict::Settled, Verdict::Retry { .. }, Verdict::Settled]));
    let handed: Vec<_> = produced.iter().map(|one| (one.offset(), one.outputs.len(), &*one.outputs[0].topic)).collect();
    assert_eq!(handed, [(0, 2, "out"), (1, 1, "in.dlq")]);
    assert_eq!(world.sent(), Vec::<String>::new());
}

#[tokio::test]
async fn a_refused_output_gives_way_to_its_records_letter_or_waits_and_so_does_a_letter() {
    let world = World::new(vec![]);
    let attempt = in_transaction("a");
    let mut settlement = world.settler.settle(&attempt, called(Ok(vec![ack(1)]))).await;
    let produced = &mut settlement.produced[0];
    let refuse = |produced: &mut Produced, error: SendError| world.settler.refused(&attempt.from, produced, &error);
    let too_large = || SendError::TooLarge("1 MiB".to_owned());
    assert_eq!(refuse(produced, SendError::NoSuchTopic("out".to_owned())), Refusal::Waits);
    assert_eq!(&*produced.outputs[0].topic, "out");
    assert_eq!(refuse(produced, too_large()), Refusal::Replaced);
    assert_eq!(&*produced.outputs[0].topic, "in.dlq");
    let headers = produced.outputs[0].headers.len();
    assert_eq!(refuse(produced, too_large()), Refusal::Replaced, "the letter goes without its message");
    assert_eq!(produced.outputs[0].headers.len(), headers - 1);
    assert_eq!(refuse(produced, too_large()), Refusal::Waits, "it is never left out");
}

#[tokio::test]
async fn a_refused_output_ends_its_record_as_the_policy_says() {
    for (end, refusal, outputs, dropped) in
        [(Exhausted::Drop, Refusal::Replaced, 0, 1), (Exhausted::Stop, Refusal::Waits, 1, 0)]
    {
        let world = World::with(vec![], policy().exhausted(end));
        let attempt = in_transaction("a");
        let mut settlement = world.settler.settle(&attempt, called(Ok(vec![ack(1)]))).await;
        let produced = &mut settlement.produced[0];
        let error = SendError::TooLarge("1 MiB".to_owned());
        assert_eq!(world.settler.refused(&attempt.from, produced, &error), refusal, "{end:?}");
        assert_eq!(produced.outputs.len(), outputs, "{end:?}");
        assert_eq!(world.metrics.dropped(Class::Malformed).get(), dropped, "{end:?}");
    }
}

#[tokio::test]
async fn a_dropped_record_is_settled_and_counted_and_nothing_is_written() {
    let world = World::with(vec![], policy().exhausted(Exhausted::Drop));
    let outcomes = vec![never("bad"), ack(1), retry(false)];
    let verdicts = world.settle("a a b", Ok(outcomes)).await;
    assert_eq!(verdicts[..2], [Verdict::Settled, Verdict::Settled]);
    assert!(matches!(verdicts[2], Verdict::Retry { charge: true, .. }), "its attempts are not spent");
    assert_eq!(world.sent(), ["out"]);
    assert_eq!(world.metrics.dropped(Class::Rejected).get(), 1);
    assert_eq!(world.metrics.dead_letters(Class::Rejected).get(), 0);
}

#[tokio::test]
async fn a_partition_is_told_at_which_record_to_stop_and_what_follows_it_is_left() {
    let world = World::with(vec![], policy().exhausted(Exhausted::Stop));
    let outcomes = vec![ack(1), never("bad"), ack(1), ack(1)];
    let settled = world.settler.settle(&attempt("a b b c"), called(Ok(outcomes))).await;
    assert_eq!(settled.verdicts, [Verdict::Settled, Verdict::Stop, Verdict::Untouched, Verdict::Settled]);
    assert_eq!(world.sent(), ["out", "out"], "what follows it in its lane has no outputs");
    let reason = Reason { code: "bad".to_owned(), detail: String::new() };
    let stop = Stop { offset: 1, class: Class::Rejected, reason, revision: "cafe".into(), attempts: 1 };
    assert_eq!(settled.stops, [stop]);
}

#[tokio::test]
async fn a_record_stops_its_partition_only_when_its_attempts_are_spent() {
    let world = World::with(vec![], policy().exhausted(Exhausted::Stop));
    let trap = || Err(CallError { class: Class::Trap, detail: "unreachable".to_owned() });
    let mut attempt = attempt("a");
    for (charged, stops) in [(0, 0), (1, 0), (2, 1)] {
        (attempt.records[0].tries, attempt.records[0].charged) = (charged, charged);
        let settled = world.settler.settle(&attempt, called(trap())).await;
        assert_eq!(settled.stops.len(), stops, "after {charged} attempts");
    }
}

#[tokio::test]
async fn a_record_that_has_failed_for_too_long_ends_although_it_has_attempts_left() {
    let world = World::with(vec![], policy().aged(Some(Duration::from_secs(60))));
    let mut attempt = attempt("a");
    attempt.records[0].age = Duration::from_secs(59);
    let mut late = called(Ok(vec![retry(false)]));
    late.took = Duration::from_secs(1);
    let settled = world.settler.settle(&attempt, late).await;
    assert_eq!(settled.verdicts, [Verdict::Settled]);
    assert_eq!(world.sent(), ["in.dlq"]);
}

#[tokio::test]
async fn where_the_policy_says_so_what_is_away_costs_attempts_and_calls_are_halved_for_it() {
    let world = World::with(vec![], policy().unavailable(Unavailable::Exhaust));
    let away = || Err(CallError { class: Class::Unavailable, detail: "no answer".to_owned() });
    assert_eq!(world.settle("a b", away()).await, [Verdict::Halve; 2]);
    assert!(matches!(world.settle("a", away()).await[..], [Verdict::Retry { charge: true, .. }]));
    let mut attempt = attempt("a");
    (attempt.records[0].tries, attempt.records[0].charged) = (2, 2);
    world.settler.settle(&attempt, called(away())).await;
    assert_eq!(world.letters()[0].headers.iter().filter(|header| header.name == letter::header::CLASS).count(), 1);
    assert_eq!(world.metrics.dead_letters(Class::Unavailable).get(), 1, "under its own class");
}

#[tokio::test]
async fn the_letters_of_a_call_are_written_together_and_one_that_fails_is_tried_again_alone() {
    let world = World::new(vec![Ok(AT), Err(SendError::Unavailable("away".to_owned())), Ok(AT)]);
    let verdicts = world.settle("a b c", Ok(vec![never("1"), never("2"), never("3")])).await;
    assert_eq!(verdicts, [Verdict::Settled; 3]);
    let offsets: Vec<String> = world.letters().iter().map(|letter| header(letter, letter::header::OFFSET)).collect();
    assert_eq!(offsets, ["0", "1", "2", "1"]);
}

#[tokio::test]
async fn a_letter_that_is_too_large_goes_without_what_was_added_for_people() {
    let large = || Err(SendError::TooLarge("1 MiB".to_owned()));
    let world = World::styled(vec![large(), Ok(AT)], HeaderStyle::Connect);
    world.settle("a", Ok(vec![never("bad")])).await;
    let [whole, bare] = &world.letters()[..] else { panic!("two letters") };
    let names =
        |letter: &Outgoing| letter.headers.iter().map(|header| text(&header.name).to_owned()).collect::<Vec<_>>();
    assert!(names(whole).iter().any(|name| name == letter::header::MESSAGE));
    assert!(names(whole).iter().any(|name| name.starts_with("__connect.")));
    assert_eq!(names(bare).last().map(String::as_str), Some(letter::header::TIME));
    assert_eq!(header(bare, letter::header::CODE), "bad");
}

#[tokio::test(start_paused = true)]
async fn letters_that_cannot_be_written_are_shown_and_given_up_when_the_partition_is_revoked() {
    let away = || Err(SendError::NoSuchTopic("in.dlq".to_owned()));
    let world = World::new((0..100).map(|_| away()).collect());
    let attempt = attempt("a b");
    let revoked = attempt.revoked.clone();
    let settling = world.settler.settle(&attempt, called(Ok(vec![never("1"), never("2")])));
    let look = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        let waiting = world.metrics.dead_letters_waiting.get();
        revoked.cancel();
        waiting
    };
    let (settled, waiting) = futures_util::future::join(settling, look).await;
    assert_eq!((waiting, world.metrics.dead_letters_waiting.get()), (2, 0));
    assert!(settled.verdicts.iter().all(|verdict| matches!(verdict, Verdict::Retry { charge: false, .. })));
}

#[tokio::test]
async fn a_letter_has_connects_headers_beside_ours_as_texts() {
    let world = World::styled(vec![], HeaderStyle::Connect);
    world.settle("a b", Ok(vec![Outcome::Skip, never("bad")])).await;
    let letter = world.letters().remove(0);
    let foreign: Vec<(&str, &str)> = letter
        .headers
        .iter()
        .filter(|header| header.name.starts_with(b"__"))
        .map(|header| (text(&header.name), text(header.value.as_deref().unwrap_or_default())))
        .collect();
    assert_eq!(
        foreign,
        [
            ("__connect.errors.topic", "in"),
            ("__connect.errors.partition", "0"),
            ("__connect.errors.offset", "1"),
            ("__connect.errors.connector.name", "h"),
            ("__connect.errors.task.id", "0"),
            ("__connect.errors.stage", "TASK_PUT"),
            ("__connect.errors.class.name", "tidemill.h"),
            ("__connect.errors.exception.class.name", "tidemill.rejected"),
            ("__connect.errors.exception.message", "bad: "),
        ]
    );
    assert_eq!(header(&letter, letter::header::CLASS), "rejected");
}

#[tokio::test]
async fn a_letter_has_springs_headers_beside_ours_with_numbers_in_binary_and_the_first_origin() {
    let world = World::styled(vec![], HeaderStyle::Spring);
    let mut chunk = ChunkBuilder::default();
    chunk.push(258, Timestamp::Create(1000), None, None, []);
    let record = Arc::new(chunk.build()).records().next().expect("one record");
    let mut attempt = attempt("");
    attempt.records = vec![CallRecord { record, lane: 0, tries: 0, charged: 0, age: Duration::ZERO }];
    world.settler.settle(&attempt, called(Ok(vec![never("bad")]))).await;
    let letter = world.letters().remove(0);
    let foreign = |letter: &Outgoing| -> Vec<(String, Vec<u8>)> {
        let foreign = letter.headers.iter().filter(|header| header.name.starts_with(b"kafka_"));
        foreign.map(|it| (text(&it.name).to_owned(), it.value.as_deref().unwrap_or_default().to_vec())).collect()
    };
    let expected: Vec<(String, Vec<u8>)> = [
        ("kafka_dlt-original-topic", &b"in"[..]),
        ("kafka_dlt-original-partition", &[0, 0, 0, 0]),
        ("kafka_dlt-original-offset", &[0, 0, 0, 0, 0, 0, 1, 2]),
        ("kafka_dlt-original-timestamp", &[0, 0, 0, 0, 0, 0, 3, 232]),
        ("kafka_dlt-original-timestamp-type", b"CreateTime"),
        ("kafka_dlt-original-consumer-group", b"g"),
        ("kafka_dlt-exception-fqcn", b"tidemill.rejected"),
        ("kafka_dlt-exception-message", b"bad: "),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_vec()))
    .collect();
    assert_eq!(foreign(&letter), expected);

    let mut chunk = ChunkBuilder::default();
    let kept = letter.headers.iter().map(|it| HeaderRef { name: &it.name, value: it.value.as_deref() });
    chunk.push(0, Timestamp::Create(2000), None, None, kept);
    attempt.records[0].record = Arc::new(chunk.build()).records().next().expect("one record");
    attempt.from = TopicPartition::new("in.dlq", 0);
    world.settler.settle(&attempt, called(Ok(vec![never("again")]))).await;
    let second = foreign(&world.letters()[1]);
    let of =
        |name: &str| second.iter().filter(|(other, _)| other == name).map(|(_, value)| &value[..]).collect::<Vec<_>>();
    assert_eq!(of("kafka_dlt-original-topic"), [b"in"], "a second letter keeps the first origin");
    assert_eq!(of("kafka_dlt-exception-message"), [&b"bad: "[..], b"again: "]);
}

#[tokio::test]
async fn what_a_letter_says_is_read_back_and_what_is_no_letter_says_nothing() {
    let world = World::new(vec![]);
    world.settle("a", Ok(vec![never("bad")])).await;
    let letter = world.letters().remove(0);
    let mut chunk = ChunkBuilder::default();
    chunk.push(
        0,
        Timestamp::None,
        None,
        None,
        letter.headers.iter().map(|it| HeaderRef { name: &it.name, value: it.value.as_deref() }),
    );
    chunk.push(1, Timestamp::None, None, None, []);
    let records: Vec<Record> = Arc::new(chunk.build()).records().collect();
    let account = letter::Account::of(&records[0]).expect("it is a letter");
    assert_eq!((account.topic.as_deref(), account.partition, account.offset), (Some("in"), Some(0), Some(0)));
    assert_eq!((account.class.as_deref(), account.code.as_deref()), (Some("rejected"), Some("bad")));
    assert_eq!((account.attempts, account.handler.as_deref()), (Some(1), Some("h")));
    assert!(account.time.is_some());
    assert_eq!(letter::Account::of(&records[1]), None);
}

const AT: Position = Position { partition: 0, offset: 0 };

/// A settler over a producer that answers as it is told, and with success once it was told no more.
struct World {
    settler: Settler,
    metrics: Arc<HandlerMetrics>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    answers: Mutex<VecDeque<Result<Position, SendError>>>,
    sent: Mutex<Vec<Outgoing>>,
}

impl World {
    fn new(answers: Vec<Result<Position, SendError>>) -> Self {
        Self::with(answers, policy())
    }

    fn with(answers: Vec<Result<Position, SendError>>, policy: RetryPolicy) -> Self {
        Self::made(answers, policy, HeaderStyle::Native)
    }

    fn styled(answers: Vec<Result<Position, SendError>>, headers: HeaderStyle) -> Self {
        Self::made(answers, policy(), headers)
    }

    fn made(answers: Vec<Result<Position, SendError>>, policy: RetryPolicy, headers: HeaderStyle) -> Self {
        let log = Arc::new(Log { answers: Mutex::new(answers.into()), sent: Mutex::default() });
        let letters = DeadLetters { handler: "h".into(), group: "g".into(), topic: None, headers };
        let producer = Arc::clone(&log) as Arc<dyn Producer>;
        let metrics = Metrics::new().handler("h");
        Self { settler: Settler::new(producer, policy, letters, Arc::clone(&metrics)), metrics, log }
    }

    async fn settle(&self, keys: &str, outcomes: Result<Vec<Outcome>, CallError>) -> Vec<Verdict> {
        self.settler.settle(&attempt(keys), called(outcomes)).await.verdicts
    }

    async fn settle_once(&self, keys: &str, outcomes: Result<Vec<Outcome>, CallError>) -> Vec<Verdict> {
        let attempt = Attempt { guarantee: Guarantee::AtMostOnce, ..attempt(keys) };
        self.settler.settle(&attempt, called(outcomes)).await.verdicts
    }

    fn letters(&self) -> Vec<Outgoing> {
        self.log.sent.lock().expect("not poisoned").clone()
    }

    fn sent(&self) -> Vec<String> {
        self.letters().iter().map(|sent| sent.topic.to_string()).collect()
    }
}

impl Producer for Log {
    fn send(&self, records: Vec<Outgoing>, _: WhenFull) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        let mut answers = self.answers.lock().expect("not poisoned");
        let results = records.iter().map(|_| answers.pop_front().unwrap_or(Ok(AT))).collect();
        self.sent.lock().expect("not poisoned").extend(records);
        async move { results }.boxed()
    }

    fn ready(&self) -> bool {
        true
    }
}

/// An attempt on records with these keys, `-` for null; equal keys share a lane.
fn attempt(keys: &str) -> Attempt {
    let mut lanes: Vec<&str> = Vec::new();
    let records = keys.split_whitespace().enumerate().map(|(offset, key)| {
        let lane = lanes.iter().position(|known| *known == key).unwrap_or(lanes.len());
        if lane == lanes.len() {
            lanes.push(key);
        }
        let key = (key != "-").then_some(key.as_bytes());
        CallRecord {
            record: Record::single(offset as i64, key, Some(b"v")),
            lane: lane as u32,
            tries: 0,
            charged: 0,
            age: Duration::ZERO,
        }
    });
    Attempt::new(
        TopicPartition::new("in", 0),
        1,
        records.collect(),
        Guarantee::AtLeastOnce,
        Duration::from_secs(1),
        CancellationToken::new(),
    )
}

fn in_transaction(keys: &str) -> Attempt {
    Attempt { guarantee: Guarantee::KafkaTransaction, ..attempt(keys) }
}

fn called(outcomes: Result<Vec<Outcome>, CallError>) -> Called {
    Called { revision: "cafe".into(), took: Duration::ZERO, outcomes }
}

fn ack(outputs: usize) -> Outcome {
    let output =
        Outgoing { topic: "out".into(), partition: None, timestamp_ms: None, key: None, value: None, headers: vec![] };
    Outcome::Ack(vec![output; outputs])
}

fn policy() -> RetryPolicy {
    RetryPolicy::new(3, Duration::from_millis(10), Duration::from_secs(1)).expect("valid")
}

fn never(code: &str) -> Outcome {
    Outcome::DeadLetter(Reason { code: code.to_owned(), detail: String::new() })
}

fn header(letter: &Outgoing, name: &str) -> String {
    let found = letter.headers.iter().rev().find(|header| header.name == name).expect("it is there");
    text(found.value.as_deref().unwrap_or_default()).to_owned()
}

fn retry(unavailable: bool) -> Outcome {
    Outcome::Retry { after: None, reason: Reason::default(), unavailable }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}
