use serde_json::json;

use crate::common::world::{reaches, run, task};
use crate::common::{Api, World};
use crate::on_both_stores;

on_both_stores! {
    a_run_goes_its_way_over_http
    what_a_run_does_not_admit_is_refused_by_its_code
    lists_have_pages_and_filters
    what_does_not_fit_is_named
}

async fn a_run_goes_its_way_over_http(world: &'static World) {
    let api = world.api().await;
    let task = task(&api, json!({"output_schema": {"type": "integer"}})).await;
    let body = json!({"input": {"steps": [{"output": 7}]}, "metadata": {"order": "4711"}, "priority": 3});
    let made = api.post(&format!("/v2/tasks/{task}/run"), &body).await.expect(201);
    assert_eq!((&made["status"], &made["object"]), (&json!("queued"), &json!("task_run")));
    assert_eq!((&made["metadata"]["order"], &made["priority"]), (&json!("4711"), &json!(3)));
    let id = made["id"].as_str().unwrap();
    let ended = api.get(&format!("/v2/task-runs/{id}/wait?timeout=60")).await.expect(200);
    assert_eq!(
        (&ended["status"], &ended["result"], &ended["output"]),
        (&json!("completed"), &json!("success"), &json!(7))
    );
    assert!(ended.get("input").is_none() && ended.get("events").is_none());

    let all = api.get(&format!("/v2/task-runs/{id}?include=input,events,storage,screenshots")).await.expect(200);
    assert_eq!(all["input"], body["input"]);
    assert_eq!((&all["storage"], &all["artifacts"]["screenshots"]), (&json!([]), &json!([])));
    let types: Vec<&str> =
        all["events"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["task_run.queued", "task_run.running", "task_run.completed"]);
    let page = api.get(&format!("/v2/task-runs/{id}/events?limit=2")).await.expect(200);
    assert_eq!((&page["data"][0]["type"], &page["has_more"]), (&json!("task_run.completed"), &json!(true)));
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = api.get(&format!("/v2/task-runs/{id}/events?cursor={cursor}")).await.expect(200);
    assert_eq!((&rest["data"][0]["type"], &rest["next_cursor"]), (&json!("task_run.queued"), &json!(null)));

    let again = api.post(&format!("/v2/task-runs/{id}/retry"), &json!({})).await.expect(201);
    assert_eq!((&again["retry_of"], &again["status"]), (&json!(id), &json!("queued")));
    let session = ended["session_id"].as_str().unwrap();
    api.get(&format!("/v2/sessions/{session}")).await.expect(200);
}

async fn answers(api: &Api) {
    let asked = run(api, json!([{"ask": "code"}])).await;
    let waiting = reaches(api, &asked, "interaction_required").await;
    assert_eq!(waiting["interaction"]["fields"][0]["name"], "code");
    let path = format!("/v2/task-runs/{asked}/interaction");
    api.post(&path, &json!({"input": {}})).await.refuses(400, "input_missing");
    api.post(&path, &json!({})).await.refuses(400, "input_missing");
    api.post(&path, &json!({"input": 7})).await.refuses(400, "input_invalid");
    let unknown = api.post(&path, &json!({"input": {"colour": "red"}})).await.refuses(400, "field_unknown");
    assert_eq!(unknown["errors"][0]["field"], "input.colour");
    api.post(&path, &json!({"input": {"code": "123"}})).await.expect(200);
    let ended = api.get(&format!("/v2/task-runs/{asked}/wait")).await.expect(200);
    assert_eq!((&ended["status"], &ended["output"]), (&json!("completed"), &json!({"code": "123"})));
    api.post(&path, &json!({"input": {"code": "123"}})).await.refuses(409, "interaction_not_pending");
}

async fn reviews(api: &Api) {
    let task = task(api, json!({"settings": {"review": true}})).await;
    for (decision, status) in [("approve", "completed"), ("reject", "failed")] {
        let run = api.post(&format!("/v2/tasks/{task}/run"), &json!({"input": 1})).await.expect(201);
        let id = run["id"].as_str().unwrap();
        reaches(api, id, "review_required").await;
        api.post(&format!("/v2/task-runs/{id}/cancel"), &json!({})).await.refuses(409, "task_run_not_cancelable");
        let path = format!("/v2/task-runs/{id}/review");
        api.post(&path, &json!({"decision": "perhaps"})).await.refuses(400, "input_invalid");
        let body = json!({"decision": decision, "comment": "seen"});
        let ended = api.post(&path, &body).await.expect(200);
        assert_eq!(ended["status"], status);
        api.post(&path, &body).await.refuses(409, "review_not_pending");
    }
}

async fn cancellations(api: &Api) {
    let stuck = run(api, json!(["stuck"])).await;
    reaches(api, &stuck, "running").await;
    let path = format!("/v2/task-runs/{stuck}/cancel");
    let first = api.post(&path, &json!({})).await.expect(200);
    assert_eq!(first["status"], "canceling");
    // Without a body, too.
    assert!([200].contains(&api.send("POST", &path, &[], None).await.status));
    let ended = api.get(&format!("/v2/task-runs/{stuck}/wait")).await.expect(200);
    assert_eq!(ended["status"], "canceled");
    assert_eq!(api.post(&path, &json!({})).await.expect(200)["status"], "canceled");
    let done = run(api, json!([])).await;
    api.get(&format!("/v2/task-runs/{done}/wait")).await.expect(200);
    api.post(&format!("/v2/task-runs/{done}/cancel"), &json!({})).await.refuses(409, "task_run_not_cancelable");
}

