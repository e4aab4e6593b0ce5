//! Credentials from end to end, over all services as processes: who gets them, what becomes of them, and that nothing
//! of them is left anywhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use errand_client::{
    Client, ClientError, CredentialChange, NewCredential, NewRun, NewSource, RunId, SecretText, Secrets, v1,
};
use errand_core::credential::AuthMethod;
use errand_core::source::SourceType;
use errand_core::task::Definition;
use errand_core::{CredentialId, ErrorCode, RunnerId, SourceId};
use errand_secret::handover::KeyPair;
use errand_secret::scrub::Scrubber;
use errand_tests::{Child, Collector, Role, Stack, StoreKind, eventually, folder, service};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use sqlx::Row;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(90);
const EMAIL: &str = "eve@example.com";
const PASSWORD: &str = "corr3ct-H0rse/battery \"staple\"";
const WRONG_PASSWORD: &str = "Tr0ub4dor&3-was-never-right";
const API_KEY: &str = "sk_live_9f8e7d6c5b4a3210";
const TOTP_SECRET: &str = "JBSWY3DPEHPK3PXPGEZDGNBVGY3TQOJQ";

macro_rules! on_both_stores {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite() -> anyhow::Result<()> {
                super::$name(errand_tests::StoreKind::Sqlite).await
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_postgres() -> anyhow::Result<()> {
                super::$name(errand_tests::StoreKind::Postgres).await
            }
        }
    )*};
}

