//! A real Postgres, with its own durability.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use tempfile::TempDir;

use crate::guard::{Kind, folder};
use crate::process::Child;
use crate::wait::pick_port;

const PATIENCE: Duration = Duration::from_secs(60);

/// A Postgres on a port and a folder of its own. Gone on drop.
#[derive(Debug)]
pub struct Postgres {
    // Before the folder: the process ends, then its files go.
    child: Option<Child>,
    folder: TempDir,
    programs: PathBuf,
    account: Option<User>,
    port: u16,
    databases: AtomicUsize,
}

impl Postgres {
    /// The one that all tests of this process share, each with its own [`Self::fresh_database`]. It ends with the
    /// process. A test that wants to do it harm starts its own.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Postgres> = LazyLock::new(Postgres::start);
        &SHARED
    }

    /// Makes a new cluster, starts it, and waits until it answers.
    ///
    /// # Panics
    /// Where Postgres is missing, or does not start.
    #[must_use]
    pub fn start() -> Self {
        let account = account();
        let (folder, programs) = (folder("postgres"), programs());
        if let Some(user) = &account {
            let owned = chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            owned.unwrap_or_else(|error| panic!("{} for {}: {error}", folder.path().display(), user.name));
        }
        let mut postgres = Self { child: None, folder, programs, account, port: 0, databases: AtomicUsize::new(0) };
        postgres.make_cluster();
        for _ in 0..10 {
            postgres.port = pick_port();
            if postgres.launch() {
                return postgres;
            }
        }
        panic!("ten ports of Postgres were taken by others")
    }

    /// The URL of the database that is there from the beginning.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://errand@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a new, empty database. Its URL.
    ///
    /// # Panics
    /// Where Postgres refuses.
    #[must_use]
    pub fn fresh_database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut command = self.command("createdb");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "errand", "-T", "template0", &name]);
        run(&mut command);
        self.url_of(&name)
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The process, where it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::pid)
    }

    /// SIGKILL to the postmaster, whose sessions end with it; the next start recovers from the log.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill9();
        }
    }

    /// SIGKILL, and a start with the same address and data.
    ///
    /// # Panics
    /// As [`Self::restart`].
    pub fn kill9_and_restart(&mut self) {
        self.kill9();
        self.restart();
    }

    /// Every transaction reads only, as on a server that is no longer the first one, or writes again.
    ///
    /// # Panics
    /// Where Postgres refuses.
    pub fn read_only(&self, read_only: bool) {
        let state = if read_only { "on" } else { "off" };
        for statement in
            [&format!("ALTER SYSTEM SET default_transaction_read_only = {state}"), "SELECT pg_reload_conf()"]
        {
            let mut command = self.command("psql");
            command.env("PGOPTIONS", "-c default_transaction_read_only=off");
            command.args([
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-U",
                "errand",
                "-c",
                statement,
                "postgres",
            ]);
            run(&mut command);
        }
    }

    /// Ends it in an orderly way, sessions included ("fast shutdown").
    ///
    /// # Panics
    /// Where it does not end.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.signal(Signal::SIGINT);
            assert!(child.wait(PATIENCE).is_some(), "Postgres did not stop within {PATIENCE:?}");
        }
    }

    /// Starts it again, with the same address and data; one that runs is stopped first.
    ///
    /// # Panics
    /// Where it does not start, or another has taken its port.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.launch(), "port {} was taken while Postgres was down", self.port);
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // No setting of the machine's or the user's: no locale that is not installed, no PGDATA.
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").current_dir(self.folder.path());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        if let Some(user) = &self.account {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn make_cluster(&self) {
        let mut command = self.command("initdb");
        command.args(["--username=errand", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]);
        run(command.arg(self.data()));
    }

    /// False where the port is another's.
    fn launch(&mut self) -> bool {
        let started = Instant::now();
        let log = self.folder.path().join("postgres.log");
        loop {
            // What an earlier start said is not about this one.
            std::fs::write(&log, "").unwrap_or_else(|error| panic!("{}: {error}", log.display()));
            let mut child = Child::launch(Kind::Postmaster, &mut self.server(), Some(&log));
            if serves(&mut child, started) {
                self.child = Some(child);
                return true;
            }
            let said = child.log();
            if said.contains("Address already in use") {
                return false;
            }
            // After a SIGKILL the sessions need a moment to see that their postmaster is gone. Its lock file is left
            // to Postgres: who removes it by hand may have two servers write to one cluster.
            let orphans = said.contains("is still in use") || said.contains("already exists");
            assert!(orphans && started.elapsed() < PATIENCE, "{}", child.last_words());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn server(&self) -> Command {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-k"]);
        command.arg(self.folder.path()).args(["-c", "shared_buffers=64MB", "-c", "max_connections=200"]);
        command
    }
}

/// Waits until it takes connections; false where it ends instead.
fn serves(child: &mut Child, started: Instant) -> bool {
    while child.ended().is_none() {
        // This line comes after recovery, unlike the open port.
        if child.log().contains("database system is ready to accept connections") {
            return true;
        }
        assert!(started.elapsed() < PATIENCE, "Postgres does not serve: {}", child.last_words());
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

fn run(command: &mut Command) {
    let output = command.output();
    let program = Path::new(command.get_program());
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", program.display());
}

/// Whom Postgres runs as, where it must not run as we do: it refuses root.
fn account() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    let found = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    assert!(found.is_some(), "Postgres refuses to run as root, and this machine has no user postgres or nobody");
    found
}

/// The folder of its programs, by the rules of `tools/postgres.sh`.
fn programs() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/postgres.sh");
    let asked = Command::new("/bin/sh").arg(&script).arg("find").output();
    let output = asked.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}", said.trim_end());
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end())
}
