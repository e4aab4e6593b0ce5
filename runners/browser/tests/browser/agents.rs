//! Programs from outside that attach to a session's browser.

use std::path::Path;

use serde_json::{Value, json};

use crate::site::{Answer, Site, html};
use crate::world::World;

async fn site() -> Site {
    Site::start([
        ("/", Answer(200, "content-type: text/html\r\nset-cookie: visit=7; Max-Age=600\r\n", "<h1>Here</h1>".into())),
        ("/other", html("<h1>There</h1>")),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn playwright_attaches_and_the_session_goes_on_where_it_left_off() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../../.tools/playwright-venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `make tools-test`", python.display());
    let directory = root.join("../../examples/playwright");
    let world = World::start(&["--agents", "--directory", directory.to_str().unwrap(), "--capacity", "1"]).await;
    let site = site().await;
    // A program of steps before, one from outside, and again one of steps.
    let reuse = json!({"reuse_session": true});
    let first = world.run(json!([{"goto": {"url": site.url("/")}}])).await;
    world.output(first).await;
    let agent = json!({"agent": {"command": [python.to_str().unwrap(), "agent.py"]}});
    let input = json!({"url": site.url("/echo?by=playwright")});
    let second = world.run_with(reuse.clone(), agent, input).await;
    let output = world.output(second).await;
    assert_eq!(output["url"], json!(site.url("/echo?by=playwright")), "{output}");
    assert!(output["text"].as_str().unwrap().contains("visit=7"), "the cookie of the first run: {output}");
    assert!(world.run_folder(second).unwrap().join("files/page.png").is_file());
    // The page is where the agent left it.
    let third = world.run(json!([{"extract": {"path": {"from": {"css": "#path"}}}}])).await;
    assert_eq!(world.output(third).await, json!({"path": "/echo?by=playwright"}));
    let sessions: Vec<String> = [world.ended(first).await, world.ended(second).await, world.ended(third).await]
        .map(|run| run.session_id)
        .into();
    assert!(sessions.iter().all(|session| *session == sessions[0]), "{sessions:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_from_outside_are_only_started_where_that_was_allowed() {
    let world = World::start(&[]).await;
    let program = json!({"agent": {"command": ["/bin/true"]}});
    let run = world.run_with(json!({}), program, Value::Null).await;
    let error = world.error(run).await;
    assert!(error.starts_with("task/agent_error: this runner starts no programs of tasks"), "{error}");
    world.end().await;
}
