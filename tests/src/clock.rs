//! A process' clock, to be set at a test's will.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How far the clock of one process is ahead of the machine's. What measures durations is not touched.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// Clocks that are right, kept in this folder; none on other systems than Linux.
    ///
    /// # Panics
    /// Where the folder cannot be written to, or `cc`, by which Rust links, fails.
    #[must_use]
    pub fn some(count: usize, folder: &Path) -> Vec<Self> {
        if !cfg!(target_os = "linux") {
            return Vec::new();
        }
        let library = folder.join("clock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock.c");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).status();
        assert!(compiled.is_ok_and(|status| status.success()), "cc does not compile {}", source.display());
        let clock = |at| Self { library: library.clone(), file: folder.join(format!("clock-{at}")) };
        let clocks: Vec<Self> = (0..count).map(clock).collect();
        clocks.iter().for_each(|clock| clock.set(0));
        clocks
    }

    /// The environment of the process whose clock it is.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library.display().to_string()), ("CLOCK_FILE", self.file.display().to_string())]
    }

    /// From now on the process sees a time so many seconds from now, behind it where negative.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn set(&self, seconds: i64) {
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.file);
        let written = file.and_then(|file| file.write_all_at(&seconds.to_ne_bytes(), 0));
        written.unwrap_or_else(|error| panic!("{}: {error}", self.file.display()));
    }
}
