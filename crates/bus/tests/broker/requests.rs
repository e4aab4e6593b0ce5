//! Requests and services over a real broker. The messages are protobuf's wrapped strings and numbers.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::{Broker, eventually};
use errand_bus::{Bus, HeaderMap, RequestError, Service, StreamKind, trace};
use errand_core::{Error, ErrorCode};
use futures::StreamExt;
use serde_json::Value;

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn echo(question: String) -> Result<String, Error> {
    match question.as_str() {
        "trace" => Ok(trace::current().as_deref().unwrap_or("none").to_owned()),
        "no" => Err(ErrorCode::TASK_RUN_NOT_FOUND.with("there is none").at("run_id")),
        "panic" => panic!("on purpose"),
        "large" => Ok("x".repeat(2 << 20)),
        _ => Ok(format!("{question}!")),
    }
}

async fn serve(bus: &Bus) -> Service {
    let subject = bus.subjects().api("test", "echo");
    Service::builder(bus, "test-echo", "says it again").endpoint("echo", subject, 100, echo).start().await.unwrap()
}

async fn ask(bus: &Bus, question: &str) -> Result<String, RequestError> {
    bus.request(bus.subjects().api("test", "echo"), &question.to_owned()).await
}

#[tokio::test]
async fn an_answer_an_error_and_nobody() {
    let broker = Broker::start();
    let (bus, server) = (broker.connect().await, broker.connect().await);
    let error = ask(&bus, "hello").await.unwrap_err();
    assert!(matches!(error, RequestError::NobodyServes(_)) && error.is_transient(), "{error:?}");

    let service = serve(&server).await;
    assert_eq!(ask(&bus, "hello").await.unwrap(), "hello!");
    let RequestError::Service(error) = ask(&bus, "no").await.unwrap_err() else { panic!("another error") };
    assert_eq!(error.code, ErrorCode::TASK_RUN_NOT_FOUND);
    assert_eq!(error.field.as_deref(), Some("run_id"));
    for failing in ["panic", "large"] {
        let RequestError::Service(error) = ask(&bus, failing).await.unwrap_err() else { panic!("another error") };
        assert_eq!(error.code, ErrorCode::API_ERROR, "{failing}");
    }
    assert_eq!(ask(&bus, "still").await.unwrap(), "still!");
    service.stop(Duration::from_secs(1)).await;
    assert!(matches!(ask(&bus, "hello").await, Err(RequestError::NobodyServes(_))));
}

