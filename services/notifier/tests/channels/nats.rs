//! Subjects of the installation's own server, and of others.

use std::path::Path;
use std::process::Command;

use async_nats::jetstream::{self, stream};
use errand_bus::{Bus, BusConfig};
use errand_notifier::channel::{Outside, OutsideArgs};
use errand_tests::{Broker, Child, eventually, folder, pick_port};
use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helper::{PATIENCE, TRACEPARENT, config, local, message, open, tool};
use crate::keys;

async fn next(subscriber: &mut async_nats::Subscriber) -> async_nats::Message {
    tokio::time::timeout(PATIENCE, subscriber.next()).await.expect("a message").expect("the server runs")
}

/// A subscription that the server knows of: it works off a connection in order.
async fn subscribe(client: &async_nats::Client, subject: &str) -> async_nats::Subscriber {
    let subscriber = client.subscribe(subject.to_owned()).await.unwrap();
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, "".into()).await.unwrap();
    next(&mut echo).await;
    subscriber
}

fn header<'a>(message: &'a async_nats::Message, name: &str) -> &'a str {
    let value = message.headers.as_ref().and_then(|headers| headers.get(name));
    value.unwrap_or_else(|| panic!("no {name}")).as_str()
}

async fn own(broker: &Broker) -> (async_nats::Client, Outside) {
    let config = BusConfig { url: broker.url(), prefix: "errand.v1".into(), ..BusConfig::default() };
    let bus = Bus::connect(config, PATIENCE).await.unwrap();
    let outside = Outside::new(&OutsideArgs::default(), Some(bus)).unwrap();
    (async_nats::connect(broker.url()).await.unwrap(), outside)
}

#[tokio::test]
async fn the_own_server_is_reached_although_it_is_private() {
    let broker = Broker::start();
    let (client, outside) = own(&broker).await;
    let mut subscriber = subscribe(&client, "events.>").await;
    let subject = "events.{tenant}.{object}.{action}.{object_id}.{event_id}.{date}";
    let message = message();
    open("nats", &json!({"subject": subject}), &outside).send(&message).await.unwrap();
    let got = next(&mut subscriber).await;
    let expected = format!("events.acme.task_run.completed.{}.{}.2025-10-09", message.object_id, message.event_id);
    assert_eq!(got.subject.as_str(), expected);
    assert_eq!(got.payload, message.json);
    assert_eq!(header(&got, "Errand-Event-Id"), message.event_id.to_string());
    assert_eq!((header(&got, "traceparent"), header(&got, "Content-Type")), (TRACEPARENT, "application/json"));

    let jetstream = jetstream::new(client);
    let kept = stream::Config { name: "KEPT".into(), subjects: vec!["kept.>".into()], ..Default::default() };
    let mut kept = jetstream.create_stream(kept).await.unwrap();
    let channel = open("nats", &json!({"subject": "kept.x", "jetstream": true}), &outside);
    for _ in 0..2 {
        assert_eq!(channel.send(&message).await.unwrap().response, "stored at 1", "the second is a duplicate");
    }
    assert_eq!(kept.info().await.unwrap().state.messages, 1);
    // Where no stream listens, nothing is acknowledged.
    let nowhere = open("nats", &json!({"subject": "lost.x", "jetstream": true}), &outside);
    nowhere.send(&message).await.unwrap_err();
}

#[tokio::test]
async fn errands_own_subjects_are_closed() {
    let broker = Broker::start();
    let (client, outside) = own(&broker).await;
    let mut all = subscribe(&client, "errand.>").await;
    for subject in ["errand.v1", "errand.v1.event.acme.x", "errand.v1.{tenant}"] {
        let error = config("nats", &json!({"subject": subject})).open(&[], &outside).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("nats.subject"), "{error}");
    }
    // One that becomes such a subject only when it is filled.
    let mut message = message();
    message.tenant = "errand".into();
    let failure = open("nats", &json!({"subject": "{tenant}.v1.submit"}), &outside).send(&message).await.unwrap_err();
    assert!(failure.message.contains("one of Errand's own"), "{failure:?}");
    message.tenant = "$JS".into();
    open("nats", &json!({"subject": "{tenant}.API"}), &outside).send(&message).await.unwrap_err();
    // Its neighbours are open; and this one is the first that arrives.
    open("nats", &json!({"subject": "errand.v10"}), &outside).send(&message).await.unwrap();
    assert_eq!(next(&mut all).await.subject.as_str(), "errand.v10");

    let error = config("nats", &json!({"subject": "a"})).open(&[], &Outside::default()).unwrap_err();
    assert!(error.message.contains("own server"), "{error}");
}

