use std::collections::HashSet;

use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::common::http::Answer;
use crate::common::world::task;
use crate::common::{Api, World};
use crate::on_both_stores;

on_both_stores! {
    files_are_listed_shown_and_read
    a_link_opens_one_file_for_a_while
    data_that_does_not_fit_is_the_files_trouble
}

const CSV: &str = "number,amount\nBW-1,71.22\n";

/// A run of a new task with these settings of storage, to its end.
async fn ended(api: &Api, storage: Value, steps: Value) -> Value {
    let task = task(api, json!({"storage": storage})).await;
    let run = api.post(&format!("/v2/tasks/{task}/run"), &json!({"input": {"steps": steps}})).await.expect(201);
    let id = run["id"].as_str().unwrap();
    let run = api.get(&format!("/v2/task-runs/{id}/wait?timeout=60")).await.expect(200);
    assert!(!run["finished_at"].is_null(), "{run}");
    run
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} is no text in {value}"))
}

/// The path of a link, as this gateway has made it.
fn path<'a>(api: &Api, file: &'a Value) -> &'a str {
    let base = format!("http://{}", api.address);
    text(file, "url").strip_prefix(&base).unwrap_or_else(|| panic!("{base} does not begin {file}"))
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

async fn files_are_listed_shown_and_read(world: &'static World) {
    let api = world.api().await;
    let steps = json!([
        {"capture": {"name": "../bills.csv", "content": CSV}},
        {"capture": {"name": "shot", "content": "a picture", "kind": "screenshot"}},
        {"capture": {"name": "bills.csv", "content": CSV, "data": {"rows": 1}}},
        {"fail": "why"},
    ]);
    // A run that fails keeps what it has captured.
    let run = ended(&api, json!({"extraction": true}), steps).await;
    assert_eq!(run["status"], "failed");
    let id = text(&run, "id");
    let list = api.get(&format!("/v2/task-runs/{id}/storage")).await.expect(200);
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|file| text(file, "name")).collect();
    assert_eq!(names, ["bills (2).csv", "shot", "bills.csv"], "newest first");
    let page = api.get(&format!("/v2/task-runs/{id}/storage?kind=screenshot&limit=1")).await.expect(200);
    assert_eq!((text(&page["data"][0], "kind"), &page["has_more"]), ("screenshot", &json!(false)));
    api.get(&format!("/v2/task-runs/{id}/storage?kind=film")).await.refuses(400, "input_invalid");

    let with = api.get(&format!("/v2/task-runs/{id}?include=storage,screenshots")).await.expect(200);
    let files = with["storage"].as_array().unwrap();
    assert_eq!(files.iter().map(|file| text(file, "name")).collect::<Vec<_>>(), ["bills.csv", "bills (2).csv"]);
    assert_eq!(files[0]["data"], json!({"rows": [{"number": "BW-1", "amount": "71.22"}]}));
    assert_eq!(files[1]["data"], json!({"rows": 1}));
    assert_eq!(text(&with["artifacts"]["screenshots"][0], "name"), "shot");

    let file = api.get(&format!("/v2/storage/{}", text(&files[0], "id"))).await.expect(200);
    assert_eq!((text(&file, "object"), text(&file, "mime_type")), ("storage", "text/csv"));
    assert_eq!((&file["size_bytes"], &file["task_run_id"]), (&json!(CSV.len()), &json!(id)));
    assert_eq!(text(&file, "sha256"), "72cc99362758d35f31e3a4b50a4f50ace5b6ef7e4215d82a44d2a7c83b531409");
    let content = format!("/v2/storage/{}/content", text(&file, "id"));
    assert_eq!(api.get(&content).await.text, CSV, "a key opens it, too");

    // Another tenant's.
    let other = world.api().await;
    other.get(&format!("/v2/storage/{}", text(&file, "id"))).await.refuses(404, "storage_not_found");
    other.get(&content).await.refuses(404, "storage_not_found");
    other.get(&format!("/v2/task-runs/{id}/storage")).await.refuses(404, "task_run_not_found");

    // Told on, each once.
    let events = api.get("/v2/events?type=storage.created").await.expect(200);
    let told: HashSet<&str> =
        events["data"].as_array().unwrap().iter().map(|event| text(&event["data"], "id")).collect();
    let kept: HashSet<&str> = list["data"].as_array().unwrap().iter().map(|file| text(file, "id")).collect();
    assert_eq!((told, events["data"].as_array().unwrap().len()), (kept, 3));
    assert!(!events.to_string().contains("71.22"), "an event tells nothing of the content");
}

