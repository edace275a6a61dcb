//! What neighbours cost: a slow key the other keys of its partition, and a rebalance the partitions that stay where they are.
//!
//! Records are sent at a fixed rate, whatever becomes of them, and each says when it was due: what waits is late, and shows.
//! What a guest emits is read back here, by the clock by which it was sent.

mod load;
pub(crate) mod member;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use xtask::lab::kafka::Kafka;

use self::load::{Load, Meter, Sent};
use self::member::Running;
use crate::report::{self, least, median, most};
use crate::topics;

const PATIENCE: Duration = Duration::from_secs(60);

const SLOW_KEY: &str = "slow";

/// Records of a second in the first part, one after another from these keys of one partition.
const KEYS_RATE: u64 = 500;
const KEYS: u64 = 50;
const KEYS_WORK: Duration = Duration::from_millis(1);
/// The slow key's lane is busy for nine tenths of the time.
const SLOW_WORK: Duration = Duration::from_millis(90);

const PARTITIONS: i32 = 8;
/// Records of a second in each of them.
const PARTITION_RATE: u64 = 100;
/// A record that takes longer than a drain may.
const LONG_WORK: Duration = Duration::from_secs(3);
const LONG_EVERY: Duration = Duration::from_secs(4);
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

pub(crate) fn neighbours(quick: bool, json: Option<&Path>) -> Result<()> {
    let kafka = Kafka::start_nodes(1)?;
    let (rounds, span) = if quick { (2, Duration::from_secs(8)) } else { (5, Duration::from_secs(20)) };
    let mut objects = slow_key(&kafka.bootstrap(), rounds, span)?;
    let (rounds, span) = if quick { (1, Duration::from_secs(6)) } else { (3, Duration::from_secs(10)) };
    println!(
        "\n{PARTITIONS} partitions, {PARTITION_RATE} records a second in each; a member joins and leaves; drain deadline {DRAIN_DEADLINE:?}\n\n{:<34} {:<20} {:>12} {:>12}",
        "longest time without output", "partitions", "median ms", "most ms"
    );
    for hand in HANDS {
        objects.extend(rebalance(&kafka.bootstrap(), hand, rounds, span)?);
    }
    if let Some(path) = json {
        report::save(&objects, path)?;
    }
    Ok(())
}

/// The three ways in which a round runs.
const WAYS: [(&str, bool); 3] = [("no slow key", false), ("no slow key again (A/A)", false), ("one slow key", true)];

fn slow_key(bootstrap: &str, rounds: usize, span: Duration) -> Result<Vec<Value>> {
    topics::create(bootstrap, "keys", 1)?;
    topics::create(bootstrap, "keys.out", 1)?;
    let running = Running::start(bootstrap, "keys", "keys.out", DRAIN_DEADLINE)?;
    let meter = Meter::start(bootstrap, &["keys.out"])?;
    let load = Load::new(bootstrap, &meter)?;
    let mut sent = 0;
    let mut phase = |span: Duration, slow: bool| -> Result<Vec<f64>> {
        meter.forget();
        let records = KEYS_RATE * span.as_millis() as u64 / 1000;
        load.send(KEYS_RATE, records, |number| key_record(number, slow));
        meter.wait_for(records as usize, PATIENCE)?;
        sent += records;
        let others = meter.arrivals().into_iter().filter(|arrival| arrival.key != SLOW_KEY);
        Ok(others.map(|arrival| arrival.latency().as_secs_f64() * 1e3).collect())
    };
    phase(span / 4, false)?;
    let mut series = WAYS.map(|_| Vec::new());
    for _round in 0..rounds {
        for ((_, slow), series) in WAYS.iter().zip(&mut series) {
            let mut latencies = phase(span, *slow)?;
            latencies.sort_by(f64::total_cmp);
            series.push(latencies);
        }
    }
    running.stop()?;
    println!(
        "{sent} records of {KEYS} keys of one partition, {KEYS_RATE} a second, {KEYS_WORK:?} of work each; the slow key's take {SLOW_WORK:?}\n\n{:<28} {:>12} {:>12} {:>16}",
        "latency of the other keys", "p50 ms", "p99 ms", "p99 moved, ms"
    );
    let of = |latencies: &[Vec<f64>], share: f64| -> Vec<f64> {
        latencies.iter().map(|sorted| sorted[((sorted.len() - 1) as f64 * share) as usize]).collect()
    };
    let control = median(&of(&series[0], 0.99));
    let mut objects = Vec::new();
    for ((label, _), series) in WAYS.iter().zip(&series) {
        let (p50, p99) = (of(series, 0.5), of(series, 0.99));
        let moved = median(&p99) - control;
        println!("{label:<28} {:>12.2} {:>12.2} {moved:>16.2}", median(&p50), median(&p99));
        objects.push(json!({
            "suite": "neighbours", "case": label, "metric": "p99 of the other keys", "unit": "ms", "rounds": rounds,
            "p50": median(&p50), "min": least(&p99), "median": median(&p99), "max": most(&p99), "moved": moved,
        }));
    }
    topics::delete(bootstrap, "keys")?;
    topics::delete(bootstrap, "keys.out")?;
    Ok(objects)
}

