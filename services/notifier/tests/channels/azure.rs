//! Service Bus as a fake of its one call, which checks the signature.

use axum::body::Body;
use axum::http::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::{Value, json};

use crate::helper::{Seen, Sink, TRACEPARENT, answer, local, message, now, open};

const KEY: &str = "c2hhcmVkLWFjY2Vzcy1rZXk=";

/// As Service Bus does: the signature is over the resource as it was sent and the end, the resource a part of the call's
/// address, the end to come.
fn check(seen: &Seen) -> Result<(), String> {
    let token = seen.header("authorization").strip_prefix("SharedAccessSignature ").ok_or("scheme")?.to_owned();
    let raw = |name: &str| {
        let field = token.split('&').find_map(|field| field.strip_prefix(&format!("{name}=")).map(str::to_owned));
        field.ok_or(format!("no {name} in {token}"))
    };
    let decoded =
        |text: &str| url::form_urlencoded::parse(format!("x={text}").as_bytes()).next().unwrap().1.to_string();
    let (resource, end) = (raw("sr")?, raw("se")?);
    let signature = STANDARD.decode(decoded(&raw("sig")?)).map_err(|error| error.to_string())?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes());
    hmac::verify(&key, format!("{resource}\n{end}").as_bytes(), &signature).map_err(|_| "signature")?;
    let called = format!("http://{}{}", seen.header("host"), seen.uri.path());
    if !called.starts_with(&decoded(&resource)) || decoded(&raw("skn")?) != "Send Only" {
        return Err(format!("{called} {token}"));
    }
    let end: i64 = end.parse().map_err(|_| "end")?;
    if (now().0 / 1_000..now().0 / 1_000 + 3_600).contains(&end) { Ok(()) } else { Err(format!("end {end}")) }
}

fn respond(seen: &Seen) -> Response<Body> {
    match (seen.uri.path(), check(seen)) {
        (_, Err(why)) => answer(401, why),
        ("/events/runs/messages", Ok(())) => answer(201, ""),
        ("/gone/messages", Ok(())) => answer(410, ""),
        (path, Ok(())) => answer(404, path.to_owned()),
    }
}

fn config(sink: &Sink, more: &Value) -> Value {
    let mut json = json!({"namespace": "ns", "entity": "events/runs", "key_name": "Send Only", "key": KEY,
        "endpoint": sink.url("")});
    for (name, value) in more.as_object().unwrap() {
        json[name] = value.clone();
    }
    json
}

#[tokio::test]
async fn what_is_sent() {
    let mut sink = Sink::start(respond).await;
    let message = message();
    let sent = open("azure_servicebus", &config(&sink, &json!({})), &local()).send(&message).await;
    assert_eq!(sent.unwrap().status_code, Some(201));
    let seen = sink.next().await;
    assert_eq!((seen.method.as_str(), &seen.body), ("POST", &message.json));
    assert_eq!(seen.header("content-type"), "application/json");
    assert_eq!(seen.header("traceparent"), format!("\"{TRACEPARENT}\""));
    let properties: Value = serde_json::from_str(seen.header("brokerproperties")).unwrap();
    assert_eq!(properties, json!({"MessageId": message.event_id.to_string(), "Label": "task_run.completed"}));

    let sessions = config(&sink, &json!({"sessions": true}));
    open("azure_servicebus", &sessions, &local()).send(&message).await.unwrap();
    let properties: Value = serde_json::from_str(sink.next().await.header("brokerproperties")).unwrap();
    assert_eq!(properties["SessionId"], message.object_id);
}

#[tokio::test]
async fn what_is_refused() {
    let sink = Sink::start(respond).await;
    let send = async |more| open("azure_servicebus", &config(&sink, &more), &local()).send(&message()).await;
    let wrong = send(json!({"key": "b3RoZXI="})).await.unwrap_err();
    assert_eq!((wrong.status_code, wrong.response.as_str()), (Some(401), "signature"));
    assert_eq!(send(json!({"entity": "missing"})).await.unwrap_err().status_code, Some(404));
    assert!(send(json!({"entity": "gone"})).await.unwrap_err().gone);
}
