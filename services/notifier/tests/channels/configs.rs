//! Configurations: what is refused and where, what is shown, and what is kept over a change.

use errand_core::ErrorCode;
use errand_notifier::channel::{Config, Outside};
use serde_json::{Value, json};

use crate::helper::config;

/// One of each type, with a secret called `hush` in each place that can hold one.
fn each() -> Vec<(&'static str, Value)> {
    let mut each = vec![
        ("webhook", json!({"url": "https://example.com/", "headers": {"x-key": "hush", "x-other": "hush2"}})),
        ("nats", json!({"url": "tls://example.com", "subject": "a.{tenant}", "credentials": {"token": "hush"}})),
        (
            "nats",
            json!({"url": "nats://example.com:1", "subject": "a", "format": "cloudevents", "jetstream": true,
            "credentials": {"user": "me", "password": "hush"}}),
        ),
        ("nats", json!({"url": "nats://[2001:db8::1]", "subject": "a", "credentials": {"creds": "hush\nhush"}})),
        ("nats", json!({"subject": "{object}.{action}", "format": "protobuf"})),
    ];
    if cfg!(feature = "rabbitmq") {
        each.push(("rabbitmq", json!({"host": "mq.example.com", "username": "me", "password": "hush", "tls": true})));
    }
    if cfg!(feature = "aws") {
        let with = |more: Value| {
            let mut all = json!({"region": "us-east-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": "hush",
                "session_token": "hush"});
            for (name, value) in more.as_object().unwrap() {
                all[name] = value.clone();
            }
            all
        };
        each.push(("aws_sqs", with(json!({"queue_url": "https://sqs.us-east-1.amazonaws.com/1/q.fifo"}))));
        each.push(("aws_kinesis", with(json!({"stream": "s"}))));
        each.push(("aws_s3", with(json!({"bucket": "bucket"}))));
    }
    if cfg!(feature = "azure") {
        let azure = json!({"namespace": "n", "entity": "q", "key_name": "k", "key": "hush", "sessions": true});
        each.push(("azure_servicebus", azure));
    }
    #[cfg(feature = "gcp")]
    each.push((
        "gcp_pubsub",
        json!({"topic": "topic", "service_account": {"type": "service_account",
        "project_id": "p", "client_email": "a@b", "private_key": crate::gcp::key()}}),
    ));
    each
}

fn shows_secrets(text: &str) -> bool {
    text.contains("hush") || text.contains("BEGIN PRIVATE KEY")
}

#[test]
fn secrets_are_kept_and_never_shown() {
    for (kind, json) in each() {
        let config = config(kind, &json);
        assert_eq!((config.kind(), config.signs()), (kind, kind == "webhook"));
        assert_eq!(Config::parse(kind, &config.to_json()).unwrap(), config, "what is sealed is what is read");
        let masked = config.masked();
        assert!(!shows_secrets(&masked.to_string()), "{masked}");
        assert!(!shows_secrets(&format!("{config:?}")), "{config:?}");
        let opened = config.open(&["whsec_aHVzaC1odXNoLWh1c2gtaHVzaC1odXNo".to_owned()], &Outside::default());
        if let Ok(channel) = opened {
            assert!(!shows_secrets(&format!("{channel:?}")), "{channel:?}");
        }

        // Given back as it was shown, nothing changes; on a new destination the mask is no secret.
        let shown = masked.to_string();
        assert_eq!(Config::parse_change(&config, shown.as_bytes()).unwrap(), config);
        if shown.contains("***") {
            let error = Config::parse(kind, shown.as_bytes()).unwrap_err();
            assert!(error.message.contains("masked"), "{error}");
        }
    }
}

#[test]
fn a_change_takes_new_secrets_and_leaves_out_what_is_left_out() {
    let before = config("webhook", &json!({"url": "https://a.example/", "headers": {"x-a": "hush", "x-b": "hush2"}}));
    let change = json!({"url": "https://b.example/", "headers": {"x-a": "***", "x-c": "new"}});
    let after = Config::parse_change(&before, change.to_string().as_bytes()).unwrap();
    assert_eq!(
        after,
        config("webhook", &json!({"url": "https://b.example/", "headers": {"x-a": "hush", "x-c": "new"}}))
    );
    // There was no such header, so the mask stands for nothing.
    let change = json!({"url": "https://b.example/", "headers": {"x-z": "***"}});
    assert!(Config::parse_change(&before, change.to_string().as_bytes()).is_err());
}

