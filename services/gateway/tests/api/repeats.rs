use errand_tests::StoreKind;
use serde_json::{Value, json};

use crate::common::http::Answer;
use crate::common::world::task;
use crate::common::{Api, World};
use crate::on_both_stores;

on_both_stores! {
    the_same_request_under_a_key_is_done_once
    answers_survive_a_restart_and_hold_no_secret_in_the_open
}

async fn keyed(api: &Api, method: &str, path: &str, key: &str, body: &Value) -> Answer {
    api.send(method, path, &[("idempotency-key", key)], Some(body.to_string().into())).await
}

async fn count(api: &Api) -> usize {
    api.get("/v2/task-runs?limit=100").await.expect(200)["data"].as_array().unwrap().len()
}

async fn the_same_request_under_a_key_is_done_once(world: &'static World) {
    let api = world.api().await;
    let task = task(&api, json!({"input_schema": {"type": "integer"}})).await;
    let path = format!("/v2/tasks/{task}/run");
    let body = json!({"input": 1});
    let first = keyed(&api, "POST", &path, "order-1", &body).await;
    let again = keyed(&api, "POST", &path, "order-1", &body).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.headers["x-request-id"], first.headers["x-request-id"]);
    assert_eq!(first.expect(201), again.expect(201));
    assert_eq!(count(&api).await, 1);
    keyed(&api, "POST", &path, "order-1", &json!({"input": 2})).await.refuses(409, "idempotency_error");
    keyed(&api, "DELETE", &format!("/v2/tasks/{task}"), "order-1", &json!({})).await.refuses(409, "idempotency_error");
    // Only successes are remembered.
    keyed(&api, "POST", &path, "order-2", &json!({"input": "x"})).await.refuses(400, "input_invalid");
    keyed(&api, "POST", &path, "order-2", &json!({"input": 2})).await.expect(201);
    // Keys are the tenant's own.
    let other = world.api().await;
    keyed(&other, "POST", &path, "order-1", &body).await.refuses(404, "task_not_found");
    let long = "k".repeat(257);
    keyed(&api, "POST", &path, &long, &body).await.refuses(400, "idempotency_key_error");
    keyed(&api, "POST", &path, &long[1..], &body).await.expect(201);
    // At once, over two gateways.
    let second = world.gateway(&["--rate-limit", "0"]);
    let there = Api { address: second.address, ..api.clone() };
    let before = count(&api).await;
    let asks = (0..10).map(|number| {
        let api = if number % 2 == 0 { &api } else { &there };
        keyed(api, "POST", &path, "order-3", &body)
    });
    let answers = futures::future::join_all(asks).await;
    let bodies: Vec<Value> = answers.into_iter().map(|answer| answer.expect(201)).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    assert_eq!(count(&api).await, before + 1);
    second.stop().await;
}

async fn answers_survive_a_restart_and_hold_no_secret_in_the_open(world: &'static World) {
    let tenant = World::tenant();
    let key = world.key(&tenant, &["admin"]).await;
    let first = world.gateway(&[]);
    let api = Api { address: first.address, key };
    let body = json!({"name": "hook", "type": "webhook", "webhook": {"url": "https://example.com"}, "events": ["*"]});
    let made = keyed(&api, "POST", "/v2/event-destinations", "hook-1", &body).await.expect(201);
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
    first.stop().await;
    let second = world.gateway(&[]);
    let api = Api { address: second.address, ..api };
    assert_eq!(keyed(&api, "POST", "/v2/event-destinations", "hook-1", &body).await.expect(201), made);
    // Who has not the first asker's key cannot open it.
    let other = api.with(&world.key(&tenant, &["admin"]).await);
    keyed(&other, "POST", "/v2/event-destinations", "hook-1", &body).await.refuses(409, "idempotency_error");
    let store = errand_gateway::store::Store::open(world.store()).await.unwrap();
    let sql = "SELECT body FROM idempotency WHERE tenant = $1";
    let kept: Vec<(Vec<u8>,)> = match store.db() {
        errand_store::Db::Sqlite(sqlite) => {
            sqlx::query_as(sql).bind(tenant.as_str()).fetch_all(&sqlite.read).await.unwrap()
        }
        errand_store::Db::Postgres(pool) => sqlx::query_as(sql).bind(tenant.as_str()).fetch_all(pool).await.unwrap(),
    };
    assert_eq!(kept.len(), 1);
    assert!(!String::from_utf8_lossy(&kept[0].0).contains("whsec_"));
    second.stop().await;
}