#[tokio::test]
async fn another_server_in_each_format_and_again_after_it_was_away() {
    let mut broker = Broker::start();
    let url = broker.url();
    let client = async_nats::connect(&url).await.unwrap();
    let mut subscriber = subscribe(&client, "x").await;
    let with = |format: &str| open("nats", &json!({"url": url, "subject": "x", "format": format}), &local());
    let message = message();

    let json = with("json");
    json.send(&message).await.unwrap();
    assert_eq!(next(&mut subscriber).await.payload, message.json);

    with("protobuf").send(&message).await.unwrap();
    let got = next(&mut subscriber).await;
    assert_eq!(got.payload, message.protobuf);
    assert_eq!(header(&got, "Content-Type"), "application/protobuf");

    with("cloudevents").send(&message).await.unwrap();
    let got = next(&mut subscriber).await;
    assert_eq!(header(&got, "Content-Type"), "application/cloudevents+json");
    let event: Value = serde_json::from_slice(&got.payload).unwrap();
    let expected = json!({
        "specversion": "1.0",
        "id": message.event_id.to_string(),
        "source": "/errand/acme",
        "type": "task_run.completed",
        "subject": message.object_id,
        "time": "2025-10-09T08:53:20.123Z",
        "datacontenttype": "application/json",
        "sequence": "00000000000000000003",
        "traceparent": TRACEPARENT,
        "data": serde_json::from_slice::<Value>(&message.json).unwrap(),
    });
    assert_eq!(event, expected);

    // At the other server a subject may be what it likes.
    open("nats", &json!({"url": url, "subject": "errand.v1.x"}), &local()).send(&message).await.unwrap();
    broker.kill9();
    json.send(&message).await.unwrap_err();
    broker.restart();
    let sent = eventually("the other server is reached again", PATIENCE, async || json.send(&message).await.ok());
    assert_eq!(sent.await.status_code, None);
}

/// A nats-server that asks who one is.
struct Strict {
    port: u16,
    // In this order: the process ends, then its files go.
    _child: Child,
    _folder: TempDir,
}

impl Strict {
    async fn start(extra: &str) -> Self {
        let folder = folder("strict");
        let port = pick_port();
        let config = folder.path().join("nats.conf");
        let users = r#"authorization { users: [
            { user: me, password: "hush" }
            { user: reader, password: "hush", permissions: { publish: { deny: "x" } } }
        ] }"#;
        std::fs::write(&config, format!("listen: \"127.0.0.1:{port}\"\n{users}\n{extra}\n")).unwrap();
        let server = std::env::var_os("NATS_SERVER").map_or_else(|| tool("bin/nats-server"), Into::into);
        let log = folder.path().join("nats.log");
        let child = Child::spawn_logged(Command::new(server).arg("-c").arg(&config), Path::new(&log));
        let strict = Self { port, _child: child, _folder: folder };
        let connect = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok();
        eventually("nats-server listens", PATIENCE, connect).await;
        strict
    }
}

#[tokio::test]
async fn another_server_that_asks_who_one_is() {
    let server = Strict::start("").await;
    let url = format!("nats://127.0.0.1:{}", server.port);
    let send = async |credentials: Value| {
        let json = json!({"url": url, "subject": "x", "credentials": credentials});
        open("nats", &json, &local()).send(&message()).await
    };
    send(json!({"user": "me", "password": "hush"})).await.unwrap();
    for wrong in [json!({"user": "me", "password": "hush!"}), json!({"token": "hush!"}), json!({"creds": "hush!"})] {
        let failure = send(wrong).await.unwrap_err();
        assert!(!failure.message.contains("hush"), "{failure:?}");
    }
}

#[tokio::test]
async fn what_the_other_server_does_not_permit_is_not_delivered() {
    let server = Strict::start("").await;
    let json = json!({"url": format!("nats://127.0.0.1:{}", server.port), "subject": "x",
        "credentials": {"user": "reader", "password": "hush"}});
    let channel = open("nats", &json, &local());
    // The server tells it some time after, so it may be the next message that hears of it.
    let refused = eventually("a refusal", PATIENCE, async || channel.send(&message()).await.err()).await;
    assert!(refused.message.contains("refuses"), "{refused:?}");
}

#[tokio::test]
async fn tls_is_checked_against_the_name_although_the_address_is_connected_to() {
    let tls = format!("tls {{ cert_file: {:?}, key_file: {:?} }}", keys::file("cert.pem"), keys::file("key.pem"));
    let server = Strict::start(&tls).await;
    let send = async |trusts, host: &str| {
        let json = json!({"url": format!("tls://{host}:{}", server.port), "subject": "x",
            "credentials": {"user": "me", "password": "hush"}});
        open("nats", &json, &keys::outside(trusts)).send(&message()).await
    };
    send(true, "tls.example").await.unwrap();
    send(true, "127.0.0.1").await.unwrap();
    for (trusts, host) in [(true, "other.example"), (false, "tls.example")] {
        send(trusts, host).await.unwrap_err();
    }
}
