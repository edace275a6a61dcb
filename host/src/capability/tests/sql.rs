//! Connections and transactions, on a real SQLite file.

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending};
use tidemill_core::grants::Grants;

use super::backends::{Script, configured, granted};
use super::*;
use crate::attempt::Ownership;
use crate::guest::bindings::tidemill::guest::sql::{self, HostConnection, HostOwnTransaction, HostTransaction, Value};
use crate::store::migrations::{MigrationError, Migrations};
use crate::store::offsets::{Place, Standing};
use crate::store::{Connection as StoreConnection, Delivery, Sql, SqlError, sqlite};

struct Shop {
    view: View,
    _folder: tempfile::TempDir,
}

async fn shop() -> Shop {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = sqlite::Config { connections_max: 1, ..sqlite::Config::new(folder.path().join("shop.db")) };
    let mut view = on(Arc::new(sqlite::Sqlite::open(config).await.expect("a database")));
    let connection = open(&mut view).await;
    execute(&mut view, &connection, "CREATE TABLE t (n INTEGER)", vec![]).await.expect("created");
    Shop { view, _folder: folder }
}

fn on(database: Arc<dyn Sql>) -> View {
    let mut backends = configured(&Script::default());
    backends.sql.insert("shop".to_owned(), database);
    granted(Grants { sql: ["shop".to_owned()].into(), ..Grants::default() }, &backends, &Default::default())
}

fn again(view: &mut View) {
    view.begin(
        TopicPartition::new("orders", 0),
        Guarantee::AtLeastOnce,
        None,
        Instant::now() + Duration::from_secs(10),
    );
}

async fn open(view: &mut View) -> Resource<Connection> {
    sql::Host::open(view, "shop".into()).await.expect("no trap").expect("granted")
}

async fn execute(
    view: &mut View,
    on: &Resource<Connection>,
    text: &str,
    params: Vec<Value>,
) -> Result<u64, sql::Error> {
    HostConnection::execute(view, lend(on), text.into(), params).await.expect("no trap")
}

async fn begin(view: &mut View, on: &Resource<Connection>) -> Resource<OwnTransaction> {
    view.begin_transaction(on).await.expect("begun")
}

impl View {
    async fn begin_transaction(&mut self, on: &Resource<Connection>) -> Result<Resource<OwnTransaction>, sql::Error> {
        HostConnection::begin(self, lend(on)).await.expect("no trap")
    }

    async fn insert(&mut self, own: &Resource<OwnTransaction>) -> Result<u64, sql::Error> {
        let text = "INSERT INTO t VALUES ($1)".to_owned();
        HostOwnTransaction::execute(self, lend(own), text, vec![Value::Int(1)]).await.expect("no trap")
    }
}

async fn count(view: &mut View, on: &Resource<Connection>) -> i64 {
    let rows = HostConnection::query(view, lend(on), "SELECT count(*) FROM t".into(), vec![]).await.expect("no trap");
    let rows = rows.expect("counted").rows;
    let Value::Int(count) = rows[0][0] else { panic!("a count, not {rows:?}") };
    count
}

#[tokio::test]
async fn a_granted_database_works_and_another_is_denied() {
    let Shop { mut view, _folder } = shop().await;
    let connection = open(&mut view).await;
    let lists = vec![vec![Value::Int(1)], vec![Value::Int(2)]];
    let insert = "INSERT INTO t VALUES ($1)".to_owned();
    let rows = HostConnection::execute_many(&mut view, lend(&connection), insert, lists).await.expect("no trap");
    assert_eq!(rows.expect("inserted"), 2);
    assert_eq!(count(&mut view, &connection).await, 2);
    let wrong = execute(&mut view, &connection, "INSERT INTO nowhere VALUES (1)", vec![]).await;
    assert!(matches!(wrong, Err(sql::Error::Rejected(_))), "{wrong:?}");
    let denied = sql::Host::open(&mut view, "ledger".into()).await.expect("no trap");
    let Err(sql::Error::AccessDenied(text)) = denied else { panic!("not granted, but {denied:?}") };
    assert_eq!(text, "`ledger` is not granted; add it to `sql` under `[grants]` in the handler's manifest");
    assert_eq!(view.end().await.unavailable, None);
}

