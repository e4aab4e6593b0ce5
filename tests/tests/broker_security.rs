//! The broker with the users of `errand nats-config`: the stack works under them, and each is refused what it must not
//! do.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::{Event, ServerError};
use errand_bus::{Bus, BusConfig, Part, connect_options};
use errand_client::{Client, NewCredential, NewRun, SecretText, Secrets, v1};
use errand_core::credential::AuthMethod;
use errand_core::task::Definition;
use errand_tests::{Broker, Role, Stack, StoreKind, eventually, folder, service};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);
const PREFIX: &str = "test.errand";
/// What no user may publish on.
const NOBODYS: &str = "nobodys.subject";

/// What `errand nats-config` has written.
struct Users(TempDir);

impl Users {
    fn new(more: &[&str]) -> Self {
        let folder = folder("users");
        let mut command = service("errand");
        command.args(["--prefix", PREFIX, "nats-config"]).arg(folder.path());
        command.args(["--tenants", "acme,blue", "--runners", "one,two"]).args(more);
        run(&mut command);
        Self(folder)
    }

    fn file(&self, user: &str) -> String {
        self.0.path().join(format!("{user}.creds")).display().to_string()
    }

    fn server(&self) -> String {
        let file = self.0.path().join("server/auth.conf");
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A connection that tells what the broker refuses.
struct Probe {
    client: async_nats::Client,
    refused: mpsc::UnboundedReceiver<String>,
}

impl Probe {
    async fn connect(broker: &Broker, users: &Users, user: &str) -> anyhow::Result<Self> {
        let config = BusConfig {
            url: broker.url(),
            prefix: PREFIX.into(),
            credentials: Some(users.file(user).into()),
            ..BusConfig::default()
        };
        let (told, refused) = mpsc::unbounded_channel();
        let options = connect_options(&config).await?.event_callback(move |event| {
            if let Event::ServerError(ServerError::Other(text)) = event {
                drop(told.send(text));
            }
            std::future::ready(())
        });
        Ok(Self { client: options.connect(broker.url()).await?, refused })
    }

    /// Whether the broker lets this user publish there.
    async fn may_publish(&mut self, subject: &str) -> anyhow::Result<bool> {
        self.client.publish(subject.to_owned(), "x".into()).await?;
        self.settled().await
    }

    /// Whether the broker lets this user listen there.
    async fn may_subscribe(&mut self, subject: &str) -> anyhow::Result<bool> {
        let subscription = self.client.subscribe(subject.to_owned()).await?;
        let may = self.settled().await?;
        drop(subscription);
        Ok(may)
    }

    /// The broker refuses in order: what it said of the last comes before what it says of a subject that nobody has.
    async fn settled(&mut self) -> anyhow::Result<bool> {
        self.client.publish(NOBODYS, "x".into()).await?;
        let mut may = true;
        loop {
            let text = tokio::time::timeout(PATIENCE, self.refused.recv()).await.context("no refusal")?;
            let text = text.context("the connection has ended")?;
            ensure!(text.to_lowercase().contains("permissions violation"), "{text}");
            if text.contains(NOBODYS) {
                return Ok(may);
            }
            may = false;
        }
    }
}

/// What a user may not do, and what it may: subjects below the prefix, or `$...` as they are.
struct Case {
    user: &'static str,
    publish: &'static [(&'static str, bool)],
    subscribe: &'static [(&'static str, bool)],
}

