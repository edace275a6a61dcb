//! Parked keys as they are answered.

use tidemill_core::record::TopicPartition;

use super::held_by;
use crate::admin::{ParkedError, ParkedKeyView, ParkedView, Reach, Silent, UnparkRequest, Unparked};
use crate::broker::{NotFound, Selection};
use crate::cli::text::value_of;
use crate::consumer::{Choice, ParkedKey};
use crate::fleet::{self, Reached, Running};
use crate::settle::parked::Why;

pub(super) async fn list(running: &Running) -> Result<ParkedView, ParkedError> {
    let (answers, reach) = split(fleet::parked(running).await?);
    let mut view = ParkedView { reach, ..ParkedView::default() };
    for (from, parked) in answers {
        view.more += parked.more;
        view.keys.extend(parked.keys.into_iter().map(|key| key_view(&from, key)));
    }
    Ok(view)
}

pub(super) async fn unpark(running: &Running, request: UnparkRequest) -> Result<Unparked, ParkedError> {
    let UnparkRequest { topic, partition, key, null_key, dry_run } = request;
    let key = if null_key { Some(None) } else { key.map(|key| Some(key.into_bytes())) };
    let choice = Choice { key, only_count: dry_run };
    let (answers, reach) = split(fleet::unpark(running, &Selection { topic, partition }, &choice).await?);
    let mut unparked = Unparked { reach, ..Unparked::default() };
    for (_, count) in answers {
        unparked.keys += count.keys;
        unparked.records += count.records;
    }
    Ok(unparked)
}

impl From<NotFound> for ParkedError {
    fn from(cause: NotFound) -> Self {
        Self::Invalid(cause.to_string())
    }
}

/// What was answered, and by whom it was not.
fn split<T>(Reached { answers, elsewhere }: Reached<T>) -> (Vec<(TopicPartition, T)>, Reach) {
    let mut reach = Reach { elsewhere: elsewhere.map(held_by), ..Reach::default() };
    let mut given = Vec::new();
    for (from, answer) in answers {
        match answer {
            Ok(answer) => given.push((from, answer)),
            Err(error) => reach.silent.push(Silent {
                topic: from.topic.to_string(),
                partition: from.partition,
                detail: error.to_string(),
            }),
        }
    }
    reach.partitions = given.len();
    (given, reach)
}

fn key_view(from: &TopicPartition, parked: ParkedKey) -> ParkedKeyView {
    let ParkedKey { key, records, first_offset, is_tried, why } = parked;
    let said = |said: fn(&Why) -> String| why.as_ref().map(said);
    ParkedKeyView {
        topic: from.topic.to_string(),
        partition: from.partition,
        key: value_of(key.as_deref()),
        records,
        first_offset,
        tried: is_tried,
        since: said(|why| why.since.clone()),
        class: said(|why| why.class.clone()),
        code: said(|why| why.code.clone()),
        detail: said(|why| why.detail.clone()),
        revision: said(|why| why.revision.to_string()),
    }
}
