use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User, chown};
use tempfile::TempDir;

use crate::process::Child;

/// A real Postgres in a temporary folder, on a free port, with its own durability defaults.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    child: Child,
    port: u16,
}

/// The newest `bin` folder of Postgres, or none where the programs are in PATH.
fn programs() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("ERRAND_PG_BIN").filter(|folder| !folder.is_empty()) {
        return Some(folder.into());
    }
    let roots = ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"];
    let found = roots.iter().filter_map(|root| std::fs::read_dir(root).ok()).flatten().flatten();
    let mut folders: Vec<PathBuf> =
        found.filter(|entry| entry.path().join("bin/initdb").is_file()).map(|entry| entry.path().join("bin")).collect();
    folders.sort();
    folders.pop()
}

/// Postgres refuses to run as root: as whom then.
fn other_user() -> Option<User> {
    if !Uid::effective().is_root() {
        return None;
    }
    ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten())
}

fn command(program: &str, user: Option<&User>) -> Command {
    let mut command = Command::new(programs().map_or_else(|| program.into(), |folder| folder.join(program)));
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/").env("LC_ALL", "C").stdout(Stdio::null());
    command
}

impl Postgres {
    /// Starts one, and waits until it serves.
    ///
    /// # Panics
    /// Where there is no Postgres 15 or later (Debian: `apt-get install postgresql`), or it does not start.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let user = other_user();
        if let Some(user) = &user {
            chown(folder.path(), Some(user.uid), Some(user.gid)).expect("a folder of Postgres' own");
        }
        let data = folder.path().join("data");
        let made = command("initdb", user.as_ref())
            .args(["--auth=trust", "--username=errand", "--no-sync", "--encoding=UTF8", "-D"])
            .arg(&data)
            .status();
        let made =
            made.unwrap_or_else(|error| panic!("Postgres is missing (Debian: apt-get install postgresql): {error}"));
        assert!(made.success(), "initdb failed: {made}");
        let port = free_port();
        let child = launch(folder.path(), port, user.as_ref());
        Self { folder, child, port }
    }

    /// The address of its database.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://errand@127.0.0.1:{}/postgres", self.port)
    }

    /// `kill -9`, then a start on the same port with the same data.
    pub fn kill9_and_restart(&mut self) {
        self.child.kill9();
        let _not_there = std::fs::remove_file(self.folder.path().join("data/postmaster.pid"));
        self.child = launch(self.folder.path(), self.port, other_user().as_ref());
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn launch(folder: &Path, port: u16, user: Option<&User>) -> Child {
    let log = folder.join("log");
    let mut server = command("postgres", user);
    server.arg("-D").arg(folder.join("data")).arg("-k").arg(folder).args(["-h", "127.0.0.1", "-p"]);
    server.arg(port.to_string()).stderr(std::fs::File::create(&log).expect("a log file"));
    let child = Child::spawn(&mut server);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        // The line that says that it serves comes after recovery, unlike the open port.
        if std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ready to accept connections")) {
            return child;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("Postgres did not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
}
