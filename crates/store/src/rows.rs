//! Bulk statements for SQLite. It has no arrays to bind, so many rows go as one multi-row statement; its length is
//! one of a few, so that each statement is prepared once and kept.

use std::sync::OnceLock;

/// How many rows one statement takes, largest first.
pub const SIZES: [usize; 5] = [256, 64, 16, 4, 1];

/// A statement with a row group that repeats: `head row,row,... tail`.
#[derive(Debug)]
pub struct MultiRow {
    head: &'static str,
    row: &'static str,
    tail: &'static str,
    statements: OnceLock<[String; SIZES.len()]>,
}

impl MultiRow {
    /// The parts: `INSERT INTO t (a, b) VALUES`, `(?,?)`, `ON CONFLICT DO NOTHING`.
    #[must_use]
    pub const fn new(head: &'static str, row: &'static str, tail: &'static str) -> Self {
        Self { head, row, tail, statements: OnceLock::new() }
    }

    /// The rows in chunks, each with the statement that takes just so many.
    pub fn chunks<'a, T>(&'static self, rows: &'a [T]) -> impl Iterator<Item = (&'static str, &'a [T])> + use<'a, T> {
        let statements = self.statements.get_or_init(|| SIZES.map(|size| self.statement(size)));
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
