//! A real nats-server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::guard::folder;
use crate::process::Child;
use crate::wait::pick_port;

const PATIENCE: Duration = Duration::from_secs(30);

/// A nats-server with JetStream that syncs every message, on a port and a folder of its own. Gone on drop.
#[derive(Debug)]
pub struct Broker {
    // Before the folder: the process ends, then its files go.
    child: Option<Child>,
    folder: TempDir,
    port: u16,
    /// More of its configuration.
    more: String,
    /// The port for the others of its cluster, and theirs.
    cluster: Option<(u16, Vec<u16>)>,
}

impl Broker {
    /// Starts one, and waits until it serves.
    ///
    /// # Panics
    /// Where there is no nats-server, or it does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// As [`Self::start`], with more in its configuration.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with(more: &str) -> Self {
        let mut broker = Self { child: None, folder: folder("nats"), port: 0, more: more.to_owned(), cluster: None };
        for _ in 0..10 {
            broker.port = pick_port();
            if broker.launch() {
                return broker;
            }
        }
        panic!("ten ports of nats-server were taken by others")
    }

    /// Starts three that are one cluster. They may still have to find each other: whoever asks waits for that.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_cluster() -> Vec<Self> {
        for _ in 0..10 {
            let ports: Vec<u16> = (0..6).map(|_| pick_port()).collect();
            let routes = &ports[3..];
            let mut brokers: Vec<Self> = (0..3)
                .map(|at| {
                    let others = routes.iter().filter(|port| **port != routes[at]).copied().collect();
                    let cluster = Some((routes[at], others));
                    Self { child: None, folder: folder("nats"), port: ports[at], more: String::new(), cluster }
                })
                .collect();
            if brokers.iter_mut().all(Self::launch) {
                return brokers;
            }
        }
        panic!("ports of nats-server were taken by others, ten times")
    }

    /// The port of its clients.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `nats://127.0.0.1:PORT`; stays the same over restarts.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The process, where it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::pid)
    }

    /// SIGKILL: what is not on the disk is lost.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill9();
        }
    }

    /// Ends it in an orderly way.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.terminate();
        }
    }

    /// Starts it again, with the same address and data; one that runs is stopped first.
    ///
    /// # Panics
    /// Where it does not start, or another has taken its port.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.launch(), "port {} was taken while nats-server was down", self.port);
    }

    /// Starts it again at the same address with all its data lost; one that runs is killed first.
    ///
    /// # Panics
    /// As [`Self::restart`].
    pub fn restart_empty(&mut self) {
        self.kill9();
        // The folder itself may be a disk.
        let jetstream = self.data().join("jetstream");
        std::fs::remove_dir_all(&jetstream).unwrap_or_else(|error| panic!("{}: {error}", jetstream.display()));
        self.restart();
    }

    /// Stops it where it stands: connections stay open and nobody answers.
    pub fn sigstop(&mut self) {
        if let Some(child) = &mut self.child {
            child.sigstop();
        }
    }

    /// Lets it go on.
    pub fn sigcont(&mut self) {
        if let Some(child) = &mut self.child {
            child.sigcont();
        }
    }

    /// The folder of its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// False where the port is another's.
    fn launch(&mut self) -> bool {
        let config = self.folder.path().join("nats.conf");
        std::fs::write(&config, self.config()).unwrap_or_else(|error| panic!("{}: {error}", config.display()));
        let log = self.folder.path().join("nats.log");
        // Of an earlier start there may be an "address already in use".
        std::fs::write(&log, "").unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let mut command = Command::new(nats_server());
        let mut child = Child::spawn_logged(command.arg("-c").arg(&config), &log);
        // It tells its ports in a file of this name when it serves on them, JetStream's recovery behind it.
        let serves = self.folder.path().join(format!("nats-server_{}.ports", child.pid()));
        let started = Instant::now();
        while child.ended().is_none() {
            if serves.exists() {
                self.child = Some(child);
                return true;
            }
            assert!(started.elapsed() < PATIENCE, "nats-server does not serve: {}", child.last_words());
            std::thread::sleep(Duration::from_millis(5));
        }
        let words = child.last_words();
        assert!(words.contains("address already in use"), "{words}");
        false
    }

    fn config(&self) -> String {
        let cluster = self.cluster.as_ref().map_or(String::new(), |(port, others)| {
            let routes: Vec<String> = others.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
            // Clients are not told of the others: a test's proxies stand between.
            format!(
                "cluster {{ name: tests, listen: \"127.0.0.1:{port}\", no_advertise: true, routes: [{}] }}\n",
                routes.join(", ")
            )
        });
        // As in deploy/nats.conf, but for limits: the streams reserve what they may come to hold, so that of files is no
        // smaller than a few installations need.
        format!(
            "listen: \"127.0.0.1:{}\"\nserver_name: \"{}\"\nports_file_dir: {:?}\n\
             ping_interval: \"5s\"\nping_max: 2\n{cluster}\
             jetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 10TB, max_memory_store: 256MB }}\n{}",
            self.port,
            self.folder.path().file_name().unwrap_or_default().display(),
            self.folder.path(),
            self.data(),
            self.more,
        )
    }
}

/// Connects to a broker, or to one of several whose addresses stand with commas between them.
///
/// # Errors
/// Where none is there.
pub async fn connect(urls: &str) -> Result<async_nats::Client, async_nats::ConnectError> {
    async_nats::connect(urls.split(',').collect::<Vec<_>>()).await
}

fn nats_server() -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    let path = std::env::var_os("NATS_SERVER").map_or(fetched, PathBuf::from);
    assert!(path.is_file(), "the tests need a nats-server and {} is none: run `make tools`", path.display());
    path
}
