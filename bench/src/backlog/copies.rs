//! The copies that came of a run, and what they say of it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::{Due, PATIENCE};
use crate::topics;

/// Who has copied all that was there so long ago has caught up: what is on its way is no backlog.
const ON_ITS_WAY: Duration = Duration::from_millis(50);

/// All copies of a run.
pub(super) struct Copies {
    /// When each was appended, by the broker's clock in milliseconds, and its record's number; in the order of time.
    appended: Vec<(i64, u64)>,
    /// Copies that came behind one of a later record of their key, or for the second time.
    disorder: u64,
}

/// What came of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drained {
    /// Copies in a second until the contender had caught up.
    pub(super) rate: f64,
    /// From the first copy until it had.
    pub(super) seconds: f64,
    /// How late 99 of 100 of the records were that came afterwards; `None` where none did.
    pub(super) p99_ms: Option<f64>,
    pub(super) disorder: u64,
    /// What the group had not committed when its member had left.
    pub(super) lag: i64,
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} records/s, caught up after {:.2} s", self.rate, self.seconds)
    }
}

impl Copies {
    /// Reads a topic from its beginning to its end. Keys are numbers below `keys`.
    pub(super) fn read(bootstrap: &str, topic: &str, keys: u64) -> Result<Self> {
        let mut config = topics::client(bootstrap);
        config.set("group.id", "copies").set("enable.auto.commit", "false").set("fetch.queue.backoff.ms", "5");
        let consumer: BaseConsumer = config.create()?;
        let ends = topics::ends(bootstrap, topic, super::PARTITIONS)?;
        let mut places = TopicPartitionList::new();
        for partition in 0..super::PARTITIONS {
            places.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&places)?;
        let mut copies = Self { appended: Vec::new(), disorder: 0 };
        // Of each key the last record's number.
        let mut last: Vec<Option<u64>> = vec![None; usize::try_from(keys)?];
        for _ in 0..ends.iter().sum::<i64>() {
            let Some(message) = consumer.poll(PATIENCE) else { bail!("`{topic}` ends earlier than it says") };
            let message = message?;
            let key: usize = number(message.key()).context("a copy's key")?;
            let record: u64 = number(message.payload()).context("a copy's value")?;
            let last = last.get_mut(key).context("a copy has a key that no record has")?;
            copies.disorder += u64::from(last.is_some_and(|last| last >= record));
            *last = Some(record);
            copies.appended.push((message.timestamp().to_millis().context("a copy's time")?, record));
        }
        copies.appended.sort_unstable();
        Ok(copies)
    }

    pub(super) fn len(&self) -> u64 {
        self.appended.len() as u64
    }

    /// What they say, after the backlog and new records when those were due.
    pub(super) fn judge(&self, backlog: u64, due: Due, lag: i64) -> Result<Drained> {
        let (first, _) = *self.appended.first().context("there are no copies")?;
        let waits = i64::try_from(ON_ITS_WAY.as_millis())?;
        let caught_up =
            self.appended.iter().zip(1..).find(|((at, _), copied)| *copied >= backlog + due.before(at - waits));
        let Some(((at, _), copied)) = caught_up else { bail!("it never caught up with the new records") };
        let in_time = due.news == 0 || *at <= due.of(due.news - 1);
        ensure!(
            in_time,
            "it caught up only when no new records came any more: there were too few of them, or too many a second"
        );
        let seconds = (at - first).max(1) as f64 / 1e3;
        let later = |(appended, number): &(i64, u64)| {
            let news = number.checked_sub(backlog)?;
            (due.of(news) > *at).then(|| (appended - due.of(news)).max(0) as f64)
        };
        let mut late: Vec<f64> = self.appended.iter().filter_map(later).collect();
        late.sort_by(f64::total_cmp);
        let p99_ms = late.get(late.len().saturating_sub(1) * 99 / 100).copied();
        Ok(Drained { rate: copied as f64 / seconds, seconds, p99_ms, disorder: self.disorder, lag })
    }
}

/// The number at the beginning of bytes.
fn number<N: std::str::FromStr>(bytes: Option<&[u8]>) -> Option<N> {
    str::from_utf8(bytes?).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKLOG: u64 = 5_000;
    const NEWS: Due = Due { first: 1000, news: 20_000 };

    /// So many copies are made in each millisecond from 1000 on, of what is there by then.
    fn copied(per_ms: u64, news: u64) -> Copies {
        let at = |number: u64| {
            let due = number.checked_sub(BACKLOG).map_or(0, |new| NEWS.of(new));
            due.max((1000 + number / per_ms) as i64)
        };
        Copies { appended: (0..BACKLOG + news).map(|number| (at(number), number)).collect(), disorder: 0 }
    }

    #[test]
    fn without_new_records_the_last_copy_ends_it() {
        let drained = copied(10, 0).judge(BACKLOG, Due { news: 0, ..NEWS }, 0).expect("it is done");
        assert!((drained.seconds - 0.499).abs() < 1e-9 && drained.p99_ms.is_none(), "{drained:?}");
        assert!((drained.rate - 5_000.0 / 0.499).abs() < 1e-6);
    }

    #[test]
    fn with_new_records_it_ends_once_only_the_latest_are_on_their_way() {
        // Twenty come in a millisecond and forty are copied: 40 t = 5000 + 20 (t - 50) at 200 ms.
        let drained = copied(40, NEWS.news).judge(BACKLOG, NEWS, 0).expect("it catches up");
        assert!((0.195..0.205).contains(&drained.seconds), "{drained:?}");
        assert!((39_000.0..41_000.0).contains(&drained.rate), "{drained:?}");
        assert!(drained.p99_ms.is_some_and(|late| late < 51.0), "{drained:?}");
    }

    #[test]
    fn who_is_slower_than_what_comes_never_catches_up() {
        let error = copied(10, NEWS.news).judge(BACKLOG, NEWS, 0).expect_err("it does not");
        assert!(error.to_string().contains("only when no new records came any more"), "{error}");
    }
}
