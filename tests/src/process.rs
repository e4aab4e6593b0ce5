//! A child process: its log, its signals, its end.

use std::fs::OpenOptions;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::guard::{self, Kind};

/// What of a log is shown when a test fails.
const SHOWN: usize = 64 * 1024;
/// How long an end that was ordered may take.
const ENDING: Duration = Duration::from_secs(30);

/// A process that the test started, in a process group of its own. Killed with its group when dropped, and also when
/// the test process dies without dropping anything.
#[derive(Debug)]
pub struct Child {
    name: String,
    kind: Kind,
    inner: std::process::Child,
    log: Option<PathBuf>,
    ended: Option<ExitStatus>,
}

/// Whether every thread stands still, or is gone. What cannot be looked at counts as standing still: other systems than
/// Linux have no such list.
fn has_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // Behind the name, which may hold anything.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 't', 'Z', 'X']))
    })
}

impl Child {
    /// Starts it, without input.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        Self::launch(Kind::Group, command, None)
    }

    /// Starts it; what it says is appended to `log`, and shown when the test fails.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn spawn_logged(command: &mut Command, log: &Path) -> Self {
        Self::launch(Kind::Group, command, Some(log))
    }

    pub(crate) fn launch(kind: Kind, command: &mut Command, log: Option<&Path>) -> Self {
        if let Some(log) = log {
            let opened = OpenOptions::new().create(true).append(true).open(log);
            let output = opened.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
            command.stderr(output.try_clone().expect("a file can be opened twice")).stdout(output);
        }
        let spawned = command.stdin(Stdio::null()).process_group(0).spawn();
        let program = Path::new(command.get_program());
        let inner = spawned.unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        guard::watch(kind, inner.id());
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, kind, inner, log: log.map(Path::to_owned), ended: None }
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.id()
    }

    /// How it ended, where it has.
    ///
    /// # Panics
    /// Where the system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            let status = self.inner.try_wait().expect("it is our child");
            self.note_end(status);
        }
        self.ended
    }

    fn note_end(&mut self, status: Option<ExitStatus>) {
        if status.is_some() {
            guard::forget(self.inner.id());
            self.ended = status;
        }
    }

    /// Waits so long for its end. std has no wait with a limit, so this looks every few milliseconds.
    ///
    /// # Panics
    /// As [`Self::ended`].
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while self.ended().is_none() && started.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.ended
    }

    /// Signals the process alone. Nothing happens where it has ended.
    ///
    /// # Panics
    /// Where the system refuses.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // Not waited for yet, so the number is still its own.
            let sent = kill(self.as_pid(), signal);
            sent.unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
        }
    }

    /// `kill -9` to its group, and waits until it is gone.
    ///
    /// # Panics
    /// Where the system refuses.
    pub fn kill9(&mut self) {
        if self.ended().is_none() {
            killpg(self.as_pid(), Signal::SIGKILL).unwrap_or_else(|error| panic!("SIGKILL to {}: {error}", self.name));
            let status = self.inner.wait().expect("it is our child");
            self.note_end(Some(status));
        }
    }

    /// Asks it to end (SIGTERM), and waits until it has. Its exit code; none where a signal ended it.
    ///
    /// # Panics
    /// Where it takes longer than half a minute.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let Some(status) = self.wait(ENDING) else { panic!("{} did not end within {ENDING:?} of SIGTERM", self.name) };
        status.code()
    }

    /// Stops it where it stands: its connections stay open and it says nothing.
    ///
    /// # Panics
    /// As [`Self::signal`].
    pub fn sigstop(&mut self) {
        self.signal(Signal::SIGSTOP);
        // Until they have heard of it, its threads go on.
        while self.ended().is_none() && !has_stopped(self.inner.id()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// As [`Self::signal`].
    pub fn sigcont(&mut self) {
        self.signal(Signal::SIGCONT);
    }

    /// What it said; nothing without a log.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = self.log.as_ref().and_then(|log| std::fs::read(log).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its last words, for a panic's message.
    pub(crate) fn last_words(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        let how = self.ended.map_or_else(|| "runs".to_owned(), describe);
        format!("{} {how}; its last words:\n{}", self.name, lines[lines.len().saturating_sub(15)..].join("\n"))
    }

    fn as_pid(&self) -> Pid {
        Pid::from_raw(self.inner.id().cast_signed())
    }

    /// What a drop does: no panic, as it may be one that drops.
    fn end(&mut self) {
        if self.kind == Kind::Postmaster {
            // It cleans up after itself; one that is stopped has to be let go on for that.
            let asked = [Signal::SIGQUIT, Signal::SIGCONT].map(|signal| kill(self.as_pid(), signal));
            if asked.iter().all(Result::is_ok) && self.wait(Duration::from_secs(10)).is_some() {
                return;
            }
        }
        if let Err(error) = killpg(self.as_pid(), Signal::SIGKILL) {
            eprintln!("SIGKILL to {}: {error}", self.name);
        }
        let status = self.inner.wait().ok();
        self.note_end(status);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.end();
        }
        if let Some(log) = self.log.as_ref().filter(|_| std::thread::panicking()) {
            let text = self.log();
            let start = text.ceil_char_boundary(text.len().saturating_sub(SHOWN));
            eprintln!("--- {} of {} ({})\n{}", log.display(), self.name, self.inner.id(), &text[start..]);
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    }
}
