//! What an SQL database promises.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use crate::store::{
    Connection, RowSet, Sql, SqlError, Statements, Value,
    migrations::{MigrationError, migrate},
};

/// How many rows a query of the contract's databases gives at most.
pub const ROWS_MAX: usize = 100;
/// How many bytes.
pub const BYTES_MAX: usize = 64 << 10;
/// How many connections they have.
pub const CONNECTIONS_MAX: usize = 2;
/// How long a call waits for one.
pub const CONNECTION_WAIT: Duration = Duration::from_millis(300);
/// How long a statement may take.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);

/// An empty database with these bounds, a folder of its own, and whatever must live as long.
#[derive(Debug)]
pub struct Opened<K = ()> {
    /// The database.
    pub sql: Arc<dyn Sql>,
    /// Where the promises differ.
    pub dialect: Dialect,
    /// An empty folder.
    pub folder: K,
}

/// What the promises must say in different words.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// Types of columns for each kind of value: timestamp, decimal, json, uuid, bytes.
    pub types: [&'static str; 5],
    /// A statement that takes an hour.
    pub endless: &'static str,
    /// Statements that reach out of the database or change the session.
    pub forbidden: &'static [&'static str],
    /// What names the primary key of a table `orders(id)` when it is broken.
    pub orders_key: &'static str,
}

impl Dialect {
    /// SQLite's words.
    pub const SQLITE: Self = Self {
        types: ["TIMESTAMP", "DECIMAL_TEXT", "JSON", "UUID", "BLOB"],
        endless: "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c",
        forbidden: &[
            "ATTACH DATABASE 'other.db' AS other",
            "VACUUM INTO 'copy.db'",
            "PRAGMA journal_mode = DELETE",
            "PRAGMA database_list",
            "SELECT * FROM pragma_database_list",
            "SELECT load_extension('x')",
            "CREATE TEMP TABLE t(a)",
        ],
        orders_key: "orders.id",
    };
    /// PostgreSQL's words.
    pub const POSTGRES: Self = Self {
        types: ["TIMESTAMPTZ", "NUMERIC", "JSONB", "UUID", "BYTEA"],
        endless: "SELECT pg_sleep(3600)",
        forbidden: &["SET ROLE other", "COPY (SELECT 1) TO STDOUT", "PREPARE p AS SELECT 1", "LISTEN c", "DISCARD ALL"],
        orders_key: "orders_pkey",
    };
}

pub(super) type Held<'a> = Box<dyn Connection + 'a>;

pub(super) async fn connect<K>(opened: &Opened<K>) -> Held<'static> {
    opened.sql.connect().await.expect("a connection")
}

pub(super) async fn execute(
    on: &mut (impl Statements + ?Sized),
    statement: &str,
    params: &[Value],
) -> Result<u64, SqlError> {
    on.execute(statement.to_owned(), params.to_vec()).await
}

async fn query(on: &mut (impl Statements + ?Sized), statement: &str, params: &[Value]) -> Result<RowSet, SqlError> {
    on.query(statement.to_owned(), params.to_vec()).await
}

/// The one number that a query gives.
pub(super) async fn number(on: &mut (impl Statements + ?Sized), statement: &str) -> i64 {
    match query(on, statement, &[]).await.expect(statement).rows.as_slice() {
        [row] => match row.as_slice() {
            [Value::Int(number)] => *number,
            other => panic!("one number, not {other:?}"),
        },
        other => panic!("one row, not {other:?}"),
    }
}

pub(super) async fn orders<K>(opened: &Opened<K>) -> Held<'static> {
    let mut connection = connect(opened).await;
    let table = "CREATE TABLE orders(id BIGINT PRIMARY KEY, customer TEXT NOT NULL, cents BIGINT NOT NULL)";
    execute(&mut *connection, table, &[]).await.expect("a table");
    connection
}

pub(super) const INSERT: &str = "INSERT INTO orders(id, customer, cents) VALUES ($1, $2, $3)";

pub(super) fn order(id: i64) -> Vec<Value> {
    vec![Value::Int(id), Value::Text("ada".to_owned()), Value::Int(5)]
}

