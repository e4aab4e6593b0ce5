//! A Postgres of our own for a benchmark, from the system's packages, with its own durability.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::unistd::{User, geteuid};
use tempfile::TempDir;

use crate::keep::Kept;

/// How long it may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// A server that runs, in a temporary folder that goes with it.
#[derive(Debug)]
pub(crate) struct Postgres {
    kept: Kept,
    pub(crate) url: String,
    _folder: TempDir,
}

impl Postgres {
    /// Makes a cluster, starts its server, and waits until it serves.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let programs = programs()?;
        // Its own, not one within another: whom it runs as must be able to go there.
        let temporary = tempfile::tempdir()?;
        let folder = temporary.path();
        let account = account()?;
        if let Some(user) = &account {
            chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let data = folder.join("data");
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args(["--username=errand", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"]).arg(&data);
        if let Some(user) = &account {
            initdb.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let made = initdb.env("LC_ALL", "C").current_dir(folder).output().context("cannot start initdb")?;
        anyhow::ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));

        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let (program, mut arguments) = as_user(account.as_ref(), programs.join("postgres"));
        arguments.extend(["-D".into(), data.into_os_string(), "-h".into(), "127.0.0.1".into()]);
        arguments.extend(["-p".into(), port.to_string().into(), "-k".into(), folder.as_os_str().to_owned()]);
        let log = folder.join("log");
        let mut kept = Kept::start("Postgres", &program, &arguments, &[], &log)?;
        let started = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if said.contains("database system is ready to accept connections") {
                let url = format!("postgres://errand@127.0.0.1:{port}/postgres");
                return Ok(Self { kept, url, _folder: temporary });
            }
            if kept.has_ended()? || started.elapsed() > PATIENCE {
                bail!("Postgres did not start: {said}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops it, and waits until it has gone.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.kept.stop().await
    }
}

/// Whom it runs as where we are root, which it refuses.
fn account() -> anyhow::Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let found = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    found.map(Some).context("Postgres refuses to run as root, and this machine has no user postgres or nobody")
}

/// The program, or one that becomes it as that user: `setpriv` of util-linux.
fn as_user(user: Option<&User>, program: PathBuf) -> (PathBuf, Vec<std::ffi::OsString>) {
    match user {
        None => (program, Vec::new()),
        Some(user) => {
            let (uid, gid) = (format!("--reuid={}", user.uid), format!("--regid={}", user.gid));
            ("setpriv".into(), vec![uid.into(), gid.into(), "--clear-groups".into(), program.into_os_string()])
        }
    }
}

/// The folder of its programs: where Debian puts the newest, or in PATH.
fn programs() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("postgres").is_file())
        .collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).find(|folder| folder.join("postgres").is_file());
    found
        .pop()
        .map(|(_, bin)| bin)
        .or(in_path)
        .context("there is no Postgres: install it (on Debian `apt-get install postgresql`), or name one with --store postgres://...")
}
