//! A producer that takes everything and writes nothing.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Outgoing, Position, Producer, SendError, WhenFull};

/// Acknowledges each record and forgets it: for a replay whose outputs are there already.
#[derive(Debug, Default)]
pub struct Discard;

impl Producer for Discard {
    fn send(&self, records: Vec<Outgoing>, _: WhenFull) -> BoxFuture<'static, Vec<Result<Position, SendError>>> {
        let nowhere = |record: Outgoing| {
            Ok(Position { partition: record.partition.unwrap_or_default(), offset: Position::UNKNOWN })
        };
        std::future::ready(records.into_iter().map(nowhere).collect()).boxed()
    }

    fn ready(&self) -> bool {
        true
    }
}