pub async fn parameters_go_by_number<K>(opened: Opened<K>) {
    let mut connection = orders(&opened).await;
    let insert = "INSERT INTO orders(customer, cents, id) VALUES ($3, $1, $2)";
    let params = [Value::Int(7), Value::Int(1), Value::Text("ada".to_owned())];
    assert_eq!(execute(&mut *connection, insert, &params).await, Ok(1));
    let select = "SELECT id, cents, customer FROM orders WHERE cents = $2 AND customer = $1 AND cents = $2";
    let rows = query(&mut *connection, select, &[Value::Text("ada".to_owned()), Value::Int(7)]).await.expect("rows");
    assert_eq!(rows.rows, [[Value::Int(1), Value::Int(7), Value::Text("ada".to_owned())]]);
    let names: Vec<_> = rows.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["id", "cents", "customer"]);
}

pub async fn values_read_back_exactly<K>(opened: Opened<K>) {
    let mut connection = connect(&opened).await;
    let [timestamp, decimal, json, uuid, bytes] = opened.dialect.types;
    let table = format!(
        "CREATE TABLE kinds(b BOOLEAN, i BIGINT, f DOUBLE PRECISION, t TEXT, y {bytes}, ts {timestamp}, d {decimal}, j {json}, u {uuid})"
    );
    execute(&mut *connection, &table, &[]).await.expect("a table");
    let text = |text: &str| text.to_owned();
    let rows = [
        vec![Value::Null; 9],
        vec![
            Value::Boolean(true),
            Value::Int(i64::MIN),
            Value::Float(0.1),
            Value::Text(text("ä\n' \u{1F30A}")),
            Value::Bytes(vec![0, 255, 39]),
            Value::Timestamp(text("2026-11-21T08:07:06.123456Z")),
            Value::Decimal(text("-12345678901234567890.123456789012345678900")),
            Value::Json(text(r#"{"a": [1, null]}"#)),
            Value::Uuid(text("0192f0c1-2d3e-7f4a-8b5c-6d7e8f901234")),
        ],
        vec![
            Value::Boolean(false),
            Value::Int(i64::MAX),
            Value::Float(-1.5e300),
            Value::Text(text("")),
            Value::Bytes(vec![]),
            Value::Timestamp(text("1969-12-31T23:59:59Z")),
            Value::Decimal(text("0.00")),
            Value::Json(text("5")),
            Value::Uuid(text("00000000-0000-0000-0000-000000000000")),
        ],
    ];
    let insert = "INSERT INTO kinds VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    for row in &rows {
        execute(&mut *connection, insert, row).await.expect("a row");
    }
    let read = query(&mut *connection, "SELECT * FROM kinds ORDER BY i NULLS FIRST", &[]).await.expect("rows");
    assert_eq!(read.rows, [rows[0].clone(), rows[1].clone(), rows[2].clone()]);
    assert!(!read.truncated);
}

pub async fn rows_beyond_a_bound_are_cut_off_and_said_to_be<K>(opened: Opened<K>) {
    let mut connection = orders(&opened).await;
    let many = (0..ROWS_MAX as i64 + 1).map(order).collect();
    connection.execute_many(INSERT.to_owned(), many).await.expect("rows");
    let all = query(&mut *connection, "SELECT * FROM orders ORDER BY id", &[]).await.expect("rows");
    assert_eq!((all.rows.len(), all.truncated), (ROWS_MAX, true));
    let fit = query(&mut *connection, "SELECT * FROM orders WHERE id > 0", &[]).await.expect("rows");
    assert_eq!((fit.rows.len(), fit.truncated), (ROWS_MAX, false));
    let long = [Value::Text("x".repeat(BYTES_MAX / 3))];
    execute(&mut *connection, "UPDATE orders SET customer = $1", &long).await.expect("long texts");
    let wide = query(&mut *connection, "SELECT * FROM orders ORDER BY id", &[]).await.expect("rows");
    assert_eq!((wide.rows.len(), wide.truncated), (2, true));
    let none = query(&mut *connection, "SELECT id, cents FROM orders WHERE id < 0", &[]).await.expect("no rows");
    assert_eq!((none.columns.len(), none.rows.len(), none.truncated), (2, 0, false));
}

pub async fn execute_counts_what_it_changed<K>(opened: Opened<K>) {
    let mut connection = orders(&opened).await;
    assert_eq!(execute(&mut *connection, INSERT, &order(1)).await, Ok(1));
    let if_new = format!("{INSERT} ON CONFLICT (id) DO NOTHING");
    assert_eq!(execute(&mut *connection, &if_new, &order(1)).await, Ok(0));
    assert_eq!(execute(&mut *connection, &if_new, &order(2)).await, Ok(1));
    assert_eq!(execute(&mut *connection, "UPDATE orders SET cents = 9", &[]).await, Ok(2));
    assert_eq!(execute(&mut *connection, "DELETE FROM orders WHERE id = 3", &[]).await, Ok(0));
    let many = vec![order(2), order(3), order(4)];
    assert_eq!(connection.execute_many(if_new, many).await, Ok(2));
    assert_eq!(connection.execute_many(INSERT.to_owned(), vec![]).await, Ok(0));
    let returning = format!("{INSERT} RETURNING id");
    let rows = query(&mut *connection, &returning, &order(5)).await.expect("a query may write").rows;
    assert_eq!(rows, [[Value::Int(5)]]);
    assert_eq!(number(&mut *connection, "SELECT count(*) FROM orders").await, 5);
}

pub async fn execute_many_is_all_or_none<K>(opened: Opened<K>) {
    let mut connection = orders(&opened).await;
    let mut many: Vec<_> = (0..200).map(order).collect();
    many.push(order(100));
    let error = connection.execute_many(INSERT.to_owned(), many).await.expect_err("an id twice");
    assert!(matches!(error, SqlError::Rejected(_)), "{error}");
    assert_eq!(number(&mut *connection, "SELECT count(*) FROM orders").await, 0);
}

pub async fn a_parameter_that_is_missing_is_the_guests_move<K>(opened: Opened<K>) {
    let mut connection = orders(&opened).await;
    for params in [&[][..], &order(1)[..2], &[order(1), order(1)].concat()] {
        let error = execute(&mut *connection, INSERT, params).await.expect_err("wrong parameters");
        assert!(matches!(error, SqlError::BadParameter(_)), "{error}");
    }
    assert_eq!(execute(&mut *connection, INSERT, &order(1)).await, Ok(1), "the connection is well");
}

pub async fn a_transaction_shows_itself_only_when_it_is_committed<K>(opened: Opened<K>) {
    let mut other = orders(&opened).await;
    let mut transaction = connect(&opened).await.begin().await.expect("a transaction");
    execute(&mut *transaction, INSERT, &order(1)).await.expect("a row");
    assert_eq!(number(&mut *transaction, "SELECT count(*) FROM orders").await, 1);
    assert_eq!(number(&mut *other, "SELECT count(*) FROM orders").await, 0);
    let mut connection = transaction.commit().await.expect("a commit");
    assert_eq!(number(&mut *other, "SELECT count(*) FROM orders").await, 1);
    execute(&mut *connection, INSERT, &order(2)).await.expect("the connection commits on its own again");
    let mut transaction = connection.begin().await.expect("another transaction");
    execute(&mut *transaction, INSERT, &order(3)).await.expect("a row");
    let mut connection = transaction.rollback().await.expect("a rollback");
    assert_eq!(number(&mut *connection, "SELECT count(*) FROM orders").await, 2);
}

pub async fn a_dropped_transaction_is_rolled_back<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    for _ in 0..CONNECTIONS_MAX * 3 {
        let mut transaction = connect(&opened).await.begin().await.expect("a transaction");
        execute(&mut *transaction, INSERT, &order(1)).await.expect("a row that is there no more");
    }
    let mut connection = connect(&opened).await;
    assert_eq!(number(&mut *connection, "SELECT count(*) FROM orders").await, 0);
}

