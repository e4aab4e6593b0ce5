//! Webhooks: what is sent, what the answers mean.

use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use errand_notifier::channel::{Config, EXCERPT_CHARS, Failure, Receipt};
use futures::StreamExt;
use serde_json::json;

use crate::helper::{Sink, TRACEPARENT, answer, local, message, now, open};

async fn send(url: &str) -> Result<Receipt, Failure> {
    open("webhook", &json!({"url": url}), &local()).send(&message()).await
}

#[tokio::test]
async fn what_is_posted() {
    let mut sink = Sink::start(|_| answer(204, "")).await;
    let config = json!({"url": sink.url("/hook?key=1"), "headers": {"X-Team": "a b", "authorization": "Bearer t"}});
    let message = message();
    let receipt = open("webhook", &config, &local()).send(&message).await.unwrap();
    assert_eq!(receipt, Receipt { status_code: Some(204), response: String::new() });
    let seen = sink.next().await;
    assert_eq!((seen.method.as_str(), seen.uri.to_string().as_str()), ("POST", "/hook?key=1"));
    assert_eq!(seen.body, message.json);
    assert_eq!(seen.header("webhook-id"), message.event_id.to_string());
    assert_eq!(seen.header("webhook-timestamp"), (message.now.0 / 1_000).to_string());
    assert!(seen.header("webhook-signature").starts_with("v1,"));
    assert_eq!(seen.header("traceparent"), TRACEPARENT);
    assert_eq!(seen.header("content-type"), "application/json");
    assert!(seen.header("user-agent").starts_with("errand/"));
    assert_eq!((seen.header("x-team"), seen.header("authorization")), ("a b", "Bearer t"));
}

#[tokio::test]
async fn a_trace_context_that_is_none_is_left_out() {
    let mut sink = Sink::start(|_| answer(200, "")).await;
    let mut message = message();
    message.traceparent = Some("00-x\r\nevil: 1".into());
    open("webhook", &json!({"url": sink.url("/")}), &local()).send(&message).await.unwrap();
    let seen = sink.next().await;
    assert!(!seen.headers.contains_key("traceparent") && !seen.headers.contains_key("evil"));
}

