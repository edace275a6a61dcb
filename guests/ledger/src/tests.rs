use tidemill_guest::testing::{Host, record};
use tidemill_guest::{Outcome, Record, Result, params, sql};

use super::{handle, ready};

fn host() -> Host {
    Host::new().sql("main", &[include_str!("../migrations/V1__ledger.sql")]).config("poison", "bad")
}

fn entry(account: &str) -> Record {
    record("1").with_key(account.to_owned())
}

/// The entries of an account, by its sum and by its rows.
fn booked(account: &str) -> Result<(Option<i64>, i64)> {
    let main = sql::open("main")?;
    let sum = main.query("SELECT entries FROM accounts WHERE account = $1", params![account])?;
    let rows = main.query("SELECT count(*) FROM entries WHERE account = $1", params![account])?;
    let sum = sum.iter().next().map(|row| row.get(0)).transpose()?;
    Ok((sum, rows.iter().next().map(|row| row.get(0)).transpose()?.unwrap_or(0)))
}

#[test]
fn each_record_is_booked_to_its_account() -> Result<()> {
    let host = host().exactly_once("main");
    host.call(handle, [entry("ada"), entry("ben"), entry("ada")]);
    host.call(handle, [entry("ada")]);
    assert_eq!((booked("ada")?, booked("ben")?), ((Some(3), 3), (Some(1), 1)));
    Ok(())
}

#[test]
fn a_call_with_a_bad_record_books_nothing() -> Result<()> {
    let host = host().exactly_once("main");
    let outcomes = host.call(handle, [entry("ada"), entry("bad")]);
    assert!(matches!(outcomes[1], Outcome::DeadLetter(_)), "{outcomes:?}");
    assert_eq!((booked("ada")?, booked("bad")?), ((None, 0), (None, 0)));
    Ok(())
}

#[test]
fn it_does_not_run_without_the_deliverys_transaction() {
    assert_eq!(host().exactly_once("main").init(ready), Ok(()));
    let refusal = host().init(ready).expect_err("at least once would count twice");
    assert!(refusal.0.detail.contains("delivery = \"exactly-once\""), "{refusal:?}");
}
