use tidemill_guest::testing::{Host, json, record};
use tidemill_guest::{Outcome, Result, params, sql};

use super::handle;

#[test]
fn an_order_is_stored_counted_and_emitted() -> Result<()> {
    let host = host();
    let outcome = host.call_one(handle, order("o-1", "c-7", 1250));
    let [enriched] = outcome.outputs() else { panic!("one output, not {outcome:?}") };
    assert_eq!(enriched.topic, "orders.enriched");
    assert_eq!(enriched.key.as_deref(), Some(b"c-7".as_slice()));
    let value: serde_json::Value = serde_json::from_slice(enriched.value.as_deref().unwrap_or_default())?;
    assert_eq!(value, serde_json::json!({"id": "o-1", "customer": "c-7", "amount_cents": 1250, "size": "small"}));
    assert_eq!(totals()?, [("c-7".to_owned(), 1, 1250)]);
    Ok(())
}

#[test]
fn a_redelivery_does_not_count_twice_and_emits_the_same() -> Result<()> {
    let host = host();
    let first = host.call_one(handle, order("o-1", "c-7", 1250));
    let again = host.call_one(handle, order("o-1", "c-7", 1250).with_attempt(2));
    assert_eq!(first, again);
    host.call_one(handle, order("o-2", "c-7", 10_000));
    assert_eq!(totals()?, [("c-7".to_owned(), 2, 11_250)]);
    Ok(())
}

#[test]
fn a_bad_order_is_a_dead_letter_and_stores_nothing() -> Result<()> {
    let host = host();
    let cases = [
        (record("{"), "invalid-json"),
        (json(&serde_json::json!({"id": "o-1", "customer": "c-7"})), "invalid-json"),
        (order("", "c-7", 1), "id-empty"),
        (order("o-1", "", 1), "customer-empty"),
        (order("o-1", "c-7", 0), "amount-not-positive"),
    ];
    for (record, code) in cases {
        let Outcome::DeadLetter(reason) = host.call_one(handle, record) else { panic!("{code} is a dead letter") };
        assert_eq!(reason.code, code);
    }
    assert_eq!(totals()?, []);
    Ok(())
}

#[test]
fn while_the_database_is_away_the_order_waits() -> Result<()> {
    let host = host();
    host.set_down("main", true);
    let outcome = host.call_one(handle, order("o-1", "c-7", 1));
    assert!(matches!(outcome, Outcome::Retry(request) if request.unavailable));
    host.set_down("main", false);
    host.call_one(handle, order("o-1", "c-7", 1));
    assert_eq!(totals()?, [("c-7".to_owned(), 1, 1)]);
    Ok(())
}

fn host() -> Host {
    Host::new().sql("main", &[include_str!("../migrations/V1__orders.sql")])
}

fn order(id: &str, customer: &str, amount_cents: i64) -> tidemill_guest::Record {
    json(&serde_json::json!({"id": id, "customer": customer, "amount_cents": amount_cents}))
}

fn totals() -> Result<Vec<(String, i64, i64)>> {
    let rows = sql::open("main")?.query("SELECT customer, orders, amount_cents FROM customer_totals", params![])?;
    rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).collect()
}