#[tokio::test]
async fn only_a_2xx_acknowledges() {
    let sink = Sink::start(|seen| answer(seen.uri.path()[1..].parse().unwrap(), "why\u{1b}[2J not")).await;
    for status in [200, 201, 202, 204, 299] {
        assert_eq!(send(&sink.url(&format!("/{status}"))).await.unwrap().status_code, Some(status));
    }
    for status in [300, 304, 400, 401, 404, 409, 410, 429, 500, 503] {
        let failure = send(&sink.url(&format!("/{status}"))).await.unwrap_err();
        assert_eq!(failure.status_code, Some(status), "{failure:?}");
        assert_eq!(failure.gone, status == 410, "{failure:?}");
        assert_eq!(failure.retry_after, None);
        let kept = if status == 304 { "" } else { "why [2J not" };
        assert_eq!(failure.response, kept, "{status}");
    }
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let later = UNIX_EPOCH + Duration::from_millis(now().0 as u64) + Duration::from_secs(90);
    let date = httpdate::fmt_http_date(later);
    let sink = Sink::start(move |seen| {
        let mut response = answer(503, "");
        let text = if seen.uri.path() == "/date" { date.clone() } else { "120".to_owned() };
        response.headers_mut().insert("retry-after", text.parse().unwrap());
        response
    })
    .await;
    let seconds = send(&sink.url("/seconds")).await.unwrap_err().retry_after.unwrap();
    assert_eq!(seconds, Duration::from_secs(120));
    let until = send(&sink.url("/date")).await.unwrap_err().retry_after.unwrap();
    assert!((60..=90).contains(&until.as_secs()), "{until:?}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let mut target = Sink::start(|_| answer(200, "")).await;
    let elsewhere = target.url("/");
    let sink = Sink::start(move |seen| {
        let mut response = answer(seen.uri.path()[1..].parse().unwrap(), "");
        response.headers_mut().insert("location", elsewhere.parse().unwrap());
        response
    })
    .await;
    for status in [301, 302, 303, 307, 308] {
        let failure = send(&sink.url(&format!("/{status}"))).await.unwrap_err();
        assert_eq!(failure.status_code, Some(status));
        assert!(failure.message.contains("redirects are not followed"), "{failure:?}");
    }
    assert!(target.is_silent() && target.connections() == 0);
}

#[tokio::test]
async fn an_answer_without_end_is_read_in_part() {
    let sink = Sink::start(|seen| {
        let chunk = |_| Ok::<_, std::convert::Infallible>("é".repeat(500));
        let endless = futures::stream::repeat(()).map(chunk);
        let trickle = futures::stream::iter([()]).map(chunk).chain(futures::stream::pending());
        match seen.uri.path() {
            "/endless" => answer(500, Body::from_stream(endless)),
            _ => answer(200, Body::from_stream(trickle)),
        }
    })
    .await;
    let failure = send(&sink.url("/endless")).await.unwrap_err();
    assert_eq!(failure.response.chars().count(), EXCERPT_CHARS);
    // What counts is the status.
    assert_eq!(send(&sink.url("/trickle")).await.unwrap().response.chars().count(), 500);
}

#[tokio::test]
async fn connections_are_used_again() {
    let mut sink = Sink::start(|_| answer(200, "ok")).await;
    let outside = local();
    for _ in 0..20 {
        // Two destinations at one host share what is idle.
        let channel = open("webhook", &json!({"url": sink.url("/")}), &outside);
        channel.send(&message()).await.unwrap();
        sink.next().await;
    }
    assert_eq!(sink.connections(), 1);
}

#[tokio::test]
async fn failures_say_what_happened_and_nothing_secret() {
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let failure = send(&format!("http://{closed}/T0/hush?token=hush")).await.unwrap_err();
    assert!(failure.message.starts_with("cannot connect: ") && !failure.message.contains("hush"), "{failure:?}");
    let failure = send("http://nowhere.invalid/hush").await.unwrap_err();
    assert!(failure.message.contains("nowhere.invalid") && !failure.message.contains("hush"), "{failure:?}");
    assert_eq!((failure.status_code, failure.gone), (None, false));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hang_up = async {
        let _ = listener.accept().await;
    };
    let url = format!("http://{address}/hush");
    let (failure, ()) = tokio::join!(send(&url), hang_up);
    let failure = failure.unwrap_err();
    assert!(failure.message.starts_with("broke off: ") && !failure.message.contains("hush"), "{failure:?}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel = open("webhook", &json!({"url": format!("http://{}/", listener.local_addr().unwrap())}), &local());
    // The clock jumps to the next deadline whenever nothing else is to be done.
    tokio::time::pause();
    let failure = channel.send(&message()).await.unwrap_err();
    assert!(failure.message.ends_with("in time"), "{failure:?}");
}

#[test]
fn headers_that_are_ours_or_break_the_line_are_refused() {
    let refused = [
        ("webhook-id", "x"),
        ("Webhook-Signature", "x"),
        ("webhook-anything", "x"),
        ("Host", "x"),
        ("content-type", "x"),
        ("Content-Length", "3"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("proxy-authorization", "x"),
        ("te", "x"),
        ("upgrade", "x"),
        ("expect", "100-continue"),
        ("traceparent", "x"),
        ("user-agent", "x"),
        ("x-bad", "a\r\nwebhook-id: b"),
        ("x-bad", "a\nb"),
        ("x-bad", "a\0b"),
        ("x-bad", "a\u{7f}"),
        ("x-bad", "é"),
        ("x-bad", ""),
        ("x-bad", &"a".repeat(1_025)),
        ("x bad", "a"),
        ("x-bad\r\nwebhook-id", "a"),
        ("x-bad:", "a"),
        ("", "a"),
        (&"x".repeat(65), "a"),
    ];
    for (name, value) in refused {
        let json = json!({"url": "https://example.com/", "headers": {name: value}}).to_string();
        let error = Config::parse("webhook", json.as_bytes()).unwrap_err();
        assert!(error.field.as_deref().unwrap().starts_with("webhook.headers."), "{name}: {error:?}");
        assert!(!error.message.contains(['\r', '\n']), "{error:?}");
    }
}

#[test]
fn headers_are_few_and_stand_there_once() {
    let many: serde_json::Map<_, _> = (0..21).map(|number| (format!("x-{number}"), "a".into())).collect();
    for (headers, field) in [(json!(many), "webhook.headers"), (json!({"X-A": "a", "x-a": "b"}), "webhook.headers.x-a")]
    {
        let json = json!({"url": "https://example.com/", "headers": headers}).to_string();
        assert_eq!(Config::parse("webhook", json.as_bytes()).unwrap_err().field.as_deref(), Some(field));
    }
}
