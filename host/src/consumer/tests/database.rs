//! Exactly once on a database, an SQLite file: a guest that books every record that it is given, and counts nothing twice.

use tidemill_core::partition::CallRecord;

use super::*;
use crate::store::offsets::{Fence, Place};
use crate::store::{Sql, Value, sqlite};

/// How the guest of a test ends a call of which it booked these records.
type Ends = dyn Fn(&[CallRecord]) -> Result<Vec<Outcome>, CallError> + Send + Sync;

/// Books each record in the delivery's transaction.
struct Books(Box<Ends>);

impl Handler for Books {
    fn call<'a>(&'a self, attempt: &'a mut Attempt) -> BoxFuture<'a, Called> {
        Box::pin(async move {
            let owner = Arc::clone(attempt.owner.as_ref().expect("each delivery has an owner"));
            let mut open = owner.open().await.expect("a transaction");
            for record in &attempt.records {
                let params = vec![Value::Int(attempt.from.partition.into()), Value::Int(record.record.offset())];
                let insert = "INSERT INTO booked VALUES ($1, $2)".to_owned();
                open.delivery().execute(insert, params).await.expect("booked");
            }
            attempt.effects.open = Some(open);
            Called { revision: self.revision(), took: Duration::ZERO, outcomes: (self.0)(&attempt.records) }
        })
    }

    fn revision(&self) -> Arc<str> {
        "cafe".into()
    }
}

fn all_well(records: &[CallRecord]) -> Result<Vec<Outcome>, CallError> {
    Ok(vec![Outcome::Ack(Vec::new()); records.len()])
}

/// A database with a table for what is booked, without a key.
struct Bank {
    sql: Arc<dyn Sql>,
    _folder: tempfile::TempDir,
}

impl Bank {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = sqlite::Config::new(folder.path().join("bank.db"));
        let sql: Arc<dyn Sql> = Arc::new(sqlite::Sqlite::open(config).await.expect("a database"));
        let mut connection = sql.connect().await.expect("a connection");
        let table = "CREATE TABLE booked (topic_partition INTEGER, topic_offset INTEGER)";
        connection.execute(table.to_owned(), vec![]).await.expect("a table");
        Self { sql, _folder: folder }
    }

    async fn booked(&self, partition: i32) -> Vec<Offset> {
        let mut connection = self.sql.connect().await.expect("a connection");
        let select = "SELECT topic_offset FROM booked WHERE topic_partition = $1 ORDER BY topic_offset".to_owned();
        let rows = connection.query(select, vec![Value::Int(partition.into())]).await.expect("rows").rows;
        let number = |row: Vec<Value>| match row[..] {
            [Value::Int(offset)] => offset,
            _ => panic!("a number, not {row:?}"),
        };
        rows.into_iter().map(number).collect()
    }

    /// What a host does that takes a partition over.
    async fn own(&self, partition: i32) -> Fence {
        let place = Place { group: GROUP.to_owned(), topic: TOPIC.to_owned(), partition };
        let standing = self.sql.own(place.clone()).await.expect("it is taken over");
        Fence { place, standing }
    }

    /// Joins a group whose offsets are kept here.
    fn join(&self, world: &World, records_max: usize, ends: Box<Ends>) -> Joined {
        let metrics = Metrics::new().handler("h");
        let policy = RetryPolicy::new(100, Duration::ZERO, Duration::from_millis(1)).expect("valid");
        let letters =
            DeadLetters { handler: "h".into(), group: GROUP.into(), topic: None, headers: HeaderStyle::Native };
        let producer = world.broker.producer(&BTreeMap::new()).expect("a producer");
        let settler = Settler::new(producer, policy, letters, Arc::clone(&metrics));
        let config = Config {
            guarantee: Guarantee::SqlTransaction,
            order: Order::Partition,
            bounds: Bounds { call_records_max: records_max, ..config().bounds },
            ..config()
        };
        let membership = Arc::<Membership>::default();
        let place = Arc::clone(&membership);
        let budget = Budget::new(usize::MAX, Metrics::new().held_bytes());
        let handler = Arc::new(Books(ends));
        let group = Group::new(world.broker.clone(), config, handler, settler, metrics, membership, budget);
        let offsets =
            OffsetStore { fenced_grace: Duration::from_millis(50), ..OffsetStore::new("main", Arc::clone(&self.sql)) };
        let stop = CancellationToken::new();
        let task = tokio::spawn(group.keeping_offsets_in(offsets).run(stop.clone()));
        Joined { stop, task, membership: place }
    }
}

struct Joined {
    membership: Arc<Membership>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Joined {
    async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("it ends").expect("it does not panic");
    }
}

