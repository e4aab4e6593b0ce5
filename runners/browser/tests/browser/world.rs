//! An installation with a browser runner, and what is left of one.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use errand_client::{Client, NewRun, RunId, v1};
use errand_core::task::Definition;
use errand_tests::{Child, Role, Stack, StoreKind, eventually};
use futures::TryStreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) client: Client,
    /// The runner's `--work`.
    pub(crate) work: PathBuf,
}

impl World {
    /// Services, and a runner that reaches this machine's addresses.
    pub(crate) async fn start(more: &[&str]) -> Self {
        let mut args = vec!["--allow-network", "127.0.0.0/8"];
        args.extend(more);
        Self::with(&args).await
    }

    /// Services, and a runner with just these arguments.
    pub(crate) async fn with(more: &[&str]) -> Self {
        // Said here: the runner would say it into a log.
        errand_browser::find_chromium(None).unwrap_or_else(|error| panic!("{error} (make tools-test)"));
        let mut stack = Stack::new(StoreKind::Sqlite);
        for role in [Role::Dispatcher, Role::TimeoutWatcher, Role::Vault, Role::Storage] {
            stack.start(role, &["--log", "warn"]);
        }
        stack.start(Role::SessionPool, &["--log", "warn", "--heartbeat-seconds", "1", "--runner-lost-seconds", "6"]);
        let work = stack.folder().join("work");
        let work_text = work.to_str().unwrap().to_owned();
        let mut args = vec!["--work", &work_text];
        args.extend(more);
        for (name, usual) in [("--capacity", "2"), ("--log", "info,errand_browser=debug")] {
            if !more.contains(&name) {
                args.extend([name, usual]);
            }
        }
        stack.start(Role::Browser, &args);
        stack.ready().await;
        let client = Client::new(stack.bus().await, "acme".parse().unwrap());
        Self { stack, client, work }
    }

    pub(crate) async fn run_with(&self, settings: Value, program: Value, input: Value) -> RunId {
        let name = uuid::Uuid::now_v7().to_string();
        let definition = json!({"name": name, "agent_id": "agt_browser", "program": program, "settings": settings});
        self.run_task(serde_json::from_value(definition).unwrap(), input).await
    }

    pub(crate) async fn run_task(&self, definition: Definition, input: Value) -> RunId {
        let task = self.client.apply_task(&definition).await.unwrap().id;
        let run = NewRun::of_task(&task).unwrap().input(&input);
        let id = run.id();
        self.client.submit(run).await.unwrap();
        id
    }

    /// A run of these steps, in a session that others may use.
    pub(crate) async fn run(&self, steps: Value) -> RunId {
        self.run_with(json!({"reuse_session": true}), json!({"steps": steps}), json!({"secret": "hunter2"})).await
    }

    pub(crate) async fn ended(&self, run: RunId) -> v1::Run {
        let run = self.client.wait(run, PATIENCE).await.unwrap().into_run();
        assert!(run.finished_at_ms.is_some(), "{} is {:?}", run.id, run.status());
        run
    }

    pub(crate) async fn output(&self, run: RunId) -> Value {
        let run = self.ended(run).await;
        assert_eq!(run.status(), v1::RunStatus::Completed, "{:?}", run.errors);
        serde_json::from_slice(run.output.as_deref().unwrap()).unwrap()
    }

    /// The one error of a run that has failed: `type/code: message`.
    pub(crate) async fn error(&self, run: RunId) -> String {
        let run = self.ended(run).await;
        assert_eq!((run.status(), run.errors.len()), (v1::RunStatus::Failed, 1), "{run:?}");
        let error = &run.errors[0];
        format!("{}/{}: {}", error.r#type, error.code, error.message)
    }

    pub(crate) async fn reaches(&self, run: RunId, status: v1::RunStatus) -> v1::Run {
        eventually(&format!("{run} is {status:?}"), PATIENCE, async || {
            let run = self.client.get_run(run).await.ok()?;
            let over = run.finished_at_ms.is_some();
            assert!(!over || run.status() == status, "{} is {:?}: {:?}", run.id, run.status(), run.errors);
            (run.status() == status).then_some(run)
        })
        .await
    }

    /// The files that a run has captured, as its log lists them.
    pub(crate) fn files(&self, run: RunId) -> Vec<Value> {
        let Some(folder) = self.run_folder(run) else { return Vec::new() };
        let log = std::fs::read_to_string(folder.join("run.log")).unwrap_or_default();
        let files: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for file in &files {
            let path = folder.join("files").join(file["path"].as_str().unwrap());
            assert_eq!(std::fs::metadata(path).unwrap().len(), file["bytes"].as_u64().unwrap(), "{file}");
        }
        files
    }

    /// What the storage has of a run, oldest first.
    pub(crate) async fn kept(&self, run: RunId) -> Vec<v1::Artifact> {
        let mut kept: Vec<v1::Artifact> = self.client.artifacts(run, Vec::new()).try_collect().await.unwrap();
        kept.reverse();
        kept
    }

    pub(crate) fn names(&self, run: RunId) -> Vec<String> {
        self.files(run).iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn run_folder(&self, run: RunId) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.work.join("runs")).unwrap().map(|entry| entry.unwrap().path());
        let is_it = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&run.to_string());
        entries.into_iter().find(is_it)
    }

    pub(crate) fn runner_pid(&mut self) -> u32 {
        self.stack.service(Role::Browser).process().pid()
    }

    /// Ends the runner, and sees that nothing is left of what it had started. What has been written stays with the rest.
    pub(crate) async fn end(mut self) -> Stack {
        let family = descendants(self.runner_pid());
        self.stack.service(Role::Browser).process().terminate();
        gone(&family).await;
        assert_eq!(browsers(&self.work), [0u32; 0]);
        let left: Vec<_> = std::fs::read_dir(&self.work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["runs"], "the runner's own folder goes with it");
        self.stack
    }
}

