use std::time::{Duration, Instant};

use errand_client::{ApiSecret, Client, NewApiKey, v1};
use futures::TryStreamExt;
use serde_json::json;

use crate::common::world::task;
use crate::common::{Api, World};
use crate::on_both_stores;

on_both_stores! {
    keys_are_made_used_and_revoked_on_every_gateway
    a_key_may_do_what_its_scopes_say
}

pub(crate) async fn listed(client: &Client) -> Vec<v1::ApiKey> {
    client.api_keys().try_collect().await.unwrap()
}

async fn keys_are_made_used_and_revoked_on_every_gateway(world: &'static World) {
    let tenant = World::tenant();
    let client = world.client(&tenant);
    let secret = ApiSecret::generate();
    let key = || NewApiKey { name: "mine".into(), scopes: vec!["runs:read".into()], expires_at_ms: None };
    let made = client.create_api_key(key(), &secret).await.unwrap();
    assert_eq!(client.create_api_key(key(), &secret).await.unwrap().id, made.id, "a repetition");
    assert!(secret.expose().ends_with(&made.hint) && made.hint.len() == 4);
    let second = world.gateway(&[]);
    let apis = [world.address(), second.address].map(|address| Api { address, key: secret.expose().into() });
    for api in &apis {
        api.get("/v2/task-runs").await.expect(200);
    }
    errand_tests::eventually("its use is noted", Duration::from_secs(30), async || {
        listed(&client).await[0].last_used_at_ms
    })
    .await;
    client.revoke_api_key(made.id.parse().unwrap()).await.unwrap();
    let revoked = Instant::now();
    for api in &apis {
        errand_tests::eventually("it is refused", Duration::from_secs(5), async || {
            (api.get("/v2/task-runs").await.status == 401).then_some(())
        })
        .await;
    }
    assert!(revoked.elapsed() < Duration::from_secs(1), "{:?}", revoked.elapsed());
    apis[0].get("/v2/task-runs").await.refuses(401, "api_key_invalid");
    assert!(listed(&client).await[0].revoked_at_ms.is_some());
    // Of another tenant it is not there.
    let stranger = world.client(&World::tenant());
    assert!(listed(&stranger).await.is_empty());
    let error = stranger.revoke_api_key(made.id.parse().unwrap()).await.unwrap_err().to_error();
    assert_eq!(error.code.code, "api_key_not_found");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_comes_in_without_a_good_key() {
    let world = World::of(errand_tests::StoreKind::Sqlite);
    let tenant = World::tenant();
    let client = world.client(&tenant);
    let api = Api { address: world.address(), key: String::new() };
    let answer = api.get("/v2/task-runs").await;
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    answer.refuses(401, "api_key_missing");
    for wrong in ["x", ApiSecret::generate().expose(), "sk_"] {
        api.with(wrong).get("/v2/task-runs").await.refuses(401, "api_key_invalid");
    }
    api.send("GET", "/v2/tasks", &[("authorization", "Basic YTpi")], None).await.refuses(401, "api_key_invalid");
    let secret = ApiSecret::generate();
    let now = errand_gateway::auth::now_ms();
    let key = NewApiKey { name: "short".into(), scopes: vec!["admin".into()], expires_at_ms: Some(now + 700) };
    client.create_api_key(key, &secret).await.unwrap();
    let api = api.with(secret.expose());
    api.get("/v2/task-runs").await.expect(200);
    let expired = errand_tests::eventually("it expires", Duration::from_secs(5), async || {
        Some(api.get("/v2/task-runs").await).filter(|answer| answer.status == 401)
    })
    .await;
    assert!(expired.refuses(401, "api_key_invalid")["errors"][0]["message"].as_str().unwrap().contains("expired"));
    for (name, scopes, expires) in
        [("", vec!["admin"], None), ("n", vec![], None), ("n", vec!["colour"], None), ("n", vec!["admin"], Some(1))]
    {
        let scopes = scopes.into_iter().map(str::to_owned).collect();
        let key = NewApiKey { name: name.into(), scopes, expires_at_ms: expires };
        let error = client.create_api_key(key, &ApiSecret::generate()).await.unwrap_err().to_error();
        assert_eq!(error.code.kind, "request", "{error}");
    }
}

async fn a_key_may_do_what_its_scopes_say(world: &'static World) {
    let tenant = World::tenant();
    let admin = Api { address: world.address(), key: world.key(&tenant, &["admin"]).await };
    let task = task(&admin, json!({})).await;
    let run = format!("/v2/tasks/{task}/run");
    let with = async |scopes: &[&str]| admin.with(&world.key(&tenant, scopes).await);
    let reader = with(&["runs:read", "tasks:read"]).await;
    reader.get("/v2/task-runs").await.expect(200);
    reader.get(&format!("/v2/tasks/{task}")).await.expect(200);
    let refused = reader.post(&run, &json!({})).await.refuses(403, "forbidden");
    assert!(refused["errors"][0]["message"].as_str().unwrap().contains("runs:write"));
    for path in ["/v2/sessions", "/v2/events", "/v2/event-destinations", "/v2/runners", "/v2/agents"] {
        reader.get(path).await.refuses(403, "forbidden");
    }
    let writer = with(&["runs:*"]).await;
    writer.post(&run, &json!({})).await.expect(201);
    writer.get("/v2/tasks").await.refuses(403, "forbidden");
    let own = with(&["runs:*", "tasks:*", "sessions:*", "events:*", "destinations:*"]).await;
    for path in ["/v2/sessions", "/v2/events", "/v2/event-destinations", "/v2/agents", "/v2/event-types"] {
        own.get(path).await.expect(200);
    }
    own.get("/v2/runners").await.refuses(403, "forbidden");
    admin.get("/v2/runners").await.expect(200);
}
