use std::time::Duration;

use serde_json::json;

use crate::common::World;
use crate::common::world::{reaches, run, task};
use crate::on_both_stores;

on_both_stores! {
    a_run_is_followed_from_its_first_event_to_its_last
    a_tenant_hears_its_own_events_and_can_go_on_where_it_was
}

async fn a_run_is_followed_from_its_first_event_to_its_last(world: &'static World) {
    let api = world.api().await;
    let asked = run(&api, json!([{"ask": "code"}])).await;
    reaches(&api, &asked, "interaction_required").await;
    let path = format!("/v2/task-runs/{asked}/events");
    let mut events = api.events(&path, None).await;
    for expected in ["task_run.queued", "task_run.running", "task_run.interaction_required"] {
        assert_eq!(events.next().await.unwrap().event, expected);
    }
    let mut cut_off = api.events(&path, None).await;
    let first = cut_off.next().await.unwrap();
    drop(cut_off);
    let resumed = api.events(&path, Some(&first.id)).await;
    api.post(&format!("/v2/task-runs/{asked}/interaction"), &json!({"input": {"code": "1"}})).await.expect(200);
    let rest = events.rest().await;
    let types: Vec<&str> = rest.iter().map(|frame| frame.event.as_str()).collect();
    assert_eq!(types, ["task_run.running", "task_run.completed"]);
    assert_eq!((&rest[1].data["id"], &rest[1].data["seq"]), (&json!(rest[1].id), &json!(5)));
    let resumed = resumed.rest().await;
    assert_eq!(resumed.iter().map(|frame| frame.data["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3, 4, 5]);
    // Nothing follows: a browser is told not to come back.
    let headers = [("accept", "text/event-stream"), ("last-event-id", rest[1].id.as_str())];
    assert_eq!(api.send("GET", &path, &headers, None).await.status, 204);
    let wrong = [("accept", "text/event-stream"), ("last-event-id", "nonsense")];
    api.send("GET", &path, &wrong, None).await.refuses(400, "input_invalid");
    let nobody = "/v2/task-runs/trun_01h455vb4pex5vsknk084sn02q/events";
    api.send("GET", nobody, &wrong[..1], None).await.refuses(404, "task_run_not_found");
}

async fn a_tenant_hears_its_own_events_and_can_go_on_where_it_was(world: &'static World) {
    let (api, other) = (world.api().await, world.api().await);
    let mut events = api.events("/v2/events?type=task_run.*", None).await;
    run(&other, json!([])).await;
    let first = run(&api, json!([])).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let frame = events.next().await.unwrap();
        assert_eq!(frame.data["data"]["id"], first.as_str());
        seen.push(frame);
    }
    drop(events);
    // While nobody listens, more happens than one page of catching up holds.
    let task = task(&api, json!({"settings": {"reuse_session": true}})).await;
    let mut runs = Vec::new();
    for _ in 0..80 {
        let run = api.post(&format!("/v2/tasks/{task}/run"), &json!({})).await.expect(201);
        runs.push(run["id"].as_str().unwrap().to_owned());
    }
    let mut resumed = api.events("/v2/events?type=task_run.*", Some(&seen[0].id)).await;
    let mut ended = 0;
    let mut ids = vec![seen[0].id.clone()];
    while ended < 81 {
        let frame = resumed.next().await.unwrap();
        ended += usize::from(frame.event == "task_run.completed");
        ids.push(frame.id);
    }
    // Each once, those that were had are not sent again, and none is missing.
    assert_eq!(ids.len(), 81 * 3);
    assert_eq!(ids[1..3], [seen[1].id.clone(), seen[2].id.clone()]);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 81 * 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_say_that_they_are_there_and_end_with_key_and_gateway() {
    use http_body_util::BodyExt;
    let world = World::of(errand_tests::StoreKind::Sqlite);
    let gateway = world.gateway(&["--keep-alive-ms", "100", "--max-streams", "2"]);
    let tenant = World::tenant();
    let key = world.key(&tenant, &["events:read", "runs:read"]).await;
    let api = crate::common::Api { address: gateway.address, key };
    let mut silent = api.begin("GET", "/v2/events", &[("accept", "text/event-stream")], None).await;
    let mut text = String::new();
    while !text.contains(": alive") {
        let frame = silent.body_mut().frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    let held = api.events("/v2/events", None).await;
    let more = api.send("GET", "/v2/events", &[("accept", "text/event-stream")], None).await;
    assert_eq!(more.headers["retry-after"], "1");
    more.refuses(503, "unavailable");
    // A revoked key's streams end within a second.
    let client = world.client(&tenant);
    let id = crate::keys::listed(&client).await[0].id.parse().unwrap();
    let revoked = std::time::Instant::now();
    client.revoke_api_key(id).await.unwrap();
    assert!(held.rest().await.is_empty());
    assert!(revoked.elapsed() < Duration::from_millis(1500), "{:?}", revoked.elapsed());
    let other = crate::common::Api { key: world.key(&tenant, &["events:read"]).await, ..api };
    let held = errand_tests::eventually("a place is free", Duration::from_secs(10), async || {
        let response = other.begin("GET", "/v2/events", &[("accept", "text/event-stream")], None).await;
        (response.status() == 200).then_some(response)
    })
    .await;
    gateway.stop().await;
    assert!(held.into_body().collect().await.is_ok(), "it ends in an orderly way");
}

/// A thousand streams, one follower, and little memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_are_open_at_once() {
    let world = World::of(errand_tests::StoreKind::Sqlite);
    let api = world.api().await;
    let mut streams = Vec::new();
    for _ in 0..1000 {
        streams.push(api.events("/v2/events?type=task_run.completed", None).await);
    }
    let metrics = api.get("/metrics").await.text;
    let open: u64 =
        metrics.lines().find_map(|line| line.strip_prefix("errand_gateway_streams ")).unwrap().parse().unwrap();
    assert!(open >= 1000, "{open}");
    let run = run(&api, json!([])).await;
    for stream in &mut streams {
        assert_eq!(stream.next().await.unwrap().data["data"]["id"], run.as_str());
    }
}
