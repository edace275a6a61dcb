//! Checks orders, stores them with their customers' totals, and emits them enriched.
//!
//! Reads `{"id": "o-1", "customer": "c-7", "amount_cents": 1250}`; writes tables `orders` and `customer_totals` of database `main`; emits to
//! `orders.enriched`. An order that comes again is found by its id and counted once: row and total change in one transaction.

use serde::{Deserialize, Serialize};
use tidemill_guest::{Context, Json, Output, Record, Result, dead_letter, handler, params, sql};

#[derive(Deserialize)]
struct Order {
    id: String,
    customer: String,
    amount_cents: i64,
}

#[derive(Serialize)]
struct Enriched<'a> {
    id: &'a str,
    customer: &'a str,
    amount_cents: i64,
    size: &'a str,
}

#[handler]
fn handle(Json(order): Json<Order>, record: &Record, ctx: &mut Context) -> Result<()> {
    check(&order)?;
    store(&order, &record.id())?;
    let enriched = Enriched {
        id: &order.id,
        customer: &order.customer,
        amount_cents: order.amount_cents,
        size: if order.amount_cents < 10_000 { "small" } else { "large" },
    };
    ctx.emit(Output::json("orders.enriched", &enriched)?.key(order.customer.as_str()));
    Ok(())
}

fn check(order: &Order) -> Result<()> {
    if order.id.is_empty() {
        return dead_letter("id-empty", "an order needs an `id`");
    }
    if order.customer.is_empty() {
        return dead_letter("customer-empty", "an order needs a `customer`");
    }
    if order.amount_cents <= 0 {
        return dead_letter("amount-not-positive", format_args!("`amount_cents` is {}", order.amount_cents));
    }
    Ok(())
}

fn store(order: &Order, record_id: &str) -> Result<(), sql::Error> {
    let tx = sql::open("main")?.begin()?;
    let new = tx.execute(
        "INSERT INTO orders (id, customer, amount_cents, record_id) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
        params![order.id, order.customer, order.amount_cents, record_id],
    )?;
    if new == 1 {
        tx.execute(
            "INSERT INTO customer_totals (customer, orders, amount_cents) VALUES ($1, 1, $2) \
             ON CONFLICT (customer) DO UPDATE SET orders = customer_totals.orders + 1, \
             amount_cents = customer_totals.amount_cents + excluded.amount_cents",
            params![order.customer, order.amount_cents],
        )?;
    }
    tx.commit()
}

#[cfg(test)]
mod tests;
