//! Children that never outlive us.
//!
//! Between us and a child stands a keeper: this program again, which starts the child and stops it when its own stdin
//! ends - which it does however we die. The child has a process group of its own, so that a Ctrl-C on the terminal
//! reaches us alone, and the services drain while the broker is still there.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::ChildStdin;

/// The first argument of the keeper.
pub(crate) const KEEP: &str = "__keep";
/// How long a child may take to go, before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// A child behind its keeper. Dropping it stops the child, without waiting.
#[derive(Debug)]
pub(crate) struct Kept {
    what: &'static str,
    keeper: tokio::process::Child,
    /// Closed, it tells the keeper to end. Apart from `keeper`, whose `wait` would close it.
    end: Option<ChildStdin>,
    log: PathBuf,
}

impl Kept {
    /// Starts a program, with these settings beside those of our own environment; what it prints goes to the log.
    pub(crate) fn start(
        what: &'static str,
        program: &Path,
        arguments: &[OsString],
        environment: &[(&str, String)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut keeper = tokio::process::Command::new(std::env::current_exe()?)
            .arg(KEEP)
            .arg(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start the keeper of {what}"))?;
        let end = keeper.stdin.take();
        Ok(Self { what, keeper, end, log: log.to_owned() })
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.keeper.try_wait()?.is_some())
    }

    /// Resolves when it has ended by itself, which is a failure.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        let status = self.keeper.wait().await?;
        bail!("{} has ended ({status}): {} tells why", self.what, self.log.display())
    }

    /// Stops it, and waits until it has gone.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.end.take());
        let ended = tokio::time::timeout(PATIENCE * 2, self.keeper.wait()).await;
        ended.with_context(|| format!("{} does not stop", self.what))??;
        Ok(())
    }
}

/// The keeper's whole life: `errand __keep PROGRAM ARGUMENT...`
pub(crate) fn keep_main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(2);
    let Some(program) = arguments.next() else {
        eprintln!("error: {KEEP} needs a program");
        return ExitCode::from(2);
    };
    match keep(Command::new(&program).args(arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            ExitCode::FAILURE
        }
    }
}

/// Runs a program until stdin ends, then stops it. True where it ended because we asked it to, or well.
fn keep(command: &mut Command) -> std::io::Result<bool> {
    // A group of its own: a signal to ours is for us.
    let mut child = command.stdin(Stdio::null()).process_group(0).spawn()?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    std::thread::spawn(move || {
        let mut rest = [0; 64];
        // Nobody writes: a read ends when the other side is gone.
        while matches!(std::io::stdin().read(&mut rest), Ok(count) if count > 0) {}
        asked.store(true, Ordering::Release);
    });
    let mut asked_at: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(asked_at.is_some() || status.success());
        }
        match asked_at {
            None if stop.load(Ordering::Acquire) => {
                asked_at = Some(Instant::now());
                if let Ok(pid) = i32::try_from(child.id()) {
                    // It may have ended this moment.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
            }
            Some(at) if at.elapsed() > PATIENCE => child.kill()?,
            _ => {}
        }
        std::thread::sleep(LOOK);
    }
}
