//! Room 6: the frontier goes to the group, one commit at a time, never backwards within an assignment.

pub(super) mod database;
pub(super) mod outbox;
pub(super) mod transaction;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use tidemill_core::record::{Offset, TopicPartition};

use super::Config;
use super::progress::Frontier;
use crate::broker::{CommitError, Consumer};
use crate::metrics::{CommitResult, HandlerMetrics};
use crate::sync;

/// Commits for one membership.
pub(super) struct Committer {
    group: String,
    metrics: Arc<HandlerMetrics>,
    /// What the broker confirmed, by partition and assignment.
    committed: BTreeMap<TopicPartition, (u64, Offset)>,
    /// The commit under way.
    running: Option<Running>,
}

struct Running {
    frontiers: Vec<Frontier>,
    done: BoxFuture<'static, Result<(), CommitError>>,
}

impl Committer {
    pub(super) fn new(config: &Config, metrics: Arc<HandlerMetrics>) -> Self {
        Self { group: config.subscription.group.clone(), metrics, committed: BTreeMap::new(), running: None }
    }

    /// Commits what moved, unless a commit is under way: the next tick takes it.
    pub(super) fn start<C: Consumer>(&mut self, consumer: &C, frontiers: Vec<Frontier>) {
        if self.running.is_some() {
            return;
        }
        let moved: Vec<Frontier> = frontiers.into_iter().filter(|frontier| self.moved(frontier)).collect();
        if moved.is_empty() {
            return;
        }
        let offsets = moved.iter().map(|frontier| (frontier.progress.from.clone(), frontier.offset)).collect();
        self.running = Some(Running { frontiers: moved, done: consumer.commit(offsets).boxed() });
    }

    /// Whether a frontier is ahead of what its assignment has committed.
    fn moved(&self, frontier: &Frontier) -> bool {
        match self.committed.get(&frontier.progress.from) {
            Some((epoch, offset)) => *epoch != frontier.progress.epoch || *offset < frontier.offset,
            None => true,
        }
    }

    /// Resolves when the commit under way ends; waits for ever while there is none.
    pub(super) async fn confirmed(&mut self) -> Result<(), CommitError> {
        match &mut self.running {
            Some(running) => Pin::new(&mut running.done).await,
            None => std::future::pending().await,
        }
    }

    /// Notes how the commit under way ended, and tells those who wait for it. Answers whether it is confirmed.
    pub(super) fn on_confirmed(&mut self, result: Result<(), CommitError>) -> bool {
        let Some(running) = self.running.take() else { return false };
        match result {
            Ok(()) => {
                self.metrics.commits(CommitResult::Ok).inc();
                for Frontier { progress, offset } in running.frontiers {
                    self.committed.insert(progress.from.clone(), (progress.epoch, offset));
                    progress.confirm(offset);
                }
                true
            }
            Err(error) => {
                let fenced = matches!(error, CommitError::Fenced(_));
                self.metrics.commits(if fenced { CommitResult::Fenced } else { CommitResult::Failed }).inc();
                tracing::warn!(group = self.group, %error, "offsets were not committed; the next commit takes them");
                false
            }
        }
    }

    /// The last commit of partitions that are given back; resolves when it is confirmed or has failed.
    pub(super) async fn finish<C: Consumer>(&mut self, consumer: &mut C, frontiers: Vec<Frontier>) {
        // A commit under way may hold older offsets of the same partitions: let it pass first.
        if self.running.is_some() {
            let result = self.confirmed().await;
            self.on_confirmed(result);
        }
        self.start(&*consumer, frontiers);
        if self.running.is_some() {
            let result = self.confirmed().await;
            self.on_confirmed(result);
        }
    }
}

/// How often a metric of the frontier is refreshed while nothing happens.
pub(super) const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
