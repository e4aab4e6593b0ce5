//! Files of runs, from an agent's line to their reader, over all services as processes.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::time::Duration;

use errand_client::{Client, NewRun, RunId, v1};
use errand_core::task::Definition;
use errand_tests::{Role, Stack, StoreKind};
use futures::TryStreamExt;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    stack: Stack,
    client: Client,
}

impl World {
    async fn start(store: StoreKind) -> Self {
        let mut stack = Stack::new(store);
        for role in [Role::Dispatcher, Role::TimeoutWatcher, Role::SessionPool] {
            stack.start(role, &["--log", "warn"]);
        }
        stack.start(Role::Storage, &["--log", "warn", "--max-file-bytes", "5000000"]);
        let work = stack.folder().join("work").display().to_string();
        stack.start(Role::Exec, &["--log", "warn", "--work", &work, "--capacity", "4"]);
        stack.ready().await;
        let client = Client::new(stack.bus().await, "acme".parse().unwrap());
        Self { stack, client }
    }

    /// A run of a shell script, in the folder of its files.
    async fn run(&self, storage: Value, script: &str) -> RunId {
        let name = uuid::Uuid::now_v7().to_string();
        let script = format!("cd $ERRAND_FILES_DIR; read start; read input; {script}");
        let program = json!({"command": ["/bin/sh", "-c", script]});
        let definition = json!({"name": name, "agent_id": "agt_exec", "program": program, "storage": storage});
        let definition: Definition = serde_json::from_value(definition).unwrap();
        let task = self.client.apply_task(&definition).await.unwrap().id;
        let run = NewRun::of_task(&task).unwrap();
        let id = run.id();
        self.client.submit(run).await.unwrap();
        id
    }

    async fn ended(&self, run: RunId) -> v1::Run {
        let run = self.client.wait(run, PATIENCE).await.unwrap().into_run();
        assert!(run.finished_at_ms.is_some(), "{} is {:?}", run.id, run.status());
        run
    }

    /// What a run has captured, oldest first.
    async fn files(&self, run: RunId) -> Vec<v1::Artifact> {
        let mut files: Vec<v1::Artifact> = self.client.artifacts(run, Vec::new()).try_collect().await.unwrap();
        files.reverse();
        files
    }

    async fn content(&self, file: &v1::Artifact) -> Vec<u8> {
        let chunks: Vec<bytes::Bytes> = self.client.content(file.id.parse().unwrap(), 0).try_collect().await.unwrap();
        chunks.concat()
    }
}

fn say(message: &Value) -> String {
    format!("printf '%s\\n' '{message}'; ")
}

fn file(path: &str) -> String {
    say(&json!({"type": "file", "path": path, "kind": "file"}))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_captures_is_there_when_its_run_is_over() {
    let world = World::start(StoreKind::Sqlite).await;
    let good = format!(
        "printf 'number,amount\\nBW-1,71.22\\n' > bills.csv; head -c 2000000 /dev/urandom > large; echo png > shot; {}{}{}{}{}",
        file("bills.csv"),
        file("large"),
        say(&json!({"type": "file", "path": "shot", "name": "sign-in", "kind": "screenshot"})),
        say(
            &json!({"type": "file", "path": "large", "name": "Bill for June", "kind": "storage", "data": {"amount": 7}})
        ),
        say(&json!({"type": "output", "output": 1})),
    );
    let failing = format!("echo half > half; {}exit 3", file("half"));
    let too_large =
        format!("head -c 5000001 /dev/zero > a; {}{}", file("a"), say(&json!({"type": "output", "output": 1})));
    let good = world.run(json!({"extraction": true}), &good).await;
    let failing = world.run(json!({}), &failing).await;
    let off = world.run(json!({"enabled": false}), &format!("echo x > x; {}", file("x"))).await;
    let too_large = world.run(json!({}), &too_large).await;

    assert_eq!(world.ended(good).await.status(), v1::RunStatus::Completed);
    let files = world.files(good).await;
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["bills.csv", "large", "sign-in", "Bill for June"]);
    assert_eq!(files[0].data.as_deref().unwrap(), br#"{"rows":[{"amount":"71.22","number":"BW-1"}]}"#);
    assert_eq!(
        (files[2].kind(), files[3].data.as_deref()),
        (v1::ArtifactKind::Screenshot, Some(&br#"{"amount":7}"#[..]))
    );
    assert_eq!(world.content(&files[1]).await.len(), 2_000_000);
    assert_eq!(files[1].sha256, files[3].sha256);

    let run = world.ended(failing).await;
    assert_eq!((run.status(), run.errors.len()), (v1::RunStatus::Failed, 1), "{run:?}");
    let kept = world.files(failing).await;
    assert_eq!(world.content(&kept[0]).await, b"half\n", "a run that fails keeps what it has captured");

    assert_eq!(world.ended(off).await.status(), v1::RunStatus::Completed);
    assert!(world.files(off).await.is_empty());

    let run = world.ended(too_large).await;
    assert_eq!((run.status(), run.errors[0].code.as_str()), (v1::RunStatus::Failed, "file_too_large"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_is_away_is_waited_for() {
    let mut world = World::start(StoreKind::Postgres).await;
    world.stack.service(Role::Storage).process().kill9();
    let script = format!(
        "head -c 3000000 /dev/urandom > a; echo b > b; {}{}{}",
        file("a"),
        file("b"),
        say(&json!({"type": "output", "output": 1}))
    );
    let runs = [world.run(json!({}), &script).await, world.run(json!({}), &script).await];
    // Long enough for the agents to have ended, and for some vain tries.
    for run in runs {
        let waited = world.client.wait(run, Duration::from_secs(2)).await.unwrap().into_run();
        assert_eq!(waited.status(), v1::RunStatus::Running, "nobody has kept its files yet");
    }
    world.stack.service(Role::Storage).restart();
    for run in runs {
        assert_eq!(world.ended(run).await.status(), v1::RunStatus::Completed);
        let files = world.files(run).await;
        assert_eq!(files.iter().map(|file| file.size_bytes).collect::<Vec<_>>(), [3_000_000, 2]);
    }
}
