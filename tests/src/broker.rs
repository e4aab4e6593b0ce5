use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::Child;

/// A real nats-server with JetStream on a port of its own choice.
#[derive(Debug)]
pub struct Broker {
    folder: TempDir,
    child: Child,
    port: u16,
}

fn binary() -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    match std::env::var_os("NATS_SERVER") {
        Some(path) if !path.is_empty() => path.into(),
        _ if fetched.is_file() => fetched,
        _ => "nats-server".into(),
    }
}

impl Broker {
    /// Starts one, and waits until it serves.
    ///
    /// # Panics
    /// Where there is no nats-server (`make tools` fetches it), or it does not start.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = format!("jetstream {{ store_dir: {:?}, sync_interval: always }}", folder.path().join("js"));
        std::fs::write(folder.path().join("nats.conf"), config).expect("the broker's configuration");
        let (child, port) = launch(folder.path(), None);
        Self { folder, child, port }
    }

    /// Where it serves.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.child.kill9();
    }

    /// Starts it again after a kill, on the same port with the same data.
    pub fn restart(&mut self) {
        (self.child, self.port) = launch(self.folder.path(), Some(self.port));
    }

    /// Starts it again after a kill, on the same port, with nothing.
    ///
    /// # Panics
    /// Where its data cannot be removed.
    pub fn restart_empty(&mut self) {
        std::fs::remove_dir_all(self.folder.path().join("js")).expect("the broker's data");
        self.restart();
    }
}

/// Starts the server and reads its port from the file that it writes once it listens.
fn launch(folder: &Path, port: Option<u16>) -> (Child, u16) {
    let ports = folder.join("ports");
    let _not_there = std::fs::remove_dir_all(&ports);
    std::fs::create_dir_all(&ports).expect("a folder for the ports file");
    let mut command = Command::new(binary());
    command.arg("-c").arg(folder.join("nats.conf")).arg("--ports_file_dir").arg(&ports);
    command.args(["-a", "127.0.0.1", "-p"]).arg(port.map_or("-1".to_owned(), |port| port.to_string()));
    let log = std::fs::File::create(folder.join("log")).expect("a log file");
    command.stdout(Stdio::null()).stderr(log);
    let child = Child::spawn(&mut command);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if let Some(port) = port_in(&ports) {
            return (child, port);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("nats-server did not start: {}", std::fs::read_to_string(folder.join("log")).unwrap_or_default());
}

fn port_in(folder: &Path) -> Option<u16> {
    let file = std::fs::read_dir(folder).ok()?.find_map(|entry| entry.ok())?;
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    ports["nats"].as_array()?.iter().find_map(|url| url.as_str()?.rsplit(':').next()?.parse().ok())
}
