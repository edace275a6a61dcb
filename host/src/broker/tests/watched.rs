//! A broker of tests: the embedded log in memory, where a test sees each commit and makes things go wrong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemill_core::record::{Offset, TopicPartition};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::broker::embedded::{Embedded, EmbeddedConsumer, EmbeddedReader, EmbeddedTransactions};
use crate::broker::{
    Admin, Broker, BrokerError, CommitError, Consumer, ConsumerEvent, Outgoing, Producer, Remains, Subscription,
    TransactionError, Transactions,
};

/// Bounds each wait of a test: what takes longer does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The log, and what is seen of it.
#[derive(Clone)]
pub(crate) struct Watched {
    log: Embedded,
    shared: Arc<Shared>,
}

struct Shared {
    seen: watch::Sender<Seen>,
    /// Asked of each commit before it is made: it panics when a promise is broken.
    rule: Rule,
    /// So many commits fail from now on.
    commits_to_fail: AtomicUsize,
    /// How the next ends of transactions go wrong.
    mishaps: Mutex<VecDeque<Mishap>>,
    /// What members are told beside what the log says.
    events: Mutex<VecDeque<ConsumerEvent>>,
    told: Notify,
}

/// How the end of a transaction goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Mishap {
    /// It is not committed.
    Before(TransactionError),
    /// The same, and nothing of it has reached the broker.
    Unsent(TransactionError),
    /// It is committed, and the answer is lost.
    After(TransactionError),
}

/// What a commit has to keep to.
type Rule = Box<dyn Fn(&TopicPartition, Offset) + Send + Sync>;

#[derive(Default)]
struct Seen {
    /// Confirmed commits in their order, by group and partition.
    commits: BTreeMap<(String, TopicPartition), Vec<Offset>>,
    /// How often a member was told to give partitions back.
    revocations: usize,
    /// How often what was not committed was ended once more.
    sweeps: usize,
    /// Offsets that were to be there for certain, in order.
    restored: Vec<(TopicPartition, Offset)>,
}

impl Watched {
    /// A log of its own whose commits keep to a rule.
    pub(crate) fn new(rule: impl Fn(&TopicPartition, Offset) + Send + Sync + 'static) -> Self {
        let shared = Shared {
            seen: watch::Sender::default(),
            rule: Box::new(rule),
            commits_to_fail: AtomicUsize::new(0),
            mishaps: Mutex::default(),
            events: Mutex::default(),
            told: Notify::new(),
        };
        Self { log: Embedded::in_memory().expect("a log"), shared: Arc::new(shared) }
    }

    /// The confirmed commits of a group in a partition.
    pub(crate) fn commits(&self, group: &str, from: &TopicPartition) -> Vec<Offset> {
        let key = (group.to_owned(), from.clone());
        self.shared.seen.borrow().commits.get(&key).cloned().unwrap_or_default()
    }

    /// Waits until a group's last commit in a partition is this one.
    pub(crate) async fn committed(&self, group: &str, from: &TopicPartition, offset: Offset) {
        let key = (group.to_owned(), from.clone());
        let reached = |seen: &Seen| seen.commits.get(&key).and_then(|all| all.last()) == Some(&offset);
        let what = || format!("no commit of {offset} in {from}, only {:?}", self.commits(group, from));
        self.until(reached, what).await;
    }

    /// How often what was not committed was ended once more.
    pub(crate) fn sweeps(&self) -> usize {
        self.shared.seen.borrow().sweeps
    }

    /// Offsets that were to be there for certain, in order.
    pub(crate) fn restored(&self) -> Vec<(TopicPartition, Offset)> {
        self.shared.seen.borrow().restored.clone()
    }

    /// Waits until members were told so often to give partitions back.
    pub(crate) async fn revoked(&self, times: usize) {
        self.until(|seen| seen.revocations >= times, || "no partition was revoked".to_owned()).await;
    }

    async fn until(&self, reached: impl Fn(&Seen) -> bool, what: impl Fn() -> String) {
        let mut seen = self.shared.seen.subscribe();
        let waited = timeout(PATIENCE, seen.wait_for(|seen| reached(seen))).await;
        assert!(waited.is_ok(), "{}", what());
    }

    /// Lets the next commits fail.
    pub(crate) fn fail_commits(&self, commits: usize) {
        self.shared.commits_to_fail.store(commits, Ordering::SeqCst);
    }

    /// Lets the next ends of transactions go wrong.
    pub(crate) fn mishaps(&self, mishaps: impl IntoIterator<Item = Mishap>) {
        self.shared.mishaps.lock().expect("not poisoned").extend(mishaps);
    }

    /// From now on transactions end well.
    pub(crate) fn no_more_mishaps(&self) {
        self.shared.mishaps.lock().expect("not poisoned").clear();
    }

    /// Tells the next member that asks what did not happen.
    pub(crate) fn tell(&self, event: ConsumerEvent) {
        self.shared.events.lock().expect("not poisoned").push_back(event);
        self.shared.told.notify_one();
    }
}

impl Shared {
    fn note(&self, group: &str, offsets: Vec<(TopicPartition, Offset)>) {
        self.seen.send_modify(|seen| {
            for (from, offset) in offsets {
                seen.commits.entry((group.to_owned(), from)).or_default().push(offset);
            }
        });
    }
}

impl Broker for Watched {
    type Consumer = Member;
    type Transactions = WatchedTransactions;

    fn consumer(&self, subscription: &Subscription) -> Result<Member, BrokerError> {
        let member = self.log.consumer(subscription)?;
        Ok(Member { member, group: subscription.group.clone(), shared: Arc::clone(&self.shared) })
    }

