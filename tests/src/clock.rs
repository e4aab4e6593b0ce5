//! A process' clock, to be set at a test's will.

use std::path::{Path, PathBuf};

/// What the clock of one process shows beside the time, by libfaketime. What measures durations is not touched.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// One that is right, kept in this file; none where libfaketime is not installed (Debian's package `faketime`).
    #[must_use]
    pub fn new(file: PathBuf) -> Option<Self> {
        let clock = Self { library: library()?, file };
        clock.set(0);
        Some(clock)
    }

    /// The environment of the process whose clock it is.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Within a second the process sees a time so many seconds from now, behind it where negative.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn set(&self, seconds: i64) {
        // In one step: a file that is half written would be read as another time.
        let new = self.file.with_extension("new");
        let written = std::fs::write(&new, format!("{seconds:+}\n")).and_then(|()| std::fs::rename(&new, &self.file));
        written.unwrap_or_else(|error| panic!("{}: {error}", self.file.display()));
    }
}

/// Where packages put it.
fn library() -> Option<PathBuf> {
    let architectures = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = architectures.chain([PathBuf::from("/usr/lib"), PathBuf::from("/usr/local/lib")]);
    folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|file: &PathBuf| Path::is_file(file))
}