/// A world whose commits are not held against what its own guest settled.
async fn world(records: usize) -> World {
    let broker = Watched::new(|_, _| {});
    broker.admin().expect("an admin").create_topic(TOPIC, 1, None).await.expect("the topic is made");
    let world = World { broker, ledger: Arc::default(), bytes_max: usize::MAX };
    world.store(0, &"k ".repeat(records), 1).await;
    world
}

#[tokio::test]
async fn a_partition_starts_where_its_row_says_and_the_group_follows() {
    let (world, bank) = (world(10).await, Bank::new().await);
    let fence = bank.own(0).await;
    let delivery = bank.sql.deliver(FOR_EVER).await.expect("a delivery");
    assert_eq!(delivery.commit(fence, 6).await, Ok(true));
    let member = bank.join(&world, 3, Box::new(all_well));
    world.committed(0, 10).await;
    member.stop().await;
    assert_eq!(bank.booked(0).await, [6, 7, 8, 9]);
    assert_eq!(bank.own(0).await.standing.next, Some(10));
}

#[tokio::test]
async fn the_group_hears_of_a_partition_that_is_done_and_was_not_committed() {
    let (world, bank) = (world(10).await, Bank::new().await);
    let fence = bank.own(0).await;
    let delivery = bank.sql.deliver(FOR_EVER).await.expect("a delivery");
    assert_eq!(delivery.commit(fence, 10).await, Ok(true));
    let member = bank.join(&world, 3, Box::new(all_well));
    world.committed(0, 10).await;
    member.stop().await;
    assert!(bank.booked(0).await.is_empty());
}

#[tokio::test]
async fn a_group_that_has_no_row_yet_goes_on_where_it_committed() {
    let (world, bank) = (world(10).await, Bank::new().await);
    let mut before = world.join(Config { drain_deadline: Duration::ZERO, ..one_by_one() });
    for offset in 0..4 {
        before.call_of(&[offset]).await.ack();
    }
    world.committed(0, 4).await;
    before.stop().await;
    let member = bank.join(&world, 3, Box::new(all_well));
    world.committed(0, 10).await;
    member.stop().await;
    assert_eq!(bank.booked(0).await, (4..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_host_that_was_taken_over_books_nothing_more_and_joins_again() {
    let (world, bank) = (world(3).await, Bank::new().await);
    let member = bank.join(&world, 3, Box::new(all_well));
    world.committed(0, 3).await;
    let other = bank.own(0).await;
    assert_eq!((other.standing.epoch, other.standing.next), (2, Some(3)));
    world.store(0, "k", 1).await;
    world.committed(0, 4).await;
    member.stop().await;
    assert_eq!(bank.booked(0).await, [0, 1, 2, 3]);
    assert_eq!(bank.own(0).await.standing.epoch, 4, "the member took it over again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_booked_once_however_calls_end() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let dice = Mutex::new(fastrand::Rng::with_seed(seed));
    let (world, bank) = (world(300).await, Bank::new().await);
    let ends = move |records: &[CallRecord]| {
        let mut dice = dice.lock().expect("not poisoned");
        if dice.u8(..) < 20 {
            return Err(CallError { class: Class::Trap, detail: "by chance".to_owned() });
        }
        let outcome = |_: &CallRecord| match dice.u8(..100) {
            0 => Outcome::Retry { after: None, reason: Reason::default(), unavailable: false },
            1 => Outcome::Untouched,
            2 => Outcome::Skip,
            _ => Outcome::Ack(Vec::new()),
        };
        Ok(records.iter().map(outcome).collect())
    };
    let member = bank.join(&world, 20, Box::new(ends));
    world.committed(0, 300).await;
    member.stop().await;
    assert_eq!(bank.booked(0).await, (0..300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_handler_is_moved_by_its_row_and_begins_there() {
    let (world, bank) = (world(3).await, Bank::new().await);
    let member = bank.join(&world, 3, Box::new(all_well));
    world.committed(0, 3).await;
    let place = Place { group: GROUP.to_owned(), topic: TOPIC.to_owned(), partition: 0 };
    let standing = async || bank.sql.standing(place.clone()).await.expect("a row").expect("it is there");
    let before = standing().await;
    let places = BTreeMap::from([(TopicPartition::new(TOPIC, 0), 1)]);
    let moved = timeout(PATIENCE, member.membership.move_to(places)).await.expect("it is answered").expect("it moved");
    assert_eq!((moved[0].from, moved[0].to), (Some(3), 1));
    world.committed(0, 3).await;
    world.store(0, "k", 1).await;
    world.committed(0, 4).await;
    member.stop().await;
    assert_eq!(bank.booked(0).await, [0, 1, 1, 2, 2, 3]);
    let after = standing().await;
    assert_eq!(after.next, Some(4));
    assert_eq!(after.epoch, before.epoch + 1, "FENCE-1: it was taken over to be moved");
}
