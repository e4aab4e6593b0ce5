//! The folders of a runner, and what earlier runners have left in them.
//!
//! ```text
//! WORK/runs/RUN-TOKEN/          run.log, files/: the newest are kept
//! WORK/runner-ID/lock           held while that runner lives
//! WORK/runner-ID/sessions/ID/   private folders, gone with their sessions
//! ```

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use errand_core::SessionId;
use errand_runner::Assigned;
use uuid::Uuid;

/// The variable that says which session, and so which work folder, a process belongs to.
pub const SESSION_VARIABLE: &str = "ERRAND_SESSION_DIR";
/// Runs whose log and files are kept.
const KEPT_RUNS: usize = 1000;
const RUNNER: &str = "runner-";

/// The folders of one runner. They go with it, except for the runs.
#[derive(Debug)]
pub struct Work {
    runs: PathBuf,
    own: PathBuf,
    kept: Mutex<VecDeque<PathBuf>>,
    /// Held while this runner lives: how others know.
    _lock: File,
}

/// The folders of one run.
#[derive(Debug, Clone)]
pub struct RunFolders {
    root: PathBuf,
    /// The session's private folder.
    pub session: PathBuf,
    /// For the files that the run captures.
    pub files: PathBuf,
    /// What its program writes to stderr.
    pub log: PathBuf,
    /// What a supervisor writes when the program has ended.
    pub report: PathBuf,
}

fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn named(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Work {
    /// Makes a folder of this runner's own below `root`, and ends what runners that are dead have left there.
    ///
    /// # Errors
    /// Where a folder cannot be made or tidied up.
    pub fn claim(root: &Path) -> io::Result<Self> {
        private(root).map_err(named(root))?;
        let root = root.canonicalize()?;
        reap(&root)?;
        let runs = root.join("runs");
        private(&runs).map_err(named(&runs))?;
        // Under its name only when it is locked: until then nobody may take it for a dead runner's.
        let id = Uuid::now_v7();
        let (draft, own) = (root.join(format!(".{id}")), root.join(format!("{RUNNER}{id}")));
        private(&draft)?;
        let lock = File::create(draft.join("lock"))?;
        lock.lock()?;
        fs::rename(&draft, &own)?;
        private(&own.join("sessions"))?;
        let mut kept: Vec<PathBuf> = fs::read_dir(&runs)?.flatten().map(|entry| entry.path()).collect();
        // Run ids sort by time.
        kept.sort();
        Ok(Self { runs, own, kept: Mutex::new(kept.into()), _lock: lock })
    }

    /// A session's private folder, made or not.
    #[must_use]
    pub fn session(&self, id: SessionId) -> PathBuf {
        self.own.join("sessions").join(id.to_string())
    }

    /// Makes a session's private folder.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn make_session(&self, id: SessionId) -> io::Result<()> {
        private(&self.session(id))
    }

    /// Removes a session's folder and, where some may be left, its processes.
    ///
    /// # Errors
    /// Where something cannot be removed.
    pub fn end_session(&self, id: SessionId, suspicious: bool) -> io::Result<()> {
        let folder = self.session(id);
        if suspicious {
            kill_marked(&folder);
        }
        gone(fs::remove_dir_all(folder))
    }

    /// Makes a run's folders.
    ///
    /// # Errors
    /// Where one cannot be made.
    pub fn make_run(&self, run: &Assigned) -> io::Result<RunFolders> {
        let root = self.runs.join(format!("{}-{}", run.run_id, run.lease.token));
        let files = root.join("files");
        // The same lease is never executed twice, but a work folder may be older than the pool's store.
        gone(fs::remove_dir_all(&root))?;
        private(&files)?;
        let (log, report) = (root.join("run.log"), root.join(".ended"));
        Ok(RunFolders { session: self.session(run.lease.session_id), files, log, report, root })
    }

    /// Tidies up after a run: what is empty goes, of the rest the newest are kept.
    ///
    /// # Errors
    /// Where something cannot be removed.
    pub fn end_run(&self, folders: &RunFolders) -> io::Result<()> {
        gone(fs::remove_file(&folders.report))?;
        // Both fail where something is left, which is then kept.
        if fs::remove_dir(&folders.files).is_ok() && fs::remove_dir(&folders.root).is_ok() {
            return Ok(());
        }
        let oldest = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back(folders.root.clone());
            if kept.len() > KEPT_RUNS { kept.pop_front() } else { None }
        };
        oldest.map_or(Ok(()), |oldest| gone(fs::remove_dir_all(oldest)))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.own) {
            tracing::debug!(%error, "the runner's folder stays; the next runner removes it");
        }
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Kills the processes and removes the folders of runners that are dead.
fn reap(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(RUNNER) {
            continue;
        }
        let folder = entry.path();
        let lock = match File::open(folder.join("lock")) {
            Ok(lock) => lock,
            // Another runner reaps it at this moment, or was killed while it did.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                gone(fs::remove_dir_all(&folder))?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let killed = kill_marked(&folder);
        tracing::info!(folder = %folder.display(), killed, "a runner that has died is tidied up after");
        gone(fs::remove_dir_all(&folder))?;
    }
    Ok(())
}

/// Kills every process that was started for a session below this folder; how many there were.
#[cfg(target_os = "linux")]
fn kill_marked(folder: &Path) -> usize {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    const ROUNDS: u32 = 50;
    let mut killed = 0;
    for _ in 0..ROUNDS {
        let found = crate::procfs::marked(SESSION_VARIABLE, folder);
        if found.is_empty() {
            break;
        }
        killed += found.len();
        for pid in found {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    killed
}

/// Only Linux shows the environment of processes; elsewhere the supervisor is all there is.
#[cfg(not(target_os = "linux"))]
fn kill_marked(_folder: &Path) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_runners_folder_goes_and_a_living_ones_stays() {
        let root = tempfile::tempdir().unwrap();
        let living = Work::claim(root.path()).unwrap();
        let session = SessionId::from_uuid(Uuid::now_v7());
        living.make_session(session).unwrap();
        let dead = root.path().canonicalize().unwrap().join("runner-dead");
        fs::create_dir_all(dead.join("sessions/x")).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        let other = Work::claim(root.path()).unwrap();
        assert!(!dead.exists() && living.session(session).exists());
        let own = living.own.clone();
        drop(living);
        assert!(!own.exists() && other.own.exists() && other.runs.exists());
    }
}
