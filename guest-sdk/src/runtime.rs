//! What the code that `#[handler]` writes calls. Not for authors.

use std::sync::{Arc, OnceLock};

use crate::{Guarantee, Handler, Order, Outcome, Reason, Refusal, Setup, bindings, packed};

static SETUP: OnceLock<Arc<Setup>> = OnceLock::new();

/// The author's `init`, or nothing.
pub type Init = fn(&Setup) -> Result<(), Refusal>;

/// Keeps what the host told, after the author's `init` has agreed to it.
pub fn init(setup: Setup, agree: Option<Init>) -> Result<(), Reason> {
    if let Some(agree) = agree {
        agree(&setup).map_err(|refusal| refusal.0)?;
    }
    // The contract says once per instance; a second call changes nothing.
    SETUP.get_or_init(|| Arc::new(setup));
    Ok(())
}

/// Handles a batch as the host sends it.
pub fn handle<Shape>(
    handler: impl Handler<Shape>,
    batch: bindings::tidemill::guest::types::Batch,
) -> Result<Vec<Outcome>, Reason> {
    handler.call(batch, SETUP.get_or_init(|| Arc::new(untold())))
}

/// Handles a batch whose records came in one buffer, and answers the outcomes in one.
pub fn handle_packed<Shape>(
    handler: impl Handler<Shape>,
    topic: String,
    partition: i32,
    deadline_ms: u32,
    delivery: String,
    records: &[u8],
) -> Result<Vec<u8>, Reason> {
    let records = packed::records(records)?;
    let attributes = Vec::new();
    let batch =
        bindings::tidemill::guest::types::Batch { topic, partition, deadline_ms, delivery, records, attributes };
    handle(handler, batch).map(|outcomes| packed::outcomes(&outcomes))
}

/// For a host that breaks the contract and never calls `init`: the default order.
fn untold() -> Setup {
    Setup {
        handler: String::new(),
        group: String::new(),
        revision: String::new(),
        guarantee: Guarantee::AtLeastOnce,
        order: Order::Key,
        attributes: Vec::new(),
    }
}
