//! The exec runner with real programs, over all services as processes.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use errand_client::{Client, NewRun, RunId, v1};
use errand_core::task::Definition;
use errand_tests::{Role, Stack, StoreKind, eventually};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    stack: Stack,
    client: Client,
    /// The runner's `--work`.
    work: PathBuf,
    /// Where programs are started, and leave notes for the test.
    notes: PathBuf,
}

impl World {
    async fn start() -> Self {
        let mut stack = Stack::new(StoreKind::Sqlite);
        for role in [Role::Dispatcher, Role::TimeoutWatcher] {
            stack.start(role, &["--log", "warn"]);
        }
        stack.start(Role::Storage, &["--log", "warn"]);
        stack.start(Role::SessionPool, &["--log", "warn", "--heartbeat-seconds", "1", "--runner-lost-seconds", "3"]);
        let (work, notes) = (stack.folder().join("work"), stack.folder().join("notes"));
        std::fs::create_dir(&notes).unwrap();
        let [work_text, notes_text] = [&work, &notes].map(|path| path.to_str().unwrap().to_owned());
        let more = ["--log", "warn", "--work", &work_text, "--directory", &notes_text, "--capacity", "16"];
        stack.start(Role::Exec, &more);
        stack.ready().await;
        let client = Client::new(stack.bus().await, "acme".parse().unwrap());
        Self { stack, client, work, notes }
    }

    /// A run of a shell script.
    async fn run(&self, settings: Value, script: &str) -> RunId {
        self.run_program(settings, json!({"command": ["/bin/sh", "-c", script]})).await
    }

    async fn run_program(&self, settings: Value, program: Value) -> RunId {
        let name = uuid::Uuid::now_v7().to_string();
        let definition = json!({"name": name, "agent_id": "agt_exec", "program": program, "settings": settings});
        let definition: Definition = serde_json::from_value(definition).unwrap();
        let task = self.client.apply_task(&definition).await.unwrap().id;
        let run = NewRun::of_task(&task).unwrap().input(&json!({"secret": "hunter2"}));
        let id = run.id();
        self.client.submit(run).await.unwrap();
        id
    }

    async fn ended(&self, run: RunId) -> v1::Run {
        let run = self.client.wait(run, PATIENCE).await.unwrap().into_run();
        assert!(run.finished_at_ms.is_some(), "{} is {:?}", run.id, run.status());
        run
    }

    async fn output(&self, run: RunId) -> Value {
        let run = self.ended(run).await;
        assert_eq!(run.status(), v1::RunStatus::Completed, "{:?}", run.errors);
        serde_json::from_slice(run.output.as_deref().unwrap()).unwrap()
    }

    /// The one error of a run that has failed: `type/code: message`.
    async fn error(&self, run: RunId) -> String {
        let run = self.ended(run).await;
        assert_eq!((run.status(), run.errors.len()), (v1::RunStatus::Failed, 1), "{run:?}");
        let error = &run.errors[0];
        format!("{}/{}: {}", error.r#type, error.code, error.message)
    }

    /// The numbers that programs have noted in a file, when there are so many.
    async fn pids(&self, file: &str, count: usize) -> Vec<i32> {
        let file = self.notes.join(file);
        eventually("the programs have started", PATIENCE, async || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
            (pids.len() >= count).then_some(pids)
        })
        .await
    }

    async fn reaches(&self, run: RunId, status: v1::RunStatus) {
        eventually(&format!("{run} is {status:?}"), PATIENCE, async || {
            let run = self.client.get_run(run).await.ok()?;
            assert!(run.finished_at_ms.is_none(), "{} is {:?}: {:?}", run.id, run.status(), run.errors);
            (run.status() == status).then_some(())
        })
        .await;
    }
}

/// Whether a process has ended; one that nobody has waited for yet has, too.
fn is_gone(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')) || kill(Pid::from_raw(pid), None).is_err()
}

