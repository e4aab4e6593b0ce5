//! Runs that sign in with a sealed credential, and what is left of its secrets.

use std::path::{Path, PathBuf};

use errand_client::{NewCredential, NewRun, RunId, SecretText, Secrets, v1};
use errand_core::CredentialId;
use errand_core::credential::AuthMethod;
use errand_core::task::Definition;
use serde_json::{Value, json};

use crate::site::{Site, html};
use crate::world::{Portal, World, example};

const EMAIL: &str = "eve@example.com";
const PASSWORD: &str = "corr3ct-H0rse/battery \"staple\"";
const WRONG_PASSWORD: &str = "Tr0ub4dor&3-was-never-right";
const TOTP_SECRET: &str = "JBSWY3DPEHPK3PXPGEZDGNBVGY3TQOJQ";

fn text(text: &str) -> Option<SecretText> {
    Some(SecretText::new(text.to_owned()))
}

async fn credential(world: &World, password: &str) -> CredentialId {
    let secrets = Secrets {
        username: text(EMAIL),
        password: text(password),
        totp_secret: text(TOTP_SECRET),
        ..Secrets::default()
    };
    let new =
        NewCredential { name: "Eve's".to_owned(), auth_method: AuthMethod::UsernamePassword, source_id: None, secrets };
    world.client.create_credential(new).await.unwrap().id.parse().unwrap()
}

async fn run(world: &World, definition: &Definition, input: Value, credential: CredentialId) -> RunId {
    let task = world.client.apply_task(definition).await.unwrap().id;
    let run = NewRun::of_task(&task).unwrap().input(&input).with_credential(credential);
    let id = run.id();
    world.client.submit(run).await.unwrap();
    id
}

fn bills() -> Definition {
    let task = std::fs::read_to_string(example("portal/bills-browser.task.json")).unwrap();
    serde_json::from_str(&task).unwrap()
}

async fn status(world: &World, id: CredentialId) -> (v1::CredentialStatus, String) {
    let credential = world.client.get_credential(id).await.unwrap();
    (credential.status(), credential.failure)
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&path)),
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_signs_in_with_its_code_and_nobody_is_asked() {
    let world = World::start(&["--capacity", "2", "--log", "trace"]).await;
    let portal = Portal::start(&world, &[]).await;
    portal.open_account(EMAIL, PASSWORD, TOTP_SECRET).await;
    let (right, wrong) = (credential(&world, PASSWORD).await, credential(&world, WRONG_PASSWORD).await);
    let input = json!({"portal_url": portal.url(), "limit": 2});
    let mut task = bills();
    // A question would wait for its user for longer than this test does.
    task.settings.reuse_session = false;
    let refused = run(&world, &task, input.clone(), wrong).await;
    let signed_in = run(&world, &task, input, right).await;
    let output = world.output(signed_in).await;
    assert_eq!(output["bills"].as_array().unwrap().len(), 2, "{output}");
    let error = world.error(refused).await;
    assert!(error.starts_with("auth/auth_invalid: ") && error.ends_with("the portal refuses the password"), "{error}");
    assert_eq!(status(&world, right).await.0, v1::CredentialStatus::Verified);
    assert_eq!(status(&world, wrong).await, (v1::CredentialStatus::Invalid, "auth_invalid".to_owned()));
    assert_eq!(world.names(refused), ["failure.png"]);
    let stack = world.end().await;
    let left = files(stack.folder());
    assert!(left.len() > 10, "{left:?}");
    for file in left {
        let bytes = std::fs::read(&file).unwrap_or_default();
        for secret in [PASSWORD, WRONG_PASSWORD, TOTP_SECRET] {
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "a secret stands in {}", file.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_has_the_secrets_and_the_next_code() {
    let world = World::start(&["--capacity", "1"]).await;
    let form = "<form action=/echo method=post><label>Who <input name=who></label><label>Code <input name=code></label>\
        <button>Send</button></form>";
    let site = Site::start([("/", html(form))]).await;
    let id = credential(&world, PASSWORD).await;
    let who = |value: &str| json!({"fill": {"target": {"label": "Who"}, "value": value}});
    let definition = |steps: Value| -> Definition {
        let name = uuid::Uuid::now_v7().to_string();
        serde_json::from_value(json!({"name": name, "agent_id": "agt_browser", "program": {"steps": steps}})).unwrap()
    };
    let steps = json!([
        {"use_credential": true},
        {"goto": {"url": site.url("/")}},
        who("{{credential.username}}"),
        {"fill": {"target": {"label": "Code"}, "value": "{{credential.totp}}", "submit": true}},
        {"extract": {"sent": {"from": {"css": "#body"}}}},
    ]);
    let sent = run(&world, &definition(steps), Value::Null, id).await;
    let output = world.output(sent).await;
    let sent = output["sent"].as_str().unwrap();
    let code = sent.strip_prefix("who=eve%40example.com&code=").unwrap_or_else(|| panic!("{sent}"));
    assert!(code.len() == 6 && code.bytes().all(|byte| byte.is_ascii_digit()), "{code}");
    for (steps, expected) in [
        (json!([{"goto": {"url": site.url("/")}}, who("{{credential.username}}")]), "there is no credential.username"),
        (json!([{"goto": {"url": site.url("/")}}, who("{{credential.totp}}")]), "use_credential comes first"),
        (
            json!([{"use_credential": true}, {"goto": {"url": site.url("/")}}, who("{{credential.api_key}}")]),
            "there is no credential.api_key",
        ),
    ] {
        let failing = run(&world, &definition(steps), Value::Null, id).await;
        let error = world.error(failing).await;
        assert!(error.starts_with("task/agent_error: ") && error.contains(expected), "{error}");
    }
    // Nobody has said that it works, or that it does not.
    assert_eq!(status(&world, id).await.0, v1::CredentialStatus::Unverified);
    world.end().await;
}
