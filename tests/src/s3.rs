//! A server that stands in for Amazon's S3: moto, from `.tools/test-venv`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::guard::folder;
use crate::process::Child;
use crate::wait::pick_port;

const PATIENCE: Duration = Duration::from_secs(60);
const BUCKET: &str = "errand-tests";

/// A server with one bucket, in memory. Gone on drop.
#[derive(Debug)]
pub struct S3 {
    // Before the folder: the process ends, then its log goes.
    child: Child,
    _folder: TempDir,
    port: u16,
}

impl S3 {
    /// Starts one, and makes the bucket.
    ///
    /// # Panics
    /// Where moto is missing, or does not start.
    #[must_use]
    pub fn start() -> Self {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/test-venv/bin/python");
        assert!(python.is_file(), "the tests need moto and {} is missing: run `make tools-test`", python.display());
        for _ in 0..10 {
            let (folder, port) = (folder("s3"), pick_port());
            let mut command = Command::new(&python);
            command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
            let child = Child::spawn_logged(&mut command, &folder.path().join("log"));
            let mut s3 = Self { child, _folder: folder, port };
            if s3.until_it_serves() {
                return s3;
            }
        }
        panic!("ten ports of moto were taken by others")
    }

    /// False where it has ended: the port is another's.
    fn until_it_serves(&mut self) -> bool {
        let started = Instant::now();
        while self.child.ended().is_none() {
            if self.make_bucket().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return true;
            }
            assert!(started.elapsed() < PATIENCE, "moto does not serve: {}", self.child.last_words());
            std::thread::sleep(Duration::from_millis(20));
        }
        let words = self.child.last_words();
        assert!(words.contains("in use"), "{words}");
        false
    }

    fn make_bucket(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let host = format!("127.0.0.1:{}", self.port);
        let request =
            format!("PUT /{BUCKET} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The bucket's name.
    #[must_use]
    pub const fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// What a client of it needs in its environment.
    #[must_use]
    pub const fn environment(&self) -> [(&'static str, &'static str); 3] {
        [("AWS_ACCESS_KEY_ID", "tests"), ("AWS_SECRET_ACCESS_KEY", "tests"), ("AWS_REGION", "us-east-1")]
    }
}
