//! A broker of the test's own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use errand_bus::{Bus, BusConfig};
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A server, and a shell that kills it when the test process is gone, however that ends.
struct Running {
    guard: Child,
    server: Child,
}

/// A `nats-server` with its own port and its own directory.
pub(crate) struct Broker {
    running: Option<Running>,
    port: u16,
    directory: TempDir,
    max_file_store: &'static str,
}

impl Broker {
    pub(crate) fn start() -> Self {
        Self::with_storage("8GB")
    }

    /// With so much room for streams.
    pub(crate) fn with_storage(max_file_store: &'static str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut broker = Self { running: None, port, directory: tempfile::tempdir().unwrap(), max_file_store };
        broker.start_again();
        broker
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where JetStream keeps its files.
    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("store/jetstream")
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(Running { mut guard, mut server }) = self.running.take() {
            // The guard first: the server's number may soon be another process's.
            for process in [&mut guard, &mut server] {
                process.kill().unwrap();
                process.wait().unwrap();
            }
        }
    }

    /// What was stored is gone. The broker must not run.
    pub(crate) fn wipe(&self) {
        assert!(self.running.is_none(), "the broker runs");
        std::fs::remove_dir_all(self.store()).unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        let config = self.directory.path().join("nats.conf");
        let text = format!(
            "listen: 127.0.0.1:{}\njetstream {{ store_dir: {:?}, max_file_store: {}, sync_interval: always }}\n",
            self.port,
            self.directory.path().join("store"),
            self.max_file_store
        );
        std::fs::write(&config, text).unwrap();
        let log =
            std::fs::File::options().create(true).append(true).open(self.directory.path().join("nats.log")).unwrap();
        let server = Command::new(nats_server())
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("nats-server does not start: {error}"));
        let guard = Command::new("sh")
            .args(["-c", "cat; kill -9 \"$0\"", &server.id().to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        self.running = Some(Running { guard, server });
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "nats-server does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("nats.log")).unwrap_or_default()
    }

    pub(crate) async fn connect(&self) -> Bus {
        self.connect_as("errand.v1").await
    }

    pub(crate) async fn connect_as(&self, prefix: &str) -> Bus {
        Bus::connect(self.config(prefix), PATIENCE).await.unwrap()
    }

    pub(crate) fn config(&self, prefix: &str) -> BusConfig {
        BusConfig {
            url: self.url(),
            prefix: prefix.to_owned(),
            name: "test".to_owned(),
            request_timeout: Duration::from_secs(2),
            ..BusConfig::default()
        }
    }

    /// The same broker without Errand's bus, to look behind it.
    pub(crate) async fn bare(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `NATS_SERVER`, else what `make tools` has fetched, else what the PATH has.
fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER").map(PathBuf::from) {
        assert!(path.is_file(), "NATS_SERVER names no file: {}", path.display());
        return path;
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|directory| directory.join(".tools/bin/nats-server"))
        .find(|path| path.is_file());
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|directory| directory.join("nats-server")).find(|path| path.is_file())
    };
    fetched.or_else(on_path).unwrap_or_else(|| panic!("no nats-server: run `make tools`, or set NATS_SERVER"))
}

/// Waits until `holds`, and says what did not come true otherwise.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
