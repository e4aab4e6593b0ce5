//! The lines of an agent, bounded in length and in number per second.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::{Instant, sleep_until};

use crate::protocol::MAX_LINE_BYTES;

/// Lines of one agent in one second; one that writes more waits in its own `write`.
const LINES_PER_SECOND: u32 = 1000;

/// A line, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Without its newline.
    Whole(Vec<u8>),
    TooLong,
}

/// Reads lines and counts them.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    partial: Vec<u8>,
    /// The number of the last line that was read.
    pub(crate) number: u64,
    window: Instant,
    in_window: u32,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        let reader = BufReader::with_capacity(16 * 1024, reader);
        Self { reader, partial: Vec::new(), number: 0, window: Instant::now(), in_window: 0 }
    }

    /// The next line; none at the end. Loses nothing where it is dropped before it is ready.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Line>> {
        self.rest().await;
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                if self.partial.is_empty() {
                    return Ok(None);
                }
                return Ok(Some(self.line()));
            }
            let newline = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..newline.unwrap_or(chunk.len())];
            if self.partial.len() + part.len() >= MAX_LINE_BYTES {
                self.number += 1;
                return Ok(Some(Line::TooLong));
            }
            self.partial.extend_from_slice(part);
            let used = part.len() + usize::from(newline.is_some());
            self.reader.consume(used);
            if newline.is_some() {
                return Ok(Some(self.line()));
            }
        }
    }

    fn line(&mut self) -> Line {
        self.number += 1;
        self.in_window += 1;
        Line::Whole(std::mem::take(&mut self.partial))
    }

    /// Waits while this second has had its lines.
    async fn rest(&mut self) {
        const SECOND: Duration = Duration::from_secs(1);
        if self.in_window >= LINES_PER_SECOND {
            sleep_until(self.window + SECOND).await;
        }
        let now = Instant::now();
        if now >= self.window + SECOND {
            (self.window, self.in_window) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(bytes: &[u8]) -> Vec<Line> {
        let mut lines = Lines::new(bytes);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            let last = line == Line::TooLong;
            read.push(line);
            if last {
                break;
            }
        }
        assert_eq!(lines.number, read.len() as u64);
        read
    }

    #[tokio::test]
    async fn lines_end_with_a_newline_or_with_the_output() {
        let whole = |text: &str| Line::Whole(text.into());
        assert_eq!(all(b"").await, []);
        assert_eq!(all(b"a\n\nb").await, [whole("a"), whole(""), whole("b")]);
        assert_eq!(all(b"a\r\n").await, [whole("a\r")]);
    }

    #[tokio::test]
    async fn a_line_may_have_a_mebibyte_with_its_newline() {
        let mut line = vec![b'x'; MAX_LINE_BYTES - 1];
        line.push(b'\n');
        assert!(matches!(&all(&line).await[..], [Line::Whole(line)] if line.len() == MAX_LINE_BYTES - 1));
        line.insert(0, b'x');
        assert_eq!(all(&line).await, [Line::TooLong]);
        assert_eq!(all(&vec![b'x'; 3 * MAX_LINE_BYTES]).await, [Line::TooLong]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_slowed_down() {
        let begin = Instant::now();
        assert_eq!(all("x\n".repeat(3500).as_bytes()).await.len(), 3500);
        assert_eq!(begin.elapsed().as_secs(), 3);
    }
}
