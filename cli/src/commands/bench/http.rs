//! `errand bench http`: how fast the HTTP API is, with the broker, all services, a runner that does nothing and the
//! load's own client on the same machine. Every POST is committed in the store before its 201.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use errand_bus::{Bus, BusConfig};
use errand_client::{ApiSecret, Client, NewApiKey};
use errand_core::AgentId;
use errand_core::task::{Definition, Settings, Storage};
use errand_runner::RunnerConfig;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::load::Measured;
use super::report::{Durability, build, cores, figures, milliseconds, rate};
use super::{PATIENCE, noop, store_of};
use crate::args::{BenchHttpArgs, Global};
use crate::broker::{self, Broker, BrokerConfig};
use crate::commands::dev::until_ready;
use crate::output::{Output, table};
use crate::stack::{HttpConfig, Stack, StackConfig};

/// What every request is sent with.
#[derive(Debug, Clone)]
struct Target {
    address: SocketAddr,
    bearer: Arc<str>,
    task: Arc<str>,
}

pub(super) async fn run(args: &BenchHttpArgs, global: &Global, scratch: &Path, out: Output) -> anyhow::Result<()> {
    let program = broker::find(args.nats_server.nats_server.as_deref())?;
    let broker = Broker::start(&BrokerConfig { program, folder: scratch.join("nats"), port: 0 }).await?;
    let mut postgres = None;
    let store = store_of(&args.store, scratch, &mut postgres).await?;
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let master_key = Some(errand_seal::new_key().to_string());
    let http = Some(HttpConfig { listen, rate_limit: Some(0) });
    let config = StackConfig { master_key, http, ..StackConfig::new(&broker.url, &global.prefix, store.clone()) };
    let mut stack = Stack::start(&config)?;
    let measured = measure(args, global, &broker.url, &mut stack).await;
    let stopped = stack.stop().await.and(broker.stop().await);
    if let Some(postgres) = postgres {
        postgres.stop().await?;
    }
    let (get, post) = measured?;
    stopped?;
    print(args, &Durability::of_store(&store), [("GET run", &get), ("POST run", &post)], out)
}

async fn measure(
    args: &BenchHttpArgs,
    global: &Global,
    nats_url: &str,
    stack: &mut Stack,
) -> anyhow::Result<(Measured, Measured)> {
    let bus_config = BusConfig {
        url: nats_url.to_owned(),
        prefix: global.prefix.clone(),
        name: "errand-bench".into(),
        ..BusConfig::default()
    };
    let bus = Bus::connect(bus_config, PATIENCE).await?;
    let client = Client::new(bus.clone(), "bench".parse()?);
    let agent: AgentId = "agt_bench".parse()?;
    until_ready(&client, None).await?;
    let shutdown = CancellationToken::new();
    let config = RunnerConfig { capacity: 256, ..RunnerConfig::new(agent.clone()) };
    let runner = tokio::spawn(errand_runner::run(bus, noop::Noop, config, shutdown.clone()));
    let measured = async {
        until_ready(&client, Some(agent.as_str())).await?;
        let target = target(&client, agent, stack.http().await?).await?;
        let run = make(&target).await?;
        // Connections, sessions and caches are made once, and that is not what is measured.
        load(args.connections, args.requests / 10, &target, None).await?;
        let get = load(args.connections, args.requests, &target, Some(Arc::from(run))).await?;
        let post = load(args.connections, args.requests, &target, None).await?;
        Ok((get, post))
    };
    let measured = measured.await;
    shutdown.cancel();
    runner.await??;
    measured
}

async fn target(client: &Client, agent: AgentId, address: SocketAddr) -> anyhow::Result<Target> {
    let settings = Settings { reuse_session: true, ..Settings::default() };
    let definition = Definition {
        name: "bench".into(),
        agent_id: agent,
        prompt: String::new(),
        program: None,
        input_schema: None,
        output_schema: None,
        settings,
        storage: Storage::default(),
    };
    let task = client.apply_task(&definition).await?.id;
    let secret = ApiSecret::generate();
    let key = NewApiKey { name: "bench".into(), scopes: vec!["runs:*".into()], expires_at_ms: None };
    client.create_api_key(key, &secret).await?;
    Ok(Target { address, bearer: format!("Bearer {}", secret.expose()).into(), task: task.into() })
}

