//! The demo's ledger, kept outside the host, and what must agree with it.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use rusqlite::Connection;

use super::orders::Post;
use super::place::Place;

/// The metric that says how far a group is committed.
pub(super) const COMMITTED: &str = "tidemill_commit_offset{";

/// What the host accepted.
#[derive(Default)]
pub(super) struct Ledger {
    good: u64,
    bad: u64,
    cents: BTreeMap<String, u64>,
}

impl Ledger {
    /// Notes orders that were answered with a 2xx.
    pub(super) fn accepted(&mut self, post: Post) {
        for order in post.orders {
            match order.cents {
                Some(cents) => {
                    self.good += 1;
                    *self.cents.entry(order.customer).or_default() += cents;
                }
                None => self.bad += 1,
            }
        }
    }
}

/// Compares every count with the ledger and prints each comparison.
pub(super) fn check(place: &Place, ledger: &Ledger) -> Result<()> {
    let database = Connection::open(place.database())?;
    let number = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0).map(i64::cast_unsigned));
    let topics = place.topics()?;
    let records = |topic: &str| topics.get(topic).copied().unwrap_or(0);
    let accepted = ledger.good + ledger.bad;
    let totals = totals(&database)?;

    let mut table = Table::default();
    table.row("orders accepted = records in `orders`", accepted, records("orders"));
    table.row("good orders = rows in SQL", ledger.good, number("select count(*) from orders")?);
    table.row("bad orders = dead letters", ledger.bad, records("orders.dlq"));
    table.row("good orders = records in `orders.enriched`", ledger.good, records("orders.enriched"));
    table.row("orders accepted = seen by `audit`", accepted, number("select count(*) from audit")?);
    table.row("customers whose total agrees to the cent", ledger.cents.len() as u64, agreeing(&ledger.cents, &totals));
    table.row("cents in all", ledger.cents.values().sum(), totals.values().sum());
    println!("{}", table.text);
    ensure!(table.wrong == 0, "{} counts do not agree", table.wrong);
    println!("Nothing was lost and nothing was repeated.");
    Ok(())
}

fn totals(database: &Connection) -> Result<BTreeMap<String, u64>> {
    let mut statement = database.prepare("select customer, amount_cents from customer_totals")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn agreeing(expected: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>) -> u64 {
    expected.iter().filter(|(customer, cents)| found.get(*customer) == Some(cents)).count() as u64
}

#[derive(Default)]
struct Table {
    text: String,
    wrong: u32,
}

impl Table {
    fn row(&mut self, what: &str, expected: u64, found: u64) {
        let verdict = if expected == found { "ok" } else { "WRONG" };
        self.wrong += u32::from(expected != found);
        self.text += &format!("  {what:<46} {expected:>10} {found:>10}  {verdict}\n");
    }
}
