//! What producers sent and what became of it, kept outside the host: in memory for the checker, on disk for the autopsy.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The value of every record that a ledger knows. The sum shows that it arrived as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Body {
    /// Who sent it.
    pub producer: String,
    /// The record's key.
    pub key: String,
    /// The number of the record among those of this producer and key, which are sent one after another.
    pub seq: u64,
    sha: String,
}

/// Where a record lies in its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// How the sending ended, as the producer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is in the log, there.
    Acked(Place),
    /// It is not in the log.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// One ledger for all producers of a test.
pub struct Ledger {
    /// A record without an answer yet is `Unknown`.
    fates: Mutex<BTreeMap<Body, Fate>>,
    file: Mutex<File>,
}

impl Body {
    /// The next record of a producer and key.
    pub fn new(producer: &str, key: &str, seq: u64) -> Body {
        let sha = sum(producer, key, seq);
        Body { producer: producer.to_owned(), key: key.to_owned(), seq, sha }
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a body is JSON")
    }

    /// `None` if these bytes were not sent so by a ledger's producer.
    pub fn from_bytes(bytes: &[u8]) -> Option<Body> {
        let body: Body = serde_json::from_slice(bytes).ok()?;
        (body.sha == sum(&body.producer, &body.key, body.seq)).then_some(body)
    }
}

fn sum(producer: &str, key: &str, seq: u64) -> String {
    let digest = Sha256::digest(format!("{producer}\n{key}\n{seq}"));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Place {
    /// From a record's id, `topic/partition/offset/timestamp`.
    pub fn of_id(id: &str) -> Result<Place> {
        let mut parts = id.rsplit('/').skip(1);
        let mut number = || parts.next().and_then(|part| part.parse::<i64>().ok());
        let (offset, partition) = (number(), number().and_then(|partition| i32::try_from(partition).ok()));
        let place = offset.zip(partition).map(|(offset, partition)| Place { partition, offset });
        place.with_context(|| format!("`{id}` is not a record's id"))
    }
}

impl Ledger {
    /// An empty ledger, with its file in this folder.
    pub fn new(folder: &Path) -> Result<Ledger> {
        let file = File::create(folder.join("ledger.txt"))?;
        Ok(Ledger { fates: Mutex::default(), file: Mutex::new(file) })
    }

    /// Notes that this is about to be sent.
    pub fn intend(&self, body: &Body) {
        self.note(body, Fate::Unknown);
    }

    /// Notes what the producer was told.
    pub fn resolve(&self, body: &Body, fate: Fate) {
        self.note(body, fate);
    }

    /// Everything that was sent, with its fate.
    pub fn fates(&self) -> BTreeMap<Body, Fate> {
        locked(&self.fates).clone()
    }

    /// How many records are in the log for certain.
    pub fn acked(&self) -> usize {
        locked(&self.fates).values().filter(|fate| matches!(fate, Fate::Acked(_))).count()
    }

    fn note(&self, body: &Body, fate: Fate) {
        let line = format!("{} {} {} {fate:?}\n", body.producer, body.key, body.seq);
        locked(&self.file).write_all(line.as_bytes()).expect("the ledger's file takes a line");
        locked(&self.fates).insert(body.clone(), fate);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_was_changed_on_its_way_is_nobodys() {
        let body = Body::new("p", "k", 7);
        let bytes = body.to_bytes();
        assert_eq!(Body::from_bytes(&bytes), Some(body));
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(Body::from_bytes(text.replace("\"seq\":7", "\"seq\":8").as_bytes()), None);
    }

    #[test]
    fn a_topic_may_hold_what_separates_the_parts_of_an_id() {
        let place = Place::of_id("a/b/3/42/1700000000000").unwrap();
        assert_eq!(place, Place { partition: 3, offset: 42 });
        assert!(Place::of_id("a/b").is_err());
    }
}