on_both_stores! {
    no_secret_is_left_anywhere_by_runs_that_sign_in
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

struct World {
    stack: Stack,
    client: Client,
    /// The exec runner's `--work`.
    work: PathBuf,
    /// What all services say of their work.
    collector: Collector,
}

impl World {
    async fn start(kind: StoreKind, log: &str) -> anyhow::Result<Self> {
        let mut stack = Stack::new(kind);
        let collector = Collector::start().await;
        let telling = ["--log", log, "--otlp-endpoint", collector.url(), "--trace-ratio", "1"];
        for role in [Role::Dispatcher, Role::TimeoutWatcher, Role::Notifier, Role::Vault, Role::Storage] {
            stack.start(role, &telling);
        }
        let quick = ["--heartbeat-seconds", "1", "--runner-lost-seconds", "3"];
        stack.start(Role::SessionPool, &[&telling[..], &quick].concat());
        let work = stack.folder().join("work");
        let (work_text, directory) = (work.display().to_string(), repository().display().to_string());
        let more = ["--work", &work_text, "--directory", &directory, "--capacity", "8"];
        stack.start(Role::Exec, &[&telling[..], &more].concat());
        let browsers = stack.folder().join("browsers").display().to_string();
        let more = ["--work", &browsers, "--allow-network", "127.0.0.0/8", "--capacity", "1"];
        stack.start(Role::Browser, &[&telling[..], &more].concat());
        stack.ready().await;
        let client = Client::new(stack.bus().await, "acme".parse()?);
        Ok(Self { stack, client, work, collector })
    }

    async fn task(&self, program: Value) -> anyhow::Result<String> {
        let definition = json!({"name": Uuid::now_v7().to_string(), "agent_id": "agt_exec", "program": program});
        let definition: Definition = serde_json::from_value(definition)?;
        Ok(self.client.apply_task(&definition).await?.id)
    }

    async fn script(&self, script: &str) -> anyhow::Result<String> {
        self.task(json!({"command": ["/bin/sh", "-c", script]})).await
    }

    async fn run(&self, task: &str, input: Value, credential: CredentialId) -> anyhow::Result<RunId> {
        let run = NewRun::of_task(task)?.input(&input).with_credential(credential);
        let id = run.id();
        self.client.submit(run).await?;
        Ok(id)
    }

    async fn ended(&self, run: RunId) -> anyhow::Result<v1::Run> {
        let run = self.client.wait(run, PATIENCE).await?.into_run();
        ensure!(run.finished_at_ms.is_some(), "{} is {:?}", run.id, run.status());
        Ok(run)
    }

    async fn credential(&self, auth_method: AuthMethod, secrets: Secrets) -> anyhow::Result<CredentialId> {
        let name = format!("of {}", auth_method.as_str());
        let made = self.client.create_credential(NewCredential { name, auth_method, source_id: None, secrets }).await?;
        Ok(made.id.parse()?)
    }

    async fn status(&self, id: CredentialId) -> anyhow::Result<(v1::CredentialStatus, String)> {
        let credential = self.client.get_credential(id).await?;
        Ok((credential.status(), credential.failure))
    }
}

fn text(text: &str) -> Option<SecretText> {
    Some(SecretText::new(text.to_owned()))
}

fn signing_in(password: &str) -> Secrets {
    Secrets { username: text(EMAIL), password: text(password), totp_secret: text(TOTP_SECRET), ..Secrets::default() }
}

fn key() -> Secrets {
    Secrets { api_key: text(API_KEY), ..Secrets::default() }
}

/// The example's web site, with one customer who signs in with a password and an authenticator app.
struct Portal {
    _child: Child,
    _folder: tempfile::TempDir,
    url: String,
}

impl Portal {
    async fn start() -> anyhow::Result<Self> {
        let folder = folder("portal");
        let port_file = folder.path().join("port");
        let mut command = Command::new("python3");
        command.arg(repository().join("examples/portal/portal.py")).args(["--port", "0", "--port-file"]);
        let child = Child::spawn_logged(command.arg(&port_file), &folder.path().join("log"));
        let port = eventually("the portal listens", PATIENCE, async || std::fs::read_to_string(&port_file).ok()).await;
        let address = format!("127.0.0.1:{}", port.trim());
        let account = json!({"email": EMAIL, "password": PASSWORD, "totp_secret": TOTP_SECRET}).to_string();
        let mut stream = tokio::net::TcpStream::connect(&address).await?;
        let request = format!(
            "POST /_test/account HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{account}",
            account.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.contains(" 200 "), "{answer}");
        Ok(Self { _child: child, _folder: folder, url: format!("http://{address}") })
    }
}

/// Everything that goes over the broker while it listens.
struct Wire {
    heard: Arc<Mutex<Vec<u8>>>,
    listening: tokio::task::JoinHandle<()>,
}

impl Wire {
    async fn listen(client: &async_nats::Client) -> anyhow::Result<Self> {
        let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
        let mut all = client.subscribe(">").await?;
        client.flush().await?;
        let into = Arc::clone(&heard);
        let listening = tokio::spawn(async move {
            while let Some(message) = all.next().await {
                let mut heard = into.lock().unwrap_or_else(PoisonError::into_inner);
                heard.extend_from_slice(message.subject.as_bytes());
                heard.extend_from_slice(format!(" {:?}\n", message.headers).as_bytes());
                heard.extend_from_slice(&message.payload);
                heard.push(0);
            }
        });
        Ok(Self { heard, listening })
    }

    fn end(self) -> Vec<u8> {
        self.listening.abort();
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Every message of every stream.
async fn streams(client: &async_nats::Client) -> anyhow::Result<(usize, Vec<u8>)> {
    let context = async_nats::jetstream::new(client.clone());
    let names: Vec<String> = {
        let mut names = context.stream_names();
        let mut all = Vec::new();
        while let Some(name) = names.next().await {
            all.push(name?);
        }
        all
    };
    ensure!(names.len() >= 3, "streams: {names:?}");
    let (mut count, mut bytes) = (0, Vec::new());
    for name in names {
        let stream = context.get_stream(&name).await?;
        let state = stream.cached_info().state.clone();
        for sequence in state.first_sequence..=state.last_sequence {
            // Others may have been taken from the work queue.
            if let Ok(message) = stream.get_raw_message(sequence).await {
                count += 1;
                bytes.extend_from_slice(format!("{} {:?}\n", message.subject, message.headers).as_bytes());
                bytes.extend_from_slice(&message.payload);
                bytes.push(0);
            }
        }
    }
    Ok((count, bytes))
}

/// Every file below a folder, whole: SQLite's with their logs, the runner's work, the keys.
fn files(folder: &Path, into: &mut Vec<(PathBuf, Vec<u8>)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match std::fs::symlink_metadata(&path)? {
            found if found.is_dir() => files(&path, into)?,
            found if found.is_file() => into.push((path.clone(), std::fs::read(&path)?)),
            _ => {}
        }
    }
    Ok(())
}

/// Every row of every table.
async fn tables(url: &str) -> anyhow::Result<(usize, Vec<u8>)> {
    let pool = sqlx::PgPool::connect(url).await?;
    let names = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname LIKE 'errand%'";
    let (mut count, mut bytes) = (0, Vec::new());
    for name in sqlx::query(names).fetch_all(&pool).await? {
        let sql = format!("SELECT t::text FROM {} t", name.try_get::<String, _>(0)?);
        for row in sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await? {
            count += 1;
            bytes.extend_from_slice(row.try_get::<String, _>(0)?.as_bytes());
            bytes.push(b'\n');
        }
    }
    Ok((count, bytes))
}

/// Waits until every service that a credential passes has told of each run.
async fn exported(collector: &Collector, runs: &[RunId]) {
    for run in runs {
        let id = run.to_string();
        let runners = &["errand-exec", "errand-browser"][..];
        for services in [&["errand-dispatcher"][..], &["errand-session-pool"], &["errand-vault"], runners] {
            eventually(&format!("spans of {services:?} in the trace of {id}"), PATIENCE, async || {
                let spans = collector.spans();
                let trace = &spans.iter().find(|span| span.run.as_ref() == Some(&id))?.trace;
                spans.iter().any(|span| &span.trace == trace && services.contains(&span.service.as_str())).then_some(())
            })
            .await;
        }
    }
}

/// The agent says its secrets aloud wherever it can; the API key also over two lines and in other forms.
const GOSSIP: &str = r#"read -r start; read -r input
echo "$start" >&2
key=$(printf '%s' "$start" | sed 's/.*"api_key":"\([^"]*\)".*/\1/')
printf '%s\n' "$key" "$(printf '%s' "$key" | base64)" "$(printf '%s' "$key" | od -An -tx1 | tr -d ' \n')" >&2
printf '%s' "$key" | cut -c1-7 >&2; printf '%s' "$key" | cut -c8- >&2
printf '{"type":"progress","message":"with %s","step":"%s"}\n' "$key" "$key"
[ -n "$MODE" ] && { printf '{"type":"output","output":{"key":"%s"}}\n' "$key"; exit 0; }
printf '{"type":"error","error":{"type":"source","code":"source_error","message":"key %s refused"}}\n' "$key""#;

async fn no_secret_is_left_anywhere_by_runs_that_sign_in(kind: StoreKind) -> anyhow::Result<()> {
    let mut world = World::start(kind, "trace").await?;
    let raw = async_nats::connect(world.stack.broker.url()).await?;
    let (wire, portal) = (Wire::listen(&raw).await?, Portal::start().await?);
    let needles = [PASSWORD, WRONG_PASSWORD, API_KEY, TOTP_SECRET];

    let runs = play(&world, &portal).await?;
    // Before the vault is killed: what it has not exported yet would go with it.
    exported(&world.collector, &runs).await;
    rotate(&mut world).await?;

    // Everything that there is, then every place is looked at.
    let mut places: Vec<(String, Vec<u8>)> = vec![("core NATS".into(), wire.end())];
    let (messages, bytes) = streams(&raw).await?;
    places.push(("the streams".into(), bytes));
    let mut found = Vec::new();
    files(world.stack.folder(), &mut found)?;
    places.extend(found.into_iter().map(|(path, bytes)| (path.display().to_string(), bytes)));
    if kind == StoreKind::Postgres {
        let (rows, bytes) = tables(world.stack.store()).await?;
        ensure!(rows > 20, "{rows} rows");
        places.push(("Postgres".into(), bytes));
    }
    let services = [Role::Dispatcher, Role::TimeoutWatcher, Role::Notifier, Role::Vault, Role::SessionPool];
    for role in services.into_iter().chain([Role::Storage, Role::Exec, Role::Browser]) {
        let log = world.stack.service(role).process().log();
        ensure!(log.len() > 1_000, "{role:?} logs at `trace`");
        places.push((format!("the log of {role:?}"), log.into_bytes()));
    }
    places.push(("the traces".into(), world.collector.raw()));
    let scrubbers = needles.map(|needle| {
        let mut scrubber = Scrubber::new();
        scrubber.add(needle);
        scrubber
    });
    for (place, bytes) in &places {
        for (needle, scrubber) in needles.iter().zip(&scrubbers) {
            ensure!(!bytes.windows(needle.len()).any(|window| window == needle.as_bytes()), "{needle} in {place}");
            ensure!(!scrubber.finds(bytes), "a form of {needle} in {place}");
        }
    }
    // That they were looked at: each place holds what it must.
    let holds = |place: &str, what: &str| {
        let mut found = places.iter().filter(|(name, _)| name.contains(place));
        found.any(|(_, bytes)| bytes.windows(what.len()).any(|window| window == what.as_bytes()))
    };
    ensure!(holds("the traces", &runs[0].to_string()) && holds("the traces", "open_credential"));
    ensure!(messages > 15 && holds("the streams", "credential.verified") && holds("core NATS", &runs[0].to_string()));
    ensure!(kind == StoreKind::Postgres || holds("vault.db", "username_password"));
    ensure!(holds("run.log", "[secret]") && holds("core NATS", "with [secret]") && holds("log of Vault", "granted"));
    Ok(())
}

/// Runs that sign in, fail to, and gossip; the credentials' ways meanwhile.
async fn play(world: &World, portal: &Portal) -> anyhow::Result<Vec<RunId>> {
    let client = &world.client;
    let text = std::fs::read_to_string(repository().join("examples/portal/bills-sign-in.task.json"))?;
    let bills = client.apply_task(&serde_json::from_str(&text)?).await?.id;
    let input = || json!({"portal_url": portal.url, "limit": 2});
    let eve = world.credential(AuthMethod::UsernamePassword, signing_in(WRONG_PASSWORD)).await?;
    ensure!(world.status(eve).await?.0 == v1::CredentialStatus::Unverified);

    let refused = world.run(&bills, input(), eve).await?;
    let run = world.ended(refused).await?;
    ensure!(run.errors.len() == 1 && run.errors[0].code == "auth_invalid", "{:?}", run.errors);
    ensure!(world.status(eve).await? == (v1::CredentialStatus::Invalid, "auth_invalid".into()), "as it was reported");

    let change = CredentialChange {
        secrets: Secrets { password: self::text(PASSWORD), ..Secrets::default() },
        ..CredentialChange::default()
    };
    client.update_credential(eve, change).await?;
    ensure!(world.status(eve).await? == (v1::CredentialStatus::Unverified, String::new()));
    let signed_in = world.run(&bills, input(), eve).await?;
    let run = world.ended(signed_in).await?;
    ensure!(run.status() == v1::RunStatus::Completed, "{:?}", run.errors);
    let (_, events) = client.get_run_with(signed_in, true).await?;
    let types: Vec<&str> = events.iter().map(|event| event.r#type.as_str()).collect();
    ensure!(types == ["task_run.queued", "task_run.running", "task_run.completed"], "nobody is asked: {types:?}");
    ensure!(world.status(eve).await?.0 == v1::CredentialStatus::Verified);
    let in_a_browser = with_a_browser(world, portal, eve).await?;

    let robot = world.credential(AuthMethod::ApiKey, key()).await?;
    let gossip = world.script(GOSSIP).await?;
    let gossiped = world.run(&gossip, Value::Null, robot).await?;
    let error = world.ended(gossiped).await?.errors.remove(0);
    ensure!(error.message == "key [secret] refused", "{error:?}");
    let program = json!({"command": ["/bin/sh", "-c", GOSSIP], "env": {"MODE": "output"}});
    let telling = world.task(program).await?;
    let told = world.run(&telling, Value::Null, robot).await?;
    let run = world.ended(told).await?;
    ensure!(run.output.is_none() && run.errors[0].message.contains("holds a secret"), "{run:?}");
    client.delete_credential(robot).await?;
    let seqs = credential_events(world, eve).await?;
    ensure!(seqs == ["1 created", "2 invalid", "3 unverified", "4 verified"], "{seqs:?}");
    let seqs = credential_events(world, robot).await?;
    ensure!(seqs == ["1 created", "2 deleted"], "{seqs:?}");
    Ok(vec![signed_in, refused, in_a_browser, gossiped, told])
}

/// The same customer in a real browser, which keeps what it brings home.
async fn with_a_browser(world: &World, portal: &Portal, credential: CredentialId) -> anyhow::Result<RunId> {
    let text = std::fs::read_to_string(repository().join("examples/portal/bills-browser.task.json"))?;
    let bills = world.client.apply_task(&serde_json::from_str(&text)?).await?.id;
    // More than the ten files that a page may give Chromium's users before they are asked.
    let run = world.run(&bills, json!({"portal_url": portal.url, "limit": 12}), credential).await?;
    let ended = world.ended(run).await?;
    ensure!(ended.status() == v1::RunStatus::Completed, "{:?}", ended.errors);
    let kept: Vec<v1::Artifact> = world.client.artifacts(run, Vec::new()).try_collect().await?;
    ensure!(kept.iter().filter(|file| file.mime_type == "application/pdf").count() == 12, "{kept:?}");
    Ok(run)
}

/// A credential's events as the stream has them.
async fn credential_events(world: &World, id: CredentialId) -> anyhow::Result<Vec<String>> {
    let subject = format!("{}.event.acme.credential.*.{id}", world.stack.prefix());
    let events = errand_bus::follow(world.client.bus(), subject, errand_bus::FollowFrom::Beginning).await?;
    let mut seen = Vec::new();
    let mut events = std::pin::pin!(events);
    while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_secs(2), events.next()).await {
        let event: v1::Event = prost::Message::decode(delivery?.payload)?;
        let action = event.r#type.strip_prefix("credential.").context("a credential's")?.to_owned();
        seen.push(format!("{} {action}", event.seq));
        if matches!(action.as_str(), "verified" | "deleted") {
            break;
        }
    }
    Ok(seen)
}

/// A new master key in front of the old one, everything sealed again, the old one taken away.
async fn rotate(world: &mut World) -> anyhow::Result<()> {
    let file = world.stack.master_key_file();
    let (old, new) = (std::fs::read_to_string(&file)?, errand_seal::new_key());
    std::fs::write(&file, format!("{}\n{old}", *new))?;
    world.stack.service(Role::Vault).restart();
    world.stack.ready().await;
    let rotated = world.client.rotate_key(|_| ()).await?;
    ensure!(rotated.looked_at == 1 && rotated.sealed_again == 2, "{rotated:?}");
    let again = world.client.rotate_key(|_| ()).await?;
    ensure!(again.sealed_again == 0, "{again:?}");
    std::fs::write(&file, &*new)?;
    world.stack.service(Role::Vault).restart();
    world.stack.ready().await;
    let eve = world.client.credentials(errand_client::CredentialFilter::default()).next().await.context("eve")??;
    let hello = r#"read -r start; case $start in *corr3ct*) echo '{"type":"output","output":"in"}';; esac"#;
    let run = world.run(&world.script(hello).await?, Value::Null, eve.id.parse()?).await?;
    let run = world.ended(run).await?;
    ensure!(run.output.as_deref() == Some(b"\"in\""), "{:?}", run.errors);
    Ok(())
}

/// What a thief on the broker could try, who knows all that can be read there.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_of_the_newest_lease_gets_it() -> anyhow::Result<()> {
    let world = World::start(StoreKind::Sqlite, "warn").await?;
    let (robot, other) =
        (world.credential(AuthMethod::ApiKey, key()).await?, world.credential(AuthMethod::ApiKey, key()).await?);
    let waits = world.script("read -r start; read -r input; read -r stop").await?;
    let run = world.run(&waits, Value::Null, robot).await?;
    let session = eventually("the run has its session", PATIENCE, async || {
        let run = world.client.get_run(run).await.ok()?;
        world.client.get_session(run.session_id.parse().ok()?).await.ok().filter(|session| session.lease_token > 0)
    })
    .await;
    let ours = KeyPair::generate();
    let request = v1::OpenCredentialRequest {
        run_id: run.to_string(),
        lease_token: session.lease_token,
        runner_id: session.runner_id.clone(),
        credential_id: robot.to_string(),
        public_key: ours.public().as_bytes().to_vec().into(),
    };
    let stranger = RunnerId::from_uuid(Uuid::now_v7()).to_string();
    for (what, expected, request) in [
        ("a key of our own", "has not made this key", request.clone()),
        ("an older lease", "not executed under this lease", {
            v1::OpenCredentialRequest { lease_token: session.lease_token - 1, ..request.clone() }
        }),
        ("another runner", "another runner's", v1::OpenCredentialRequest { runner_id: stranger, ..request.clone() }),
        ("another credential", "does not name", {
            v1::OpenCredentialRequest { credential_id: other.to_string(), ..request.clone() }
        }),
    ] {
        let refused = open(&world, &request).await.expect_err(what);
        ensure!(refused.contains("request/forbidden") && refused.contains(expected), "{what}: {refused}");
    }
    let report = v1::ReportAuthRequest {
        run_id: run.to_string(),
        lease_token: session.lease_token + 1,
        runner_id: session.runner_id.clone(),
        credential_id: robot.to_string(),
        generation: 1,
        number: 1,
        failure: "auth_invalid".into(),
    };
    let subject = world.client.bus().subjects().api("vault", "report_auth");
    let refused = world.client.bus().request::<_, v1::ReportAuthResponse>(subject, &report).await;
    ensure!(refused.is_err() && world.status(robot).await?.0 == v1::CredentialStatus::Unverified);
    world.client.cancel(run).await?;
    world.ended(run).await?;
    let late = open(&world, &request).await.expect_err("the run is over");
    ensure!(late.contains("not executed under this lease"), "{late}");
    for _ in 0..40 {
        if open(&world, &request).await.is_err_and(|error| error.contains("rate_limit_exceeded")) {
            return Ok(());
        }
    }
    anyhow::bail!("who asks again and again is never told so")
}

async fn open(world: &World, request: &v1::OpenCredentialRequest) -> Result<v1::OpenCredentialResponse, String> {
    let subject = world.client.bus().subjects().api("vault", "open_credential");
    world.client.bus().request(subject, request).await.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_names_what_is_there_and_a_vault_that_is_away_costs_none() -> anyhow::Result<()> {
    let mut world = World::start(StoreKind::Sqlite, "warn").await?;
    let client = world.client.clone();
    let source = client.create_source(NewSource {
        r#type: SourceType::Api,
        name: "brightwater".into(),
        url: "https://api.example.com".into(),
    });
    let source: SourceId = source.await?.id.parse()?;
    let robot = world.credential(AuthMethod::ApiKey, key()).await?;
    let (no_source, no_credential) = (SourceId::from_uuid(Uuid::now_v7()), CredentialId::from_uuid(Uuid::now_v7()));
    let task = world.script(r#"read -r start; echo '{"type":"output","output":1}'"#).await?;
    let new = || NewRun::of_task(&task);

    let code = |refused: Result<v1::Run, ClientError>| match refused {
        Err(ClientError::Refused(error)) => (Some(error.code), error.field.unwrap_or_default()),
        other => (None, format!("{other:?}")),
    };
    let refused = client.submit(new()?.with_credential(no_credential)).await;
    assert_eq!(code(refused), (Some(ErrorCode::CREDENTIAL_NOT_FOUND), "credential_id".into()));
    let refused = client.submit(new()?.on_source(no_source)).await;
    assert_eq!(code(refused), (Some(ErrorCode::SOURCE_NOT_FOUND), "source_id".into()));
    let stranger = client.for_tenant("other".parse()?);
    let theirs = stranger.apply_task(&serde_json::from_value(json!({"name": "t", "agent_id": "agt_exec"}))?).await?.id;
    let refused = stranger.submit(NewRun::of_task(&theirs)?.with_credential(robot)).await;
    assert_eq!(code(refused).0, Some(ErrorCode::CREDENTIAL_NOT_FOUND), "another tenant's");
    ensure!(stranger.get_credential(robot).await.is_err() && stranger.get_source(source).await.is_err());

    let good = new()?.on_source(source).with_credential(robot);
    let good_id = good.id();
    client.submit(good).await?;
    ensure!(world.ended(good_id).await?.status() == v1::RunStatus::Completed);

    // Over the stream nobody waits: the run is there, and has failed.
    let published = new()?.with_credential(no_credential);
    let id = published.id();
    client.publish_run(published).await?;
    let run = eventually("the published run has ended", PATIENCE, async || {
        client.get_run(id).await.ok().filter(|run| run.finished_at_ms.is_some())
    })
    .await;
    assert_eq!(run.errors[0].code, "credential_not_found");

    world.stack.service(Role::Vault).process().kill9();
    let (blind, hopeful) = (new()?.with_credential(no_credential), new()?.with_credential(robot));
    let ids = [blind.id(), hopeful.id()];
    for run in [blind, hopeful] {
        client.submit(run).await?;
    }
    world.stack.service(Role::Vault).restart();
    let run = world.ended(ids[0]).await?;
    assert_eq!(run.errors[0].code, "credential_not_found", "found out at the hand-over");
    ensure!(world.ended(ids[1]).await?.status() == v1::RunStatus::Completed);
    ensure!(world.work.is_dir());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_asks_for_a_master_key_in_one_line() -> anyhow::Result<()> {
    let stack = Stack::new(StoreKind::Postgres);
    let output =
        service("errand-vault").args(["--nats-url", &stack.broker.url(), "--store", stack.store()]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.trim_end().lines().count() == 1, "{said}");
    ensure!(said.contains("ERRAND_MASTER_KEY") && said.contains("openssl rand"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_takes_secrets_from_stdin_only() -> anyhow::Result<()> {
    let world = World::start(StoreKind::Sqlite, "warn").await?;
    let url = world.stack.broker.url();
    let prefix = world.stack.prefix().to_owned();
    let errand = |args: &[&str], stdin: &str| -> anyhow::Result<std::process::Output> {
        use std::io::Write;
        let mut command = service("errand");
        command.args(args).args(["--json", "--tenant", "acme", "--nats-url", &url, "--prefix", &prefix]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn()?;
        child.stdin.take().context("stdin")?.write_all(stdin.as_bytes())?;
        Ok(child.wait_with_output()?)
    };
    let done = |args: &[&str], stdin: &str| -> anyhow::Result<Value> {
        let output = errand(args, stdin)?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let source = done(&["sources", "create", "portal", "https://portal.example.com"], "")?;
    let source = source["id"].as_str().context("an id")?.to_owned();
    let secrets = json!({"username": EMAIL, "password": PASSWORD}).to_string();
    let made = done(&["credentials", "create", "eve", "--source", &source, "--secrets", "-"], &secrets)?;
    let keys: BTreeSet<&str> = made.as_object().context("an object")?.keys().map(String::as_str).collect();
    ensure!(!keys.contains("password") && !made.to_string().contains(PASSWORD), "{made}");
    let id = made["id"].as_str().context("an id")?.to_owned();
    ensure!(made["status"] == "unverified" && made["source_id"] == source.as_str() && made["has_totp"] == false);
    let listed = done(&["credentials", "list", "--source", &source], "")?;
    ensure!(listed["id"] == id.as_str());
    let totp = json!({"totp_secret": TOTP_SECRET}).to_string();
    let updated = done(&["credentials", "update", &id, "--secrets", "-"], &totp)?;
    ensure!(updated["has_totp"] == true);
    let refused = errand(&["sources", "delete", &source], "")?;
    ensure!(!refused.status.success(), "a credential belongs to it");
    let nonsense = errand(&["credentials", "create", "x", "--secrets", "-"], "{\"pin\":\"hunter2222\"}")?;
    let said = String::from_utf8_lossy(&nonsense.stderr);
    ensure!(!nonsense.status.success() && said.contains("totp_secret") && !said.contains("hunter2222"), "{said}");
    ensure!(done(&["vault", "rotate-key"], "")?["sealed_again"] == 0);
    done(&["credentials", "delete", &id], "")?;
    done(&["sources", "delete", &source], "")?;
    Ok(())
}
