//! How many rows a second the stores take, insert-if-new in transactions of 1 and of 100, on one connection.
//!
//! `cargo run --release -p bench --example insert_if_new` (SQLite in a temporary folder), or with a PostgreSQL URL.
#![expect(clippy::print_stdout, reason = "it prints figures")]

use std::{env, path::Path, time::Instant};

use tidemill::{
    config::units::SecretRef,
    store::{
        Connection, Sql, SqlError, Value,
        postgres::{self, Postgres},
        sqlite::{self, Sqlite, Synchronous},
    },
};

const ROWS: i64 = 4000;
const BATCH: i64 = 100;
const INSERT: &str = "INSERT INTO insert_if_new(id, customer, cents) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    if let Some(url) = env::args().nth(1) {
        let config = postgres::Config::new(SecretRef::Text(url));
        return measure("postgres", &Postgres::new(config, Path::new("."))?).await;
    }
    for synchronous in [Synchronous::Normal, Synchronous::Full] {
        let file = folder.path().join(format!("{synchronous:?}.db"));
        let config = sqlite::Config { synchronous, ..sqlite::Config::new(file) };
        measure(&format!("sqlite {synchronous:?}"), &Sqlite::open(config).await?).await?;
    }
    Ok(())
}

async fn measure(name: &str, sql: &dyn Sql) -> anyhow::Result<()> {
    let mut connection = sql.connect().await?;
    let table = "CREATE TABLE IF NOT EXISTS insert_if_new(id BIGINT PRIMARY KEY, customer TEXT, cents BIGINT)";
    connection.execute(table.to_owned(), vec![]).await?;
    for (ways, way) in
        [("each by itself", 0), ("1 per transaction", 1), ("100 per transaction", 2), ("100 by execute_many", 3)]
    {
        connection.execute("DELETE FROM insert_if_new".to_owned(), vec![]).await?;
        let started = Instant::now();
        connection = match way {
            0 => by_itself(connection).await?,
            1 => in_transactions(connection, 1, false).await?,
            2 => in_transactions(connection, BATCH, false).await?,
            _ => in_transactions(connection, BATCH, true).await?,
        };
        let rate = ROWS as f64 / started.elapsed().as_secs_f64();
        println!("{name:15} {ways:20} {rate:8.0} rows/s");
    }
    connection.execute("DROP TABLE insert_if_new".to_owned(), vec![]).await?;
    Ok(())
}

async fn by_itself(mut connection: Box<dyn Connection>) -> Result<Box<dyn Connection>, SqlError> {
    for id in 0..ROWS {
        connection.execute(INSERT.to_owned(), row(id)).await?;
    }
    Ok(connection)
}

async fn in_transactions(
    mut connection: Box<dyn Connection>,
    batch: i64,
    many: bool,
) -> Result<Box<dyn Connection>, SqlError> {
    for first in (0..ROWS).step_by(batch as usize) {
        let mut transaction = connection.begin().await?;
        if many {
            let rows = (first..first + batch).map(row).collect();
            transaction.execute_many(INSERT.to_owned(), rows).await?;
        } else {
            for id in first..first + batch {
                transaction.execute(INSERT.to_owned(), row(id)).await?;
            }
        }
        connection = transaction.commit().await?;
    }
    Ok(connection)
}

fn row(id: i64) -> Vec<Value> {
    vec![Value::Int(id), Value::Text(format!("customer-{}", id % 100)), Value::Int(1999)]
}
