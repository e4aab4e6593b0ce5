use serde_json::{Value, json};

use crate::common::world::{reaches, run, task};
use crate::common::{Api, World};
use crate::on_both_stores;

on_both_stores! { no_route_shows_or_changes_what_is_another_tenants }

/// What one tenant has, by the name that it has in paths.
async fn objects(api: &Api) -> Value {
    let stuck = run(api, json!(["stuck"])).await;
    let running = reaches(api, &stuck, "running").await;
    let body = json!({"name": "hook", "type": "webhook", "webhook": {"url": "https://example.com"}, "events": ["*"]});
    let destination = api.post("/v2/event-destinations", &body).await.expect(201);
    let id = destination["id"].as_str().unwrap();
    let delivery = api.post(&format!("/v2/event-destinations/{id}/test"), &json!({})).await.expect(200);
    json!({
        "task_id": running["task_id"], "run_id": stuck, "session_id": running["session_id"],
        "destination_id": destination["id"], "delivery_id": delivery["id"],
    })
}

/// A body that a route would take from the owner.
fn body_of(path: &str, method: &str) -> Option<Value> {
    match path.rsplit('/').next()? {
        _ if method == "get" || method == "delete" => None,
        "interaction" => Some(json!({"input": {"code": "1"}})),
        "review" => Some(json!({"decision": "approve"})),
        "replay" => Some(json!({"since": "2026-01-01T00:00:00Z"})),
        _ => Some(json!({})),
    }
}

async fn no_route_shows_or_changes_what_is_another_tenants(world: &'static World) {
    let (owner, stranger) = (world.api().await, world.api().await);
    let objects = objects(&owner).await;
    let document = owner.get("/v2/openapi.json").await.expect(200);
    let mut walked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let mut asked = path.clone();
            for (name, id) in objects.as_object().unwrap() {
                asked = asked.replace(&format!("{{{name}}}"), id.as_str().unwrap());
            }
            // Runners and agents are the installation's.
            if asked.contains('{') {
                continue;
            }
            let body = body_of(path, method).map(|body| body.to_string().into());
            let answer = stranger.send(&method.to_uppercase(), &asked, &[], body).await;
            if path.contains('{') {
                let code = answer.error().1.to_owned();
                assert!(answer.status == 404 && code.ends_with("_not_found"), "{method} {asked}: {}", answer.text);
                walked += 1;
            } else if method == "get" {
                let text = &answer.text;
                let shows = objects.as_object().unwrap().values().any(|id| text.contains(id.as_str().unwrap()));
                assert!(!shows, "{method} {asked}: {text}");
            }
        }
    }
    assert!(walked >= 24, "{walked}");
    for (name, filter) in [("task_id", "task_id"), ("session_id", "session_id")] {
        let id = objects[name].as_str().unwrap();
        let list = stranger.get(&format!("/v2/task-runs?{filter}={id}")).await.expect(200);
        assert_eq!(list["data"], json!([]));
    }
    let headers = [("accept", "text/event-stream")];
    let path = format!("/v2/task-runs/{}/events", objects["run_id"].as_str().unwrap());
    stranger.send("GET", &path, &headers, None).await.refuses(404, "task_run_not_found");
    let own = task(&stranger, json!({})).await;
    let body = json!({"session_id": objects["session_id"]});
    stranger.post(&format!("/v2/tasks/{own}/run"), &body).await.refuses(404, "session_not_found");
    // Nothing has happened to the owner's.
    let stuck = objects["run_id"].as_str().unwrap();
    assert_eq!(owner.get(&format!("/v2/task-runs/{stuck}")).await.expect(200)["status"], "running");
    owner.post(&format!("/v2/task-runs/{stuck}/cancel"), &json!({})).await.expect(200);
}