fn key_record(number: u64, slow: bool) -> Sent<'static> {
    let key = number % KEYS;
    let is_slow = key == 0;
    Sent {
        topic: "keys",
        partition: 0,
        key: if is_slow { SLOW_KEY.to_owned() } else { format!("k{key}") },
        work: if is_slow && slow { SLOW_WORK } else { KEYS_WORK },
    }
}

/// What a member has in hand when its partitions are revoked.
#[derive(Debug, Clone, Copy)]
struct Hand {
    label: &'static str,
    topic: &'static str,
    /// Where the two members' outputs go.
    outputs: [&'static str; 2],
    /// Whether each partition has a record that takes longer than a drain may.
    long: bool,
}

const HANDS: [Hand; 2] = [
    Hand { label: "short calls", topic: "short", outputs: ["short.first", "short.second"], long: false },
    Hand {
        label: "a call longer than the deadline",
        topic: "long",
        outputs: ["long.first", "long.second"],
        long: true,
    },
];

/// A second member joins the group, and leaves it again.
fn rebalance(bootstrap: &str, hand: Hand, rounds: usize, span: Duration) -> Result<Vec<Value>> {
    let Hand { topic, outputs, .. } = hand;
    for topic in [topic].iter().chain(&outputs) {
        topics::create(bootstrap, topic, PARTITIONS)?;
    }
    let first = Running::start(bootstrap, topic, outputs[0], DRAIN_DEADLINE)?;
    let meter = Meter::start(bootstrap, &outputs)?;
    let load = Load::new(bootstrap, &meter)?;
    let steady = load.keep_sending(PARTITION_RATE * PARTITIONS as u64, move |number| partition_record(hand, number));
    meter.wait_for(KEYS_RATE as usize, PATIENCE)?;
    let (mut control, mut staying, mut moving) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let undisturbed = meter.now();
        std::thread::sleep(span);
        let joins = meter.now();
        let second = Running::start(bootstrap, topic, outputs[1], DRAIN_DEADLINE)?;
        meter.wait_for_topic(outputs[1], joins, PATIENCE)?;
        std::thread::sleep(span);
        second.stop()?;
        std::thread::sleep(span);
        let over = meter.now();
        let moved = meter.partitions_of(outputs[1], joins);
        let longest =
            |from, to, which: &dyn Fn(i32) -> bool| meter.gaps(from, to, which).into_values().reduce(f64::max);
        control.extend(longest(undisturbed, joins, &|_| true));
        staying.extend(longest(joins, over, &|partition| !moved.contains(&partition)));
        moving.extend(longest(joins, over, &|partition| moved.contains(&partition)));
        eprintln!("{}, round {} of {rounds}: partitions {moved:?} moved and came back", hand.label, round + 1);
    }
    let sent = steady.stop();
    meter.wait_for_each(sent, PATIENCE)?;
    first.stop()?;
    let mut objects = Vec::new();
    for (which, gaps) in [("all, undisturbed", control), ("those that stay", staying), ("those that move", moving)] {
        println!("{:<34} {which:<20} {:>12.0} {:>12.0}", hand.label, median(&gaps), most(&gaps));
        objects.push(json!({
            "suite": "neighbours", "case": hand.label, "partitions": which, "metric": "longest time without output", "unit": "ms",
            "rounds": rounds, "min": least(&gaps), "median": median(&gaps), "max": most(&gaps),
            "drain_deadline_ms": DRAIN_DEADLINE.as_millis() as u64,
        }));
    }
    for topic in [topic].iter().chain(&outputs) {
        topics::delete(bootstrap, topic)?;
    }
    Ok(objects)
}

fn partition_record(hand: Hand, number: u64) -> Sent<'static> {
    let partition = (number % PARTITIONS as u64) as i32;
    let turn = number / PARTITIONS as u64;
    let long = hand.long && turn.is_multiple_of(PARTITION_RATE * LONG_EVERY.as_secs());
    Sent {
        topic: hand.topic,
        partition,
        key: if long { SLOW_KEY.to_owned() } else { format!("k{}", turn % 10) },
        work: if long { LONG_WORK } else { Duration::ZERO },
    }
}

/// Microseconds since the clock of a run began.
fn micros(origin: Instant) -> u64 {
    origin.elapsed().as_micros() as u64
}
