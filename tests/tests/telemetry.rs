//! What an operator sees: one trace per run over all services, and the metrics.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use errand_client::{ApiSecret, Client, NewApiKey, NewRun, RunId};
use errand_core::task::Definition;
use errand_kit::{Telemetry, TelemetryArgs};
use errand_tests::{Collector, Role, Stack, StoreKind, eventually, pick_port};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
/// What every run goes through.
const SERVICES: [&str; 4] = ["errand-dispatcher", "errand-notifier", "errand-session-pool", "errand-tests-runner"];

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_one_trace_over_all_services_and_the_metrics_are_there() -> anyhow::Result<()> {
    let collector = Collector::start().await;
    let args = TelemetryArgs { otlp_endpoint: Some(collector.url().to_owned()), trace_ratio: 1.0 };
    let telemetry = Telemetry::start(&args, "tests")?;
    let mut stack = Stack::new(StoreKind::Sqlite);
    let ports: BTreeMap<Role, u16> =
        [Role::Dispatcher, Role::SessionPool, Role::TimeoutWatcher, Role::Notifier, Role::Vault]
            .map(|role| (role, pick_port()))
            .into();
    // What begins at the gateway is kept whole; what begins here is by this process's own setting.
    let telling = ["--log", "warn", "--otlp-endpoint", collector.url(), "--trace-ratio", "1"];
    let http = pick_port();
    stack.start(Role::Gateway, &[&telling[..], &["--listen", &format!("127.0.0.1:{http}")]].concat());
    for role in [Role::Dispatcher, Role::SessionPool, Role::TimeoutWatcher, Role::Notifier, Role::Vault, Role::Scripted]
    {
        let listen = ports.get(&role).map(|port| format!("127.0.0.1:{port}"));
        let mut arguments = telling.to_vec();
        if let Some(listen) = &listen {
            arguments.extend(["--health-listen", listen]);
        }
        stack.start(role, &arguments);
    }
    stack.ready().await;
    let client = Client::new(stack.bus().await, "acme".parse()?);
    let definition = json!({"name": "traced", "agent_id": "agt_scripted", "settings": {}});
    let task = client.apply_task(&serde_json::from_value::<Definition>(definition)?).await?.id;
    let asked = NewRun::of_task(&task)?.input(&json!({"steps": [{"output": 7}]}));
    let left = NewRun::of_task(&task)?.input(&json!({"steps": [{"output": 7}]}));
    let runs = [asked.id(), left.id()];
    client.submit(asked).await?;
    client.publish_run(left).await?;
    let over_http = submit_over_http(&client, http, &task).await?;
    for run in [runs[0], runs[1], over_http] {
        eventually("the run ends", PATIENCE, async || {
            client.get_run(run).await.ok().filter(|run| run.finished_at_ms.is_some())
        })
        .await;
    }
    // What this process has is sent at its end; the others send every few seconds.
    tokio::task::spawn_blocking(|| telemetry.stop()).await?;
    let mut traces = HashSet::new();
    for run in runs {
        traces.insert(check_trace(&collector, run, "errand-tests").await?);
    }
    traces.insert(check_trace(&collector, over_http, "errand-gateway").await?);
    ensure!(traces.len() == 3, "two runs share a trace");
    check_metrics(&collector, &ports).await
}

/// A run that a client without telemetry asks the gateway for.
async fn submit_over_http(client: &Client, port: u16, task: &str) -> anyhow::Result<RunId> {
    let secret = ApiSecret::generate();
    let key = NewApiKey { name: "traced".into(), scopes: vec!["runs:*".into()], expires_at_ms: None };
    client.create_api_key(key, &secret).await?;
    let body = json!({"input": {"steps": [{"output": 7}]}}).to_string();
    let request = format!(
        "POST /v2/tasks/{task}/run HTTP/1.0\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        secret.expose(),
        body.len()
    );
    let answer = exchange(port, &request).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.contains(" 201 "), "{answer}");
    let run: serde_json::Value = serde_json::from_str(body)?;
    Ok(run["id"].as_str().context("an id")?.parse()?)
}

/// All spans of the run are of one trace, from all services, below one another.
async fn check_trace(collector: &Collector, run: RunId, begins: &str) -> anyhow::Result<String> {
    let id = run.to_string();
    let services = eventually("spans of every service", PATIENCE, async || {
        let spans = collector.spans();
        let traces: HashSet<&str> =
            spans.iter().filter(|span| span.run.as_deref() == Some(&id)).map(|span| &*span.trace).collect();
        let services: BTreeSet<String> =
            spans.iter().filter(|span| traces.contains(&*span.trace)).map(|span| span.service.clone()).collect();
        SERVICES.iter().chain([&begins]).all(|service| services.contains(*service)).then_some(services)
    })
    .await;
    let spans = collector.spans();
    let own: Vec<_> = spans.iter().filter(|span| span.run.as_deref() == Some(&id)).collect();
    let traces: HashSet<&str> = own.iter().map(|span| &*span.trace).collect();
    ensure!(traces.len() == 1, "{run} is in {} traces", traces.len());
    let trace = own[0].trace.clone();
    let all: Vec<_> = spans.iter().filter(|span| span.trace == trace).collect();
    let roots: Vec<_> = all.iter().filter(|span| span.parent.is_empty()).collect();
    ensure!(roots.len() == 1 && roots[0].service == begins, "{run} begins in {roots:?}");
    let commits = own.iter().filter(|span| span.name == "commit").count();
    ensure!(commits == 3, "{run} has {commits} commits, from {services:?}");
    for name in ["lease", "process execution", "send notify"] {
        ensure!(all.iter().any(|span| span.name == name), "no span {name} in {all:#?}");
    }
    Ok(trace)
}

/// Each service shows what it counts, by OTLP and on `/metrics`.
async fn check_metrics(collector: &Collector, ports: &BTreeMap<Role, u16>) -> anyhow::Result<()> {
    let wanted: [(Role, &str, &[&str]); 5] = [
        (
            Role::Dispatcher,
            "errand-dispatcher",
            &[
                "errand.run.changes",
                "errand.run.queue_time",
                "errand.run.time",
                "errand.commit.size",
                "errand.commit.time",
                "errand.outbox.lag",
                "errand.consumer.pending",
                "errand.broker.connected",
            ],
        ),
        (
            Role::SessionPool,
            "errand-session-pool",
            &["errand.pool.waiting", "errand.pool.sessions", "errand.pool.capacity", "errand.lease.wait"],
        ),
        (Role::TimeoutWatcher, "errand-timeout-watcher", &["errand.deadline.armed"]),
        (Role::Vault, "errand-vault", &["errand.outbox.lag"]),
        (Role::Notifier, "errand-notifier", &["errand.delivery.lag", "errand.deliveries", "errand.consumer.pending"]),
    ];
    for (role, service, names) in wanted {
        for name in names {
            // What the broker is asked for comes with the next question.
            eventually(&format!("{name} of {service} on /metrics"), PATIENCE, async || {
                let text = get(ports[&role], "/metrics").await.ok()?;
                text.contains(&name.replace('.', "_")).then_some(())
            })
            .await;
            let sent = (service.to_owned(), (*name).to_owned());
            eventually(&format!("{name} of {service} by OTLP"), PATIENCE, async || {
                collector.metrics().contains(&sent).then_some(())
            })
            .await;
        }
    }
    Ok(())
}

/// What a plain HTTP server answers.
async fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let answer = exchange(port, &format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")).await?;
    ensure!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(answer)
}

async fn exchange(port: u16, request: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