#[tokio::test]
async fn a_transaction_is_committed_or_rolled_back_when_dropped() {
    let Shop { mut view, _folder } = shop().await;
    let connection = open(&mut view).await;
    let own = begin(&mut view, &connection).await;
    assert_eq!(view.insert(&own).await.expect("inserted"), 1);
    HostOwnTransaction::commit(&mut view, lend(&own)).await.expect("no trap").expect("committed");
    assert_eq!(count(&mut view, &connection).await, 1);
    assert!(matches!(view.insert(&own).await, Err(sql::Error::TransactionAborted)), "it has ended");

    let own = begin(&mut view, &connection).await;
    view.insert(&own).await.expect("inserted");
    HostOwnTransaction::drop(&mut view, own).await.expect("no trap");
    assert_eq!(count(&mut view, &connection).await, 1);
}

#[tokio::test]
async fn a_connection_is_held_by_its_open_transaction() {
    let Shop { mut view, _folder } = shop().await;
    let (connection, other) = (open(&mut view).await, open(&mut view).await);
    let own = begin(&mut view, &connection).await;
    for handle in [&connection, &other] {
        let busy = execute(&mut view, handle, "INSERT INTO t VALUES (1)", vec![]).await;
        assert!(
            matches!(&busy, Err(sql::Error::Rejected(error)) if error.sqlstate.as_deref() == Some("25001")),
            "{busy:?}"
        );
        assert!(matches!(view.begin_transaction(handle).await, Err(sql::Error::Rejected(_))));
    }
    HostConnection::drop(&mut view, connection).await.expect("no trap");
    view.insert(&own).await.expect("the transaction outlives its handle's connection");
    HostOwnTransaction::commit(&mut view, lend(&own)).await.expect("no trap").expect("committed");
    assert_eq!(count(&mut view, &other).await, 1);
}

#[tokio::test]
async fn what_a_call_left_open_is_rolled_back_and_given_back_at_its_end() {
    let Shop { mut view, _folder } = shop().await;
    let connection = open(&mut view).await;
    let own = begin(&mut view, &connection).await;
    view.insert(&own).await.expect("inserted");
    assert_eq!(view.end().await.unavailable, None);

    let pool = Arc::clone(&view.granted.sql["shop"]);
    drop(pool.connect().await.expect("the pool's one connection is back"));

    again(&mut view);
    assert!(matches!(view.insert(&own).await, Err(sql::Error::TransactionAborted)));
    assert_eq!(count(&mut view, &connection).await, 0, "a kept handle takes a new connection");
    let newer = begin(&mut view, &connection).await;
    assert!(matches!(view.insert(&own).await, Err(sql::Error::TransactionAborted)), "not the newer transaction");
    view.insert(&newer).await.expect("inserted");
}

#[tokio::test]
async fn values_keep_their_type_on_the_way() {
    let Shop { mut view, _folder } = shop().await;
    let connection = open(&mut view).await;
    let given =
        vec![Value::Null, Value::Int(-7), Value::Float(0.5), Value::Text("ö".into()), Value::Bytes(vec![0, 255])];
    let text = "SELECT $1, $2, $3, $4, $5".to_owned();
    let rows = HostConnection::query(&mut view, lend(&connection), text, given.clone()).await.expect("no trap");
    assert_eq!(format!("{:?}", rows.expect("selected").rows), format!("{:?}", vec![given]));
}

#[tokio::test]
async fn the_deliverys_own_transaction_is_denied_with_the_guarantee() {
    let mut view = backends::view();
    let current = sql::Host::current(&mut view).await.expect("no trap");
    assert!(matches!(current, Err(sql::Error::AccessDenied(text)) if text.contains("its guarantee is at-least-once")));
}

/// A view in a call whose delivery has a transaction of the shop's database.
async fn delivering(shop: &mut Shop) -> Arc<Ownership> {
    let place = Place { group: "g".into(), topic: "orders".into(), partition: 0 };
    let pool = Arc::clone(&shop.view.granted.sql["shop"]);
    let owner = Ownership::take(pool, "shop".into(), place, Duration::from_secs(10)).await.expect("it is taken over");
    let owner = Arc::new(owner);
    deliver_again(&mut shop.view, &owner);
    owner
}

