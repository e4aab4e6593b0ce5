//! Structured data out of files. A file comes from outside and may be made to do harm: it is read by a process of its
//! own, with little memory and time, which may die of it (ADR 0011).

mod child;
mod pdf;
mod tables;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use errand_core::limits::MAX_VALUE_BYTES;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::staging::Staged;

pub use child::extract_main;

/// The first argument of a process that reads a file.
pub const EXTRACT: &str = "errand-extract";
/// What is read of files at all.
pub const MAX_BYTES: u64 = 20 * 1024 * 1024;
/// How long the reading may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Files that are read at once: each takes a processor and some memory.
const AT_ONCE: usize = 2;
/// What the process may say of why it failed.
const MAX_WORDS: u64 = 1024;

/// What there is an extractor for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Rows, by the header's names.
    Csv,
    /// As it is.
    Json,
    /// Rows of each sheet, by the header's names.
    Xlsx,
    /// Text, and its `key: value` lines.
    Pdf,
}

impl Format {
    /// The format that a MIME type is read as; none where there is no extractor.
    #[must_use]
    pub fn of(mime_type: &str) -> Option<Self> {
        match mime_type {
            "text/csv" => Some(Self::Csv),
            "application/json" => Some(Self::Json),
            "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet" => Some(Self::Xlsx),
            "application/pdf" => Some(Self::Pdf),
            _ => None,
        }
    }

    const ALL: [Self; 4] = [Self::Csv, Self::Json, Self::Xlsx, Self::Pdf];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Xlsx => "xlsx",
            Self::Pdf => "pdf",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == text)
    }
}

/// Reads files in processes of their own.
#[derive(Debug)]
pub struct Extractor {
    program: PathBuf,
    turns: Semaphore,
}

impl Extractor {
    /// With this binary, whose main calls [`extract_main`].
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self { program, turns: Semaphore::new(AT_ONCE) }
    }

    /// The data of a file, as JSON of at most [`MAX_VALUE_BYTES`].
    ///
    /// # Errors
    /// Why there is none; holds nothing of the file.
    pub async fn extract(&self, format: Format, staged: &mut Staged) -> Result<Bytes, String> {
        if staged.size() > MAX_BYTES {
            return Err(format!("files of more than {MAX_BYTES} bytes are not read"));
        }
        let _turn = self.turns.acquire().await.map_err(|_| "the service ends".to_owned())?;
        match tokio::time::timeout(PATIENCE, read(&self.program, format, staged)).await {
            // The process is killed where it is dropped.
            Err(_) => Err(format!("the file takes longer than {} s to read", PATIENCE.as_secs())),
            Ok(Err(error)) => {
                tracing::error!(%error, "a file could not be given to its reader");
                Err("the file could not be read at this time".to_owned())
            }
            Ok(Ok(result)) => result,
        }
    }
}

fn start(program: &Path, format: Format) -> std::io::Result<Child> {
    Command::new(program)
        .args([EXTRACT, format.as_str()])
        // Nothing of ours is for it: it reads what strangers wrote.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

async fn read(program: &Path, format: Format, staged: &mut Staged) -> std::io::Result<Result<Bytes, String>> {
    let mut child = start(program, format)?;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let feed = async {
        if let Some(stdin) = &mut stdin {
            let mut parts = staged.parts(256 * 1024).await?;
            while let Some(part) = parts.next().await? {
                // One that has seen enough reads no further; its answer counts.
                if stdin.write_all(&part).await.is_err() {
                    break;
                }
            }
        }
        drop(stdin.take());
        std::io::Result::Ok(())
    };
    let hear = async {
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_VALUE_BYTES as u64 + 2).read_to_end(&mut answer).await?;
        }
        std::io::Result::Ok(answer)
    };
    let (fed, answer) = tokio::join!(feed, hear);
    fed?;
    let answer = answer?;
    if answer.len() > MAX_VALUE_BYTES + 1 {
        return Ok(Err(too_large()));
    }
    let ended = child.wait().await?;
    // The first byte tells data from words: a process that died in between has said neither.
    Ok(match (answer.split_first(), ended.success()) {
        (Some((b'+', data)), true) => Ok(Bytes::copy_from_slice(data)),
        (Some((b'-', words)), true) => Err(String::from_utf8_lossy(words).chars().take(MAX_WORDS as usize).collect()),
        _ => Err("the file cannot be read: it is broken, or takes too much memory or time".to_owned()),
    })
}

fn too_large() -> String {
    format!("what is in the file makes more than {MAX_VALUE_BYTES} bytes of JSON")
}
