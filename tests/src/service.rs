//! The workspace's own programs.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::guard::folder;
use crate::process::Child;

/// One of the workspace's programs, with a log that is shown when the test fails.
#[derive(Debug)]
pub struct Service {
    // Before the folder: the process ends, then its log goes.
    child: Child,
    command: Command,
    folder: TempDir,
}

/// The command of one of the workspace's binaries, beside this test's own executable. No setting of the developer's
/// shell reaches it.
///
/// # Panics
/// Where it was not built: `make test` builds all before the tests.
#[must_use]
pub fn service(name: &str) -> Command {
    let own = std::env::current_exe().expect("a test has an executable");
    let profile: PathBuf = own.ancestors().nth(2).expect("target/<profile>/deps/test").to_owned();
    let binary = profile.join(name);
    assert!(binary.is_file(), "{} is missing: run `cargo build --workspace --bins` first", binary.display());
    let mut command = Command::new(binary);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("ERRAND_") {
            command.env_remove(variable);
        }
    }
    command
}

impl Service {
    /// Starts `name` with these arguments and environment.
    ///
    /// # Panics
    /// Where it was not built.
    #[must_use]
    pub fn spawn(name: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = service(name);
        command.args(args).envs(env.iter().copied());
        let folder = folder(name);
        let child = Child::spawn_logged(&mut command, &folder.path().join("log"));
        Self { child, command, folder }
    }

    /// Starts it again with the same arguments; one that runs is killed first. The log goes on.
    pub fn restart(&mut self) {
        self.child.kill9();
        self.child = Child::spawn_logged(&mut self.command, &self.folder.path().join("log"));
    }

    /// Starts it again with the same arguments; one that runs is asked to end, and drains. The log goes on.
    pub fn restart_gently(&mut self) {
        self.child.terminate();
        self.restart();
    }

    /// Its process: `pid`, `ended`, `kill9`, `terminate`, `sigstop`, `sigcont`, `log`.
    pub const fn process(&mut self) -> &mut Child {
        &mut self.child
    }
}
