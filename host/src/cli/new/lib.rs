//! Checks orders and passes the good ones on.

use serde::{Deserialize, Serialize};
use tidemill_guest::{Context, Json, Output, Result, dead_letter, handler};

#[derive(Deserialize, Serialize)]
struct Order {
    id: String,
    amount_cents: i64,
}

#[handler]
fn handle(Json(order): Json<Order>, ctx: &mut Context) -> Result<()> {
    if order.amount_cents <= 0 {
        return dead_letter("amount-not-positive", order.amount_cents);
    }
    ctx.emit(Output::json("{name}.out", &order)?.key(order.id));
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidemill_guest::testing::{Host, record};
    use tidemill_guest::{Outcome, Output};

    use super::handle;

    #[test]
    fn a_good_order_is_passed_on() {
        let order = r#"{"id":"o-1","amount_cents":1250}"#;
        let outcome = Host::new().call_one(handle, record(order));
        assert_eq!(outcome.outputs(), [Output::bytes("{name}.out", order).key("o-1")]);
    }

    #[test]
    fn an_order_for_nothing_is_a_dead_letter() {
        let outcome = Host::new().call_one(handle, record(r#"{"id":"o-1","amount_cents":0}"#));
        assert!(matches!(outcome, Outcome::DeadLetter(reason) if reason.code == "amount-not-positive"));
    }
}
