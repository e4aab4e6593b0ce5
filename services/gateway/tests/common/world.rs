//! One stack for each store, shared by the tests of this process; each test is a tenant of its own.

use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, mpsc};

use clap::Parser;
use errand_client::{ApiSecret, Client, NewApiKey};
use errand_core::Tenant;
use errand_gateway::Config;
use errand_tests::{Role, Stack, StoreKind};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Api, notifier};

/// Everything but gateways.
pub(crate) struct World {
    runtime: Runtime,
    _stack: Mutex<Stack>,
    broker: String,
    prefix: String,
    store: String,
    client: Client,
    gateway: Mutex<Option<Running>>,
}

/// A gateway at work.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Stops it in an orderly way.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.ended.await.unwrap().unwrap();
    }
}

impl World {
    /// The one of a store.
    pub(crate) fn of(kind: StoreKind) -> &'static Self {
        static SQLITE: LazyLock<World> = LazyLock::new(|| World::start(StoreKind::Sqlite));
        static POSTGRES: LazyLock<World> = LazyLock::new(|| World::start(StoreKind::Postgres));
        // Starting blocks, which a test's runtime must not.
        std::thread::spawn(move || match kind {
            StoreKind::Sqlite => &*SQLITE,
            StoreKind::Postgres => &*POSTGRES,
        })
        .join()
        .unwrap()
    }

    fn start(kind: StoreKind) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut stack = Stack::new(kind);
        stack.start(Role::Dispatcher, &["--log", "warn"]);
        stack.start(Role::SessionPool, &["--log", "warn", "--heartbeat-seconds", "1"]);
        stack.start(Role::Storage, &["--log", "warn"]);
        stack.start(Role::TimeoutWatcher, &["--log", "warn"]);
        stack.start(Role::Vault, &["--log", "warn"]);
        stack.start(Role::Scripted, &["--log", "warn", "--capacity", "200"]);
        let bus = runtime.block_on(async {
            stack.ready().await;
            let bus = stack.bus().await;
            // It ends with the process.
            std::mem::forget(notifier::start(&bus).await);
            bus
        });
        let client = Client::new(bus, errand_client::default_tenant());
        let (broker, prefix, store) = (stack.broker.url(), stack.prefix().to_owned(), stack.store().to_owned());
        let _stack = Mutex::new(stack);
        let world = Self { runtime, _stack, broker, prefix, store, client, gateway: Mutex::default() };
        let running = world.gateway(&["--rate-limit", "0"]);
        *world.gateway.lock().unwrap() = Some(running);
        world
    }

    /// A further gateway, with these arguments. It belongs to the world's runtime, not to the test's.
    pub(crate) fn gateway(&self, more: &[&str]) -> Running {
        let given = ["errand-gateway", "--nats-url", &self.broker, "--prefix", &self.prefix];
        let own = ["--store", &self.store, "--listen", "127.0.0.1:0"];
        let config = Config::try_parse_from(given.iter().chain(&own).chain(more)).unwrap();
        let shutdown = CancellationToken::new();
        let (told, listens) = mpsc::channel();
        // The outermost future need not be `Send`, so it is made where it runs.
        let (handle, ends) = (self.runtime.handle().clone(), shutdown.clone());
        let ended = self.runtime.spawn_blocking(move || {
            let tell = move |address| told.send(address).unwrap();
            handle.block_on(errand_gateway::run_telling(config, ends, Box::new(tell)))
        });
        let address = listens.recv().expect("the gateway serves");
        Running { address, shutdown, ended }
    }

    /// The gateway that the tests share.
    pub(crate) fn address(&self) -> SocketAddr {
        self.gateway.lock().unwrap().as_ref().unwrap().address
    }

    /// Where its services keep their state.
    pub(crate) fn store(&self) -> &str {
        &self.store
    }

    /// A client of NATS, for a tenant.
    pub(crate) fn client(&self, tenant: &Tenant) -> Client {
        self.client.for_tenant(tenant.clone())
    }

    /// A key of a tenant.
    pub(crate) async fn key(&self, tenant: &Tenant, scopes: &[&str]) -> String {
        let secret = ApiSecret::generate();
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let key = NewApiKey { name: "test".into(), scopes, expires_at_ms: None };
        let client = self.client(tenant);
        let made = self.runtime.spawn({
            let secret = secret.clone();
            async move { client.create_api_key(key, &secret).await }
        });
        made.await.unwrap().unwrap();
        secret.expose().to_owned()
    }

    /// A new tenant.
    pub(crate) fn tenant() -> Tenant {
        format!("t{}", Uuid::now_v7().simple()).parse().unwrap()
    }

    /// A new tenant, with a key for everything.
    pub(crate) async fn api(&self) -> Api {
        let key = self.key(&Self::tenant(), &["admin"]).await;
        Api { address: self.address(), key }
    }
}

/// A task whose agent does what the input says.
pub(crate) async fn task(api: &Api, more: Value) -> String {
    let mut body = json!({"name": Uuid::now_v7().to_string(), "agent_id": "agt_scripted"});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    api.post("/v2/tasks", &body).await.expect(201)["id"].as_str().unwrap().to_owned()
}

/// A run of a new task that takes these steps.
pub(crate) async fn run(api: &Api, steps: Value) -> String {
    let task = task(api, json!({})).await;
    let run = api.post(&format!("/v2/tasks/{task}/run"), &json!({"input": {"steps": steps}})).await.expect(201);
    run["id"].as_str().unwrap().to_owned()
}

/// Waits until a run has a status.
pub(crate) async fn reaches(api: &Api, run: &str, status: &str) -> Value {
    errand_tests::eventually(&format!("{run} is {status}"), std::time::Duration::from_secs(60), async || {
        let body = api.get(&format!("/v2/task-runs/{run}")).await.body;
        (body["status"] == status).then_some(body)
    })
    .await
}
