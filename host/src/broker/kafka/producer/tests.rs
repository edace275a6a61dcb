//! The producer on librdkafka's mock broker: what does not need a real one.

use bytes::Bytes;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

async fn producer(properties: &[(&str, &str)]) -> KafkaProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", "replaced-by-the-mock:1").set("test.mock.num.brokers", "1");
    config.set("enable.idempotence", "true").set("linger.ms", "0");
    for (key, value) in properties {
        config.set(*key, *value);
    }
    let producer = KafkaProducer::new(config).expect("the configuration is good");
    producer.warm(&["t".into()], PATIENCE).await.expect("the mock answers");
    producer
}

fn records(count: usize) -> Vec<Outgoing> {
    let record = |number: usize| Outgoing {
        topic: "t".into(),
        partition: Some(0),
        timestamp_ms: None,
        key: None,
        value: Some(Bytes::from(number.to_string())),
        headers: Vec::new(),
    };
    (0..count).map(record).collect()
}

fn offsets(results: &[Result<Position, SendError>]) -> Vec<i64> {
    results.iter().map(|result| result.as_ref().expect("it is stored").offset).collect()
}

#[tokio::test]
async fn a_full_queue_refuses_or_lets_wait() {
    let producer = producer(&[("queue.buffering.max.messages", "10"), ("linger.ms", "50")]).await;
    let refusing = producer.send(records(30), WhenFull::Refuse).await;
    assert_eq!(offsets(&refusing[..10]), (0..10).collect::<Vec<_>>());
    assert!(refusing[10..].iter().all(|result| *result == Err(SendError::QueueFull)), "{refusing:?}");
    let waiting = tokio::time::timeout(PATIENCE, producer.send(records(95), WhenFull::Wait)).await.expect("room comes");
    assert_eq!(offsets(&waiting), (10..105).collect::<Vec<_>>());
}

#[tokio::test]
async fn whoever_waits_for_room_comes_before_the_next() {
    let producer = producer(&[("queue.buffering.max.messages", "10"), ("linger.ms", "50")]).await;
    let mut first = producer.send(records(15), WhenFull::Wait);
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut second = producer.send(records(15), WhenFull::Wait);
    assert!(futures_util::poll!(&mut second).is_pending());
    let refused = producer.send(records(1), WhenFull::Refuse).await;
    assert_eq!(refused, [Err(SendError::QueueFull)], "others were first");
    let both = futures_util::future::join(second, first);
    let (second, first) = tokio::time::timeout(PATIENCE, both).await.expect("room comes");
    assert_eq!((offsets(&first), offsets(&second)), ((0..15).collect(), (15..30).collect()));
}

#[tokio::test]
async fn a_send_that_is_given_up_lets_the_next_one_through() {
    let producer = producer(&[("queue.buffering.max.messages", "10"), ("linger.ms", "50")]).await;
    let mut given_up = producer.send(records(15), WhenFull::Wait);
    assert!(futures_util::poll!(&mut given_up).is_pending());
    drop(given_up);
    let results = tokio::time::timeout(PATIENCE, producer.send(records(5), WhenFull::Wait)).await.expect("room comes");
    // What was queued by then is sent; the seam promises no more of a send that is given up.
    let offsets = offsets(&results);
    assert!((10..=15).contains(&offsets[0]) && offsets.is_sorted(), "{offsets:?}");
    assert_eq!(producer.flush(PATIENCE).await, 0);
}

#[tokio::test]
async fn a_fatal_error_makes_the_client_anew() {
    let producer = producer(&[]).await;
    assert_eq!(offsets(&producer.send(records(3), WhenFull::Wait).await), [0, 1, 2]);
    let before = producer.shared.current.load_full();
    before.fail();
    // Whoever sends in that moment may be told that it is not known. The mock is part of the client, so that a new client
    // has a new log.
    let results = tokio::time::timeout(PATIENCE, async {
        loop {
            let results = producer.send(records(3), WhenFull::Wait).await;
            if results.iter().all(|result| !matches!(result, Err(SendError::Unknown(_)))) {
                break results;
            }
        }
    });
    let results = results.await.expect("it answers");
    assert_eq!(offsets(&results), [0, 1, 2]);
    assert!(!Arc::ptr_eq(&before, &producer.shared.current.load_full()));
    assert!(producer.ready());
}

#[tokio::test]
async fn nobody_there_is_told_with_its_cause() {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", "127.0.0.1:1").set("message.timeout.ms", "300").set("linger.ms", "0");
    let producer = KafkaProducer::new(config).expect("the configuration is good");
    assert!(!producer.ready());
    let results = producer.send(records(2), WhenFull::Wait).await;
    assert!(results.iter().all(|result| matches!(result, Err(SendError::Unavailable(_)))), "{results:?}");
    let warmed = producer.warm(&[], Duration::from_millis(300)).await;
    let Err(SendError::Unavailable(text)) = warmed else { panic!("nobody is there, but {warmed:?}") };
    assert!(text.contains("Connection refused"), "{text}");
}