async fn a_link_opens_one_file_for_a_while(world: &'static World) {
    let api = world.api().await;
    let capture = json!([{"capture": {"name": "June \"x\" Übersicht.csv", "content": CSV}}]);
    let run = ended(&api, json!({}), capture).await;
    let list = api.get(&format!("/v2/task-runs/{}/storage", text(&run, "id"))).await.expect(200);
    let nobody = api.with("");
    let link = path(&api, &list["data"][0]).to_owned();
    let whole = nobody.get(&link).await;
    assert_eq!((whole.status, whole.text.as_str()), (200, CSV));
    assert_eq!(header(&whole, "content-type"), "text/csv");
    assert!(header(&whole, "content-disposition").starts_with("attachment; filename="), "{:?}", whole.headers);
    assert_eq!(header(&whole, "accept-ranges"), "bytes");
    let etag = header(&whole, "etag").to_owned();

    for (range, status, body, told) in [
        ("bytes=0-5", 206, &CSV[..6], format!("bytes 0-5/{}", CSV.len())),
        ("bytes=-6", 206, &CSV[CSV.len() - 6..], format!("bytes {}-{}/{}", CSV.len() - 6, CSV.len() - 1, CSV.len())),
        ("bytes=1000-", 416, "", format!("bytes */{}", CSV.len())),
        ("lines=1-2", 200, CSV, String::new()),
    ] {
        let part = nobody.send("GET", &link, &[("range", range)], None).await;
        assert_eq!((part.status, part.text.as_str(), header(&part, "content-range")), (status, body, told.as_str()));
    }
    let same = nobody.send("GET", &link, &[("if-none-match", etag.as_str())], None).await;
    assert_eq!((same.status, same.text.as_str()), (304, ""));
    let head = nobody.begin("HEAD", &link, &[], None).await;
    assert_eq!(head.headers()["content-length"].to_str().unwrap(), CSV.len().to_string());
    assert_eq!((head.status().as_u16(), head.into_body().collect().await.unwrap().to_bytes()), (200, Bytes::new()));

    // What is not exactly this link opens nothing.
    let (before, signature) = link.rsplit_once('=').unwrap();
    let forged = format!("{before}={}", signature.replace(['0', '1', '2', '3'], "4"));
    nobody.get(&forged).await.refuses(403, "forbidden");
    let (content, _) = link.split_once('?').unwrap();
    nobody.get(&format!("{content}?expires=99999999999&signature={signature}")).await.refuses(403, "forbidden");
    nobody.get(&format!("{content}?signature={signature}")).await.refuses(403, "forbidden");
    nobody.get(content).await.refuses(401, "api_key_missing");
    nobody.get(content.trim_end_matches("/content")).await.refuses(401, "api_key_missing");
}

async fn data_that_does_not_fit_is_the_files_trouble(world: &'static World) {
    let api = world.api().await;
    let schema = json!({"type": "object", "properties": {"rows": {"type": "array", "maxItems": 1}}});
    let storage = json!({"extraction": true, "extraction_schema": schema});
    let steps = json!([
        {"capture": {"name": "one.csv", "content": CSV}},
        {"capture": {"name": "two.csv", "content": format!("{CSV}BW-2,1.00\n")}},
        {"capture": {"name": "broken.json", "content": "{"}},
    ]);
    let run = ended(&api, storage, steps).await;
    assert_eq!((&run["status"], &run["errors"]), (&json!("completed"), &json!([])), "the run has no part in it");
    let files = api.get(&format!("/v2/task-runs/{}?include=storage", text(&run, "id"))).await.expect(200);
    let files = files["storage"].as_array().unwrap();
    assert!(files[0]["data"].is_object() && files[0]["errors"] == json!([]), "{}", files[0]);
    for file in &files[1..] {
        assert!(file["data"].is_null(), "{file}");
        let error = &file["errors"][0];
        assert_eq!((text(error, "type"), text(error, "code")), ("storage", "extraction_failed"));
    }
    let bad =
        json!({"name": "bad", "agent_id": "agt_scripted", "storage": {"extraction_schema": {"type": "nonsense"}}});
    api.post("/v2/tasks", &bad).await.refuses(400, "schema_invalid");
}
