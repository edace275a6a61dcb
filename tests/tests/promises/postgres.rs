//! What the host promises of PostgreSQL: the contract of all SQL databases, and what only a server can show.

use std::path::Path;
use std::sync::{Arc, RwLockReadGuard};

use tests::servers;
use tidemill::config::units::{SecretRef, Size, Span};
use tidemill::store::contract::sql::{self, Dialect, Opened};
use tidemill::store::postgres::{Config, Postgres};
use tidemill::store::{Connection, Sql, SqlError, Transaction, Value};
use xtask::lab::postgres::Postgres as Server;

tidemill::store_contract!(sql, open);

/// A test's folder, and its share of the machine.
struct Held {
    folder: tempfile::TempDir,
    _company: RwLockReadGuard<'static, ()>,
}

impl AsRef<Path> for Held {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}

async fn open() -> Opened<Held> {
    let _company = servers::in_company();
    let folder = Held { folder: tempfile::tempdir().expect("a folder"), _company };
    Opened { sql: Arc::new(database(servers::database())), dialect: Dialect::POSTGRES, folder }
}

fn database(url: String) -> Postgres {
    let config = Config {
        connections_max: sql::CONNECTIONS_MAX,
        connection_wait: Span(sql::CONNECTION_WAIT),
        statement_timeout: Span(sql::STATEMENT_TIMEOUT),
        rows_max: sql::ROWS_MAX,
        bytes_max: Size(sql::BYTES_MAX),
        ..Config::new(SecretRef::Text(url))
    };
    Postgres::new(config, Path::new(".")).expect("a configuration")
}

async fn connect(sql: &dyn Sql) -> Box<dyn Connection> {
    sql.connect().await.expect("a connection")
}

async fn begin(sql: &dyn Sql) -> Box<dyn Transaction> {
    connect(sql).await.begin().await.expect("a transaction")
}

