use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A process that the test started, in a process group of its own; killed with the group when dropped.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
}

impl Child {
    /// Starts it.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        use std::os::unix::process::CommandExt;
        let inner = command.stdin(Stdio::null()).process_group(0).spawn();
        Self { inner: inner.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")) }
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.inner.id()).unwrap_or(i32::MAX))
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        let _gone_already = killpg(self.group(), Signal::SIGKILL);
        let _gone_already = self.inner.wait();
    }

    /// Asks it to end, and waits until it has. Its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let _gone_already = killpg(self.group(), Signal::SIGTERM);
        self.inner.wait().ok()?.code()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The command of one of the workspace's binaries, beside this test's own executable.
///
/// # Panics
/// Where it was not built: `make test` builds all before the tests.
#[must_use]
pub fn service(name: &str) -> Command {
    let own = std::env::current_exe().expect("a test has an executable");
    let profile: PathBuf = own.ancestors().nth(2).expect("target/<profile>/deps/test").to_owned();
    let binary = profile.join(name);
    assert!(binary.is_file(), "{} is missing: run `cargo build --workspace --bins` first", binary.display());
    Command::new(binary)
}
