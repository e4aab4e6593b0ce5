//! Amazon's services as moto plays them, read back with Amazon's own client; and the signature against Amazon's own
//! signer, for moto checks none.

use std::process::Command as Process;

use errand_tests::{Child, eventually, folder, pick_port};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::helper::{PATIENCE, Seen, Sink, TRACEPARENT, answer, local, message, open, project, run, tool};

/// moto's server. Gone on drop.
struct Moto {
    port: u16,
    // In this order: the process ends, then its files go.
    _child: Child,
    _folder: TempDir,
}

impl Moto {
    async fn start() -> Self {
        let folder = folder("moto");
        let port = pick_port();
        let mut command = Process::new(tool("test-venv/bin/python"));
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        let child = Child::spawn_logged(&mut command, &folder.path().join("moto.log"));
        let moto = Self { port, _child: child, _folder: folder };
        let knock = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok();
        eventually("moto listens", PATIENCE, knock).await;
        moto
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What `aws.py` says.
    async fn ask(&self, arguments: &[&str]) -> Value {
        let script = project("services/notifier/tests/channels/aws.py");
        let mut command = Command::new(tool("test-venv/bin/python"));
        let said = run(command.arg(script).arg(self.url()).args(arguments), "").await;
        serde_json::from_str(&said).unwrap()
    }
}

fn access(endpoint: Option<&str>, more: &Value) -> Value {
    let mut json = json!({"region": "eu-central-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": "hush"});
    if let Some(endpoint) = endpoint {
        json["endpoint"] = endpoint.into();
    }
    for (name, value) in more.as_object().unwrap() {
        json[name] = value.clone();
    }
    json
}

#[tokio::test]
async fn what_arrives() {
    let moto = Moto::start().await;
    let url = moto.url();
    let queues = moto.ask(&["make"]).await;
    let outside = local();
    let message = message();
    let (id, body) = (message.event_id.to_string(), std::str::from_utf8(&message.json).unwrap());

    let [plain, fifo] = ["plain", "fifo"].map(|name| queues[name].as_str().unwrap());
    // Without an endpoint of its own, the queue's host is called.
    let receipt = open("aws_sqs", &access(None, &json!({"queue_url": plain})), &outside).send(&message).await.unwrap();
    assert_eq!(receipt.status_code, Some(200));
    let got = moto.ask(&["queue", plain]).await;
    assert_eq!(got[0]["Body"], body);
    assert_eq!(got[0]["MessageAttributes"]["event_id"]["StringValue"], id);
    assert_eq!(got[0]["MessageAttributes"]["event_type"]["StringValue"], "task_run.completed");
    assert_eq!(got[0]["MessageAttributes"]["traceparent"]["StringValue"], TRACEPARENT);

    let channel = open("aws_sqs", &access(Some(&url), &json!({"queue_url": fifo})), &outside);
    for _ in 0..2 {
        channel.send(&message).await.unwrap();
    }
    let got = moto.ask(&["queue", fifo]).await;
    assert_eq!(got.as_array().unwrap().len(), 1, "the second is dropped as a duplicate: {got}");
    assert_eq!(got[0]["Attributes"]["MessageGroupId"], message.object_id);
    assert_eq!(got[0]["Attributes"]["MessageDeduplicationId"], id);

    open("aws_kinesis", &access(Some(&url), &json!({"stream": "events"})), &outside).send(&message).await.unwrap();
    assert_eq!(moto.ask(&["stream"]).await, json!([{"key": message.object_id, "data": body}]));

    open("aws_s3", &access(Some(&url), &json!({"bucket": "events"})), &outside).send(&message).await.unwrap();
    let key = format!("acme/2025-10-09/task_run.completed/{id}.json");
    assert_eq!(moto.ask(&["bucket"]).await, json!([{"key": key, "type": "application/json", "body": body}]));
}

#[tokio::test]
async fn what_is_refused() {
    let moto = Moto::start().await;
    let url = moto.url();
    let missing = [
        ("aws_sqs", json!({"queue_url": format!("{url}/123456789012/missing")})),
        ("aws_kinesis", json!({"stream": "missing"})),
        ("aws_s3", json!({"bucket": "missing"})),
    ];
    for (kind, json) in missing {
        let failure = open(kind, &access(Some(&url), &json), &local()).send(&message()).await.unwrap_err();
        assert!(matches!(failure.status_code, Some(400..=404)), "{failure:?}");
        assert!(!failure.response.is_empty() && !failure.gone, "{failure:?}");
    }
}

/// What Amazon's signer makes of the same call.
const SIGN: &str = "
import json, sys, datetime
from botocore.auth import SigV4Auth, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
import botocore.auth
asked = json.load(sys.stdin)
at = datetime.datetime.strptime(asked['headers']['x-amz-date'], '%Y%m%dT%H%M%SZ')
botocore.auth.get_current_datetime = lambda *_, **__: at
request = AWSRequest(asked['method'], asked['url'], data=asked['body'].encode(), headers=asked['headers'])
request.context['payload_signing_enabled'] = True
signer = S3SigV4Auth if asked['service'] == 's3' else SigV4Auth
signer(Credentials('AKIDEXAMPLE', 'hush', 'token'), asked['service'], 'eu-central-1').add_auth(request)
print(request.headers['Authorization'])
";

async fn expected(seen: &Seen, service: &str, url: &str) -> String {
    let signed = seen.header("authorization").split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
    let names = signed.split(';').filter(|name| *name != "host");
    let headers: Value = names.map(|name| (name.to_owned(), Value::from(seen.header(name)))).collect();
    let body = std::str::from_utf8(&seen.body).unwrap();
    let asked =
        json!({"method": seen.method.as_str(), "url": url, "service": service, "headers": headers, "body": body});
    let mut command = Command::new(tool("test-venv/bin/python"));
    run(command.args(["-c", SIGN]), &asked.to_string()).await.trim().to_owned()
}

#[tokio::test]
async fn calls_are_signed_as_amazon_does() {
    let mut sink = Sink::start(|_| answer(200, "{}")).await;
    let url = sink.url("");
    let cases = [
        ("aws_sqs", "sqs", json!({"queue_url": "https://sqs.eu-central-1.amazonaws.com/1/q.fifo"})),
        ("aws_kinesis", "kinesis", json!({"stream": "events"})),
        ("aws_s3", "s3", json!({"bucket": "events", "key": "größe {date}/a+b=c&d/{event_id}*.json"})),
    ];
    for (kind, service, json) in cases {
        let mut json = access(Some(&url), &json);
        json["session_token"] = "token".into();
        open(kind, &json, &local()).send(&message()).await.unwrap();
        let seen = sink.next().await;
        let called = format!("{url}{}", seen.uri);
        assert_eq!(seen.header("authorization"), expected(&seen, service, &called).await, "{kind}");
        assert_eq!(seen.header("x-amz-security-token"), "token");
    }
}
