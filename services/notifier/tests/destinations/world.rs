//! A broker, a store, notifiers in this process, and a client.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use errand_bus::Bus;
use errand_client::{Client, NewDestination};
use errand_core::{DestinationId, EventId, RunId};
use errand_notifier::Config;
use errand_proto::v1;
use errand_tests::{MASTER_KEY, Stack, StoreKind, eventually};
use futures::TryStreamExt;
use prost::Message;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::double::Outside;

pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A notifier with a runtime of its own, so that it can be ended as by `kill -9`.
pub(crate) struct Notifier {
    runtime: Option<Runtime>,
    shutdown: CancellationToken,
    killed: CancellationToken,
    ended: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Notifier {
    fn start(config: Config, outside: Outside) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (shutdown, handle) = (CancellationToken::new(), runtime.handle().clone());
        let (token, killed) = (shutdown.clone(), CancellationToken::new());
        let dies = killed.clone();
        let ended = std::thread::spawn(move || {
            handle.block_on(async {
                tokio::select! {
                    ended = errand_notifier::run_with(config, Arc::new(outside), token) => ended,
                    () = dies.cancelled() => Ok(()),
                }
            })
        });
        Self { runtime: Some(runtime), shutdown, killed, ended: Some(ended) }
    }

    /// Ends it in order, and says how it went.
    pub(crate) fn stop(mut self) {
        self.shutdown.cancel();
        tokio::task::block_in_place(|| self.ended.take().unwrap().join().unwrap().unwrap());
    }

    /// Drops all that it does, wherever it is.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // What it holds must go with it, as the locks of a process do.
        self.killed.cancel();
        if let Some(ended) = self.ended.take() {
            let ended = tokio::task::block_in_place(|| ended.join());
            ended.unwrap().unwrap();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) struct World {
    pub(crate) bus: Bus,
    pub(crate) client: Client,
    pub(crate) outside: Outside,
    pub(crate) notifiers: Vec<Notifier>,
    more: Vec<String>,
    pub(crate) stack: Stack,
}

impl World {
    /// With a short schedule: a delivery has three attempts within a second.
    pub(crate) async fn start(kind: StoreKind) -> Self {
        Self::start_with(kind, &["--delivery-delays", "100ms,200ms"]).await
    }

    pub(crate) async fn start_with(kind: StoreKind, more: &[&str]) -> Self {
        let stack = Stack::new(kind);
        let bus = stack.bus().await;
        let client = Client::new(bus.clone(), "acme".parse().unwrap());
        let more = more.iter().map(ToString::to_string).collect();
        let mut world = Self { bus, client, outside: Outside::new(), notifiers: Vec::new(), more, stack };
        world.add_notifier();
        world.serving().await;
        world
    }

    pub(crate) fn add_notifier(&mut self) {
        let url = self.stack.broker.url();
        let mut arguments = vec!["notifier", "--nats-url", &url, "--prefix", self.stack.prefix()];
        arguments.extend(["--store", self.stack.store(), "--master-key", MASTER_KEY]);
        if !self.more.iter().any(|one| one == "--delivery-claim") {
            // One that is killed is missed soon.
            arguments.extend(["--delivery-claim", "1s"]);
        }
        arguments.extend(self.more.iter().map(String::as_str));
        let config = Config::try_parse_from(arguments).unwrap();
        self.notifiers.push(Notifier::start(config, self.outside.clone()));
    }

    pub(crate) async fn serving(&self) {
        eventually("the notifier serves", PATIENCE, async || self.client.notifier_status().await.ok()).await;
    }

    pub(crate) async fn destination(&self, place: &str, events: &[&str]) -> DestinationId {
        let new = NewDestination::new(place, "place", &json!({"place": place}), events);
        let id = new.id();
        self.client.create_destination(new).await.unwrap();
        id
    }

    pub(crate) async fn put(&self, event: &v1::Event) {
        let (object, action) = event.r#type.split_once('.').unwrap();
        let subject = self.bus.subjects().event(&event.tenant.parse().unwrap(), object, action, &event.object_id);
        let payload = event.encode_to_vec().into();
        self.bus.publish_stream(subject, &event.id, None, payload).await.unwrap().await.unwrap();
    }

    /// One event of each run, all at once.
    pub(crate) async fn put_round(&self, runs: &[RunId], seq: u64) {
        futures::future::join_all(runs.iter().map(|run| async move { self.put(&event(*run, seq)).await })).await;
    }

    pub(crate) async fn get(&self, id: DestinationId) -> v1::Destination {
        self.client.get_destination(id).await.unwrap()
    }

    pub(crate) async fn deliveries(&self, id: DestinationId) -> Vec<v1::Delivery> {
        self.client.deliveries(id, Default::default()).try_collect().await.unwrap()
    }

    /// Waits until no delivery of a destination waits.
    pub(crate) async fn settled(&self, id: DestinationId, count: usize) -> Vec<v1::Delivery> {
        eventually(&format!("{count} deliveries are finished"), PATIENCE, async || {
            let all = self.deliveries(id).await;
            let finished = all.iter().filter(|one| one.status() != v1::DeliveryStatus::Pending).count();
            (finished >= count && finished == all.len()).then_some(all)
        })
        .await
    }

    pub(crate) async fn until_inactive(&self, id: DestinationId) -> v1::Destination {
        eventually("it is deactivated", PATIENCE, async || {
            let destination = self.get(id).await;
            (destination.status() == v1::DestinationStatus::Inactive).then_some(destination)
        })
        .await
    }
}

pub(crate) fn runs(count: usize) -> Vec<RunId> {
    (0..count).map(|_| RunId::from_uuid(Uuid::now_v7())).collect()
}

pub(crate) fn event(run: RunId, seq: u64) -> v1::Event {
    let summary = v1::RunSummary {
        id: run.to_string(),
        status: v1::RunStatus::Running.into(),
        metadata: [("parity".to_owned(), (seq % 2).to_string())].into(),
        ..v1::RunSummary::default()
    };
    v1::Event {
        id: EventId::from_uuid(Uuid::now_v7()).to_string(),
        r#type: "task_run.running".into(),
        tenant: "acme".into(),
        object_id: run.to_string(),
        seq,
        created_at_ms: errand_now(),
        data: Some(v1::event::Data::Run(summary)),
        ..v1::Event::default()
    }
}

pub(crate) fn errand_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}