/// One connection.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    target: Target,
}

impl Connection {
    async fn open(target: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, target: target.clone() })
    }

    async fn send(&mut self, method: Method, path: String, body: &'static str) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "errand")
            .header("authorization", &*self.target.bearer)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from_static(body.as_bytes())))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    async fn post(&mut self) -> anyhow::Result<Bytes> {
        let path = format!("/v2/tasks/{}/run", self.target.task);
        let (status, body) = self.send(Method::POST, path, r#"{"input": {"n": 1}}"#).await?;
        ensure!(status == StatusCode::CREATED, "POST: {status} {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    async fn get(&mut self, run: &str) -> anyhow::Result<()> {
        let (status, body) = self.send(Method::GET, format!("/v2/task-runs/{run}"), "").await?;
        ensure!(status == StatusCode::OK, "GET: {status} {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// One run, to read it: its id.
async fn make(target: &Target) -> anyhow::Result<String> {
    let body: Value = serde_json::from_slice(&Connection::open(target).await?.post().await?)?;
    body["id"].as_str().map(str::to_owned).context("the answer holds no id")
}

/// So many requests over so many connections; each reads the run, or makes one.
async fn load(connections: usize, requests: usize, target: &Target, run: Option<Arc<str>>) -> anyhow::Result<Measured> {
    let left = Arc::new(AtomicUsize::new(requests));
    let mut open = Vec::new();
    for _ in 0..connections.max(1) {
        open.push(Connection::open(target).await?);
    }
    let started = Instant::now();
    let mut set = JoinSet::new();
    for mut connection in open {
        let (left, run) = (Arc::clone(&left), run.clone());
        set.spawn(async move {
            let mut latency = Histogram::<u64>::new(3)?;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let sent = Instant::now();
                match &run {
                    Some(run) => connection.get(run).await?,
                    None => drop(connection.post().await?),
                }
                latency.record(u64::try_from(sent.elapsed().as_micros())?)?;
            }
            anyhow::Ok(latency)
        });
    }
    let mut latency = Histogram::new(3)?;
    while let Some(part) = set.join_next().await {
        latency.add(part??)?;
    }
    if latency.len() != requests as u64 {
        bail!("{} of {requests} requests were answered", latency.len());
    }
    Ok(Measured { runs: requests, took: started.elapsed(), latency, ..Measured::new()? })
}

fn print(
    args: &BenchHttpArgs,
    durability: &Durability,
    parts: [(&str, &Measured); 2],
    out: Output,
) -> anyhow::Result<()> {
    if out.json {
        let [(_, get), (_, post)] = parts;
        let figures = |measured| {
            let mut value = figures(measured);
            if let Some(fields) = value.as_object_mut() {
                for (old, new) in [("runs", "requests"), ("runs_per_second", "requests_per_second")] {
                    if let Some(figure) = fields.remove(old) {
                        fields.insert(new.to_owned(), figure);
                    }
                }
            }
            value
        };
        let object = json!({
            "object": "bench_http", "version": env!("CARGO_PKG_VERSION"), "build": build(), "cores": cores(),
            "connections": args.connections, "get_run": figures(get), "post_run": figures(post),
            "durability": {"store": durability.store, "commit": durability.commit, "broker": durability.broker},
        });
        return out.line(object.to_string());
    }
    let mut rows = table(["", "REQUESTS", "REQUESTS/S", "P50 MS", "P99 MS", "MAX MS"]);
    for (name, measured) in parts {
        let latency = |quantile| format!("{:.2}", milliseconds(&measured.latency, quantile));
        let (requests, rate) = (measured.runs.to_string(), format!("{:.0}", rate(measured)));
        rows.add_row([name.to_owned(), requests, rate, latency(0.5), latency(0.99), latency(1.0)]);
    }
    out.line(format!(
        "{}\n\n\
         load      {} connections, one request under way on each, from this machine\n\
         with it   broker, all services, and a runner that executes what is posted\n\
         commit    {}: {}\n\
         machine   {} cores, {} build",
        rows.trim_fmt(),
        args.connections,
        durability.store,
        durability.commit,
        cores(),
        build(),
    ))
}
