//! The books that the guest `ledger` keeps: one entry a record and a sum an account, with nothing in them that would stop a
//! record from being booked twice. The judge of exactly once.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use tidemill::store::{Connection, Value};

use ::tests::ledger::{Fate, Ledger, Place};
use ::tests::sink::Sink;

/// What was booked.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// How often each record has an entry, wherever it came from.
    entries: BTreeMap<Place, usize>,
    /// Each account's sum.
    sums: BTreeMap<String, usize>,
}

/// What is wrong with the books.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Errors {
    /// Records that were acknowledged and have no entry.
    pub(crate) missing: Vec<Place>,
    /// Records with more than one entry.
    pub(crate) repeated: Vec<Place>,
    /// Entries of what nobody sent.
    pub(crate) invented: Vec<Place>,
    /// Accounts whose sum is not that of their records: the sum, and what it should be.
    pub(crate) wrong_sums: BTreeMap<String, (usize, usize)>,
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { missing, repeated, invented, wrong_sums } = self;
        let (missing, repeated, invented) = (missing.len(), repeated.len(), invented.len());
        write!(f, "{missing} records are missing, {repeated} repeated, {invented} invented; wrong sums: {wrong_sums:?}")
    }
}

impl std::error::Error for Errors {}

impl Books {
    /// Reads them from PostgreSQL, in one snapshot.
    pub(crate) fn in_postgres(sink: &Sink) -> Result<Books> {
        // One statement, so that entries and sums are of one moment.
        let rows = sink.query(
            "SELECT record_id, NULL::BIGINT FROM entries UNION ALL SELECT account, entries FROM accounts",
            &[],
        )?;
        let mut books = Books::default();
        for row in rows {
            books.add(row.get(0), row.get(1))?;
        }
        Ok(books)
    }

    /// Reads them from a connection.
    pub(crate) async fn on(connection: &mut dyn Connection) -> Result<Books> {
        let mut books = Books::default();
        let select = "SELECT record_id, NULL FROM entries UNION ALL SELECT account, entries FROM accounts";
        let rows = connection.query(select.to_owned(), Vec::new()).await?;
        anyhow::ensure!(!rows.truncated, "there are more rows than a query gives");
        for row in rows.rows {
            match &row[..] {
                [Value::Text(id), Value::Null] => books.add(id, None)?,
                [Value::Text(account), Value::Int(sum)] => books.add(account, Some(*sum))?,
                other => anyhow::bail!("an entry or a sum, not {other:?}"),
            }
        }
        Ok(books)
    }

    fn add(&mut self, name: &str, sum: Option<i64>) -> Result<()> {
        match sum {
            None => *self.entries.entry(Place::of_id(name)?).or_default() += 1,
            Some(sum) => {
                self.sums.insert(name.to_owned(), usize::try_from(sum).context("a sum is not negative")?);
            }
        }
        Ok(())
    }

    /// How many entries there are, repeated ones too.
    pub(crate) fn entries(&self) -> usize {
        self.entries.values().sum()
    }

    /// Compares the books with what was sent: every acknowledged record once, and nothing else.
    pub(crate) fn check(&self, ledger: &Ledger) -> Result<usize, Errors> {
        let mut errors = Errors::default();
        let (mut sent, mut sums) = (BTreeMap::new(), BTreeMap::<String, usize>::new());
        for (body, fate) in ledger.fates() {
            if let Fate::Acked(place) = fate {
                *sums.entry(body.key.clone()).or_default() += 1;
                sent.insert(place, body);
            }
        }
        errors.missing = sent.keys().filter(|place| !self.entries.contains_key(place)).copied().collect();
        errors.invented = self.entries.keys().filter(|place| !sent.contains_key(place)).copied().collect();
        let repeated = self.entries.iter().filter(|(_, times)| **times > 1);
        errors.repeated = repeated.map(|(place, _)| *place).collect();
        for (account, expected) in sums {
            let sum = self.sums.get(&account).copied().unwrap_or(0);
            if sum != expected {
                errors.wrong_sums.insert(account, (sum, expected));
            }
        }
        if errors == Errors::default() { Ok(sent.len()) } else { Err(errors) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::tests::ledger::Body;

    const AT: fn(i64) -> Place = |offset| Place { partition: 0, offset };

    /// Two records of `ada` were acknowledged at 0 and 1, one of `ben` failed; this is what was booked.
    fn check(entries: &[i64], sums: &[(&str, i64)]) -> Result<usize, Errors> {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::new(folder.path()).expect("a ledger");
        let fates = [("ada", 0, Fate::Acked(AT(0))), ("ada", 1, Fate::Acked(AT(1))), ("ben", 0, Fate::Failed)];
        for (key, seq, fate) in fates {
            let body = Body::new("test", key, seq);
            ledger.intend(&body);
            ledger.resolve(&body, fate);
        }
        let mut books = Books::default();
        entries.iter().for_each(|offset| books.add(&format!("t/0/{offset}/1"), None).expect("an entry"));
        sums.iter().for_each(|(account, sum)| books.add(account, Some(*sum)).expect("a sum"));
        books.check(&ledger)
    }

    #[test]
    fn exact_books_are_exact() {
        assert_eq!(check(&[0, 1], &[("ada", 2)]), Ok(2));
    }

    #[test]
    fn each_kind_of_error_is_seen() {
        let errors = |entries: &[i64], sum: i64| check(entries, &[("ada", sum)]).expect_err("an error");
        assert_eq!(errors(&[0], 2), Errors { missing: vec![AT(1)], ..Errors::default() });
        assert_eq!(errors(&[0, 1, 1], 2), Errors { repeated: vec![AT(1)], ..Errors::default() });
        assert_eq!(errors(&[0, 1, 7], 2), Errors { invented: vec![AT(7)], ..Errors::default() });
        let wrong_sums = [("ada".to_owned(), (3, 2))].into();
        assert_eq!(errors(&[0, 1], 3), Errors { wrong_sums, ..Errors::default() });
    }
}
