//! What a guest holds: a connection, or a transaction on it.

use std::pin::pin;

use deadpool_postgres::ClientWrapper;
use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use tokio_postgres::Statement;

use super::{
    decode, encode, error,
    lease::{Bounds, Failure, Lease, prepare},
};
use crate::store::{Connection, RowSet, SqlError, Statements, Transaction, Value, offsets};

/// How many statements of one `execute_many` are on their way at once.
const PIPELINE_MAX: usize = 64;

/// First words of statements that would open, end or leave a transaction, or change the session for its next user.
const REFUSED: &[&str] = &[
    "ABORT",
    "BEGIN",
    "COMMIT",
    "COPY",
    "DEALLOCATE",
    "DISCARD",
    "END",
    "EXECUTE",
    "LISTEN",
    "LOAD",
    "PREPARE",
    "RELEASE",
    "RESET",
    "ROLLBACK",
    "SAVEPOINT",
    "SET",
    "START",
    "UNLISTEN",
];

/// A connection on which each statement commits on its own.
pub(super) struct PostgresConnection(Lease);

/// An open transaction.
pub(super) struct PostgresTransaction {
    lease: Lease,
    aborted: bool,
}

impl PostgresConnection {
    pub(super) fn new(lease: Lease) -> Self {
        Self(lease)
    }

    async fn all_or_none(&mut self, statement: String, params: Vec<Vec<Value>>) -> Result<u64, SqlError> {
        allowed(&statement)?;
        self.0.begin().await?;
        match execute_many(&mut self.0, &statement, &params).await {
            Ok(changed) => self.0.commit().await.map(|()| changed),
            Err(error) => {
                self.0.rollback().await?;
                Err(error)
            }
        }
    }
}

impl Statements for PostgresConnection {
    fn query(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<RowSet, SqlError>> {
        Box::pin(async move { query(&mut self.0, true, &statement, &params).await })
    }

    fn execute(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<u64, SqlError>> {
        Box::pin(async move { execute(&mut self.0, true, &statement, &params).await })
    }

    fn execute_many(&mut self, statement: String, params: Vec<Vec<Value>>) -> BoxFuture<'_, Result<u64, SqlError>> {
        Box::pin(self.all_or_none(statement, params))
    }
}

impl Connection for PostgresConnection {
    fn begin(mut self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Transaction>, SqlError>> {
        Box::pin(async move {
            self.0.begin().await?;
            Ok(Box::new(PostgresTransaction::new(self.0)) as Box<dyn Transaction>)
        })
    }
}

impl PostgresTransaction {
    /// On a connection where a transaction is open.
    pub(super) fn new(lease: Lease) -> Self {
        Self { lease, aborted: false }
    }

    /// Runs one statement; its failure, or its future's being dropped, is the transaction's end.
    pub(super) async fn run<T>(
        &mut self,
        statement: impl AsyncFnOnce(&mut Lease) -> Result<T, SqlError>,
    ) -> Result<T, SqlError> {
        if self.aborted {
            return Err(SqlError::TransactionAborted);
        }
        self.aborted = true;
        let result = statement(&mut self.lease).await;
        self.aborted = result.is_err();
        result
    }
}

impl Statements for PostgresTransaction {
    fn query(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<RowSet, SqlError>> {
        Box::pin(
            async move { self.run(async |lease: &mut Lease| query(lease, false, &statement, &params).await).await },
        )
    }

    fn execute(&mut self, statement: String, params: Vec<Value>) -> BoxFuture<'_, Result<u64, SqlError>> {
        Box::pin(
            async move { self.run(async |lease: &mut Lease| execute(lease, false, &statement, &params).await).await },
        )
    }

    fn execute_many(&mut self, statement: String, params: Vec<Vec<Value>>) -> BoxFuture<'_, Result<u64, SqlError>> {
        Box::pin(
            async move { self.run(async |lease: &mut Lease| execute_many(lease, &statement, &params).await).await },
        )
    }
}

impl Transaction for PostgresTransaction {
    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Connection>, SqlError>> {
        Box::pin(async move {
            // PostgreSQL answers COMMIT of a failed transaction with a silent ROLLBACK: it is never asked.
            if self.aborted {
                return Err(SqlError::TransactionAborted);
            }
            self.lease.commit().await?;
            Ok(Box::new(PostgresConnection(self.lease)) as Box<dyn Connection>)
        })
    }

