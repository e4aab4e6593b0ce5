//! A whole installation of Errand, as processes.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::Client;
use errand_bus::{Bus, BusConfig};
use futures::StreamExt;
use tempfile::TempDir;

use crate::guard::folder;
use crate::process::Child;
use crate::proxy::Proxy;
use crate::wait::eventually;
use crate::{Broker, Postgres, Service};

/// How long anything may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// What seals secrets in Postgres: in a test they are nobody's. (With SQLite the services make their own.)
pub const MASTER_KEY: &str = "dGhlIG1hc3RlciBrZXkgb2YgYWxsIHRoZSB0ZXN0cyE=";

/// Where services keep their state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// Files in a temporary folder.
    Sqlite,
    /// A database of its own.
    Postgres,
}

/// What a process of the installation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Owns runs.
    Dispatcher,
    /// Owns sessions.
    SessionPool,
    /// Owns time.
    TimeoutWatcher,
    /// Owns deliveries.
    Notifier,
    /// Owns sources and credentials.
    Vault,
    /// Owns files.
    Storage,
    /// Owns HTTP.
    Gateway,
    /// Runs programs as agents.
    Exec,
    /// Drives browsers.
    Browser,
    /// A runner whose agent does what the input says: `src/bin/errand-tests-runner.rs`.
    Scripted,
}

impl Role {
    /// Its binary.
    #[must_use]
    pub const fn binary(self) -> &'static str {
        match self {
            Self::Dispatcher => "errand-dispatcher",
            Self::SessionPool => "errand-session-pool",
            Self::TimeoutWatcher => "errand-timeout-watcher",
            Self::Notifier => "errand-notifier",
            Self::Vault => "errand-vault",
            Self::Storage => "errand-storage",
            Self::Gateway => "errand-gateway",
            Self::Exec => "errand-exec",
            Self::Browser => "errand-browser",
            Self::Scripted => "errand-tests-runner",
        }
    }

    /// Its name among the NATS micro services.
    const fn micro(self) -> &'static str {
        match self {
            Self::Dispatcher => "dispatcher",
            Self::SessionPool => "session-pool",
            Self::TimeoutWatcher => "timeout-watcher",
            Self::Notifier => "notifier",
            Self::Vault => "vault",
            Self::Storage => "storage",
            Self::Gateway => "gateway",
            Self::Exec | Self::Browser | Self::Scripted => "errand-runner",
        }
    }

    const fn has_store(self) -> bool {
        matches!(
            self,
            Self::Dispatcher | Self::SessionPool | Self::Notifier | Self::Vault | Self::Storage | Self::Gateway
        )
    }
}

/// The ways of one process to what it needs, where a test is to do harm to them.
#[derive(Debug, Default)]
pub struct Links {
    /// To each broker.
    pub broker: Vec<Proxy>,
    /// To Postgres.
    pub store: Option<Proxy>,
}

/// A broker, a store and the services over them, under a prefix of their own.
#[derive(Debug)]
pub struct Stack {
    // Dropped in this order: the services do not see their broker or store go.
    services: Vec<(Role, Service)>,
    /// Of each service, in the order of their start.
    links: Vec<Links>,
    proxied: bool,
    /// The broker, to do harm to.
    pub broker: Broker,
    /// The others of its cluster.
    pub peers: Vec<Broker>,
    /// The Postgres, where it is this stack's own.
    pub postgres: Option<Postgres>,
    store: String,
    prefix: String,
    folder: TempDir,
}

impl Stack {
    /// A broker and a store without services. Postgres is a new database in the server that the tests of this process
    /// share.
    ///
    /// # Panics
    /// Where a server is missing or does not start.
    #[must_use]
    pub fn new(kind: StoreKind) -> Self {
        let folder = folder("stack");
        let store = match kind {
            StoreKind::Sqlite => format!("sqlite://{}", folder.path().join("store").display()),
            StoreKind::Postgres => Postgres::shared().fresh_database(),
        };
        Self::over(folder, store, None)
    }

