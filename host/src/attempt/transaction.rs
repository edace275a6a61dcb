//! The delivery's own transaction: what the guest writes in it and the partition's offset last together, or not at all.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tidemill_core::record::Offset;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::store::offsets::{Fence, Place};
use crate::store::{DbError, Delivery, Sql, SqlError};

/// Waits between looks at what became of a commit whose answer was lost.
const LOOK_DELAY_MIN: Duration = Duration::from_millis(50);
const LOOK_DELAY_MAX: Duration = Duration::from_secs(2);
/// How much longer than its call a delivery's transaction may be silent, while its outputs are acknowledged.
const SETTLE_GRACE: Duration = Duration::from_secs(5);
/// How long a rollback is waited for; after that the connection is given up, which also rolls back.
const ROLLBACK_DEADLINE: Duration = Duration::from_secs(1);
/// What a host that is broken on purpose waits between a delivery and its offset.
const APART: Duration = Duration::from_millis(100);

/// An assignment's hold on the row that keeps its partition's offset. Its partition has one call at a time, and so at most
/// one transaction.
pub struct Ownership {
    sql: Arc<dyn Sql>,
    /// The name by which the handler is granted the database.
    database: Arc<str>,
    silence_max: Duration,
    /// What the row says as long as this host owns it.
    fence: Mutex<Fence>,
    /// Since when it is known that somebody else does.
    fenced: OnceLock<Instant>,
}

/// The transaction of one delivery. Dropped, it is rolled back.
///
/// The mutex is never locked: it makes the value one that may be referred to from several threads, as attempts are.
pub struct Open(Mutex<Box<dyn Delivery>>);

/// How storing an offset ended, if not by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// The offset is stored, and with it what the guest wrote.
    Stored,
    /// Somebody else owns the partition: nothing was kept, and nothing of this assignment ever will be.
    Fenced,
}

impl Ownership {
    /// Takes the row over: no delivery of an earlier owner commits from now on.
    pub async fn take(
        sql: Arc<dyn Sql>,
        database: Arc<str>,
        place: Place,
        call_deadline: Duration,
    ) -> Result<Self, SqlError> {
        let standing = sql.own(place.clone()).await?;
        Ok(Self {
            sql,
            database,
            silence_max: call_deadline.saturating_add(SETTLE_GRACE),
            fence: Mutex::new(Fence { place, standing }),
            fenced: OnceLock::new(),
        })
    }

    /// The next offset to be handled; `None` if none was ever stored.
    pub fn next(&self) -> Option<Offset> {
        self.fence().standing.next
    }

    /// The name by which the handler is granted the database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Whether it is known that somebody else owns the row.
    pub fn is_fenced(&self) -> bool {
        self.fenced_since().is_some()
    }

    /// Since when it is known that somebody else owns the row.
    pub fn fenced_since(&self) -> Option<Instant> {
        self.fenced.get().copied()
    }

    /// Opens a delivery's transaction.
    pub async fn open(&self) -> Result<Open, SqlError> {
        self.sql.deliver(self.silence_max).await.map(|delivery| Open(Mutex::new(delivery)))
    }

    /// Stores the offset in the delivery's transaction, or in one of its own if the guest wrote nothing, and commits.
    ///
    /// An error says that nothing was kept: of a commit whose answer is lost it is found out what became of it, for as long
    /// as that takes.
    pub async fn commit(&self, open: Option<Open>, next: Offset) -> Result<Committed, SqlError> {
        let open = match open {
            Some(open) if Fault::OffsetApart.is_on() => {
                self.broken_apart(open).await?;
                self.open().await?
            }
            Some(open) => open,
            None => self.open().await?,
        };
        let fence = self.fence().clone();
        match open.into_delivery().commit(fence, next).await {
            Ok(true) => {
                self.fence().standing.next = Some(next);
                Ok(Committed::Stored)
            }
            Ok(false) => Ok(self.lost()),
            Err(SqlError::OutcomeUnknown(cause)) => self.find_out(next, cause).await,
            Err(error) => Err(error),
        }
    }

    /// The row tells what became of a commit: it is asked on another connection, and answers once the lost one has ended.
    async fn find_out(&self, next: Offset, cause: DbError) -> Result<Committed, SqlError> {
        let Fence { place, standing: before } = self.fence().clone();
        tracing::warn!(%place, next, %cause, "the answer to a commit was lost; the row of the offset is asked what became of it");
        let mut delay = LOOK_DELAY_MIN;
        loop {
            match self.sql.standing(place.clone()).await {
                Ok(Some(now)) if now.epoch == before.epoch && now.next == Some(next) => {
                    self.fence().standing = now;
                    tracing::info!(%place, next, "it was committed");
                    return Ok(Committed::Stored);
                }
                Ok(Some(now)) if now == before => {
                    tracing::info!(%place, next, "it was not committed; its records are delivered again");
                    return Err(SqlError::Unavailable(format!("the connection was lost before the commit: {cause}")));
                }
                Ok(_) => return Ok(self.lost()),
                Err(error) => tracing::debug!(%place, %error, "the row can't be read and is asked again"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LOOK_DELAY_MAX);
        }
    }

    fn lost(&self) -> Committed {
        if self.fenced.set(Instant::now()).is_ok() {
            let Fence { place, standing } = self.fence().clone();
            tracing::warn!(%place, epoch = standing.epoch, "somebody else owns the partition's offset: what this host had in hand is rolled back and dropped");
        }
        Committed::Fenced
    }

    fn fence(&self) -> MutexGuard<'_, Fence> {
        self.fence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a host does that is broken on purpose: it commits what the guest wrote, with the offset of nobody, and the
    /// partition's own offset a moment later.
    async fn broken_apart(&self, open: Open) -> Result<(), SqlError> {
        let place = self.fence().place.clone();
        let nobody = Place { group: format!("{} apart", place.group), ..place };
        let standing = self.sql.own(nobody.clone()).await?;
        open.into_delivery().commit(Fence { place: nobody, standing }, 0).await?;
        tokio::time::sleep(APART).await;
        Ok(())
    }
}

impl Open {
    /// Where the guest's statements run.
    pub fn delivery(&mut self) -> &mut dyn Delivery {
        &mut **self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_delivery(self) -> Box<dyn Delivery> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rolls back, and waits for it within bounds.
    pub async fn roll_back(self) {
        match tokio::time::timeout(ROLLBACK_DEADLINE, self.into_delivery().rollback()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a delivery's transaction ended before it was rolled back"),
            Err(_) => {
                tracing::warn!("a delivery's transaction was not rolled back in time; its connection is given up")
            }
        }
    }
}

impl fmt::Debug for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ownership")
            .field("database", &self.database)
            .field("fence", &*self.fence())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Open")
    }
}

#[cfg(test)]
mod tests;
