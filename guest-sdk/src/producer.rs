//! Sending at once, outside the outcome: for the rare handler that needs the position now.
//!
//! What was sent stays sent when the attempt fails, so a redelivery sends it again. [`Context::emit`](crate::Context::emit) has no such gap.

pub use crate::bindings::tidemill::guest::producer::{Error, Position};
use crate::{Error as Ending, Output, convert};

/// Sends records and waits for the broker; their positions are in the same order.
pub fn send(records: &[Output]) -> Result<Vec<Position>, Error> {
    crate::platform::producer::send(&records.iter().map(convert::lower_output).collect::<Vec<_>>())
}

/// What the error means for the record if the author does not say otherwise.
pub(crate) fn ending(error: &Error) -> Ending {
    match error {
        Error::AccessDenied(topic) => {
            Ending::retry("producer-access-denied", format!("topic `{topic}` is not granted"))
        }
        Error::TooLarge(size) => {
            Ending::dead_letter("producer-too-large", format!("{size} bytes are more than may be sent"))
        }
        Error::OutcomeUnknown(detail) => Ending::unavailable("producer-outcome-unknown", detail),
        Error::Unavailable(detail) => Ending::unavailable("producer-unavailable", detail),
    }
}
