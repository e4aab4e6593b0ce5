//! What the API says of itself is true: schemathesis asks it all that its OpenAPI document allows and much that it does
//! not, and a Python client that is generated from the document drives a run from start to end.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

#[expect(dead_code, reason = "the other tests need more of it")]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::World;
use common::world::{run, task};
use errand_tests::StoreKind;
use serde_json::json;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A program of `.tools/api-venv`, which finds the others there.
fn tool(name: &str) -> Command {
    let folder = repository().join(".tools/api-venv/bin");
    let program = folder.join(name);
    assert!(program.is_file(), "{} is missing: run `make tools-test`", program.display());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&path))).unwrap();
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env("PATH", path).env("NO_COLOR", "1").env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

async fn done(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_nothing() {
    let world = World::of(StoreKind::Sqlite);
    let api = world.api().await;
    // Something to find.
    let task = task(&api, json!({"settings": {"review": true}})).await;
    for _ in 0..3 {
        api.post(&format!("/v2/tasks/{task}/run"), &json!({"input": 1})).await.expect(201);
    }
    run(&api, json!([{"ask": "code"}])).await;
    run(&api, json!([{"capture": {"name": "bills.csv", "content": "number,amount\n"}}])).await;
    let folder = errand_tests::folder("schemathesis");
    let mut schemathesis = tool("schemathesis");
    // By number, not by time: the same questions on a slow machine and a fast one.
    let examples = std::env::var("ERRAND_SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| "40".into());
    schemathesis
        .current_dir(folder.path())
        .arg("--config-file")
        .arg(repository().join("services/gateway/tests/schemathesis.toml"))
        .args(["run", &format!("http://{}/v2/openapi.json", api.address), "--checks", "all", "--seed", "1"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", &examples, "--workers", "1"])
        .args([
            "--generation-deterministic",
            "--max-failures",
            "20",
            "--continue-on-failure",
            "--request-timeout",
            "30",
        ])
        .args(["-H", &format!("Authorization: Bearer {}", api.key)]);
    done(schemathesis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_client_drives_a_run() {
    let world = World::of(StoreKind::Sqlite);
    let api = world.api().await;
    let folder = errand_tests::folder("client");
    let document = folder.path().join("openapi.json");
    std::fs::write(&document, api.get("/v2/openapi.json").await.text).unwrap();
    let mut generate = tool("openapi-python-client");
    generate.current_dir(folder.path()).args(["generate", "--fail-on-warning", "--meta", "none", "--path"]);
    generate.arg(&document).args(["--output-path", "errand_http"]);
    done(generate).await;
    let mut drive = tool("python");
    drive
        .arg(repository().join("services/gateway/tests/drive.py"))
        .env("PYTHONPATH", folder.path())
        .env("ERRAND_URL", format!("http://{}", api.address))
        .env("ERRAND_API_KEY", &api.key);
    assert!(done(drive).await.contains("the run completed"));
}
