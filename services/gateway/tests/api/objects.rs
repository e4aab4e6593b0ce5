use serde_json::json;

use crate::common::World;
use crate::common::world::{reaches, run, task};
use crate::on_both_stores;

on_both_stores! {
    tasks_are_made_changed_and_deleted
    what_is_connected_shows
    secrets_go_in_and_never_come_out
    events_are_listed_newest_first
}

async fn tasks_are_made_changed_and_deleted(world: &'static World) {
    let api = world.api().await;
    let id = task(&api, json!({"prompt": "one", "settings": {"queue_seconds": 60}})).await;
    let path = format!("/v2/tasks/{id}");
    let made = api.get(&path).await.expect(200);
    assert_eq!((&made["version"], &made["settings"]["queue_seconds"]), (&json!(1), &json!(60)));
    let body = json!({"prompt": "two", "program": {"a": 1}, "settings": {"queue_seconds": null, "priority": 5}});
    let changed = api.send("PATCH", &path, &[], Some(body.to_string().into())).await.expect(200);
    assert_eq!((&changed["version"], &changed["prompt"], &changed["name"]), (&json!(2), &json!("two"), &made["name"]));
    assert_eq!((&changed["settings"]["queue_seconds"], &changed["settings"]["priority"]), (&json!(3600), &json!(5)));
    let cleared = api.send("PATCH", &path, &[], Some(json!({"program": null}).to_string().into())).await.expect(200);
    assert_eq!((&cleared["program"], &cleared["version"]), (&json!(null), &json!(3)));
    // Nothing differs: no new version.
    let same = api.send("PATCH", &path, &[], Some(json!({"prompt": "two"}).to_string().into())).await.expect(200);
    assert_eq!(same["version"], 3);
    assert_eq!(api.get(&format!("{path}?version=1")).await.expect(200)["prompt"], "one");
    let name = made["name"].as_str().unwrap();
    assert_eq!(api.get(&format!("/v2/tasks/name:{name}")).await.expect(200)["id"], id.as_str());
    let list = api.get("/v2/tasks?agent_id=agt_scripted").await.expect(200);
    assert_eq!((&list["data"][0]["id"], list["data"].as_array().unwrap().len()), (&json!(id), 1));
    let taken =
        api.post("/v2/tasks", &json!({"name": name, "agent_id": "agt_scripted"})).await.refuses(400, "input_invalid");
    assert_eq!(taken["errors"][0]["field"], "name");
    let deleted = api.send("DELETE", &path, &[], None).await.expect(200);
    assert_eq!(deleted["deleted"], true);
    for answer in [api.get(&path).await, api.post(&format!("{path}/run"), &json!({})).await] {
        answer.refuses(404, "task_not_found");
    }
}

async fn secrets_go_in_and_never_come_out(world: &'static World) {
    let api = world.api().await;
    let source = json!({"type": "website", "name": "portal", "url": "https://portal.example.com"});
    let source = api.post("/v2/sources", &source).await.expect(201);
    let source_id = source["id"].as_str().unwrap().to_owned();
    assert_eq!((&source["object"], &source["type"]), (&json!("source"), &json!("website")));
    let wrong = json!({"type": "website", "name": "portal", "url": "ftp://portal"});
    assert_eq!(api.post("/v2/sources", &wrong).await.refuses(400, "input_invalid")["errors"][0]["field"], "url");

    let body = json!({"name": "eve", "auth_method": "username_password", "source_id": source_id,
        "username": "eve@example.com", "password": "open sesame", "totp_secret": "JBSWY3DPEHPK3PXP"});
    let headers = [("Idempotency-Key", "eve-1")];
    let body = bytes::Bytes::from(body.to_string());
    let made = api.send("POST", "/v2/credentials", &headers, Some(body.clone())).await.expect(201);
    let again = api.send("POST", "/v2/credentials", &headers, Some(body)).await.expect(201);
    assert_eq!(made["id"], again["id"]);
    let path = format!("/v2/credentials/{}", made["id"].as_str().unwrap());
    let shown = api.get(&path).await.expect(200);
    assert_eq!((&shown["status"], &shown["has_totp"]), (&json!("unverified"), &json!(true)));
    for answer in [&made, &shown, &api.get("/v2/credentials").await.expect(200)] {
        let text = answer.to_string();
        assert!(!text.contains("sesame") && !text.contains("JBSWY3DP") && !text.contains("eve@example.com"), "{text}");
    }
    let incomplete = json!({"name": "x", "auth_method": "api_key"});
    let refused = api.post("/v2/credentials", &incomplete).await.refuses(400, "input_missing");
    assert_eq!(refused["errors"][0]["field"], "api_key");
    let change = json!({"totp_secret": null, "password": "open barley"}).to_string();
    let changed = api.send("PATCH", &path, &[], Some(change.into())).await.expect(200);
    assert_eq!((&changed["has_totp"], &changed["source_id"]), (&json!(false), &json!(source_id)));
    let list = api.get(&format!("/v2/credentials?status=unverified&source_id={source_id}")).await.expect(200);
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    let source_path = format!("/v2/sources/{source_id}");
    api.send("DELETE", &source_path, &[], None).await.refuses(400, "input_invalid");
    assert_eq!(api.send("DELETE", &path, &[], None).await.expect(200)["deleted"], true);
    api.get(&path).await.refuses(404, "credential_not_found");
    assert_eq!(api.send("DELETE", &source_path, &[], None).await.expect(200)["deleted"], true);
}

