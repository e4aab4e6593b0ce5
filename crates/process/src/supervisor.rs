//! The parent of each process that a runner starts: a process of its own, so that nothing outlives the runner, however
//! that ends.
//!
//! The runner starts `RUNNER __supervise REPORT PROGRAM ARGUMENTS...` as the leader of a new process group, with
//! the program's environment, working directory, stdin, stdout and stderr. The supervisor starts the program in its
//! own group and waits. It kills the whole group, and on Linux also what left the group (`setsid`), when
//!
//! - the program has ended: its status is written to REPORT before;
//! - nobody reads the program's stdout any more: the runner has let go of it, or is dead. The write end of a pipe
//!   tells that by itself, so no further file descriptor is needed, and none can leak.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::getpgrp;

/// The first argument of a process that is to be a supervisor.
pub const SUPERVISE: &str = "__supervise";

/// How an agent's program ended, as its supervisor reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
    /// It could not be started; the system's words.
    Unstarted(String),
    /// Nobody knows: the supervisor was killed with the group.
    Killed,
}

impl Ended {
    fn write(&self, report: &Path) -> io::Result<()> {
        let text = match self {
            Self::Code(code) => format!("code {code}\n"),
            Self::Signal(signal) => format!("signal {signal}\n"),
            Self::Unstarted(why) => format!("unstarted {why}\n"),
            Self::Killed => return Ok(()),
        };
        fs::write(report, text)
    }

    /// Reads what a supervisor that has ended has left.
    pub(crate) fn read(report: &Path) -> Self {
        let text = fs::read_to_string(report).unwrap_or_default();
        // Without the newline it was killed while it wrote.
        let Some((what, value)) = text.strip_suffix('\n').and_then(|line| line.split_once(' ')) else {
            return Self::Killed;
        };
        match (what, value.parse()) {
            ("code", Ok(code)) => Self::Code(code),
            ("signal", Ok(signal)) => Self::Signal(signal),
            ("unstarted", _) => Self::Unstarted(value.to_owned()),
            _ => Self::Killed,
        }
    }
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Killed,
        }
    }
}

/// What a binary that hosts such a runner does, before anything else, when its first argument is [`SUPERVISE`].
/// `args` are the arguments behind it.
pub fn supervise_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(report), Some(program)) = (args.next().map(PathBuf::from), args.next()) else {
        eprintln!("{SUPERVISE} is for a runner's own use");
        return ExitCode::from(2);
    };
    if let Err(error) = supervise(&report, &program, args) {
        eprintln!("the supervisor failed: {error}");
    }
    kill_group();
    // The group's leader is this process: it does not come here unless it could not kill itself.
    ExitCode::FAILURE
}

fn supervise(report: &Path, program: &OsString, args: impl Iterator<Item = OsString>) -> io::Result<()> {
    adopt_orphans();
    let mut child = match Command::new(program).args(args).spawn() {
        Ok(child) => child,
        Err(error) => return Ended::Unstarted(error.kind().to_string()).write(report),
    };
    // A SIGTERM for the group is for the program. After the start, since a blocked signal is inherited; before the
    // watch, whose thread inherits it.
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2] {
        blocked.add(signal);
    }
    blocked.thread_block()?;
    std::thread::Builder::new().spawn(|| {
        wait_until_unread();
        kill_group();
    })?;
    match child.wait() {
        Ok(status) => Ended::from(status).write(report),
        // The other thread has buried it, and kills this process next: nobody reads how it ended.
        Err(error) if error.raw_os_error() == Some(Errno::ECHILD as i32) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns when nobody can read what is written to stdout.
fn wait_until_unread() {
    let stdout = io::stdout();
    loop {
        // No events are asked for: errors and hang-ups are told unasked.
        let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) => return,
            Err(Errno::EINTR) => {}
            Err(_) => std::thread::sleep(Duration::from_secs(1)),
        }
    }
}

/// Kills what the program has left behind, then the group with this process.
fn kill_group() {
    descendants::kill_all();
    if let Err(error) = killpg(getpgrp(), Signal::SIGKILL) {
        eprintln!("the supervisor cannot kill its group: {error}");
    }
}

#[cfg(target_os = "linux")]
fn adopt_orphans() {
    // So that what leaves the group comes to this process, not to init, when its parent ends. Without it the reaper
    // at the runner's next start is left.
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        eprintln!("the supervisor cannot adopt orphans: {error}");
    }
}

#[cfg(not(target_os = "linux"))]
fn adopt_orphans() {}

/// Processes below this one, wherever they are.
mod descendants {
    #[cfg(target_os = "linux")]
    pub(super) fn kill_all() {
        use nix::sys::signal::{Signal, kill};
        use nix::unistd::Pid;

        /// They may fork as fast as they are killed, yet not for ever: killing goes from the root to the leaves.
        const ROUNDS: u32 = 500;
        for _ in 0..ROUNDS {
            let living = crate::procfs::living_descendants();
            let over = living.is_empty();
            for pid in living {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            bury();
            if over {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Takes note of the dead, which would go to init else: in a container that is mostly the runner, which knows
    /// nothing of them.
    #[cfg(target_os = "linux")]
    fn bury() {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

        while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn kill_all() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("ended");
        assert_eq!(Ended::read(&report), Ended::Killed);
        for ended in [Ended::Code(0), Ended::Code(255), Ended::Signal(9), Ended::Unstarted("entity not found".into())] {
            ended.write(&report).unwrap();
            assert_eq!(Ended::read(&report), ended);
        }
        for torn in ["", "code", "code 1", "code x\n", "\n"] {
            fs::write(&report, torn).unwrap();
            assert_eq!(Ended::read(&report), Ended::Killed, "{torn:?}");
        }
    }
}