#[test]
fn every_refusal_names_the_field_and_repeats_no_value() {
    for (kind, json) in each() {
        let fields: Vec<String> = json.as_object().unwrap().keys().cloned().collect();
        for field in fields {
            let mut wrong = json.clone();
            // No field takes a list.
            wrong[&field] = json!(["hush"]);
            let error = Config::parse(kind, wrong.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.code, ErrorCode::INPUT_INVALID, "{kind}.{field}: {error}");
            assert_eq!(error.field, Some(format!("{kind}.{field}")), "{error}");
            assert!(!shows_secrets(&error.to_string()), "{error}");
        }
        let mut wrong = json.clone();
        wrong["colour"] = "red".into();
        let error = Config::parse(kind, wrong.to_string().as_bytes()).unwrap_err();
        assert_eq!((error.code, error.field), (ErrorCode::FIELD_UNKNOWN, Some(format!("{kind}.colour"))));
        let error = Config::parse(kind, b"{}").unwrap_err();
        assert_eq!(error.code, ErrorCode::INPUT_MISSING, "{error}");
        assert!(error.field.unwrap().starts_with(&format!("{kind}.")));
        for no_object in ["", "[]", "1", "{"] {
            assert_eq!(Config::parse(kind, no_object.as_bytes()).unwrap_err().field.as_deref(), Some(kind));
        }
    }
    assert_eq!(Config::parse("pigeon", b"{}").unwrap_err().field.as_deref(), Some("type"));
}

#[test]
fn a_type_that_is_not_built_in_is_refused_by_name() {
    let types = [
        ("rabbitmq", cfg!(feature = "rabbitmq")),
        ("aws_sqs", cfg!(feature = "aws")),
        ("aws_kinesis", cfg!(feature = "aws")),
        ("aws_s3", cfg!(feature = "aws")),
        ("gcp_pubsub", cfg!(feature = "gcp")),
        ("azure_servicebus", cfg!(feature = "azure")),
    ];
    for (kind, built_in) in types {
        let error = Config::parse(kind, b"{}").unwrap_err();
        assert_eq!(error.message.contains("was built without feature"), !built_in, "{error}");
    }
}

#[test]
fn values_have_limits() {
    let webhook = |url: &str| ("webhook", "webhook.url", json!({"url": url}));
    let nats = |subject: &str| ("nats", "nats.subject", json!({"url": "nats://example.com", "subject": subject}));
    let mut cases = vec![
        webhook(&format!("https://example.com/{}", "x".repeat(2_048))),
        webhook("https://me:hush@example.com/"),
        webhook("https://me@example.com/"),
        webhook("https://example.com/#hush"),
        webhook("https://example.com:0/"),
        webhook("https://example.com:65536/"),
        webhook("nats://example.com/"),
        webhook(""),
        webhook("https://exa mple.com/"),
        nats(""),
        nats("a..b"),
        nats(".a"),
        nats("a."),
        nats("a.*"),
        nats("a.>"),
        nats("a b"),
        nats("a\r\nPUB b"),
        nats("{nope}"),
        nats("{tenant"),
        nats(&"a".repeat(201)),
        ("nats", "nats.subject", json!({"subject": "$JS.API.x"})),
        ("nats", "nats.subject", json!({"subject": "_INBOX.x"})),
        ("nats", "nats.format", json!({"subject": "a", "format": "xml"})),
        ("nats", "nats.url", json!({"subject": "a", "url": "nats://me:hush@example.com"})),
        ("nats", "nats.url", json!({"subject": "a", "url": "ws://example.com"})),
        ("nats", "nats.url", json!({"subject": "a", "url": "nats://example.com/x"})),
        ("nats", "nats.credentials", json!({"subject": "a", "credentials": {"token": "hush"}})),
        ("nats", "nats.credentials", json!({"subject": "a", "url": "nats://a.example", "credentials": {"user": "me"}})),
    ];
    if cfg!(feature = "rabbitmq") {
        let rabbit = |field: &'static str, name: &str, value: Value| {
            let mut json = json!({"host": "mq.example.com", "username": "me", "password": "hush"});
            json[name] = value;
            ("rabbitmq", field, json)
        };
        cases.push(rabbit("rabbitmq.host", "host", "a/b".into()));
        cases.push(rabbit("rabbitmq.host", "host", "me@a".into()));
        cases.push(rabbit("rabbitmq.port", "port", 0.into()));
        cases.push(rabbit("rabbitmq.port", "port", 65_536.into()));
        cases.push(rabbit("rabbitmq.routing_key", "routing_key", "{x}".into()));
        cases.push(rabbit("rabbitmq.exchange", "exchange", "x".repeat(201).into()));
    }
    for (kind, field, json) in cases {
        let error = Config::parse(kind, json.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.field.as_deref(), Some(field), "{json}: {error}");
        assert!(!shows_secrets(&error.to_string()), "{error}");
    }
    let huge = json!({"url": "https://example.com/", "headers": {"x": "x".repeat(70_000)}}).to_string();
    assert_eq!(Config::parse("webhook", huge.as_bytes()).unwrap_err().field.as_deref(), Some("webhook"));
}