const CASES: [Case; 10] = [
    Case {
        user: "tenant-acme",
        publish: &[
            ("submit.acme", true),
            ("submit.blue", false),
            ("api.dispatcher.get_run", false),
            ("event.acme.task_run.completed.trun_x", false),
            ("run.report", false),
            ("pool.acquire", false),
            ("$JS.API.STREAM.DELETE.TEST_ERRAND_EVENT", false),
            ("$JS.API.CONSUMER.CREATE.TEST_ERRAND_EVENT.x", false),
        ],
        subscribe: &[
            ("notify.acme.>", false),
            ("notify.acme.task_run.completed", true),
            ("event.acme.>", true),
            ("event.blue.>", false),
            ("notify.blue.task_run.completed", false),
            ("event.>", false),
            ("_INBOX.>", false),
            ("$SRV.>", false),
        ],
    },
    Case {
        user: "runner-one",
        publish: &[
            ("pool.heartbeat", true),
            ("run.report", true),
            ("activity.trun_x", true),
            ("live.rnr_x.sess_x.frame", false),
            ("live.rnr_x.sess_x.watch", false),
            ("pool.acquire", false),
            ("pool.release", false),
            ("pool.hello", false),
            ("run.grant", false),
            ("run.expire", false),
            ("run.lost", false),
            ("submit.acme", false),
            ("event.acme.task_run.completed.trun_x", false),
            ("api.dispatcher.get_run", false),
            ("api.vault.open_credential", true),
            ("api.vault.get_credential", false),
            ("storage.begin", true),
            ("storage.x.put", true),
            ("api.storage.read_artifact", false),
            ("$JS.API.STREAM.INFO.TEST_ERRAND_EVENT", false),
        ],
        subscribe: &[
            ("pool.hello", true),
            ("api.vault.open_credential", false),
            ("storage.>", false),
            ("runner.*.assign", false),
            ("runner.>", false),
            ("live.*.*.watch", false),
            ("live.>", false),
            ("run.report", false),
            ("event.>", false),
            ("submit.*", false),
        ],
    },
    Case {
        user: "runners",
        publish: &[("run.report", true), ("run.grant", false), ("live.rnr_x.sess_x.frame", true)],
        subscribe: &[
            ("runner.*.assign", true),
            ("live.rnr_x.sess_x.watch", true),
            ("live.rnr_x.sess_x.frame", false),
            ("pool.register", false),
            ("activity.*", false),
        ],
    },
    Case {
        user: "dispatcher",
        publish: &[
            ("event.acme.task_run.completed.trun_x", true),
            ("runner.rnr_x.assign", true),
            ("runner.rnr_x.start_session", false),
            ("api.vault.check_references", true),
            ("api.vault.open_credential", false),
            ("notify.acme.task_run.completed", false),
            ("$JS.API.STREAM.DELETE.TEST_ERRAND_EVENT", false),
            ("$JS.API.STREAM.PURGE.TEST_ERRAND_EVENT", false),
        ],
        subscribe: &[("run.>", true), ("pool.>", false), ("_INBOX.session-pool.>", false), ("submit.*", false)],
    },
    Case {
        user: "session-pool",
        publish: &[("run.grant", true), ("run.report", false), ("runner.rnr_x.assign", false), ("submit.acme", false)],
        subscribe: &[("pool.>", true), ("run.>", false), ("runner.*.assign", false)],
    },
    Case {
        user: "timeout-watcher",
        publish: &[("run.expire", true), ("run.report", false), ("event.acme.task_run.failed.trun_x", false)],
        subscribe: &[("activity.*", true), ("run.>", false), ("submit.*", false)],
    },
    Case {
        user: "notifier",
        publish: &[("notify.acme.task_run.completed", true), ("run.report", false), ("submit.acme", false)],
        subscribe: &[("run.>", false), ("submit.*", false), ("_INBOX.dispatcher.>", false)],
    },
    Case {
        user: "gateway",
        publish: &[
            ("api.dispatcher.get_run", true),
            ("api.vault.create_credential", true),
            ("api.vault.open_credential", false),
            ("api.vault.rotate_key", false),
            ("live.rnr_x.sess_x.watch", true),
            ("live.rnr_x.sess_x.frame", false),
            ("run.report", false),
            ("pool.release", false),
            ("submit.acme", false),
        ],
        subscribe: &[
            ("gateway.keys", true),
            ("live.rnr_x.sess_x.frame", true),
            ("live.rnr_x.sess_x.watch", false),
            ("run.>", false),
            ("pool.>", false),
            ("runner.>", false),
        ],
    },
    Case {
        user: "vault",
        publish: &[
            ("event.acme.credential.created.cred_x", true),
            ("run.lease_holder", true),
            ("runner.rnr_x.confirm_key", true),
            ("runner.rnr_x.assign", false),
            ("run.report", false),
            ("submit.acme", false),
            ("api.dispatcher.get_run", false),
        ],
        subscribe: &[("api.vault.open_credential", true), ("run.>", false), ("_INBOX.dispatcher.>", false)],
    },
    Case {
        user: "storage",
        publish: &[
            ("event.acme.storage.created.stor_x", true),
            ("run.holder", true),
            ("run.lease_holder", false),
            ("run.report", false),
            ("runner.rnr_x.assign", false),
            ("api.vault.get_credential", false),
            ("submit.acme", false),
        ],
        subscribe: &[("storage.begin", true), ("api.storage.*", true), ("run.>", false), ("activity.*", false)],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn each_user_is_refused_what_it_must_not_do() -> anyhow::Result<()> {
    let users = Users::new(&[]);
    let broker = Broker::start_with(&users.server());
    let full = |subject: &str| match subject {
        known if known.starts_with(['$', '_']) => known.to_owned(),
        below => format!("{PREFIX}.{below}"),
    };
    let mut wrong = Vec::new();
    for case in CASES {
        let mut probe = Probe::connect(&broker, &users, case.user).await?;
        for (subject, may) in case.publish {
            if probe.may_publish(&full(subject)).await? != *may {
                wrong.push(format!("{} publishes on {subject}: should be {may}", case.user));
            }
        }
        for (subject, may) in case.subscribe {
            if probe.may_subscribe(&full(subject)).await? != *may {
                wrong.push(format!("{} listens on {subject}: should be {may}", case.user));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    // Nobody comes in without credentials, and every service has some.
    ensure!(async_nats::connect(broker.url()).await.is_err(), "the broker takes anybody");
    for (_, name) in Part::SERVICES {
        Probe::connect(&broker, &users, name).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stack_works_under_its_users() -> anyhow::Result<()> {
    let users = Users::new(&[]);
    let mut stack = Stack::with_broker(StoreKind::Sqlite, Broker::start_with(&users.server()));
    ensure!(stack.prefix() == PREFIX);
    for (role, user) in [
        (Role::Dispatcher, "dispatcher"),
        (Role::SessionPool, "session-pool"),
        (Role::TimeoutWatcher, "timeout-watcher"),
        (Role::Notifier, "notifier"),
        (Role::Vault, "vault"),
        (Role::Storage, "storage"),
        (Role::Scripted, "runner-one"),
        (Role::Exec, "runner-two"),
    ] {
        let more: &[&str] = if role == Role::SessionPool { &["--runner-lost-seconds", "4"] } else { &[] };
        let credentials = users.file(user);
        stack.start(role, &[&["--log", "warn", "--nats-credentials", &credentials], more].concat());
    }
    let operator = bus(&stack.broker, &users, "operator").await?;
    let client = Client::new(operator, "acme".parse()?);
    eventually("both runners are connected", PATIENCE, async || {
        client.runners(Vec::new()).await.ok().filter(|runners| runners.len() == 2)
    })
    .await;
    let definition = json!({"name": "secure", "agent_id": "agt_scripted", "settings": {"inactivity_seconds": 1}});
    let task = client.apply_task(&serde_json::from_value::<Definition>(definition)?).await?.id;
    // A tenant's program publishes, and hears of its own.
    let tenant = Probe::connect(&stack.broker, &users, "tenant-acme").await?;
    let mut heard = tenant.client.subscribe(format!("{PREFIX}.notify.acme.task_run.completed")).await?;
    tenant.client.flush().await?;
    let by_tenant = Client::new(bus(&stack.broker, &users, "tenant-acme").await?, "acme".parse()?);
    let run = NewRun::of_task(&task)?.input(&json!({"steps": [
        {"capture": {"name": "a.csv", "content": "a,b"}},
        {"output": 7},
    ]}));
    let id = run.id();
    by_tenant.publish_run(run).await?;
    let told = tokio::time::timeout(PATIENCE, heard.next()).await?.context("the subscription ended")?;
    let event: serde_json::Value = serde_json::from_slice(&told.payload)?;
    ensure!(event["data"]["id"] == id.to_string(), "{event}");
    let kept: Vec<v1::Artifact> = client.artifacts(id, Vec::new()).try_collect().await?;
    ensure!(kept.len() == 1 && kept[0].name == "a.csv", "{kept:?}");
    a_credential_reaches_its_runner(&client).await?;
    // Deadlines and stops go their ways, too.
    let stuck = NewRun::of_task(&task)?.input(&json!({"steps": ["stuck"]}));
    let id = stuck.id();
    client.submit(stuck).await?;
    let ended = client.wait(id, PATIENCE).await?.into_run();
    let log = stack.service(Role::TimeoutWatcher).process().log();
    ensure!(ended.errors.iter().any(|error| error.code == "timeout"), "{ended:?}; the watcher: {log}");
    runner_comes_back_under_its_id(&mut stack, &client, &task).await
}

/// The vault hears its witnesses, and the runner is answered.
async fn a_credential_reaches_its_runner(client: &Client) -> anyhow::Result<()> {
    let secrets = Secrets { api_key: Some(SecretText::new("sk_test_1234567890".into())), ..Secrets::default() };
    let new = NewCredential { name: "key".into(), auth_method: AuthMethod::ApiKey, source_id: None, secrets };
    let credential = client.create_credential(new).await?.id.parse()?;
    let script = r#"read -r start; case $start in *sk_test_*) echo '{"type":"output","output":1}';; esac"#;
    let program = json!({"command": ["/bin/sh", "-c", script]});
    let definition = json!({"name": "signed", "agent_id": "agt_exec", "program": program});
    let task = client.apply_task(&serde_json::from_value::<Definition>(definition)?).await?.id;
    let run = NewRun::of_task(&task)?.with_credential(credential);
    let id = run.id();
    client.submit(run).await?;
    let ended = client.wait(id, PATIENCE).await?.into_run();
    ensure!(ended.status() == v1::RunStatus::Completed, "{ended:?}");
    Ok(())
}

/// A runner whose credentials fix its id is the same one again after it was killed: what it had is lost at once.
async fn runner_comes_back_under_its_id(stack: &mut Stack, client: &Client, task: &str) -> anyhow::Result<()> {
    let scripted = || vec!["agt_scripted".to_owned()];
    let before = client.runners(scripted()).await?;
    let long = NewRun::of_task(task)?.input(&json!({"steps": [{"progress": "on"}, {"sleep_ms": 700}, {"output": 1}]}));
    let id = long.id();
    client.submit(long).await?;
    eventually("it runs", PATIENCE, async || {
        client.get_run(id).await.ok().filter(|run| run.status() == v1::RunStatus::Running)
    })
    .await;
    stack.service(Role::Scripted).restart();
    let ended = client.wait(id, PATIENCE).await?.into_run();
    ensure!(ended.finished_at_ms.is_some(), "{ended:?}");
    let after = client.runners(scripted()).await?;
    ensure!(after.len() == 1 && after[0].id == before[0].id, "{before:?} and then {after:?}");
    Ok(())
}

async fn bus(broker: &Broker, users: &Users, user: &str) -> anyhow::Result<Bus> {
    let config = BusConfig {
        url: broker.url(),
        prefix: PREFIX.into(),
        credentials: Some(users.file(user).into()),
        ..BusConfig::default()
    };
    Ok(Bus::connect(config, PATIENCE).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_tls_is_spoken_to_by_those_who_know_its_ca() -> anyhow::Result<()> {
    let files = folder("tls");
    let ca = certificates(files.path())?;
    let [certificate, key] = ["server.pem", "server.key"].map(|name| files.path().join(name).display().to_string());
    let users = Users::new(&["--tls-certificate", &certificate, "--tls-key", &key]);
    let broker = Broker::start_with(&users.server());
    let config = BusConfig {
        url: broker.url(),
        prefix: PREFIX.into(),
        credentials: Some(users.file("operator").into()),
        ca: Some(ca),
        ..BusConfig::default()
    };
    let bus = Bus::connect(config.clone(), PATIENCE).await?;
    bus.round_trip().await?;
    bus.connect_once().await?.round_trip().await?;
    let stranger = BusConfig { ca: None, ..config };
    ensure!(Bus::connect(stranger, Duration::from_secs(1)).await.is_err(), "an unknown certificate was believed");
    Ok(())
}

/// A CA of our own and a server's certificate of its.
fn certificates(folder: &Path) -> anyhow::Result<std::path::PathBuf> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_file = folder.join("ca.pem");
    std::fs::write(&ca_file, ca.self_signed(&ca_key)?.pem())?;
    let key = KeyPair::generate()?;
    let server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    std::fs::write(folder.join("server.pem"), server.signed_by(&key, &Issuer::new(ca, &ca_key))?.pem())?;
    std::fs::write(folder.join("server.key"), key.serialize_pem())?;
    Ok(ca_file)
}
