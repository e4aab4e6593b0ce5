//! A whole installation, and runs that are to end well whatever else goes on.

use std::time::Duration;

use anyhow::{Context, ensure};
use errand_client::{Client, NewDestination, NewRun, Wait, run_status};
use errand_core::run::RunStatus;
use errand_core::task::{Definition, Settings};
use errand_tests::{Broker, Role, Stack, StoreKind, pick_port};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Runs that are under way at once while something is done to the services.
const AT_ONCE: usize = 8;

/// Every service, a runner, and where the broker tells who is subscribed to what.
pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) client: Client,
    pub(crate) nats: async_nats::Client,
    pub(crate) monitor: u16,
    pub(crate) http: u16,
    pub(crate) task: String,
}

/// One of each.
const ROLES: [Role; 8] = [
    Role::Dispatcher,
    Role::SessionPool,
    Role::TimeoutWatcher,
    Role::Notifier,
    Role::Vault,
    Role::Storage,
    Role::Gateway,
    Role::Scripted,
];

impl World {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (monitor, http) = (pick_port(), pick_port());
        let broker = Broker::start_with(&format!("http: \"127.0.0.1:{monitor}\"\n"));
        let mut stack = Stack::with_broker(StoreKind::Sqlite, broker);
        for role in ROLES {
            let listen = format!("127.0.0.1:{http}");
            let more: &[&str] = match role {
                Role::Gateway => &["--listen", &listen],
                Role::Scripted => &["--capacity", "16"],
                _ => &[],
            };
            stack.start(role, &[&["--log", "error"], more].concat());
        }
        stack.ready().await;
        let nats = async_nats::connect(stack.url()).await?;
        let client = Client::new(stack.bus().await, "acme".parse()?);
        let definition: Definition = serde_json::from_value(json!({"name": "scripted", "agent_id": "agt_scripted"}))?;
        let settings = Settings { reuse_session: true, ..Settings::default() };
        let task = client.apply_task(&Definition { settings, ..definition }).await?.id;
        let wanting = NewDestination::new("plain", "nats", &json!({"subject": "out.{tenant}"}), &["task_run.*"]);
        client.create_destination(wanting).await?;
        Ok(Self { stack, client, nats, monitor, http, task })
    }

    /// Who runs, as which process.
    pub(crate) fn pids(&mut self) -> Vec<(Role, u32)> {
        self.stack.all_services().map(|(role, service)| (role, service.process().pid())).collect()
    }

    /// None of them has ended.
    pub(crate) fn all_live(&mut self) -> anyhow::Result<()> {
        for (role, service) in self.stack.all_services() {
            let ended = service.process().ended();
            ensure!(ended.is_none(), "{role:?} has ended: {ended:?}");
            // A panic that was caught costs no process, and is a bug all the same.
            let log = service.process().log();
            ensure!(!log.contains("panicked at"), "{role:?} panicked: {log}");
        }
        Ok(())
    }

    /// Runs on and on until told to stop: how many, each completed.
    pub(crate) async fn good_runs(&self, stop: &CancellationToken) -> anyhow::Result<usize> {
        let numbers = futures::stream::iter(0_usize..).take_until(stop.cancelled());
        let runs = numbers.map(|number| self.good_run(number)).buffer_unordered(AT_ONCE);
        runs.try_fold(0, |count, ()| std::future::ready(Ok(count + 1))).await
    }

    pub(crate) async fn good_run(&self, number: usize) -> anyhow::Result<()> {
        let input = json!({"steps": [{"progress": "half"}, {"sleep_ms": number % 20}, {"output": number}]});
        let run = self.client.submit(NewRun::of_task(&self.task)?.input(&input)).await?;
        let id = run.id.parse()?;
        let Wait::Final(run) = self.client.wait(id, PATIENCE).await.context("waiting for a good run")? else {
            anyhow::bail!("{id} is not final after {PATIENCE:?}")
        };
        ensure!(run_status(&run)? == RunStatus::Completed, "{id} ended so: {run:?}");
        Ok(())
    }
}
