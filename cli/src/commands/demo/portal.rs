//! The portal as a child, and its inbox.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::child::Child;
use crate::keep::Kept;

/// How long a mail may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
/// What the inbox answers is small.
const MAX_ANSWER: u64 = 64 * 1024;

/// A portal that runs.
pub(super) struct Portal {
    kept: Kept,
    address: String,
    pub(super) url: String,
}

impl Portal {
    pub(super) async fn start(python: &Path, folder: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let child = Child::start("the portal", python, &folder.join("portal.py"), &[], scratch).await?;
        let address = format!("127.0.0.1:{}", child.port);
        Ok(Self { kept: child.kept, url: format!("http://{address}"), address })
    }

    /// The one-time code that was mailed to this address last.
    pub(super) async fn code_for(&self, email: &str) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            let (status, body) = self.ask(&format!("GET /_mailbox?email={email}"), "").await?;
            if status == 200 {
                let mail: Value = serde_json::from_slice(&body).context("the portal's inbox")?;
                return mail["code"].as_str().map(str::to_owned).context("the mail has no code");
            }
            if started.elapsed() > PATIENCE {
                bail!("no mail for {email} (the inbox answers {status})");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes a customer who signs in with a password and an authenticator app.
    pub(super) async fn open_account(&self, email: &str, password: &str, totp_secret: &str) -> anyhow::Result<()> {
        let account = json!({"email": email, "password": password, "totp_secret": totp_secret}).to_string();
        let (status, _) = self.ask("POST /_test/account", &account).await?;
        anyhow::ensure!(status == 200, "the portal makes no account for {email}: {status}");
        Ok(())
    }

    /// A plain HTTP/1.0 request: its answer ends with the connection.
    async fn ask(&self, line: &str, body: &str) -> anyhow::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(&self.address).await.context("the portal does not answer")?;
        let request = format!(
            "{line} HTTP/1.0\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        parse(&answer).context("the portal's answer is not HTTP")
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.kept.stop().await
    }
}

/// Status and body.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, answer[end + 4..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(answer), Some((200, b"{}".to_vec())));
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n"), None);
    }
}