async fn value(connection: &mut dyn Connection, statement: &str, params: &[Value]) -> Result<Value, SqlError> {
    let rows = connection.query(statement.to_owned(), params.to_vec()).await?.rows;
    Ok(rows.into_iter().flatten().next().expect("a value"))
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn other(type_name: &str, text: &str) -> Value {
    Value::Other { type_name: type_name.to_owned(), text: text.to_owned() }
}

#[tokio::test]
async fn decimals_are_those_of_the_server_to_the_last_digit() {
    let opened = open().await;
    let mut connection = connect(&*opened.sql).await;
    for number in [
        "0",
        "-0.000",
        "9999",
        "10000",
        "-100000000.00010000",
        "0.00000000000000000000000000000001",
        "12345678901234567890123456789012345678901234567890.1234567890123456789012345678901234567890",
    ] {
        let decimal = Value::Decimal(number.to_owned());
        let there = value(&mut *connection, "SELECT CAST($1 AS NUMERIC)::text", &[decimal]).await.expect("sent");
        let back = value(&mut *connection, "SELECT CAST(CAST($1 AS TEXT) AS NUMERIC)", &[text(number)]).await;
        let expected = if number == "-0.000" { "0.000" } else { number };
        assert_eq!(there, text(expected));
        assert_eq!(back, Ok(Value::Decimal(expected.to_owned())));
    }
    let nan = value(&mut *connection, "SELECT 'NaN'::numeric", &[]).await;
    assert_eq!(nan, Ok(other("numeric", "NaN")));
}

#[tokio::test]
async fn what_the_contract_has_no_type_for_is_named_with_its_text() {
    let opened = open().await;
    let mut connection = connect(&*opened.sql).await;
    connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')".to_owned(), vec![]).await.expect("a type");
    connection.execute("CREATE DOMAIN cents AS int CHECK (value >= 0)".to_owned(), vec![]).await.expect("a domain");
    for (statement, expected) in [
        ("SELECT DATE '2026-11-21'", other("date", "2026-11-21")),
        ("SELECT TIMESTAMP '2026-11-21 08:07:06.5'", other("timestamp", "2026-11-21T08:07:06.5")),
        ("SELECT TIME '08:07:06'", other("time", "08:07:06")),
        ("SELECT TIMESTAMPTZ 'infinity'", other("timestamptz", "infinity")),
        ("SELECT 'ok'::mood", other("mood", "ok")),
        ("SELECT 7::cents", Value::Int(7)),
        ("SELECT 1::smallint", Value::Int(1)),
        ("SELECT TIMESTAMPTZ '2026-11-21 09:07:06+01'", Value::Timestamp("2026-11-21T08:07:06Z".to_owned())),
    ] {
        assert_eq!(value(&mut *connection, statement, &[]).await, Ok(expected), "{statement}");
    }
    let error = value(&mut *connection, "SELECT '::1'::inet AS home", &[]).await.expect_err("no exact form");
    assert!(error.to_string().contains("write `home::text`"), "{error}");
}

#[tokio::test]
async fn parameters_become_what_their_place_wants() {
    let opened = open().await;
    let mut connection = connect(&*opened.sql).await;
    connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')".to_owned(), vec![]).await.expect("a type");
    for (place, given) in [
        ("smallint", Value::Int(-32768)),
        ("int", Value::Int(1)),
        ("real", Value::Float(0.5)),
        ("double precision", Value::Int(3)),
        ("numeric", Value::Int(3)),
        ("date", text("2026-11-21")),
        ("time", text("08:07:06")),
        ("timestamp", text("2026-11-21T08:07:06")),
        ("timestamp", Value::Timestamp("2026-11-21T09:07:06+01:00".to_owned())),
        ("timestamptz", text("2026-11-21T08:07:06Z")),
        ("uuid", text("0192F0C1-2D3E-7F4A-8B5C-6D7E8F901234")),
        ("jsonb", text("[1]")),
        ("mood", text("ok")),
        ("varchar(3)", text("abc")),
        ("text", Value::Decimal("1.50".to_owned())),
    ] {
        let same = format!("SELECT CAST($1 AS {place}) IS NOT NULL");
        assert_eq!(value(&mut *connection, &same, &[given]).await, Ok(Value::Boolean(true)), "{place}");
    }
    let error = value(&mut *connection, "SELECT CAST($1 AS int)", &[Value::Int(1 << 31)]).await;
    assert_eq!(error, Err(SqlError::BadParameter("`$1` wants int4, given int".to_owned())));
}

#[tokio::test]
async fn a_session_is_clean_for_its_next_user() {
    let opened = open().await;
    for _ in 0..sql::CONNECTIONS_MAX {
        let mut connection = connect(&*opened.sql).await;
        for statement in [
            "SELECT set_config('statement_timeout', '0', false)",
            "SELECT set_config('search_path', 'nowhere', false)",
            "SELECT pg_advisory_lock(1)::text",
            "CREATE TEMP TABLE mine(n int)",
        ] {
            connection.query(statement.to_owned(), vec![]).await.expect(statement);
        }
    }
    let mut connection = connect(&*opened.sql).await;
    for (statement, expected) in [
        ("SELECT current_setting('statement_timeout')", text("2s")),
        ("SELECT to_regclass('mine') IS NULL", Value::Boolean(true)),
        ("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", Value::Int(0)),
    ] {
        assert_eq!(value(&mut *connection, statement, &[]).await, Ok(expected), "{statement}");
    }
}

#[tokio::test]
async fn of_two_that_wait_for_each_other_one_is_told_to_try_again() {
    let opened = open().await;
    let mut connection = connect(&*opened.sql).await;
    connection.execute("CREATE TABLE t(id int PRIMARY KEY, n int)".to_owned(), vec![]).await.expect("a table");
    connection.execute("INSERT INTO t VALUES (1, 0), (2, 0)".to_owned(), vec![]).await.expect("rows");
    drop(connection);
    let (mut one, mut two) = (begin(&*opened.sql).await, begin(&*opened.sql).await);
    let update = |id: i64| ("UPDATE t SET n = n + 1 WHERE id = $1".to_owned(), vec![Value::Int(id)]);
    let (first, second) = (update(1), update(2));
    one.execute(first.0.clone(), first.1.clone()).await.expect("the first row");
    two.execute(second.0.clone(), second.1.clone()).await.expect("the second row");
    let (one, two) = tokio::join!(one.execute(second.0, second.1), two.execute(first.0, first.1));
    let (loser, winner) = if one.is_err() { (one, two) } else { (two, one) };
    assert_eq!(winner, Ok(1));
    match loser {
        Err(SqlError::Transient(error)) => assert_eq!(error.sqlstate.as_deref(), Some("40P01")),
        other => panic!("a deadlock, not {other:?}"),
    }
}

#[tokio::test]
async fn a_commit_that_the_server_refuses_is_rejected() {
    let opened = open().await;
    let mut connection = connect(&*opened.sql).await;
    let table = "CREATE TABLE t(n int UNIQUE DEFERRABLE INITIALLY DEFERRED)";
    connection.execute(table.to_owned(), vec![]).await.expect("a table");
    let mut transaction = connection.begin().await.expect("a transaction");
    transaction.execute("INSERT INTO t VALUES (1), (1)".to_owned(), vec![]).await.expect("not checked yet");
    match transaction.commit().await.map(drop) {
        Err(SqlError::Rejected(error)) => assert_eq!(error.constraint.as_deref(), Some("t_n_key")),
        other => panic!("rejected, not {other:?}"),
    }
    let mut connection = connect(&*opened.sql).await;
    assert_eq!(value(&mut *connection, "SELECT count(*) FROM t", &[]).await, Ok(Value::Int(0)));
}

/// A trigger that makes COMMIT take its time, long enough for its connection to be cut.
const SLOW_COMMIT: [&str; 3] = [
    "CREATE TABLE t(n int)",
    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
];

#[tokio::test]
async fn a_connection_lost_while_committing_leaves_the_outcome_unknown() {
    let opened = open().await;
    let mut connection = connect(&*opened.sql).await;
    for statement in SLOW_COMMIT {
        connection.execute(statement.to_owned(), vec![]).await.expect(statement);
    }
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND wait_event = 'PgSleep'
        AND datname = current_database()";
    let mut by_itself = connect(&*opened.sql).await;
    let lonely = by_itself.execute("INSERT INTO t VALUES (1)".to_owned(), vec![]);
    let (lonely, ()) = tokio::join!(lonely, until_cut(&mut *connection, cut));
    assert!(matches!(lonely, Err(SqlError::OutcomeUnknown(_))), "{lonely:?}");
    drop(by_itself);
    let mut transaction = begin(&*opened.sql).await;
    transaction.execute("INSERT INTO t VALUES (1)".to_owned(), vec![]).await.expect("a row");
    let (commit, ()) = tokio::join!(transaction.commit(), until_cut(&mut *connection, cut));
    assert!(matches!(commit, Err(SqlError::OutcomeUnknown(_))), "{:?}", commit.map(drop));
}

async fn until_cut(connection: &mut dyn Connection, cut: &str) {
    while connection.query(cut.to_owned(), vec![]).await.expect("a look").rows.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_server_that_is_away_is_nobodys_fault_and_comes_back() {
    let _machine = servers::in_company();
    server_that_is_away();
}

#[tokio::main(flavor = "current_thread")]
async fn server_that_is_away() {
    let mut server = Server::start_new().expect("postgres starts");
    let database = database(server.create_database("app").expect("a database"));
    let mut idle = connect(&database).await;
    idle.execute("CREATE TABLE t(n int)".to_owned(), vec![]).await.expect("a table");
    let mut transaction = begin(&database).await;
    transaction.execute("INSERT INTO t VALUES (1)".to_owned(), vec![]).await.expect("a row");
    drop(idle);
    server.stop().expect("it stops");
    let lost = transaction.execute("INSERT INTO t VALUES (2)".to_owned(), vec![]).await;
    assert!(matches!(lost, Err(SqlError::Unavailable(_))), "nothing of an open transaction is kept: {lost:?}");
    drop(transaction);
    let refused = database.connect().await.map(drop).expect_err("nobody is there");
    assert!(matches!(&refused, SqlError::Unavailable(text) if !text.contains("tidemill@")), "{refused}");
    server.start().expect("it starts again");
    let mut connection = connect(&database).await;
    assert_eq!(value(&mut *connection, "SELECT count(*) FROM t", &[]).await, Ok(Value::Int(0)));
}