fn deliver_again(view: &mut View, owner: &Arc<Ownership>) {
    let from = TopicPartition::new("orders", 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    view.begin(from, Guarantee::SqlTransaction, Some(Arc::clone(owner)), deadline);
}

impl View {
    async fn current_of_call(&mut self) -> Resource<Transaction> {
        sql::Host::current(self).await.expect("no trap").expect("the delivery has one")
    }

    async fn insert_current(&mut self, current: &Resource<Transaction>) -> Result<u64, sql::Error> {
        let text = "INSERT INTO t VALUES ($1)".to_owned();
        HostTransaction::execute(self, lend(current), text, vec![Value::Int(1)]).await.expect("no trap")
    }
}

#[tokio::test]
async fn the_deliverys_own_transaction_is_the_hosts_to_commit() {
    let mut shop = shop().await;
    shop.view.end().await;
    let owner = delivering(&mut shop).await;
    let current = shop.view.current_of_call().await;
    assert_eq!(shop.view.insert_current(&current).await.expect("inserted"), 1);
    HostTransaction::drop(&mut shop.view, current).await.expect("no trap");
    let again = shop.view.current_of_call().await;
    let text = "SELECT count(*) FROM t".to_owned();
    let rows = HostTransaction::query(&mut shop.view, lend(&again), text, vec![]).await.expect("no trap");
    assert!(matches!(rows.expect("counted").rows[0][0], Value::Int(1)), "a second handle is to the same transaction");

    let open = shop.view.end().await.open.expect("the transaction goes back with the call");
    owner.commit(Some(open), 8).await.expect("committed");
    deliver_again(&mut shop.view, &owner);
    assert!(matches!(shop.view.insert_current(&again).await, Err(sql::Error::TransactionAborted)), "of another call");
    let current = shop.view.current_of_call().await;
    shop.view.insert_current(&current).await.expect("inserted");
    let open = shop.view.end().await.open.expect("open again");
    open.roll_back().await;

    self::again(&mut shop.view);
    let connection = self::open(&mut shop.view).await;
    assert_eq!(count(&mut shop.view, &connection).await, 1);
    assert_eq!(owner.next(), Some(8));
}

#[tokio::test]
async fn a_connection_beside_the_deliverys_transaction_is_refused() {
    let mut shop = shop().await;
    shop.view.end().await;
    let _owner = delivering(&mut shop).await;
    let beside = sql::Host::open(&mut shop.view, "shop".into()).await.expect("no trap");
    assert!(matches!(beside, Err(sql::Error::AccessDenied(text)) if text.contains("use `current`")));
}

#[tokio::test]
async fn init_belongs_to_no_delivery() {
    let Shop { view, _folder } = shop().await;
    let (granted, metrics) = (Arc::clone(&view.granted), Arc::clone(&view.metrics));
    let mut fresh = View::new(granted, "orders".into(), "0123456789abcdef".into(), metrics);
    let current = sql::Host::current(&mut fresh).await.expect("no trap");
    assert!(matches!(current, Err(sql::Error::AccessDenied(text)) if text.contains("`init`")));
}

#[derive(Debug)]
struct Hanging;

impl Sql for Hanging {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn StoreConnection>, SqlError>> {
        pending().boxed()
    }

    fn apply(&self, _: Migrations) -> BoxFuture<'_, Result<Vec<String>, MigrationError>> {
        pending().boxed()
    }

    fn own(&self, _: Place) -> BoxFuture<'_, Result<Standing, SqlError>> {
        pending().boxed()
    }

    fn standing(&self, _: Place) -> BoxFuture<'_, Result<Option<Standing>, SqlError>> {
        pending().boxed()
    }

    fn deliver(&self, _: Duration) -> BoxFuture<'_, Result<Box<dyn Delivery>, SqlError>> {
        pending().boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_that_hangs_is_unavailable() {
    let mut view = on(Arc::new(Hanging));
    let open = sql::Host::open(&mut view, "shop".into()).await.expect("no trap");
    assert!(matches!(open, Err(sql::Error::Unavailable(_))));
    assert!(view.end().await.unavailable.is_some());
}
