//! Bulk statements for SQLite. It has no arrays to bind, so many rows go as one multi-row statement; its length is
//! one of a few, so that each statement is prepared once and kept. Each statement that is waited for costs two changes
//! of thread, which on a busy machine take longer than most statements do: a [`Script`] is a whole transaction in one.

use std::sync::OnceLock;

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, Encode, Sqlite, SqliteConnection, Type};

/// How many rows one statement takes, largest first: each half of the one before.
pub const SIZES: [usize; 9] = [256, 128, 64, 32, 16, 8, 4, 2, 1];

/// A statement with a row group that repeats: `head row,row,... tail`.
#[derive(Debug)]
pub struct MultiRow {
    head: &'static str,
    row: &'static str,
    tail: &'static str,
    /// Each row is one change: what is not so is a conflict.
    exact: bool,
    statements: OnceLock<[String; SIZES.len()]>,
}

impl MultiRow {
    /// The parts: `INSERT INTO t (a, b) VALUES`, `(?,?)`, `ON CONFLICT DO NOTHING`.
    #[must_use]
    pub const fn new(head: &'static str, row: &'static str, tail: &'static str) -> Self {
        Self { head, row, tail, exact: false, statements: OnceLock::new() }
    }

    /// As a [`Script`]'s statement, it must change one row for each of its own; otherwise nothing is committed.
    #[must_use]
    pub const fn exact(mut self) -> Self {
        self.exact = true;
        self
    }

    fn statements(&'static self) -> &'static [String; SIZES.len()] {
        self.statements.get_or_init(|| SIZES.map(|size| self.statement(size)))
    }

    /// The rows in chunks, each with the statement that takes just so many.
    pub fn chunks<'a, T>(&'static self, rows: &'a [T]) -> impl Iterator<Item = (&'static str, &'a [T])> + use<'a, T> {
        let statements = self.statements();
        let mut rest = rows;
        std::iter::from_fn(move || {
            let at = SIZES.iter().position(|size| *size <= rest.len())?;
            let (chunk, behind) = rest.split_at(SIZES[at]);
            rest = behind;
            Some((statements[at].as_str(), chunk))
        })
    }

    fn statement(&self, size: usize) -> String {
        format!("{} {} {}", self.head, vec![self.row; size].join(","), self.tail)
    }
}

/// That the statement before has not changed as many rows as it should is the failure of this one, and the end of the
/// transaction.
const EXPECT: &str = "INSERT OR ROLLBACK INTO store_check (one, bytes) SELECT 1, NULL WHERE changes() <> ?;";
/// `SQLITE_CONSTRAINT_NOTNULL`: what [`EXPECT`] fails with.
const NOT_EXPECTED: &str = "1299";

/// A transaction that SQLite executes in one go, from its beginning to its commit.
#[derive(Debug)]
pub struct Script {
    sql: String,
    arguments: SqliteArguments,
}

impl Script {
    /// A transaction that does nothing yet.
    #[must_use]
    pub fn begin() -> Self {
        Self { sql: "BEGIN IMMEDIATE;".to_owned(), arguments: SqliteArguments::default() }
    }

    /// Adds a statement; its parameters are `?`, and are bound next.
    pub fn statement(&mut self, sql: &str) {
        self.sql.push_str(sql);
        self.sql.push(';');
    }

    /// Binds the next parameter.
    ///
    /// # Errors
    /// Where the value has no form in SQLite.
    pub fn bind<'q, T: Encode<'q, Sqlite> + Type<Sqlite>>(&mut self, value: T) -> Result<(), sqlx::Error> {
        self.arguments.add(value).map_err(sqlx::Error::Encode)
    }

    /// Adds a statement of many rows, each bound by `bind`. So that there are few different scripts, statements have more
    /// rows than are needed: they must pass over those whose first column is NULL.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn rows<T>(
        &mut self,
        statement: &'static MultiRow,
        rows: &[T],
        bind: impl Fn(&mut Self, &T) -> Result<(), sqlx::Error>,
    ) -> Result<(), sqlx::Error> {
        let columns = statement.row.matches('?').count();
        for chunk in rows.chunks(SIZES[0]) {
            let at = SIZES.iter().rposition(|size| *size >= chunk.len()).unwrap_or(0);
            self.statement(&statement.statements()[at]);
            for row in chunk {
                bind(self, row)?;
            }
            for _ in 0..(SIZES[at] - chunk.len()) * columns {
                self.bind(None::<i64>)?;
            }
            if statement.exact {
                self.expect_changes(chunk.len())?;
            }
        }
        Ok(())
    }

    /// The statement before must have changed so many rows; otherwise nothing is committed.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn expect_changes(&mut self, rows: usize) -> Result<(), sqlx::Error> {
        self.sql.push_str(EXPECT);
        self.bind(i64::try_from(rows).unwrap_or(i64::MAX))
    }

    /// Executes it. False where a statement has not changed what it should: then nothing is committed.
    ///
    /// # Errors
    /// What SQLite says; the connection has no transaction then.
    pub async fn commit(mut self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        self.sql.push_str("COMMIT");
        let query = sqlx::query_with(AssertSqlSafe(self.sql), self.arguments);
        let Err(error) = query.execute(&mut *connection).await else { return Ok(true) };
        // Fails where the transaction has not begun, or is over.
        let _ = sqlx::query("ROLLBACK").execute(connection).await;
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        if code.is_some_and(|code| code == NOT_EXPECTED) { Ok(false) } else { Err(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static INSERT: MultiRow = MultiRow::new("INSERT INTO t VALUES", "(?)", "RETURNING 1");

    #[test]
    fn every_row_is_in_one_chunk_whose_statement_takes_it() {
        for count in [0usize, 1, 3, 4, 5, 255, 256, 341, 1000] {
            let rows: Vec<usize> = (0..count).collect();
            let mut seen = Vec::new();
            for (statement, chunk) in INSERT.chunks(&rows) {
                assert_eq!(statement.matches("(?)").count(), chunk.len());
                seen.extend_from_slice(chunk);
            }
            assert_eq!(seen, rows);
        }
    }
}