/// A service that does not answer is told as such, in time; the same request later makes one run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_hangs_is_told_and_its_request_can_be_repeated() {
    use errand_client::{ApiSecret, Client, NewApiKey};
    use errand_tests::{Role, Stack};
    let mut stack = tokio::task::spawn_blocking(|| Stack::new(StoreKind::Sqlite)).await.unwrap();
    stack.start(Role::Dispatcher, &["--log", "warn"]);
    stack.ready().await;
    let (url, prefix, store) = (stack.broker.url(), stack.prefix().to_owned(), stack.store().to_owned());
    let arguments = ["g", "--nats-url", &url, "--prefix", &prefix, "--store", &store, "--listen", "127.0.0.1:0"];
    let config =
        <errand_gateway::Config as clap::Parser>::try_parse_from(arguments.iter().chain(&["--deadline-ms", "700"]));
    let (shutdown, (told, listens)) = (tokio_util::sync::CancellationToken::new(), tokio::sync::oneshot::channel());
    let (handle, ends, config) = (tokio::runtime::Handle::current(), shutdown.clone(), config.unwrap());
    let ended = tokio::task::spawn_blocking(move || {
        let tell = move |address| told.send(address).unwrap();
        handle.block_on(errand_gateway::run_telling(config, ends, Box::new(tell)))
    });
    let address = listens.await.unwrap();
    let (secret, client) = (ApiSecret::generate(), Client::new(stack.bus().await, "acme".parse().unwrap()));
    let key = NewApiKey { name: "n".into(), scopes: vec!["admin".into()], expires_at_ms: None };
    client.create_api_key(key, &secret).await.unwrap();
    let api = Api { address, key: secret.expose().into() };
    let task = task(&api, json!({})).await;
    let path = format!("/v2/tasks/{task}/run");
    // There is no session-pool.
    api.get("/v2/sessions").await.refuses(503, "unavailable");
    assert!(api.get("/readyz").await.text.contains("the session-pool"));
    // One that answers what nobody can read.
    let bus = stack.bus().await;
    let strange = errand_bus::Service::builder(&bus, "session-pool", "answers nonsense")
        .endpoint_raw("list_agents", bus.subjects().api("session-pool", "list_agents"), 1, |_| async {
            Ok("\u{7f}\u{7f}".into())
        })
        .start()
        .await
        .unwrap();
    api.get("/v2/agents").await.refuses(500, "api_error");
    strange.stop(std::time::Duration::from_secs(5)).await;
    stack.service(Role::Dispatcher).process().sigstop();
    api.get("/v2/task-runs").await.refuses(504, "timeout");
    keyed(&api, "POST", &path, "order-1", &json!({})).await.refuses(504, "timeout");
    stack.service(Role::Dispatcher).process().sigcont();
    let made = keyed(&api, "POST", &path, "order-1", &json!({})).await.expect(201);
    assert_eq!(count(&api).await, 1, "{made}");
    stack.broker.stop();
    let answer =
        errand_tests::eventually("the broker's end is noticed", std::time::Duration::from_secs(10), async || {
            Some(api.get("/v2/task-runs").await).filter(|answer| answer.status == 503)
        })
        .await;
    answer.refuses(503, "unavailable");
    assert_eq!((api.get("/healthz").await.status, api.get("/readyz").await.status), (200, 503));
    shutdown.cancel();
    ended.await.unwrap().unwrap();
}
