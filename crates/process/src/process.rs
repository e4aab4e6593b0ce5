//! One agent's program under its supervisor, with its three streams.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::fs::OpenOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use errand_runner::{SecretFilter, SecretStream};
use zeroize::Zeroizing;

use crate::lines::Lines;
use crate::programs::Extra;
use crate::protocol::Program;
use crate::supervisor::{Ended, SUPERVISE};
use crate::work::{RunFolders, SESSION_VARIABLE};

/// What a run's log may hold.
const MAX_LOG_BYTES: u64 = 10 * 1024 * 1024;
const LOG_IS_FULL: &[u8] = b"\n[errand: the log has reached its limit of 10 MiB; the rest is left out]\n";
/// How long a supervisor may take to kill everything before it is killed itself.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Of the runner's environment, what an agent gets.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

/// A process that runs below a supervisor of its own, in a process group of its own.
///
/// The supervisor kills the group, and on Linux also what has left it, when the process has ended and when nobody
/// reads its stdout any more: so whoever holds [`Supervised::child`]'s stdout holds the lives of all of them.
#[derive(Debug)]
pub struct Supervised {
    /// The supervisor. Its streams are the process's.
    pub child: Child,
    /// The group's leader is the supervisor, so this stays valid until that is waited for.
    group: Pid,
}

impl Supervised {
    /// Starts a program with all three streams piped. `supervisor` is a binary that answers to
    /// [`SUPERVISE`]; how the program ended is written to `report`; `prepare` sets environment and directory.
    ///
    /// # Errors
    /// Where the supervisor cannot be started.
    pub fn start(
        supervisor: &Path,
        report: &Path,
        program: impl IntoIterator<Item = impl AsRef<OsStr>>,
        prepare: impl FnOnce(&mut Command),
    ) -> io::Result<Self> {
        let mut command = Command::new(supervisor);
        command.arg(SUPERVISE).arg(report).args(program).process_group(0);
        prepare(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group: group.ok_or_else(gone)? })
    }

    /// Asks the whole group to end. The supervisor takes no notice.
    pub fn terminate(&self) {
        if self.child.id().is_some() {
            let _ = killpg(self.group, Signal::SIGTERM);
        }
    }

    /// Waits for the supervisor, whose process has ended or is being killed. False where that took so long that the
    /// group was killed from here, and something may have escaped.
    pub async fn wait(&mut self) -> bool {
        let in_time = timeout(KILL_PATIENCE, self.child.wait()).await.is_ok();
        if !in_time {
            let _ = killpg(self.group, Signal::SIGKILL);
            let _ = self.child.wait().await;
        }
        in_time
    }
}

fn gone() -> io::Error {
    io::Error::other("the supervisor has ended at once")
}

/// A program that runs.
pub(crate) struct Process {
    pub(crate) supervised: Supervised,
    pub(crate) lines: Lines<ChildStdout>,
    stdin: mpsc::UnboundedSender<Zeroizing<Vec<u8>>>,
    log: JoinHandle<()>,
    report: PathBuf,
}

/// Where a program is started.
pub(crate) struct Place<'a> {
    pub(crate) supervisor: &'a Path,
    pub(crate) directory: &'a Path,
    pub(crate) folders: &'a RunFolders,
}

/// Starts a program for a run. `filter` takes the run's secrets out of its log.
pub(crate) fn start(
    place: &Place<'_>,
    program: &Program,
    extra: &Extra,
    run_id: &str,
    filter: SecretFilter,
) -> io::Result<Process> {
    let Place { supervisor, directory, folders } = *place;
    let mut supervised = Supervised::start(supervisor, &folders.report, &program.command, |command| {
        command.current_dir(directory).env_clear().envs(inherited()).envs(&program.env);
        // Last: a program's `env` does not change what the runner promises.
        command
            .envs(&extra.env)
            .env("ERRAND_RUN_ID", run_id)
            .env("ERRAND_FILES_DIR", &folders.files)
            .env(SESSION_VARIABLE, &folders.session);
    })?;
    let stdin = supervised.child.stdin.take().ok_or_else(gone)?;
    let stdout = supervised.child.stdout.take().ok_or_else(gone)?;
    let stderr = supervised.child.stderr.take().ok_or_else(gone)?;
    // Unbounded, yet what a runner says to one agent is bounded: two lines, a stop, and its answers.
    let (sender, lines) = mpsc::unbounded_channel();
    tokio::spawn(write(stdin, lines));
    Ok(Process {
        supervised,
        lines: Lines::new(stdout),
        stdin: sender,
        log: tokio::spawn(keep_log(stderr, folders.log.clone(), filter)),
        report: folders.report.clone(),
    })
}

fn inherited() -> impl Iterator<Item = (&'static str, OsString)> {
    INHERITED.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

impl Process {
    /// Has a line written to the program's stdin, as soon as it reads.
    /// It is wiped behind that.
    pub(crate) fn send(&self, line: impl Into<Zeroizing<Vec<u8>>>) {
        let _ = self.stdin.send(line.into());
    }

    /// Waits for the end of a program whose stdout has ended: all of its group are dead then.
    pub(crate) async fn ended(mut self) -> Ended {
        self.supervised.wait().await;
        let Self { stdin, lines, mut log, report, .. } = self;
        drop((stdin, lines));
        // Only a process that has left the group and outlived its supervisor can still hold stderr.
        if timeout(KILL_PATIENCE, &mut log).await.is_err() {
            log.abort();
        }
        Ended::read(&report)
    }

    /// Kills the program with everything that it has started. False where that has taken the supervisor too long.
    pub(crate) async fn kill(self) -> bool {
        let Self { mut supervised, lines, stdin, mut log, .. } = self;
        // That nobody reads its stdout any more tells the supervisor to kill.
        drop((lines, stdin));
        let in_time = supervised.wait().await;
        if timeout(KILL_PATIENCE, &mut log).await.is_err() {
            log.abort();
        }
        in_time
    }
}

/// Writes lines until nobody sends any, then closes the program's stdin.
async fn write(mut stdin: ChildStdin, mut lines: mpsc::UnboundedReceiver<Zeroizing<Vec<u8>>>) {
    while let Some(line) = lines.recv().await {
        // A program that has closed its stdin does not want to know; its end is told by its stdout.
        if stdin.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// Keeps what a program writes to stderr, without its secrets and up to the limit; the rest is read and left out, so
/// that it never blocks.
async fn keep_log(mut stderr: ChildStderr, path: PathBuf, filter: SecretFilter) {
    let mut buffer = vec![0; 8 * 1024];
    let mut log = Log { path, file: None, room: MAX_LOG_BYTES };
    let mut stream = SecretStream::default();
    loop {
        match stderr.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) if log.room == 0 => {}
            Ok(read) => log.write(&filter.feed(&mut stream, &buffer[..read])).await,
        }
    }
    log.write(&filter.finish(&mut stream)).await;
    if let Some(mut file) = log.file {
        let _ = file.flush().await;
    }
}

struct Log {
    path: PathBuf,
    /// Made at the first byte: most agents say nothing.
    file: Option<tokio::fs::File>,
    room: u64,
}

impl Log {
    async fn write(&mut self, bytes: &[u8]) {
        if self.room == 0 || bytes.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path).await.ok();
        }
        let Some(open) = &mut self.file else { return };
        let fits = usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len());
        let written = async {
            open.write_all(&bytes[..fits]).await?;
            if fits < bytes.len() { open.write_all(LOG_IS_FULL).await } else { Ok(()) }
        };
        self.room = if written.await.is_ok() { self.room - fits as u64 } else { 0 };
    }
}
