//! The table `seen`, in which the guest `store` keeps what it was given once, and beside it every storing of it.
//!
//! The guest's insert does nothing when a record comes again. A trigger of ours notes it all the same, since the judge
//! counts repeats; it can also take its time, so that a host is certainly in the middle of something when it is killed.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;
use tokio_postgres::types::ToSql;

use crate::checker::Stored;
use crate::ledger::Place;
use crate::servers;

const SCHEMA: &str = "\
CREATE TABLE seen (
    record_id TEXT NOT NULL PRIMARY KEY,
    key BYTEA,
    value BYTEA,
    topic_partition INT NOT NULL GENERATED ALWAYS AS (split_part(record_id, '/', 2)::INT) STORED,
    topic_offset BIGINT NOT NULL GENERATED ALWAYS AS (split_part(record_id, '/', 3)::BIGINT) STORED
);
CREATE INDEX seen_place ON seen (topic_partition, topic_offset);
CREATE TABLE stored (number BIGSERIAL PRIMARY KEY, record_id TEXT NOT NULL);
CREATE FUNCTION note() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep({delay});
    INSERT INTO stored (record_id) VALUES (NEW.record_id);
    RETURN NEW;
END $$;
CREATE TRIGGER note BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION note();
";

/// Makes each COMMIT take its time, once for each of its rows, so that a server can be killed amid one.
const SLOW_COMMIT: &str = "\
CREATE FUNCTION linger() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({delay}); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON seen DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION linger();
";

/// A database with that table, once the handler's migration has made it.
#[derive(Debug, Clone)]
pub struct Sink {
    url: String,
    delay: Duration,
    commit_delay: Duration,
}

impl Sink {
    /// A new database on the shared server.
    pub fn new() -> Sink {
        Sink::at(servers::database())
    }

    /// The database at this URL.
    pub fn at(url: String) -> Sink {
        Sink { url, delay: Duration::ZERO, commit_delay: Duration::ZERO }
    }

    /// Makes it take this long for each record.
    pub fn slow(self, delay: Duration) -> Sink {
        Sink { delay, ..self }
    }

    /// Makes its commits take this long for each record.
    pub fn slow_to_commit(self, commit_delay: Duration) -> Sink {
        Sink { commit_delay, ..self }
    }

    /// The database's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The text of the handler's migration.
    pub fn migration(&self) -> String {
        let schema = SCHEMA.replace("{delay}", &self.delay.as_secs_f64().to_string());
        if self.commit_delay.is_zero() {
            return schema;
        }
        schema + &SLOW_COMMIT.replace("{delay}", &self.commit_delay.as_secs_f64().to_string())
    }

    /// Everything that was ever stored, repeats too, in order.
    pub fn stored(&self) -> Result<Vec<Stored>> {
        let rows = self.query(
            "SELECT record_id, key, value, number FROM stored JOIN seen USING (record_id) ORDER BY number",
            &[],
        )?;
        let stored = |row: &tokio_postgres::Row| -> Result<Stored> {
            Ok(Stored { place: Place::of_id(row.get(0))?, key: row.get(1), value: row.get(2), written: row.get(3) })
        };
        rows.iter().map(stored).collect()
    }

    /// How many different records there are.
    pub fn count(&self) -> Result<usize> {
        Ok(usize::try_from(self.number("SELECT count(*) FROM seen", &[])?)?)
    }

    /// How many different records of a partition lie below an offset.
    pub fn count_below(&self, partition: i32, offset: i64) -> Result<i64> {
        const QUERY: &str = "SELECT count(*) FROM seen WHERE topic_partition = $1 AND topic_offset < $2";
        self.number(QUERY, &[&partition, &offset])
    }

    /// The answer to a query for one whole number; 0 while there is no table yet.
    pub fn number(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<i64> {
        Ok(self.query(query, parameters)?.first().map_or(0, |row| row.get(0)))
    }

    /// The answer to a query; nothing while there is no table yet.
    pub fn query(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<tokio_postgres::Row>> {
        runtime()?.block_on(async {
            let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
            let connection = tokio::spawn(connection);
            let rows = match client.query(query, parameters).await {
                Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => Ok(Vec::new()),
                answer => answer.with_context(|| format!("ask the database `{query}`")),
            };
            drop(client);
            connection.await??;
            rows
        })
    }
}

impl Default for Sink {
    fn default() -> Sink {
        Sink::new()
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
