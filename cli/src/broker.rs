//! A nats-server of our own.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::keep::Kept;

/// How long a server may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// The log's last lines that an error shows.
const LINES: usize = 5;

/// What server to start.
#[derive(Debug)]
pub(crate) struct BrokerConfig {
    pub(crate) program: PathBuf,
    /// Where it keeps streams, log and configuration.
    pub(crate) folder: PathBuf,
    /// 0: any free one.
    pub(crate) port: u16,
}

/// A server that runs.
#[derive(Debug)]
pub(crate) struct Broker {
    kept: Kept,
    pub(crate) url: String,
    /// The server's own process.
    pub(crate) pid: u32,
}

impl Broker {
    /// Starts a server and waits until it listens.
    pub(crate) async fn start(config: &BrokerConfig) -> anyhow::Result<Self> {
        if config.port != 0 && TcpListener::bind((Ipv4Addr::LOCALHOST, config.port)).is_err() {
            bail!(
                "port {} is taken: does another NATS server or `errand dev` run there? Use it with --nats-url, or choose \
                 another port with --port (0: any free one)",
                config.port
            );
        }
        std::fs::create_dir_all(&config.folder).with_context(|| format!("cannot make {}", config.folder.display()))?;
        // The server tells its address in a file, named after its process: those of servers that were killed must go.
        for old in ports_files(&config.folder)? {
            std::fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        let file = config.folder.join("nats.conf");
        std::fs::write(&file, settings(config)).with_context(|| format!("cannot write {}", file.display()))?;
        let log = config.folder.join("nats.log");
        let settings = ["--config".into(), file.into_os_string()];
        let mut kept = Kept::start("the NATS server", &config.program, &settings, &share(), &log)?;
        let started = Instant::now();
        let ports = loop {
            if let Some(found) = listening(&config.folder)? {
                break found;
            }
            if kept.has_ended()? {
                bail!("the NATS server did not start: {}", last_lines(&log));
            }
            if started.elapsed() > PATIENCE {
                bail!("the NATS server does not listen after {} s: {}", PATIENCE.as_secs(), last_lines(&log));
            }
            tokio::time::sleep(LOOK).await;
        };
        Ok(Self { kept, url: ports.0, pid: ports.1 })
    }

    /// Stops the server, and waits until it has gone.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.kept.stop().await
    }

    /// Resolves when the server has ended by itself, which is a failure.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        self.kept.ended().await
    }
}

/// Half of the machine, unless somebody has said otherwise: everything else is on it, too. With all of two cores it
/// wakes a second one for nothing: 5% fewer runs a second, and a tenth later each.
fn share() -> Vec<(&'static str, String)> {
    const CORES: &str = "GOMAXPROCS";
    if std::env::var_os(CORES).is_some() {
        return Vec::new();
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    vec![(CORES, cores.div_ceil(2).to_string())]
}

/// `sync_interval: always`: what it has acknowledged survives a crash of the machine (DESIGN section 5). `ping_interval`:
/// as deploy/nats.conf.
fn settings(config: &BrokerConfig) -> String {
    let port = if config.port == 0 { -1 } else { i32::from(config.port) };
    let folder = quoted(&config.folder);
    let store = quoted(&config.folder.join("jetstream"));
    format!(
        "# Written by errand at each start.\n\
         listen: \"127.0.0.1:{port}\"\n\
         server_name: errand-dev\n\
         ports_file_dir: {folder}\n\
         ping_interval: \"5s\"\nping_max: 2\n\
         jetstream {{\n  store_dir: {store}\n  sync_interval: always\n}}\n"
    )
}

fn quoted(path: &Path) -> String {
    // JSON's escapes are among those of the server's configuration.
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

fn ports_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ports") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The server's address and process, once it listens.
fn listening(folder: &Path) -> anyhow::Result<Option<(String, u32)>> {
    #[derive(Deserialize)]
    struct Ports {
        nats: Vec<String>,
    }
    for file in ports_files(folder)? {
        let pid = file.file_stem().and_then(|stem| stem.to_str()?.rsplit('_').next()?.parse().ok());
        // Half written, it cannot be read yet.
        let ports = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Ports>(&text).ok());
        if let (Some(pid), Some(url)) = (pid, ports.and_then(|ports| ports.nats.into_iter().next())) {
            return Ok(Some((url, pid)));
        }
    }
    Ok(None)
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The server's program: the one that is named, the one that `make tools` has brought, or the one in PATH.
pub(crate) fn find(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let get = "get one with `make tools`, or name one with --nats-server";
    if let Some(named) = named {
        anyhow::ensure!(named.is_file(), "{} is no NATS server: {get}", named.display());
        return Ok(named.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let mut places = std::iter::once(PathBuf::from(".tools/bin/nats-server")).chain(in_path);
    places.find(|place| place.is_file()).ok_or_else(|| anyhow::anyhow!("there is no nats-server: {get}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_settings_sync_and_quote() {
        let config = BrokerConfig { program: "nats-server".into(), folder: PathBuf::from("/tmp/a \"b\""), port: 0 };
        insta::assert_snapshot!("nats_conf", settings(&config));
    }

    #[test]
    fn a_server_tells_where_it_listens() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(listening(folder.path()).unwrap(), None);
        let file = folder.path().join("nats-server_4711.ports");
        std::fs::write(&file, "{\"nats\":[\"nats://127").unwrap();
        assert_eq!(listening(folder.path()).unwrap(), None);
        std::fs::write(&file, r#"{"nats":["nats://127.0.0.1:40001"],"cluster":null}"#).unwrap();
        assert_eq!(listening(folder.path()).unwrap(), Some(("nats://127.0.0.1:40001".into(), 4711)));
    }

    #[test]
    fn a_server_that_is_named_must_be_there() {
        let error = find(Some(Path::new("/does/not/exist"))).unwrap_err().to_string();
        assert!(error.contains("make tools"), "{error}");
    }
}
