//! The `errand` command as README shows it: real processes, a real broker, agents in Python.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use errand_tests::{Child, eventually, folder, service};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// `errand` in the repository's folder, where README's paths are right.
fn errand(args: &[&str]) -> Command {
    let mut command = service("errand");
    command.args(args).current_dir(repository()).stdin(Stdio::null());
    command
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// `errand dev` over a folder, with what its other commands need to find it.
struct Dev {
    child: Child,
    url: String,
    http_url: String,
    api_key: String,
}

impl Dev {
    async fn start(data: &Path) -> Self {
        let log = data.join("dev.log");
        std::fs::write(&log, "").unwrap();
        let data = data.join("data");
        let arguments = ["dev", "--json", "--port", "0", "--http-port", "0", "--data", data.to_str().unwrap()];
        let child = Child::spawn_logged(&mut errand(&arguments), &log);
        let up: Value = eventually("`errand dev` is up", PATIENCE, async || {
            let said = std::fs::read_to_string(&log).unwrap();
            said.lines().find_map(|line| serde_json::from_str(line).ok())
        })
        .await;
        let text = |name: &str| up[name].as_str().unwrap().to_owned();
        Self { child, url: text("nats_url"), http_url: text("http_url"), api_key: text("api_key") }
    }

    fn errand(&self, args: &[&str]) -> Output {
        errand(args).args(["--nats-url", &self.url, "--json"]).output().unwrap()
    }

    /// The lines of a command that must succeed.
    fn done(&self, args: &[&str]) -> Vec<Value> {
        let output = self.errand(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        lines(&output)
    }

    fn python(&self, script: &str, args: &[&str]) -> Command {
        let mut command = Command::new(repository().join(".tools/venv/bin/python"));
        command.arg(repository().join("examples").join(script)).args(args).args(["--url", &self.url]);
        command
    }
}

#[test]
fn the_demo_ends_as_it_should() {
    let output = errand(&["demo"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let results: Vec<&str> = said.lines().filter(|line| line.ends_with(" yes")).collect();
    // One of them in a real Chromium, which the tests need.
    assert_eq!(results.len(), 6, "{said}");
    for ended in [" completed ", " canceled ", " failed task/timeout ", " failed request/input_invalid "] {
        assert!(results.iter().any(|result| result.contains(ended)), "{ended}: {said}");
    }
}

#[tokio::test]
async fn readme_by_hand() {
    let data = folder("dev");
    let mut dev = Dev::start(data.path()).await;
    let task = dev.done(&["task", "apply", "examples/hello/hello.task.json"]);
    assert_eq!((&task[0]["name"], &task[0]["version"]), (&"hello".into(), &1.into()));
    let watched = dev.done(&["run", "hello", "--input", r#"{"name": "Ada"}"#, "--watch"]);
    let run = watched.last().unwrap();
    assert_eq!(run["output"]["greeting"], "Hello, Ada!", "{watched:?}");

    let refused = dev.errand(&["run", "hello", "--input", r#"{"nme": "Ada"}"#]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("input_invalid"), "{refused:?}");

    // From plain NATS: published twice, one run, told to a plain subscriber.
    let mut listening = dev.python("subscribe.py", &["--count", "3"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = std::io::BufReader::new(listening.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut heard, &mut line).unwrap();
    assert!(line.starts_with("listening on "), "{line}");
    for ending in ["is accepted\n", "is accepted, as before\n"] {
        let arguments = ["hello", r#"{"name": "Bob"}"#, "--order", "4711"];
        let published = dev.python("publish.py", &arguments).output().unwrap();
        assert!(String::from_utf8_lossy(&published.stdout).ends_with(ending), "{published:?}");
    }
    let mut events = String::new();
    std::io::Read::read_to_string(&mut heard, &mut events).unwrap();
    assert!(listening.wait().unwrap().success());
    let types: Vec<&str> = events.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(types, ["task_run.queued", "task_run.running", "task_run.completed"]);

    let listed = dev.done(&["runs", "list", "--status", "completed"]);
    assert_eq!(listed.iter().map(|run| &run["output"]["greeting"]).collect::<Vec<_>>(), ["Hello, Bob!", "Hello, Ada!"]);
    assert!(dev.done(&["runs", "list", "--status", "failed"]).is_empty());
    let checks = dev.done(&["doctor"]);
    assert!(checks.iter().any(|check| check.to_string().contains("dispatcher")), "{checks:?}");

    // What was accepted is there after a kill -9.
    dev.child.kill9();
    let mut dev = Dev::start(data.path()).await;
    assert_eq!(dev.done(&["runs", "list"]).len(), 2);
    assert_eq!(dev.done(&["runs", "get", run["id"].as_str().unwrap()])[0]["status"], "completed");
    assert_eq!(dev.child.terminate(), Some(0));
    let doctor = dev.errand(&["doctor"]);
    assert!(!doctor.status.success(), "nothing is there, and the doctor says so");
}

fn bench_counts(store: &str) {
    let small = ["--runs", "500", "--concurrency", "32", "--unloaded", "20", "--half-rate-seconds", "1"];
    let kept = repository().join("bench/baseline.jsonl");
    let more = ["--json", "--store", store, "--baseline", kept.to_str().unwrap()];
    let output = errand(&[&["bench"], &small[..], &more].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = lines(&output).pop().unwrap();
    assert_eq!(report["verified"]["ok"], true, "{report}");
    assert_eq!(report["loaded"]["runs"], 500, "{report}");
    assert!(report["unloaded"]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
    assert!(report["half_rate"]["stages"]["kept_granted"]["p99_ms"].is_u64(), "{report}");
    assert!(
        report["against_baseline"]["loaded"]["runs_per_second"].as_f64().is_some_and(|ratio| ratio > 0.0),
        "{report}"
    );
}

#[test]
fn bench_counts_what_it_did_on_sqlite() {
    bench_counts("sqlite");
}

#[test]
fn bench_counts_what_it_did_on_postgres() {
    bench_counts("postgres");
}

/// The walk over HTTP in README, as it stands there.
#[tokio::test]
async fn readme_over_http() {
    let data = folder("http");
    let dev = Dev::start(data.path()).await;
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let section = readme.split_once("## Over HTTP").unwrap().1;
    let walk = section.split_once("```sh").unwrap().1.split_once("```").unwrap().0;
    let mut command = Command::new("sh");
    command.args(["-eu", "-c", walk]).current_dir(repository());
    let output = command.env("ERRAND_URL", &dev.http_url).env("ERRAND_API_KEY", &dev.api_key).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        r#""status":"completed""#,
        "Hello",
        r#""input":{"name":"Ada"}"#,
        "event: task_run.completed",
        r#""deleted":true"#,
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // The key of a folder stays the same, and others are made and ended by command.
    let made = &dev.done(&["keys", "create", "reader", "--scope", "runs:read"])[0];
    assert!(made["secret"].as_str().unwrap().starts_with("sk_"));
    dev.done(&["keys", "revoke", made["id"].as_str().unwrap()]);
    let listed = dev.done(&["keys", "list"]);
    assert!(
        listed.len() == 2 && listed[0]["revoked_at"].is_string() && listed[0].get("secret").is_none(),
        "{listed:?}"
    );
    let key = dev.api_key.clone();
    let mut child = dev.child;
    child.terminate();
    assert_eq!(Dev::start(data.path()).await.api_key, key);
}