pub async fn a_failed_statement_ends_its_transaction<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    for (statement, params) in
        [("SELECT nothing FROM nowhere", vec![]), (INSERT, order(1)), (INSERT, vec![Value::Int(2)])]
    {
        let mut transaction = connect(&opened).await.begin().await.expect("a transaction");
        execute(&mut *transaction, INSERT, &order(1)).await.expect("a row");
        execute(&mut *transaction, statement, &params).await.expect_err("a wrong statement");
        let again = execute(&mut *transaction, INSERT, &order(3)).await;
        assert_eq!(again, Err(SqlError::TransactionAborted));
        assert_eq!(query(&mut *transaction, "SELECT 1", &[]).await, Err(SqlError::TransactionAborted));
        assert_eq!(transaction.commit().await.map(drop), Err(SqlError::TransactionAborted));
    }
    let mut transaction = connect(&opened).await.begin().await.expect("a transaction");
    execute(&mut *transaction, "nonsense", &[]).await.expect_err("a wrong statement");
    let mut connection = transaction.rollback().await.expect("it can be rolled back");
    assert_eq!(number(&mut *connection, "SELECT count(*) FROM orders").await, 0);
}

pub async fn a_broken_constraint_is_named<K>(opened: Opened<K>) {
    let mut connection = orders(&opened).await;
    execute(&mut *connection, INSERT, &order(1)).await.expect("a row");
    match execute(&mut *connection, INSERT, &order(1)).await {
        Err(SqlError::Rejected(error)) => {
            assert_eq!(error.sqlstate.as_deref(), Some("23505"));
            assert_eq!(error.constraint.as_deref(), Some(opened.dialect.orders_key));
        }
        other => panic!("rejected, not {other:?}"),
    }
    let table =
        "CREATE TABLE lines(order_id BIGINT NOT NULL REFERENCES orders(id), n BIGINT, CONSTRAINT few CHECK (n < 9))";
    execute(&mut *connection, table, &[]).await.expect("a table");
    for (values, sqlstate) in [("7, 1", "23503"), ("NULL, 1", "23502"), ("1, 9", "23514")] {
        let statement = format!("INSERT INTO lines VALUES ({values})");
        match execute(&mut *connection, &statement, &[]).await {
            Err(SqlError::Rejected(error)) => assert_eq!(error.sqlstate.as_deref(), Some(sqlstate), "{error}"),
            other => panic!("rejected, not {other:?}"),
        }
    }
}