/// Changes that come upon each other are all made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_once_lose_nothing() {
    let api = World::of(errand_tests::StoreKind::Sqlite).api().await;
    let id = task(&api, json!({})).await;
    let path = format!("/v2/tasks/{id}");
    let prompt = api.send("PATCH", &path, &[], Some(json!({"prompt": "p"}).to_string().into()));
    let program = api.send("PATCH", &path, &[], Some(json!({"program": 1}).to_string().into()));
    let review = api.send("PATCH", &path, &[], Some(json!({"settings": {"review": true}}).to_string().into()));
    let (prompt, program, review) = tokio::join!(prompt, program, review);
    for changed in [prompt, program, review] {
        changed.expect(200);
    }
    let task = api.get(&path).await.expect(200);
    assert_eq!(
        (&task["prompt"], &task["program"], &task["settings"]["review"]),
        (&json!("p"), &json!(1), &json!(true))
    );
    assert_eq!(task["version"], 4);
}

async fn what_is_connected_shows(world: &'static World) {
    let api = world.api().await;
    let stuck = run(&api, json!(["stuck"])).await;
    let running = reaches(&api, &stuck, "running").await;
    let sessions = api.get("/v2/sessions?status=running&agent_id=agt_scripted").await.expect(200);
    assert_eq!(
        (&sessions["data"][0]["id"], &sessions["data"][0]["task_run_id"]),
        (&running["session_id"], &json!(stuck))
    );
    let session = running["session_id"].as_str().unwrap();
    api.get(&format!("/v2/sessions/{session}/live")).await.refuses(409, "session_not_available");
    let nobody = "/v2/sessions/sess_01h455vb4pex5vsknk084sn02q/live";
    api.get(nobody).await.refuses(404, "session_not_found");
    let runners = api.get("/v2/runners").await.expect(200);
    let runner = &runners["data"][0];
    assert_eq!((&runner["object"], &runner["agent_id"]), (&json!("runner"), &json!("agt_scripted")));
    let id = runner["id"].as_str().unwrap();
    assert_eq!(api.get(&format!("/v2/runners/{id}")).await.expect(200)["capacity"], 200);
    api.get("/v2/runners/rnr_01h455vb4pex5vsknk084sn02q").await.refuses(404, "runner_not_found");
    let nobody = "/v2/runners/rnr_01h455vb4pex5vsknk084sn02q/drain";
    api.post(nobody, &json!({})).await.refuses(404, "runner_not_found");
    let agents = api.get("/v2/agents").await.expect(200);
    assert!(agents["data"].as_array().unwrap().iter().any(|agent| agent["id"] == "agt_scripted"), "{agents}");
    api.get("/v2/agents/agt_scripted").await.expect(200);
    api.get("/v2/agents/agt_nobody").await.refuses(404, "agent_not_found");
    let types = api.get("/v2/event-types").await.expect(200);
    assert_eq!(types["data"].as_array().unwrap().len(), 25);
    api.post(&format!("/v2/task-runs/{stuck}/cancel"), &json!({})).await.expect(200);
}

async fn events_are_listed_newest_first(world: &'static World) {
    let api = world.api().await;
    // Others' events lie between ours.
    let other = world.api().await;
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(run(&api, json!([])).await);
        run(&other, json!([])).await;
    }
    for run in &runs {
        api.get(&format!("/v2/task-runs/{run}/wait")).await.expect(200);
    }
    // Wait until the last is in the stream.
    let last = runs.last().unwrap();
    errand_tests::eventually("all events are there", std::time::Duration::from_secs(30), async || {
        let list = api.get("/v2/events?type=task_run.completed").await.body;
        let ended: Vec<_> = list["data"].as_array()?.iter().map(|event| event["data"]["id"].clone()).collect();
        (ended.len() == 6 && ended.contains(&json!(last))).then_some(())
    })
    .await;
    let whole = api.get("/v2/events?limit=100").await.expect(200);
    let whole = whole["data"].as_array().unwrap().clone();
    assert!(whole.iter().all(|event| event["object"] == "event"));
    // By pages of five the same list comes, from the newest to the oldest.
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v2/events?limit=5&type=task_run.*{cursor}")).await.expect(200);
        pages.extend(page["data"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let of_runs: Vec<_> =
        whole.iter().filter(|event| event["type"].as_str().unwrap().starts_with("task_run.")).cloned().collect();
    let ids = |events: &[serde_json::Value]| events.iter().map(|event| event["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&pages), ids(&of_runs));
    assert_eq!(of_runs.len(), 18);
    let before = of_runs[4]["id"].as_str().unwrap();
    let newer = api.get(&format!("/v2/events?limit=4&type=task_run.*&ending_before={before}")).await.expect(200);
    assert_eq!(ids(newer["data"].as_array().unwrap()), ids(&of_runs[..4]));
    api.get("/v2/events?cursor=nonsense").await.refuses(400, "cursor_invalid");
    // Another tenant's event is no place in this list.
    let strange = other.get("/v2/events?limit=1").await.expect(200)["data"][0]["id"].as_str().unwrap().to_owned();
    api.get(&format!("/v2/events?cursor={strange}")).await.refuses(400, "cursor_invalid");
    api.get("/v2/events?type=colour.*").await.refuses(400, "input_invalid");
}
