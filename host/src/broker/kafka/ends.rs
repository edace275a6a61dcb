//! Where a partition begins and ends, asked of its leader.

use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode as Code;
use tidemill_core::record::Offset;
use tokio::time::Instant;

use super::errors::code_of;

/// How soon a partition without a leader is asked for again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The oldest kept offset and the next to be written. Blocks, and asks again while the leader moves.
pub(super) fn ends<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
    deadline: Instant,
) -> Result<(Offset, Offset), Code> {
    loop {
        let code = match client.fetch_watermarks(topic, partition, left(deadline)) {
            Ok(ends) => return Ok(ends),
            Err(error) => code_of(&error),
        };
        // A topic that was just made has no leader for a moment.
        let moving = matches!(code, Code::NotLeaderForPartition | Code::LeaderNotAvailable);
        if !moving || Instant::now() >= deadline {
            return Err(code);
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

/// The time until a deadline.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