/// Numbers of processes with their parents and whether they live.
fn processes() -> BTreeMap<u32, (u32, bool)> {
    let pids =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let read = |pid: u32| {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat).into_owned();
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let lives = !matches!(fields.next()?, "Z" | "X");
        Some((pid, (fields.next()?.parse().ok()?, lives)))
    };
    pids.filter_map(read).collect()
}

/// All processes below one.
pub(crate) fn descendants(root: u32) -> HashSet<u32> {
    let all = processes();
    let mut found = HashSet::from([root]);
    loop {
        let more: Vec<u32> = all
            .iter()
            .filter(|(pid, (parent, lives))| *lives && found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            found.remove(&root);
            return found;
        }
        found.extend(more);
    }
}

/// The browsers' first processes below a work folder.
pub(crate) fn browsers(work: &Path) -> Vec<u32> {
    let work = work.to_str().unwrap();
    let is_one = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&format!("--user-data-dir={work}")) && !line.contains("--type=") && !line.contains("__supervise")
    };
    processes().into_keys().filter(is_one).collect()
}

pub(crate) async fn gone(pids: &HashSet<u32>) {
    eventually("every process of the browsers is gone", PATIENCE, async || {
        let all = processes();
        pids.iter().all(|pid| all.get(pid).is_none_or(|(_, lives)| !lives)).then_some(())
    })
    .await;
}

/// The portal of the examples, as a process.
pub(crate) struct Portal {
    _child: Child,
    pub(crate) port: u16,
}

impl Portal {
    pub(crate) async fn start(world: &World, more: &[&str]) -> Self {
        let (script, port_file) = (example("portal/portal.py"), world.stack.folder().join("portal.port"));
        let mut command = Command::new("python3");
        command.arg(script).args(["--port", "0", "--port-file"]).arg(&port_file).args(more);
        let child = Child::spawn_logged(&mut command, &world.stack.folder().join("portal.log"));
        let port = eventually("the portal listens", PATIENCE, async || {
            std::fs::read_to_string(&port_file).ok()?.trim().parse().ok()
        });
        let port = port.await;
        Self { _child: child, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn ask(&self, line: &str, body: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let request = format!(
            "{line} HTTP/1.1\r\nhost: portal\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A customer with a password and an authenticator app.
    pub(crate) async fn open_account(&self, email: &str, password: &str, totp_secret: &str) {
        let account = json!({"email": email, "password": password, "totp_secret": totp_secret});
        let answer = self.ask("POST /_test/account", &account.to_string()).await;
        assert!(answer.contains(" 200 "), "{answer}");
    }

    /// The code of the newest mail to an address.
    pub(crate) async fn code(&self, email: &str, reference: &str) -> String {
        let email = email.replace('+', "%2B");
        let answer = self.ask(&format!("GET /_mailbox?email={email}&reference={reference}"), "").await;
        let mail: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        mail["code"].as_str().unwrap().to_owned()
    }

    /// Answers the question of a run with the code, or with a wrong one. Gives the question's id.
    pub(crate) async fn answer(&self, world: &World, run: RunId, email: &str, right: bool) -> String {
        let asked = world.reaches(run, v1::RunStatus::InteractionRequired).await.interaction.unwrap();
        let reference = asked.message.rsplit_once("reference ").unwrap().1.trim_end_matches('.').to_owned();
        let code = self.code(email, &reference).await;
        let wrong = if code == "000000" { "111111" } else { "000000" };
        let answer = json!({"code": if right { &code } else { wrong }});
        world.client.interact(run, &answer).await.unwrap();
        asked.id
    }
}

/// Something in the examples' folder.
pub(crate) fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(path)
}

/// SIGKILL to a process that the test has found.
pub(crate) fn kill9(pid: u32) {
    let status = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}