async fn what_a_run_does_not_admit_is_refused_by_its_code(world: &'static World) {
    let api = world.api().await;
    tokio::join!(answers(&api), reviews(&api), cancellations(&api));
    let stuck = run(&api, json!(["stuck"])).await;
    let running = reaches(&api, &stuck, "running").await;
    let waited = api.get(&format!("/v2/task-runs/{stuck}/wait?timeout=0")).await.expect(200);
    assert_eq!(waited["status"], "running");
    let session = running["session_id"].as_str().unwrap();
    let ended = api.post(&format!("/v2/sessions/{session}/end"), &json!({})).await.expect(200);
    assert!(["completing", "completed", "failed"].contains(&ended["status"].as_str().unwrap()), "{ended}");
    api.get(&format!("/v2/task-runs/{stuck}/wait")).await.expect(200);
    let task = task(&api, json!({})).await;
    let body = json!({"session_id": session});
    let refused = api.post(&format!("/v2/tasks/{task}/run"), &body).await.refuses(409, "session_not_available");
    assert_eq!(refused["errors"][0]["field"], "session_id");
    let body = json!({"session_id": "sess_01h455vb4pex5vsknk084sn02q"});
    api.post(&format!("/v2/tasks/{task}/run"), &body).await.refuses(404, "session_not_found");
}

async fn lists_have_pages_and_filters(world: &'static World) {
    let api = world.api().await;
    let task = task(&api, json!({})).await;
    let mut made = Vec::new();
    for number in 0..5 {
        let body = json!({"metadata": {"number": number.to_string()}});
        let run = api.post(&format!("/v2/tasks/{task}/run"), &body).await.expect(201);
        made.push(run["id"].as_str().unwrap().to_owned());
    }
    for id in &made {
        api.get(&format!("/v2/task-runs/{id}/wait")).await.expect(200);
    }
    made.reverse();
    let ids = |body: &serde_json::Value| -> Vec<String> {
        body["data"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = api.get("/v2/task-runs?limit=2").await.expect(200);
    assert_eq!((ids(&first).as_slice(), &first["has_more"]), (&made[..2], &json!(true)));
    let cursor = first["next_cursor"].as_str().unwrap();
    assert_eq!(ids(&api.get(&format!("/v2/task-runs?cursor={cursor}")).await.expect(200)), made[2..]);
    let after = api.get(&format!("/v2/task-runs?starting_after={}", made[3])).await.expect(200);
    assert_eq!((ids(&after).as_slice(), &after["next_cursor"]), (&made[4..], &json!(null)));
    assert_eq!(ids(&api.get(&format!("/v2/task-runs?ending_before={}", made[1])).await.expect(200)), made[..1]);
    let filtered = format!("/v2/task-runs?status=completed,failed&task_id={task}&metadata[number]=3&result=success");
    assert_eq!(ids(&api.get(&filtered).await.expect(200)), made[1..2]);
    assert!(ids(&api.get("/v2/task-runs?status=queued&status=running").await.expect(200)).is_empty());
    assert!(ids(&api.get("/v2/task-runs?created_before=2020-01-01T00:00:00Z").await.expect(200)).is_empty());
    assert_eq!(ids(&api.get("/v2/task-runs?created_after=2020-01-01T00:00:00Z").await.expect(200)).len(), 5);
}

async fn what_does_not_fit_is_named(world: &'static World) {
    let api = world.api().await;
    let task = task(&api, json!({"input_schema": {"type": "object", "required": ["n"]}})).await;
    let path = format!("/v2/tasks/{task}/run");
    for (body, code, field) in [
        (json!({"input": {}}), "input_invalid", "input"),
        (json!({}), "input_invalid", "input"),
        (json!({"colour": 1}), "field_unknown", "colour"),
        (json!({"input": {"n": 1}, "priority": 101}), "input_invalid", "priority"),
        (json!({"input": {"n": 1}, "timeout_seconds": 0}), "input_invalid", "timeout_seconds"),
        (json!({"input": {"n": 1}, "metadata": {"k": 1}}), "input_invalid", "metadata.k"),
        (json!({"input": {"n": 1}, "source_id": "x"}), "input_invalid", "source_id"),
    ] {
        let refused = api.post(&path, &body).await.refuses(400, code);
        assert_eq!(refused["errors"][0]["field"], field, "{body}");
    }
    assert!(api.get("/v2/task-runs").await.expect(200)["data"].as_array().unwrap().is_empty());
    api.send("POST", &path, &[], Some("{".into())).await.refuses(400, "body_invalid");
    for (query, code, field) in
        [("include=colour", "include_invalid", "include"), ("colour=1", "field_unknown", "colour")]
    {
        let some = "trun_01h455vb4pex5vsknk084sn02q";
        let refused = api.get(&format!("/v2/task-runs/{some}?{query}")).await.refuses(400, code);
        assert_eq!(refused["errors"][0]["field"], field);
        assert!(refused["errors"][0]["message"].as_str().unwrap().contains("colour"));
    }
    for (query, code) in [
        ("cursor=nonsense", "cursor_invalid"),
        ("limit=0", "input_invalid"),
        ("status=finished", "input_invalid"),
        ("created_after=yesterday", "input_invalid"),
        ("starting_after=trun_1", "input_invalid"),
    ] {
        api.get(&format!("/v2/task-runs?{query}")).await.refuses(400, code);
    }
    let schema = json!({"name": "x", "agent_id": "agt_scripted", "input_schema": {"type": "colour"}});
    let refused = api.post("/v2/tasks", &schema).await.refuses(400, "schema_invalid");
    assert_eq!(refused["errors"][0]["field"], "input_schema");
    let missing = api.post("/v2/tasks", &json!({"name": "x"})).await.refuses(400, "input_missing");
    assert_eq!(missing["errors"][0]["field"], "agent_id");
}
