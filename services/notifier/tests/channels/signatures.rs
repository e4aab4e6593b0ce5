//! Signatures, verified by implementations that are not ours: Python's and npm's `standardwebhooks`.

use serde_json::{Value, json};
use tokio::process::Command;

use crate::helper::{NEW_SECRET, OLD_SECRET, Seen, Sink, answer, config, local, message, project, run, tool};

const OTHER_SECRET: &str = "whsec_b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItb3Q=";

async fn delivered(secrets: &[&str]) -> Seen {
    let mut sink = Sink::start(|_| answer(200, "")).await;
    let secrets: Vec<String> = secrets.iter().map(|secret| (*secret).to_owned()).collect();
    let channel = config("webhook", &json!({"url": sink.url("/")})).open(&secrets, &local()).unwrap();
    channel.send(&message()).await.unwrap();
    sink.next().await
}

/// What Python and npm say of each secret.
async fn verified(seen: &Seen, body: &str, secrets: &[&str]) -> [Vec<bool>; 2] {
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: Value = names.iter().map(|name| ((*name).to_owned(), Value::from(seen.header(name)))).collect();
    let asked = json!({"headers": headers, "body": body, "secrets": secrets}).to_string();
    let here = project("services/notifier/tests/channels");
    let mut python = Command::new(tool("test-venv/bin/python"));
    let mut node = Command::new("node");
    let python = run(python.arg(here.join("verify.py")), &asked).await;
    let node = run(node.arg(here.join("verify.mjs")).arg(tool("node/package.json")), &asked).await;
    [python, node].map(|found| serde_json::from_str(&found).unwrap())
}

#[tokio::test]
async fn others_verify_them() {
    let seen = delivered(&[NEW_SECRET]).await;
    let body = std::str::from_utf8(&seen.body).unwrap();
    let expected = vec![true, false, false];
    assert_eq!(verified(&seen, body, &[NEW_SECRET, OLD_SECRET, OTHER_SECRET]).await, [expected.clone(), expected]);
    let changed = body.replace("completed", "completee");
    assert_eq!(verified(&seen, &changed, &[NEW_SECRET]).await, [vec![false], vec![false]]);
}

#[tokio::test]
async fn during_a_rotation_both_secrets_verify() {
    let seen = delivered(&[NEW_SECRET, OLD_SECRET]).await;
    assert_eq!(seen.header("webhook-signature").split(' ').count(), 2);
    let body = std::str::from_utf8(&seen.body).unwrap();
    let expected = vec![true, true, false];
    assert_eq!(verified(&seen, body, &[NEW_SECRET, OLD_SECRET, OTHER_SECRET]).await, [expected.clone(), expected]);
}

#[test]
fn a_webhook_without_a_usable_secret_does_not_open() {
    let config = config("webhook", &json!({"url": "https://example.com/"}));
    for secrets in [vec![], vec!["whsec_???hush".to_owned()]] {
        let error = config.open(&secrets, &local()).unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