pub async fn a_guest_stays_within_its_database<K>(opened: Opened<K>) {
    let mut connection = orders(&opened).await;
    for statement in opened.dialect.forbidden {
        let error = query(&mut *connection, statement, &[]).await.expect_err(statement);
        assert!(matches!(error, SqlError::Rejected(_)), "{statement}: {error}");
    }
    let two = "INSERT INTO orders VALUES (1, 'a', 1); INSERT INTO orders VALUES (2, 'a', 1)";
    let error = execute(&mut *connection, two, &[]).await.expect_err("two statements");
    assert!(matches!(error, SqlError::Rejected(_)), "{error}");
    assert_eq!(number(&mut *connection, "SELECT count(*) FROM orders").await, 0);
}

pub async fn a_guest_cannot_end_a_transaction_by_statement<K>(opened: Opened<K>) {
    let mut other = orders(&opened).await;
    for statement in ["COMMIT", "END", "ROLLBACK", "/* */ commit", "SAVEPOINT a", "BEGIN"] {
        let mut connection = connect(&opened).await;
        let error = execute(&mut *connection, statement, &[]).await.expect_err(statement);
        assert!(matches!(error, SqlError::Rejected(_)), "{statement}: {error}");
        let mut transaction = connection.begin().await.expect("a transaction");
        execute(&mut *transaction, INSERT, &order(1)).await.expect("a row");
        let error = execute(&mut *transaction, statement, &[]).await.expect_err(statement);
        assert!(matches!(error, SqlError::Rejected(_)), "{statement}: {error}");
        drop(transaction);
        assert_eq!(number(&mut *other, "SELECT count(*) FROM orders").await, 0, "{statement}");
    }
}

pub async fn waiting_for_a_connection_is_bounded<K>(opened: Opened<K>) {
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        held.push(connect(&opened).await);
    }
    let error = opened.sql.connect().await.map(drop).expect_err("all are taken");
    assert!(matches!(&error, SqlError::Unavailable(text) if text.contains("connection_wait")), "{error}");
    drop(held.pop());
    connect(&opened).await;
}

pub async fn a_slow_statement_is_stopped<K>(opened: Opened<K>) {
    let mut connection = connect(&opened).await;
    let started = Instant::now();
    match query(&mut *connection, opened.dialect.endless, &[]).await {
        Err(SqlError::Transient(error)) => assert_eq!(error.sqlstate.as_deref(), Some("57014")),
        other => panic!("transient, not {other:?}"),
    }
    assert!(started.elapsed() < STATEMENT_TIMEOUT * 5, "{:?}", started.elapsed());
    assert_eq!(number(&mut *connection, "SELECT CAST(1 AS BIGINT)").await, 1);
}

