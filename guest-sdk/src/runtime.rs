//! What the code that `#[handler]` writes calls. Not for authors.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::bindings::tidemill::guest::types;
use crate::context::Call;
use crate::record::Source;
use crate::{Guarantee, Handler, Order, Reason, Refusal, Setup, convert, packed};

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
pub fn handle<Shape>(handler: impl Handler<Shape>, batch: types::Batch) -> Result<Vec<types::Outcome>, Reason> {
    let (call, records) = convert::lift(batch);
    let mut outcomes = Vec::with_capacity(records.len());
    handler.call(call, records, setup(), &mut outcomes)?;
    Ok(convert::lower(outcomes))
}

/// Handles a batch whose records came in one buffer, and answers the outcomes in one.
pub fn handle_packed<Shape>(
    handler: impl Handler<Shape>,
    topic: String,
    partition: i32,
    deadline_ms: u32,
    delivery: String,
    records: Vec<u8>,
) -> Result<Vec<u8>, Reason> {
    let source = Arc::new(Source { topic, partition });
    let buffer = Bytes::from(records);
    let records = packed::records(&source, &buffer)?;
    let mut outcomes = packed::Writer::new(&buffer, records.len());
    handler.call(Call { source, deadline_ms, delivery }, records, setup(), &mut outcomes)?;
    Ok(outcomes.finish())
}

fn setup() -> &'static Arc<Setup> {
    SETUP.get_or_init(|| Arc::new(untold()))
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
