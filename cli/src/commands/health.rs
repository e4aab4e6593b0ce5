//! `errand health`: asks a service's HTTP address whether it is ready.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::args::HealthArgs;

const PATIENCE: Duration = Duration::from_secs(3);
/// Enough for the status and what it says.
const MOST: u64 = 4096;

pub(crate) async fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let rest = args.url.strip_prefix("http://").with_context(|| format!("{} is no http:// address", args.url))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let asking = async {
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(format!("GET /{path} HTTP/1.0\r\nhost: {host}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        // A server may close without more than it has said.
        let _ended = stream.take(MOST).read_to_end(&mut answer).await;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await.context("no answer in time")??;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "{}: {}", args.url, answer.lines().last().unwrap_or("no answer"));
    Ok(())
}