    /// As [`Self::new`], with a Postgres of its own that the test may do harm to.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_own_postgres() -> Self {
        let postgres = Postgres::start();
        Self::over(folder("stack"), postgres.url(), Some(postgres))
    }

    /// As [`Self::new`], over a broker of the test's own making.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_broker(kind: StoreKind, broker: Broker) -> Self {
        Self { broker, ..Self::new(kind) }
    }

    fn over(folder: TempDir, store: String, postgres: Option<Postgres>) -> Self {
        // The broker is its own, and the prefix is another than the shipped one: what forgets it is found out.
        let prefix = "test.errand".to_owned();
        let (services, links, peers) = (Vec::new(), Vec::new(), Vec::new());
        Self { services, links, proxied: false, broker: Broker::start(), peers, postgres, store, prefix, folder }
    }

    /// Every service that is started from now on reaches broker and Postgres through proxies of its own:
    /// [`Self::links`].
    #[must_use]
    pub fn with_proxies(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// A cluster of three in place of the one broker. Services are to be started with `--replicas 3`.
    ///
    /// # Panics
    /// Where one does not start.
    #[must_use]
    pub fn with_three_brokers(mut self) -> Self {
        let mut brokers = Broker::start_cluster();
        self.broker = brokers.remove(0);
        self.peers = brokers;
        self
    }

    /// The ways of the service that was started as the `index`th.
    #[must_use]
    pub fn links(&self, index: usize) -> &Links {
        &self.links[index]
    }

    /// Every service with its role, in the order of their start.
    pub fn all_services(&mut self) -> impl Iterator<Item = (Role, &mut Service)> {
        self.services.iter_mut().map(|(role, service)| (*role, service))
    }

    /// Where the brokers are, without proxies.
    #[must_use]
    pub fn url(&self) -> String {
        let all = std::iter::once(&self.broker).chain(&self.peers);
        all.map(Broker::url).collect::<Vec<_>>().join(",")
    }

    /// Ways for one more process, and the addresses that they make.
    fn link(&self) -> (Links, String, String) {
        if !self.proxied {
            return (Links::default(), self.url(), self.store.clone());
        }
        let brokers = std::iter::once(&self.broker).chain(&self.peers);
        let broker: Vec<Proxy> = brokers.map(|broker| Proxy::to(broker.port())).collect();
        let url: Vec<String> = broker.iter().map(|proxy| format!("nats://127.0.0.1:{}", proxy.port())).collect();
        let store = self.postgres.as_ref().map(|postgres| Proxy::to(postgres.port()));
        let store_url = self.postgres.as_ref().zip(store.as_ref()).map_or(self.store.clone(), |(postgres, proxy)| {
            self.store.replace(&format!(":{}/", postgres.port()), &format!(":{}/", proxy.port()))
        });
        (Links { broker, store }, url.join(","), store_url)
    }

    /// What the subjects start with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What `--store` is given.
    #[must_use]
    pub fn store(&self) -> &str {
        &self.store
    }

    /// The folder of this stack's files; of SQLite, too.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Where SQLite's files are.
    #[must_use]
    pub fn store_folder(&self) -> Option<&std::path::Path> {
        self.store.strip_prefix("sqlite://").map(std::path::Path::new)
    }

    /// The file with the vault's master key. A test may write others into it.
    ///
    /// # Panics
    /// Where the file cannot be written.
    #[must_use]
    pub fn master_key_file(&self) -> String {
        let file = self.folder.path().join("test-master.key");
        if !file.exists() {
            std::fs::write(&file, MASTER_KEY).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        file.display().to_string()
    }

    /// Starts one more process of a role; [`Self::ready`] waits for it.
    ///
    /// # Panics
    /// Where its binary was not built.
    pub fn start(&mut self, role: Role, more: &[&str]) {
        self.start_with(role, more, &[]);
    }

    /// As [`Self::start`], with further environment variables.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with(&mut self, role: Role, more: &[&str], env: &[(&str, &str)]) {
        let (links, url, store) = self.link();
        let mut args = vec!["--nats-url", &url, "--prefix", &self.prefix];
        if role.has_store() {
            args.extend(["--store", &store]);
        }
        // All of this stack's storages have the same files, wherever they are told to have them.
        let (files, key) =
            (format!("file://{}/files", self.folder.path().display()), self.folder.path().join("link.key"));
        let key = key.display().to_string();
        if role == Role::Notifier && self.store.starts_with("postgres") {
            args.extend(["--master-key", MASTER_KEY]);
        }
        let key_file = self.master_key_file();
        if role == Role::Vault {
            args.extend(["--master-key-file", &key_file]);
        }
        if role == Role::Storage {
            args.extend(["--link-key-file", &key]);
            if !more.contains(&"--files") {
                args.extend(["--files", &files]);
            }
        }
        args.extend(more);
        let service = Service::spawn(role.binary(), &args, env);
        self.services.push((role, service));
        self.links.push(links);
    }

    /// The processes of a role, in the order of their start.
    pub fn services(&mut self, role: Role) -> impl Iterator<Item = &mut Service> {
        self.services.iter_mut().filter(move |(one, _)| *one == role).map(|(_, service)| service)
    }

    /// The first process of a role.
    ///
    /// # Panics
    /// Where there is none.
    pub fn service(&mut self, role: Role) -> &mut Service {
        self.services(role).next().unwrap_or_else(|| panic!("the test has started no {role:?}"))
    }

    /// Waits until every process that has not ended serves: as many as there are answer the discovery of NATS micro
    /// with their endpoints.
    ///
    /// # Panics
    /// Where one does not within a minute.
    pub async fn ready(&mut self) {
        let url = self.url();
        let client = crate::broker::connect(&url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        let roles: HashSet<Role> = self.services.iter().map(|(role, _)| *role).collect();
        for role in roles {
            let mut wanted = 0;
            for service in self.services(role) {
                wanted += usize::from(service.process().ended().is_none());
            }
            eventually(&format!("{wanted} {role:?} that serve"), PATIENCE, async || {
                self.fail_of_the_fallen(role, wanted);
                (serving(&client, role, &self.prefix).await >= wanted).then_some(())
            })
            .await;
        }
    }

    /// One that ends while it is waited for says why, sooner than the wait does.
    fn fail_of_the_fallen(&mut self, role: Role, wanted: usize) {
        let all: Vec<&mut Child> = self.services(role).map(Service::process).collect();
        let mut fallen: Vec<String> = Vec::new();
        let mut alive = 0;
        for child in all {
            match child.ended() {
                None => alive += 1,
                Some(_) => fallen.push(child.last_words()),
            }
        }
        assert!(alive >= wanted, "a {role:?} ended instead of serving: {}", fallen.join("\n"));
    }

    /// A connection under this stack's prefix.
    ///
    /// # Panics
    /// Where the broker is not there.
    pub async fn bus(&self) -> Bus {
        let config = BusConfig {
            url: self.url(),
            prefix: self.prefix.clone(),
            replicas: if self.peers.is_empty() { 1 } else { 3 },
            name: "errand-tests".into(),
            ..BusConfig::default()
        };
        Bus::connect(config, PATIENCE).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// How many instances with endpoints answer for a role under a prefix.
async fn serving(client: &Client, role: Role, prefix: &str) -> usize {
    let inbox = client.new_inbox();
    let Ok(mut answers) = client.subscribe(inbox.clone()).await else { return 0 };
    let subject = format!("$SRV.INFO.{}", role.micro());
    if client.publish_with_reply(subject, inbox, bytes::Bytes::new()).await.is_err() {
        return 0;
    }
    let mut instances = HashSet::new();
    // Nobody says how many will answer, so the answers end when none has come for a while.
    while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_millis(50), answers.next()).await {
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        let ours = info["metadata"]["prefix"] == prefix;
        let listens = info["endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty());
        if let (true, true, Some(id)) = (ours, listens, info["id"].as_str()) {
            instances.insert(id.to_owned());
        }
    }
    instances.len()
}