async fn all_gone(pids: &[i32]) {
    eventually("every process of the agent is gone", PATIENCE, async || {
        pids.iter().all(|pid| is_gone(*pid)).then_some(())
    })
    .await;
}

/// Notes itself and two more processes, one of which has left the process group, and stays.
const FAMILY: &str = r#"echo $$ >> FILE; setsid sh -c 'echo $$ >> FILE; exec sleep 600' & sh -c 'echo $$ >> FILE; exec sleep 600' &
                        trap '' TERM; while :; do sleep 1; done"#;

fn family(file: &str) -> String {
    FAMILY.replace("FILE", file)
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_program_ends_is_how_its_run_ends() {
    let world = World::start().await;
    let none = || json!({});
    let says = |line: &str| format!("read start; read input; printf '%s\\n' '{line}'");
    let output = world.run(none(), &says(r#"{"type":"output","output":{"n":7}}"#)).await;
    let echo = r#"read start; read input; printf '{"type":"output","output":%s}\n' "$input""#;
    let echoed = world.run(none(), echo).await;
    let silent = world.run(none(), "exit 0").await;
    let twice = says(r#"{"type":"output","output":1}"#) + r#"; echo '{"type":"output","output":2}'; exit 9"#;
    let twice = world.run(none(), &twice).await;
    assert_eq!(world.output(output).await, json!({"n": 7}));
    assert_eq!(world.output(echoed).await, json!({"type": "input", "input": {"secret": "hunter2"}}));
    assert_eq!(world.output(silent).await, Value::Null);
    assert_eq!(world.output(twice).await, json!(1), "the first one counts");

    let error =
        r#"{"type":"error","error":{"type":"source","code":"source_not_available","message":"it answers 503"}}"#;
    let mut endless = says(r#"{"type":"progress","message":"on it"}"#);
    endless.push_str("; yes | tr -d '\\n'");
    for (script, expected) in [
        (says(error), "source/source_not_available: it answers 503"),
        ("exit 3".into(), "task/agent_error: the agent exited with status 3"),
        ("kill -SEGV $$".into(), "task/agent_error: the agent was killed by signal 11 (SIGSEGV)"),
        (says("what?"), "task/agent_error: line 1 of the agent's output"),
        (says("[]"), "task/agent_error: line 1 of the agent's output"),
        (says(r#"{"type":"dance"}"#), "task/agent_error: line 1 of the agent's output"),
        (endless, "task/agent_error: line 2 of the agent's output is longer than 1048576 bytes"),
    ] {
        let found = world.run(none(), &script).await;
        let found = world.error(found).await;
        assert!(found.starts_with(expected), "{script}: {found}");
        assert!(!found.contains("hunter2"), "{found}");
    }
    let absent = world.run_program(none(), json!({"command": ["/no/such/program"]})).await;
    let absent = world.error(absent).await;
    assert!(absent.starts_with("task/agent_error: the program could not be started"), "{absent}");
    let nothing = world.run_program(none(), json!({})).await;
    assert!(world.error(nothing).await.starts_with("task/agent_error: "), "a task without a command");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_stay_in_their_folder_and_logs_have_a_limit() {
    let world = World::start().await;
    let file = |path: &str| {
        format!(
            "cd $ERRAND_FILES_DIR; echo bill > june.txt; ln -s /etc/passwd out; ln -s june.txt in; mkdir deep; \
             echo x > deep/x; printf '%s\\n' '{{\"type\":\"file\",\"path\":\"{path}\",\"kind\":\"storage\"}}' \
             '{{\"type\":\"output\",\"output\":1}}'"
        )
    };
    for inside in ["june.txt", "in", "deep/x", "./june.txt"] {
        let run = world.run(json!({}), &file(inside)).await;
        assert_eq!(world.output(run).await, json!(1), "{inside}");
    }
    for outside in ["../../run.log", "/etc/passwd", "out", "deep", "absent", "deep/../../x"] {
        let run = world.run(json!({}), &file(outside)).await;
        let error = world.error(run).await;
        assert!(error.starts_with("task/agent_error: line 1 of the agent's output is no file"), "{outside}: {error}");
    }
    let script = r#"head -c 30000000 /dev/zero >&2; echo '{"type":"output","output":1}'"#;
    let flood = world.run(json!({}), script).await;
    assert_eq!(world.output(flood).await, json!(1));
    let log = find(&world.work.join("runs"), &flood.to_string()).join("run.log");
    let bytes = std::fs::metadata(log).unwrap().len();
    assert!((10 << 20..11 << 20).contains(&bytes), "{bytes}");
}

fn find(folder: &Path, prefix: &str) -> PathBuf {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
    entries.into_iter().find(is_it).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_stop_is_killed_with_all_that_it_started() {
    let world = World::start().await;
    let canceled = world.run(json!({}), &family("canceled")).await;
    let timed_out = world.run(json!({"inactivity_seconds": 1}), &family("timed_out")).await;
    let polite = r#"while read -r line; do case $line in *'"reason":"canceled"'*'"type":"stop"'*) echo $$ > polite; exit 0;; esac; done"#;
    let polite = world.run(json!({}), polite).await;
    let pids = [world.pids("canceled", 3).await, world.pids("timed_out", 3).await].concat();
    for run in [canceled, polite] {
        world.reaches(run, v1::RunStatus::Running).await;
        world.client.cancel(run).await.unwrap();
    }
    for run in [canceled, polite] {
        assert_eq!(world.ended(run).await.status(), v1::RunStatus::Canceled);
    }
    assert_eq!(world.pids("polite", 1).await.len(), 1, "it was told first");
    assert_eq!(world.error(timed_out).await.split(':').next(), Some("task/timeout"));
    all_gone(&pids).await;
    // What ends by itself leaves nothing behind either.
    let left =
        world.run(json!({}), "setsid sh -c 'echo $$ >> left; exec sleep 600' & while [ ! -s left ]; do :; done").await;
    world.ended(left).await;
    all_gone(&world.pids("left", 1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_killed_takes_its_programs_with_it() {
    let mut world = World::start().await;
    // The first attempt stays for ever; the second finds the note of the first.
    let script = format!(
        r#"if [ -e again ]; then echo '{{"type":"output","output":"again"}}'; exit; fi; touch again; {}"#,
        family("killed")
    );
    let run = world.run(json!({"max_attempts": 2}), &script).await;
    let pids = world.pids("killed", 3).await;
    world.stack.service(Role::Exec).process().signal(errand_tests::Signal::SIGKILL);
    all_gone(&pids).await;
    world.stack.service(Role::Exec).restart();
    assert_eq!(world.output(run).await, json!("again"));
    assert_eq!(world.client.get_run(run).await.unwrap().attempt, 2);
    let sessions = std::fs::read_dir(&world.work).unwrap().map(|entry| entry.unwrap().file_name());
    let runners = sessions.filter(|name| name.to_string_lossy().starts_with("runner-")).count();
    assert_eq!(runners, 1, "the dead runner's folder is tidied up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_ended_lets_its_runs_finish() {
    let mut world = World::start().await;
    let script =
        r#"echo $$ > started; while [ ! -e go ]; do sleep 0.05; done; echo '{"type":"output","output":"done"}'"#;
    let run = world.run(json!({}), script).await;
    world.pids("started", 1).await;
    let exec = world.stack.service(Role::Exec);
    exec.process().signal(errand_tests::Signal::SIGTERM);
    eventually("the runner drains", PATIENCE, async || {
        let runners = world.client.runners(Vec::new()).await.ok()?;
        runners.iter().all(|runner| runner.draining).then_some(())
    })
    .await;
    std::fs::write(world.notes.join("go"), "").unwrap();
    assert_eq!(world.output(run).await, json!("done"));
    let exec = world.stack.service(Role::Exec);
    let ended = exec.process().wait(PATIENCE).unwrap();
    assert_eq!(ended.code(), Some(0));
    assert_eq!(world.client.get_run(run).await.unwrap().attempt, 1);
}
