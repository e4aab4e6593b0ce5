//! A receiver of webhooks as a child: what it has verified is shown.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use errand_client::{Client, NewDestination, RunId};
use serde_json::json;

use super::Teller;
use super::child::Child;

/// How long a webhook may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// A receiver that runs, and the destination that it is.
pub(super) struct Receiver {
    child: Child,
    pub(super) url: String,
}

impl Receiver {
    /// Starts it, and has the events of runs pushed to it.
    pub(super) async fn start(python: &Path, script: &Path, scratch: &Path, client: &Client) -> anyhow::Result<Self> {
        let secret_file = scratch.join("webhook-secret");
        let more = ["--secret-file".into(), secret_file.clone().into_os_string()];
        let child = Child::start("the receiver of webhooks", python, script, &more, scratch).await?;
        let url = format!("http://127.0.0.1:{}/", child.port);
        let new = NewDestination::new("demo", "webhook", &json!({"url": url}), &["task_run.*"]);
        let made = client.create_destination(new).await?;
        std::fs::write(&secret_file, made.secret)?;
        Ok(Self { child, url })
    }

    /// Waits until it has verified a run's last event, and shows all that it has verified of it.
    pub(super) async fn tell(&self, run: RunId, last: &str, teller: Teller) -> anyhow::Result<()> {
        let (run, last) = (run.to_string(), format!(" task_run.{last} "));
        let started = Instant::now();
        loop {
            let log = std::fs::read_to_string(&self.child.log)?;
            let verified: Vec<&str> = log.lines().filter(|line| line.contains(&run)).collect();
            if verified.iter().any(|line| line.contains(&last)) {
                return verified.iter().try_for_each(|line| teller.say(format!("   webhook: {line}")));
            }
            if started.elapsed() > PATIENCE {
                bail!("the receiver of webhooks has not verified{last}of {run}; it says: {log}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.child.kept.stop().await
    }
}