pub async fn an_abandoned_call_gives_its_connection_back<K>(opened: Opened<K>) {
    for _ in 0..CONNECTIONS_MAX * 2 {
        let mut connection = connect(&opened).await;
        let call = query(&mut *connection, opened.dialect.endless, &[]);
        timeout(Duration::from_millis(50), call).await.expect_err("it takes an hour");
        query(&mut *connection, "SELECT 1", &[]).await.expect_err("this one is given up");
    }
    let freed = Instant::now();
    let mut connection = connect(&opened).await;
    assert_eq!(number(&mut *connection, "SELECT CAST(1 AS BIGINT)").await, 1);
    assert!(freed.elapsed() < STATEMENT_TIMEOUT / 2, "nobody waits for what was abandoned: {:?}", freed.elapsed());
}

pub async fn an_abandoned_call_in_a_transaction_keeps_nothing<K>(opened: Opened<K>) {
    drop(orders(&opened).await);
    for _ in 0..CONNECTIONS_MAX * 2 {
        let mut transaction = connect(&opened).await.begin().await.expect("a transaction");
        execute(&mut *transaction, INSERT, &order(1)).await.expect("a row");
        let call = query(&mut *transaction, opened.dialect.endless, &[]);
        timeout(Duration::from_millis(50), call).await.expect_err("it takes an hour");
        assert_eq!(execute(&mut *transaction, INSERT, &order(2)).await, Err(SqlError::TransactionAborted));
        assert!(transaction.commit().await.is_err());
    }
    let mut connection = connect(&opened).await;
    assert_eq!(number(&mut *connection, "SELECT count(*) FROM orders").await, 0);
}

/// What the example handler does: insert if new, and add in the same transaction only then.
pub async fn redelivered_records_count_once<K>(opened: Opened<K>) {
    let mut connection = orders(&opened).await;
    execute(&mut *connection, "CREATE TABLE totals(customer TEXT PRIMARY KEY, cents BIGINT NOT NULL)", &[])
        .await
        .expect("a table");
    drop(connection);
    let deliveries = (0..4).map(|_| {
        let sql = opened.sql.clone();
        tokio::spawn(async move {
            for id in 0..20 {
                while let Err(error) = deliver(&*sql, id).await {
                    assert!(matches!(error, SqlError::Unavailable(_) | SqlError::Transient(_)), "{error}");
                }
            }
        })
    });
    join_all(deliveries).await.into_iter().for_each(|delivery| delivery.expect("a delivery"));
    let mut connection = connect(&opened).await;
    assert_eq!(number(&mut *connection, "SELECT count(*) FROM orders").await, 20);
    assert_eq!(number(&mut *connection, "SELECT cents FROM totals WHERE customer = 'ada'").await, 100);
}

async fn deliver(sql: &dyn Sql, id: i64) -> Result<(), SqlError> {
    let mut transaction = sql.connect().await?.begin().await?;
    if execute(&mut *transaction, &format!("{INSERT} ON CONFLICT (id) DO NOTHING"), &order(id)).await? == 1 {
        let add = "INSERT INTO totals VALUES ($1, $2) ON CONFLICT (customer) DO UPDATE SET cents = totals.cents + $2";
        execute(&mut *transaction, add, &[Value::Text("ada".to_owned()), Value::Int(5)]).await?;
    }
    transaction.commit().await.map(drop)
}

const FIRST: (&str, &str) =
    ("V1__create.sql", "CREATE TABLE log(n BIGINT); CREATE TABLE other(n BIGINT); INSERT INTO log VALUES (1);");
const SECOND: (&str, &str) = ("V2__add.sql", "INSERT INTO log SELECT max(n) + 1 FROM log;");

fn write(folder: &Path, (name, text): (&str, &str)) {
    fs::write(folder.join(name), text).expect("a file");
}