#[tokio::test]
async fn a_trace_goes_on_in_the_service() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    let service = serve(&bus).await;
    assert_eq!(ask(&bus, "trace").await.unwrap(), "none");
    assert_eq!(trace::scope(Some(TRACEPARENT), ask(&bus, "trace")).await.unwrap(), TRACEPARENT);
    service.stop(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_answered_and_kept_without_its_bytes() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let service = serve(&bus).await;
    let bare = broker.bare().await;
    let answer = bare.request(bus.subjects().api("test", "echo"), "\u{7f}secret".into()).await.unwrap();
    let headers = answer.headers.unwrap();
    assert_eq!(headers.get("Nats-Service-Error").unwrap().as_str(), "body_invalid");
    assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "400");

    let stream = async_nats::jetstream::new(bare).get_stream(StreamKind::DeadLetter.name("errand.v1")).await.unwrap();
    let letter = stream.get_raw_message(1).await.unwrap();
    assert_eq!(letter.subject.as_str(), "errand.v1.dlq.request");
    assert!(letter.headers.get("Errand-Reason").unwrap().as_str().starts_with("echo: the request cannot be read"));
    assert_eq!(letter.headers.get("Errand-Subject").unwrap().as_str(), "errand.v1.api.test.echo");
    assert_eq!(&letter.payload[..], b"7 bytes");
    service.stop(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn it_is_seen_as_a_nats_micro_service() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    let service = serve(&bus).await;
    ask(&bus, "hello").await.unwrap();
    ask(&bus, "no").await.unwrap_err();
    let bare = broker.bare().await;
    let about = async |subject: &str| -> Value {
        serde_json::from_slice(&bare.request(subject.to_owned(), "".into()).await.unwrap().payload).unwrap()
    };
    let info = about("$SRV.INFO").await;
    assert_eq!(info["type"], "io.nats.micro.v1.info_response");
    assert_eq!(info["name"], "test-echo");
    assert_eq!(info["metadata"]["prefix"], "errand.v1");
    assert_eq!(info["endpoints"][0]["subject"], "errand.v1.api.test.echo");
    let ping = about("$SRV.PING.test-echo").await;
    assert_eq!(ping["id"], info["id"]);
    // The client library's own types read it.
    let subject = format!("$SRV.STATS.test-echo.{}", info["id"].as_str().unwrap());
    let stats: async_nats::service::Stats = serde_json::from_value(about(&subject).await).unwrap();
    assert_eq!((stats.endpoints[0].requests, stats.endpoints[0].errors), (2, 1));
    assert_eq!(stats.endpoints[0].last_error.as_ref().unwrap().code, 404);
    let _: async_nats::service::Info = serde_json::from_value(info).unwrap();
    service.stop(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_overloaded_says_so_at_once() {
    let broker = Broker::start();
    let (bus, server) = (broker.connect().await, broker.connect().await);
    let handler = |_: String| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, Error>("done".to_owned())
    };
    let subject = bus.subjects().api("test", "slow");
    let service =
        Service::builder(&server, "slow", "takes a second").endpoint("slow", subject.clone(), 2, handler).start().await;
    let service = service.unwrap();
    let started = tokio::time::Instant::now();
    let question = "x".to_owned();
    let asked = (0..20).map(|_| bus.request::<String, String>(subject.clone(), &question));
    let answers = futures::future::join_all(asked).await;
    assert!(started.elapsed() < Duration::from_millis(1900), "nobody waits for all: {:?}", started.elapsed());
    let done = answers.iter().filter(|answer| answer.is_ok()).count();
    let unavailable = |answer: &&Result<String, RequestError>| match answer {
        Err(error @ RequestError::Service(cause)) => cause.code == ErrorCode::API_UNAVAILABLE && error.is_transient(),
        _ => false,
    };
    assert_eq!((done, answers.iter().filter(unavailable).count()), (2, 18));
    service.stop(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stops_under_load_leaves_no_request_unanswered() {
    let broker = Broker::start();
    let (bus, first, second) = (broker.connect().await, broker.connect().await, broker.connect().await);
    let (leaving, staying) = (serve(&first).await, serve(&second).await);
    let answered = Arc::new(AtomicUsize::new(0));
    let asking: Vec<_> = (0..16)
        .map(|_| {
            let (bus, answered) = (bus.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                for _ in 0..500 {
                    ask(&bus, "hello").await.unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("some are answered", async || answered.load(Ordering::Relaxed) > 500).await;
    leaving.stop(Duration::from_secs(5)).await;
    assert!(answered.load(Ordering::Relaxed) < 8000, "it stopped too late to tell anything");
    for task in asking {
        task.await.unwrap();
    }
    staying.stop(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn it_serves_again_after_the_broker_was_away() {
    let mut broker = Broker::start();
    let (bus, server) = (broker.connect().await, broker.connect().await);
    let service = serve(&server).await;
    broker.kill();
    let mut connections = (bus.connections(), server.connections());
    broker.start_again();
    connections.0.changed().await.unwrap();
    connections.1.changed().await.unwrap();
    eventually("an answer", async || ask(&bus, "hello").await.is_ok()).await;
    service.stop(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_plain_subscription_hears_headers_and_outlives_the_broker() {
    let mut broker = Broker::start();
    let bus = broker.connect().await;
    let mut heard = bus.subscribe("errand.v1.activity.*".into()).await.unwrap();
    let mut connections = bus.connections();
    broker.kill();
    broker.start_again();
    connections.changed().await.unwrap();
    let mut headers = errand_bus::HeaderMap::new();
    trace::set(&mut headers, TRACEPARENT);
    bus.publish_raw("errand.v1.activity.x".into(), Some(headers), "alive".into()).await.unwrap();
    let incoming = tokio::time::timeout(Duration::from_secs(5), heard.next()).await.unwrap().unwrap();
    assert_eq!(&incoming.payload[..], b"alive");
    assert_eq!(trace::from_headers(incoming.headers.as_ref()), Some(TRACEPARENT));
}

/// A subscription with wildcards counts as well.
#[tokio::test]
async fn a_broadcast_knows_what_nobody_heard() {
    let broker = Broker::start();
    let (bus, listener) = (broker.connect().await, broker.connect().await);
    let mut one = listener.subscribe("told.one".into()).await.unwrap();
    let mut many = listener.subscribe("told.many.>".into()).await.unwrap();
    listener.round_trip().await.unwrap();
    let broadcast = bus.broadcast().await.unwrap();
    for (number, subject) in ["told.one", "told.nobody", "told.many.a", "told.many"].into_iter().enumerate() {
        broadcast.ask(number, subject.into(), HeaderMap::new(), subject.into()).await.unwrap();
    }
    assert_eq!(broadcast.unheard().await.unwrap(), HashSet::from([1, 3]));
    assert_eq!(one.next().await.unwrap().payload, "told.one");
    assert_eq!(many.next().await.unwrap().payload, "told.many.a");
}
