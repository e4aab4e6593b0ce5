//! Pub/Sub as a fake of its two calls, which checks the grant's signature and the token.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::http::Response;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::helper::{Seen, Sink, TRACEPARENT, answer, local, message, open};
use crate::keys::file;

/// A service account's private key.
pub(crate) fn key() -> &'static str {
    static KEY: LazyLock<String> = LazyLock::new(|| std::fs::read_to_string(file("account.pem")).unwrap());
    &KEY
}

/// Gives out tokens for grants that our key has signed, and takes messages that come with the newest one.
struct Google {
    tokens: AtomicU64,
    lifetime: i64,
}

impl Google {
    fn answer(&self, seen: &Seen) -> Response<Body> {
        match seen.uri.path() {
            "/token" => match self.check_grant(seen) {
                Ok(()) => {
                    let token = format!("token-{}", self.tokens.fetch_add(1, Ordering::Relaxed) + 1);
                    answer(200, json!({"access_token": token, "expires_in": self.lifetime}).to_string())
                }
                Err(why) => answer(400, json!({"error": "invalid_grant", "error_description": why}).to_string()),
            },
            "/v1/projects/my-project/topics/events:publish" => {
                let newest = format!("Bearer token-{}", self.tokens.load(Ordering::Relaxed));
                if seen.header("authorization") == newest {
                    answer(200, r#"{"messageIds": ["1"]}"#)
                } else {
                    answer(401, r#"{"error": {"status": "UNAUTHENTICATED"}}"#)
                }
            }
            path => answer(404, format!("no {path}")),
        }
    }

    fn check_grant(&self, seen: &Seen) -> Result<(), String> {
        let form: Vec<_> = url::form_urlencoded::parse(&seen.body).collect();
        let value = |name: &str| form.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_string());
        let grant = value("grant_type");
        if grant.as_deref() != Some("urn:ietf:params:oauth:grant-type:jwt-bearer") {
            return Err(format!("grant_type {grant:?}"));
        }
        let assertion = value("assertion").ok_or("no assertion")?;
        let (text, signature) = assertion.rsplit_once('.').ok_or("no signature")?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|error| error.to_string())?;
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, std::fs::read(file("account.der")).unwrap());
        public.verify(text.as_bytes(), &signature).map_err(|_| "signature")?;
        let (header, claims) = text.split_once('.').ok_or("no claims")?;
        let read = |part| -> Value { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap() };
        let (header, claims) = (read(header), read(claims));
        let good = header == json!({"alg": "RS256", "typ": "JWT", "kid": "key-1"})
            && claims["iss"] == "errand@my-project.iam.gserviceaccount.com"
            && claims["scope"] == "https://www.googleapis.com/auth/pubsub"
            && claims["aud"].as_str().unwrap().ends_with("/token")
            && claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap() == 3_600;
        if good { Ok(()) } else { Err(format!("{header} {claims}")) }
    }
}

async fn google(lifetime: i64) -> (Arc<Google>, Sink) {
    let google = Arc::new(Google { tokens: AtomicU64::new(0), lifetime });
    let answers = Arc::clone(&google);
    (google, Sink::start(move |seen| answers.answer(seen)).await)
}

fn config(sink: &Sink, topic: &str) -> Value {
    json!({
        "topic": topic,
        "ordered": true,
        "endpoint": sink.url(""),
        // As the key file has it.
        "service_account": {
            "type": "service_account",
            "project_id": "my-project",
            "private_key_id": "key-1",
            "private_key": key(),
            "client_email": "errand@my-project.iam.gserviceaccount.com",
            "client_id": "1",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": sink.url("/token"),
            "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
            "client_x509_cert_url": "https://www.googleapis.com/robot/v1/metadata/x509/errand",
            "universe_domain": "googleapis.com",
        },
    })
}

#[tokio::test]
async fn messages_are_published_with_one_token() {
    let (google, mut sink) = google(3_600).await;
    let channel = open("gcp_pubsub", &config(&sink, "events"), &local());
    let message = message();
    assert_eq!(channel.send(&message).await.unwrap().status_code, Some(200));
    assert_eq!(sink.next().await.uri.path(), "/token");
    let expected = json!({"messages": [{
        "data": STANDARD.encode(&message.json),
        "attributes": {
            "event_id": message.event_id.to_string(),
            "event_type": "task_run.completed",
            "tenant": "acme",
            "googclient_traceparent": TRACEPARENT,
        },
        "orderingKey": message.object_id,
    }]});
    let published: Value = serde_json::from_slice(&sink.next().await.body).unwrap();
    assert_eq!(published, expected);

    // Used until shortly before its end, also by many at a time; then there is a new one.
    let at = |seconds: i64| {
        let mut later = message.clone();
        later.now = later.now.plus_millis(seconds * 1_000);
        later
    };
    let (first, second) = (at(3_500), at(3_500));
    let (first, second) = tokio::join!(channel.send(&first), channel.send(&second));
    first.unwrap();
    second.unwrap();
    assert_eq!(google.tokens.load(Ordering::Relaxed), 1);
    channel.send(&at(3_541)).await.unwrap();
    assert_eq!(google.tokens.load(Ordering::Relaxed), 2);

    // Revoked before its time: the attempt fails, the next one has a new token.
    google.tokens.fetch_add(1, Ordering::Relaxed);
    assert_eq!(channel.send(&at(3_542)).await.unwrap_err().status_code, Some(401));
    channel.send(&at(3_543)).await.unwrap();
}

#[tokio::test]
async fn who_asks_at_the_same_time_waits_for_one_token() {
    let (google, sink) = google(3_600).await;
    let channel = open("gcp_pubsub", &config(&sink, "events"), &local());
    let messages: Vec<_> = std::iter::repeat_with(message).take(8).collect();
    for sent in futures::future::join_all(messages.iter().map(|message| channel.send(message))).await {
        sent.unwrap();
    }
    assert_eq!(google.tokens.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn failures_name_the_step() {
    let (_, sink) = google(3_600).await;
    let failure = open("gcp_pubsub", &config(&sink, "missing"), &local()).send(&message()).await.unwrap_err();
    assert_eq!((failure.status_code, failure.message.as_str()), (Some(404), "answered 404"));
    let mut wrong = config(&sink, "events");
    wrong["service_account"]["private_key_id"] = "key-2".into();
    let failure = open("gcp_pubsub", &wrong, &local()).send(&message()).await.unwrap_err();
    assert!(failure.message.starts_with("no token: answered 400"), "{failure:?}");
    assert!(failure.response.contains("invalid_grant"));
    wrong["service_account"]["private_key"] = "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n".into();
    let error = errand_notifier::channel::Config::parse("gcp_pubsub", wrong.to_string().as_bytes()).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("gcp_pubsub.service_account.private_key"));
    assert!(!error.to_string().contains("hush"));
}