pub async fn migrations_are_applied_once_and_in_order<K: AsRef<Path>>(opened: Opened<K>) {
    let (sql, folder) = (&*opened.sql, opened.folder.as_ref());
    assert_eq!(migrate(sql, "orders", &folder.join("none")).await, Ok(vec![]), "no folder, no migrations");
    write(folder, SECOND);
    write(folder, FIRST);
    assert_eq!(migrate(sql, "orders", folder).await, Ok(vec![FIRST.0.to_owned(), SECOND.0.to_owned()]));
    assert_eq!(migrate(sql, "orders", folder).await, Ok(vec![]));
    write(folder, ("V10__again.sql", SECOND.1));
    assert_eq!(migrate(sql, "orders", folder).await, Ok(vec!["V10__again.sql".to_owned()]));
    let mut connection = connect(&opened).await;
    assert_eq!(number(&mut *connection, "SELECT max(n) * 10 + count(*) FROM log").await, 33);
    let own = folder.join("own");
    fs::create_dir(&own).expect("a folder");
    write(&own, ("V1__mine.sql", "CREATE TABLE mine(n BIGINT);"));
    let applied = migrate(sql, "an-other.handler", &own).await;
    assert_eq!(applied, Ok(vec!["V1__mine.sql".to_owned()]), "each handler has a history of its own");
}

pub async fn hosts_that_start_together_apply_migrations_once<K: AsRef<Path>>(opened: Opened<K>) {
    for round in 0..10 {
        let (handler, folder) = (format!("handler{round}"), opened.folder.as_ref().join(round.to_string()));
        fs::create_dir(&folder).expect("a folder");
        for version in 1..=3 {
            let text = format!("CREATE TABLE t{round}_{version}(n BIGINT);");
            write(&folder, (&format!("V{version}__create.sql"), &text));
        }
        let hosts = (0..4).map(|_| tokio::spawn(start(opened.sql.clone(), handler.clone(), folder.clone())));
        let mut applied: Vec<_> = join_all(hosts).await.into_iter().map(|host| host.expect("a host")).collect();
        applied.sort_unstable();
        assert_eq!(applied, [0, 0, 0, 3], "one host applied all of them");
    }
}

/// How many files a host applies that tries until the database has time for it.
async fn start(sql: Arc<dyn Sql>, handler: String, folder: PathBuf) -> usize {
    loop {
        match migrate(&*sql, &handler, &folder).await {
            Err(MigrationError::Database(SqlError::Unavailable(_))) => {}
            result => return result.expect("migrations").len(),
        }
    }
}

pub async fn a_failed_migration_leaves_nothing_and_is_named<K: AsRef<Path>>(opened: Opened<K>) {
    let (sql, folder) = (&*opened.sql, opened.folder.as_ref());
    write(folder, FIRST);
    write(folder, ("V2__bad.sql", "INSERT INTO log VALUES (2); INSERT INTO nowhere VALUES (3);"));
    match migrate(sql, "orders", folder).await {
        Err(MigrationError::Failed { file, cause }) => {
            assert_eq!(file, "V2__bad.sql");
            assert!(cause.to_string().contains("nowhere"), "{cause}");
        }
        other => panic!("failed, not {other:?}"),
    }
    let mut connection = connect(&opened).await;
    assert_eq!(number(&mut *connection, "SELECT max(n) FROM log").await, 1);
    drop(connection);
    fs::remove_file(folder.join("V2__bad.sql")).expect("a file");
    write(folder, SECOND);
    assert_eq!(migrate(sql, "orders", folder).await, Ok(vec![SECOND.0.to_owned()]), "the corrected file is applied");
}

pub async fn an_applied_migration_must_stay<K: AsRef<Path>>(opened: Opened<K>) {
    let (sql, folder) = (&*opened.sql, opened.folder.as_ref());
    write(folder, FIRST);
    write(folder, SECOND);
    migrate(sql, "orders", folder).await.expect("applied");
    write(folder, (SECOND.0, "INSERT INTO log VALUES (7);"));
    let changed = migrate(sql, "orders", folder).await.expect_err("changed");
    assert!(matches!(changed, MigrationError::Changed { .. }), "{changed}");
    fs::remove_file(folder.join(SECOND.0)).expect("a file");
    let missing = migrate(sql, "orders", folder).await.expect_err("missing");
    assert_eq!(missing, MigrationError::Missing { file: SECOND.0.to_owned() });
}