    fn rollback(mut self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Connection>, SqlError>> {
        Box::pin(async move {
            self.lease.rollback().await?;
            Ok(Box::new(PostgresConnection(self.lease)) as Box<dyn Connection>)
        })
    }
}

async fn query(lease: &mut Lease, committing: bool, statement: &str, params: &[Value]) -> Result<RowSet, SqlError> {
    allowed(statement)?;
    let bounds = lease.bounds;
    let (prepared, params) = prepared(lease, statement, params).await?;
    lease.ask(committing, async |client| rows(client, &prepared, params, bounds).await).await
}

async fn rows(
    client: &ClientWrapper,
    prepared: &Statement,
    params: Vec<encode::Wire>,
    bounds: Bounds,
) -> Result<RowSet, Failure> {
    let mut found = pin!(client.query_raw(prepared, params).await?);
    let columns = decode::columns(prepared.columns());
    let (mut rows, mut bytes, mut truncated) = (Vec::new(), 0, false);
    // Read to the end even beyond the bounds: only there it is known that the statement succeeded.
    while let Some(row) = found.try_next().await? {
        if truncated {
            continue;
        }
        let (values, size) = decode::row(&row)?;
        bytes += size;
        truncated = rows.len() == bounds.rows_max || bytes > bounds.bytes_max;
        if !truncated {
            rows.push(values);
        }
    }
    Ok(RowSet { columns, rows, truncated })
}

async fn execute(lease: &mut Lease, committing: bool, statement: &str, params: &[Value]) -> Result<u64, SqlError> {
    allowed(statement)?;
    let (prepared, params) = prepared(lease, statement, params).await?;
    lease.ask(committing, async |client| Ok(client.execute_raw(&prepared, params).await?)).await
}

async fn execute_many(lease: &mut Lease, statement: &str, params: &[Vec<Value>]) -> Result<u64, SqlError> {
    allowed(statement)?;
    let bounds = lease.bounds;
    let question = async |client: &ClientWrapper| {
        let prepared = prepare(client, statement, bounds).await?;
        let params: Result<Vec<_>, _> =
            params.iter().map(|params| encode::parameters(prepared.params(), params)).collect();
        let changes = params?.into_iter().map(|params| client.execute_raw(&prepared, params));
        let changed = stream::iter(changes).buffered(PIPELINE_MAX).try_fold(0, async |sum, changed| Ok(sum + changed));
        Ok(changed.await?)
    };
    lease.ask(false, question).await
}

/// Prepares a statement, which changes nothing, and puts its parameters into form.
async fn prepared(
    lease: &mut Lease,
    statement: &str,
    params: &[Value],
) -> Result<(Statement, Vec<encode::Wire>), SqlError> {
    let bounds = lease.bounds;
    let prepared = lease.ask(false, async |client| prepare(client, statement, bounds).await).await?;
    let params = encode::parameters(prepared.params(), params)?;
    Ok((prepared, params))
}

/// Refuses statements that are the host's to say. One look at the first word is enough: the server takes one statement
/// at a time, and blocks of its own languages can't end a transaction that was opened outside of them.
fn allowed(statement: &str) -> Result<(), SqlError> {
    let word = first_word(statement).to_ascii_uppercase();
    if REFUSED.contains(&word.as_str()) {
        let message = format!("`{word}` is not a guest's to say; transactions are opened by `begin`");
        return Err(error::rejected("42501", message));
    }
    if names_offsets(statement) {
        let message = format!("`{}` is the host's table; a guest's statement may not name it", offsets::TABLE);
        return Err(error::rejected("42501", message));
    }
    Ok(())
}

/// Whether a statement names the table of offsets. It keeps accidents away; a guest that makes a statement of pieces within
/// the server is stopped by the role's rights alone.
fn names_offsets(statement: &str) -> bool {
    let (statement, name) = (statement.as_bytes(), offsets::TABLE.as_bytes());
    statement.windows(name.len()).any(|part| part.eq_ignore_ascii_case(name))
}

/// The first word behind spaces, comments, semicolons and brackets.
fn first_word(statement: &str) -> &str {
    let mut rest = statement;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == '(');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once(['\n', '\r']).map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = after_comment(comment);
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            return &rest[..end];
        }
    }
}

/// What follows a block comment, which may hold others.
fn after_comment(mut rest: &str) -> &str {
    let mut depth = 1;
    while depth > 0 {
        let (open, close) = (rest.find("/*"), rest.find("*/"));
        match (open, close) {
            (Some(open), Some(close)) if open < close => (depth, rest) = (depth + 1, &rest[open + 2..]),
            (_, Some(close)) => (depth, rest) = (depth - 1, &rest[close + 2..]),
            (_, None) => return "",
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_s_own_words_are_refused_however_they_are_dressed() {
        for statement in [
            "COMMIT",
            " \n commit",
            "/* a /* b */ COMMIT */ rollback",
            "-- x\nBEGIN",
            ";; end",
            "set\tstatement_timeout = 0",
            "START TRANSACTION",
            "COPY t TO PROGRAM 'x'",
            "UPDATE public.\"TIDEMILL_offsets\" SET next_offset = 0",
        ] {
            assert!(allowed(statement).is_err(), "{statement}");
        }
        for statement in
            ["SELECT 1", "with x as (select 1) select * from x", "/* COMMIT */ INSERT", "settle", "", "/* open"]
        {
            assert!(allowed(statement).is_ok(), "{statement}");
        }
    }
}