    async fn readers(
        &self,
        places: &BTreeMap<TopicPartition, Offset>,
        properties: &BTreeMap<String, String>,
    ) -> Result<Vec<(TopicPartition, EmbeddedReader)>, BrokerError> {
        self.log.readers(places, properties).await
    }

    fn check(&self, subscription: &Subscription) -> Result<(), BrokerError> {
        self.log.check(subscription)
    }

    fn producer(&self, properties: &BTreeMap<String, String>) -> Result<Arc<dyn Producer>, BrokerError> {
        self.log.producer(properties)
    }

    fn transactions(
        &self,
        id: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<WatchedTransactions, BrokerError> {
        let log = self.log.transactions(id, properties)?;
        Ok(WatchedTransactions { log, shared: Arc::clone(&self.shared), may_have_reached: true })
    }

    fn admin(&self) -> Result<Arc<dyn Admin>, BrokerError> {
        self.log.admin()
    }
}

/// A member whose commits are seen.
pub(crate) struct Member {
    member: EmbeddedConsumer,
    group: String,
    shared: Arc<Shared>,
}

impl Consumer for Member {
    type Reader = EmbeddedReader;
    type Member = WatchedMember;

    async fn next_event(&mut self) -> ConsumerEvent {
        loop {
            let told = self.shared.events.lock().expect("not poisoned").pop_front();
            if let Some(event) = told {
                return event;
            }
            tokio::select! {
                () = self.shared.told.notified() => {}
                event = self.member.next_event() => {
                    let revoked = usize::from(matches!(event, ConsumerEvent::Revoked(_)));
                    self.shared.seen.send_modify(|seen| seen.revocations += revoked);
                    return event;
                }
            }
        }
    }

    async fn start(
        &mut self,
        partitions: &[TopicPartition],
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, EmbeddedReader)>, BrokerError> {
        self.member.start(partitions, places).await
    }

    async fn seek(
        &mut self,
        places: &BTreeMap<TopicPartition, Offset>,
    ) -> Result<Vec<(TopicPartition, EmbeddedReader)>, BrokerError> {
        self.member.seek(places).await
    }

    async fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), BrokerError> {
        self.member.release(partitions).await
    }

    fn commit(
        &self,
        offsets: Vec<(TopicPartition, Offset)>,
    ) -> impl Future<Output = Result<(), CommitError>> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        let group = self.group.clone();
        let fails = |left: usize| left.checked_sub(1);
        let failed = shared.commits_to_fail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok();
        let commit = (!failed).then(|| {
            offsets.iter().for_each(|(from, offset)| (shared.rule)(from, *offset));
            self.member.commit(offsets.clone())
        });
        async move {
            let Some(commit) = commit else { return Err(CommitError::Retriable("this one fails".to_owned())) };
            commit.await?;
            shared.note(&group, offsets);
            Ok(())
        }
    }

    fn member(&self) -> WatchedMember {
        WatchedMember { group: self.group.clone(), member: self.member.member() }
    }

    async fn close(self) {
        self.member.close().await;
    }
}

/// A member as its transactions name it.
#[derive(Clone)]
pub(crate) struct WatchedMember {
    group: String,
    member: <EmbeddedConsumer as Consumer>::Member,
}

/// Transactions whose commits are seen.
pub(crate) struct WatchedTransactions {
    log: EmbeddedTransactions,
    shared: Arc<Shared>,
    /// Whether something of the last transaction may have reached a broker.
    may_have_reached: bool,
}

impl Transactions for WatchedTransactions {
    type Member = WatchedMember;

    async fn init(&mut self) -> Result<(), TransactionError> {
        self.log.init().await
    }

    async fn send(&mut self, records: Arc<Vec<Outgoing>>) -> Result<(), TransactionError> {
        self.log.send(records).await
    }

    async fn commit(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &WatchedMember,
    ) -> Result<(), TransactionError> {
        let mishap = self.shared.mishaps.lock().expect("not poisoned").pop_front();
        if let Some(Mishap::Before(error) | Mishap::Unsent(error)) = &mishap {
            self.may_have_reached = matches!(mishap, Some(Mishap::Before(_)));
            return Err(error.clone());
        }
        offsets.iter().for_each(|(from, offset)| (self.shared.rule)(from, *offset));
        self.log.commit(offsets, &member.member).await?;
        self.shared.note(&member.group, offsets.to_vec());
        match mishap {
            Some(Mishap::After(error)) => Err(error),
            Some(Mishap::Before(_) | Mishap::Unsent(_)) | None => Ok(()),
        }
    }

    async fn abort(&mut self) -> Result<(), TransactionError> {
        self.log.abort().await
    }

    async fn give_up(&mut self) -> Remains {
        Remains { possible: self.may_have_reached, ..self.log.give_up().await }
    }

    async fn sweep(
        &mut self,
        samples: &[Outgoing],
        offsets: &[(TopicPartition, Offset)],
        member: &WatchedMember,
    ) -> Result<bool, TransactionError> {
        self.shared.seen.send_modify(|seen| seen.sweeps += 1);
        self.log.sweep(samples, offsets, &member.member).await
    }

    async fn restore(
        &mut self,
        offsets: &[(TopicPartition, Offset)],
        member: &WatchedMember,
    ) -> Result<bool, TransactionError> {
        self.shared.seen.send_modify(|seen| seen.restored.extend_from_slice(offsets));
        self.log.restore(offsets, &member.member).await
    }

    async fn committed(
        &mut self,
        partitions: &[TopicPartition],
        member: &WatchedMember,
    ) -> Result<Vec<Option<Offset>>, TransactionError> {
        self.log.committed(partitions, &member.member).await
    }
}
