//! Watching a session: what people see of it over HTTP, and that nobody else does.

use std::time::Duration;

use base64::Engine;
use errand_client::{ApiSecret, NewApiKey, RunId};
use errand_core::SessionId;
use errand_tests::{Role, eventually, pick_port};
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::site::{Site, html};
use crate::world::{PATIENCE, World};

/// One colour at a time. The burst has more changes than anybody is shown, and ends as it began.
const PAGE: &str = "<body style='margin:0;background:#c00'>\
    <div onclick='document.body.style.background=\"#00c\"'>Blue</div>\
    <div onclick='let n = 0; const timer = setInterval(() => {\
        n += 1;\
        document.body.style.background = n == 60 ? \"#c00\" : `rgb(0, ${n * 4}, 0)`;\
        if (n == 60) { clearInterval(timer); }\
    }, 10)'>Burst</div>";

/// The HTTP API of a world.
struct Api {
    port: u16,
    key: String,
}

impl Api {
    async fn start(world: &mut World) -> Self {
        let port = pick_port();
        world.stack.start(Role::Gateway, &["--log", "warn", "--listen", &format!("127.0.0.1:{port}")]);
        world.stack.ready().await;
        Self { port, key: key(world, "acme", "sessions:read").await }
    }

    /// Asks for a session's pictures: the answer's status, and what follows its head.
    async fn ask(&self, key: &str, session: &str) -> (u16, BufReader<TcpStream>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        // 1.0: the body is what comes until the end.
        let request =
            format!("GET /v2/sessions/{session}/live HTTP/1.0\r\nhost: here\r\nauthorization: Bearer {key}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).await.unwrap(), 0, "{head}");
        }
        (head.split(' ').nth(1).unwrap().parse().unwrap(), stream)
    }

    async fn watch(&self, session: &str) -> Watcher {
        let (status, stream) = self.ask(&self.key, session).await;
        assert_eq!(status, 200);
        Watcher(stream)
    }

    /// Status and code of a refusal.
    async fn refusal(&self, key: &str, session: &str) -> (u16, String) {
        let (status, mut stream) = self.ask(key, session).await;
        let mut body = String::new();
        stream.read_to_string(&mut body).await.unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        (status, body["errors"][0]["code"].as_str().unwrap().to_owned())
    }
}

async fn key(world: &World, tenant: &str, scope: &str) -> String {
    let secret = ApiSecret::generate();
    let key = NewApiKey { name: "watcher".into(), scopes: vec![scope.into()], expires_at_ms: None };
    world.client.for_tenant(tenant.parse().unwrap()).create_api_key(key, &secret).await.unwrap();
    secret.expose().to_owned()
}

/// Somebody who watches.
struct Watcher(BufReader<TcpStream>);

impl Watcher {
    /// The next picture; none where the stream has ended.
    async fn next(&mut self) -> Option<Vec<u8>> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("a picture, or the end")
    }

    async fn read(&mut self) -> Option<Vec<u8>> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).await.unwrap() == 0 {
                return None;
            }
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let data: Value = serde_json::from_str(data).unwrap();
            assert!(data["taken_at"].as_str().unwrap().ends_with('Z'), "{}", data["taken_at"]);
            let jpeg = base64::engine::general_purpose::STANDARD.decode(data["jpeg"].as_str().unwrap()).unwrap();
            assert!(jpeg.starts_with(&[0xff, 0xd8, 0xff]) && jpeg.ends_with(&[0xff, 0xd9]), "no JPEG");
            return Some(jpeg);
        }
    }

    /// Looks on until it sees this.
    async fn sees(&mut self, picture: &[u8]) {
        while self.next().await.expect("a picture") != picture {}
    }
}

/// A run that does this in the one session, and the session.
async fn act(world: &World, step: Value) -> String {
    let run: RunId = world.run(json!([step])).await;
    let run = world.ended(run).await;
    assert!(run.errors.is_empty(), "{:?}", run.errors);
    run.session_id
}

async fn says(world: &mut World, words: &str, times: usize) {
    eventually(&format!("{times} times: {words}"), PATIENCE, async || {
        let log = world.stack.service(Role::Browser).process().log();
        (log.matches(words).count() == times).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_watched_by_its_tenant_while_somebody_does() {
    let mut world = World::start(&["--live", "--capacity", "1"]).await;
    let (api, site) = (Api::start(&mut world).await, Site::start([("/", html(PAGE))]).await);
    let bus = world.stack.bus().await;
    let mut heard = bus.subscribe(bus.subjects().live_of(None, "frame")).await.unwrap();
    let session = act(&world, json!({"goto": {"url": site.url("/"), "until": "load"}})).await;
    let (other, blind) = (key(&world, "other", "admin").await, key(&world, "acme", "runs:read").await);
    assert_eq!(api.refusal(&other, &session).await, (404, "session_not_found".to_owned()));
    assert_eq!(api.refusal(&blind, &session).await, (403, "forbidden".to_owned()));
    bus.round_trip().await.unwrap();
    assert!(heard.next().now_or_never().is_none(), "nobody watches");

    let mut one = api.watch(&session).await;
    let red = one.next().await.unwrap();
    assert_eq!(act(&world, json!({"click": {"text": "Blue"}})).await, session);
    let blue = one.next().await.unwrap();
    assert_ne!(red, blue);
    // Who comes later is shown what there is, by the same pictures.
    let mut two = api.watch(&session).await;
    two.sees(&blue).await;
    act(&world, json!({"click": {"text": "Burst"}})).await;
    // Whatever is left out, the last is not.
    one.sees(&red).await;
    two.sees(&red).await;
    says(&mut world, "somebody watches", 1).await;
    while let Some(Some(frame)) = heard.next().now_or_never() {
        assert!(frame.payload.len() < 1024 * 1024, "{}", frame.payload.len());
    }

    drop((one, two));
    says(&mut world, "nobody watches any more", 1).await;
    bus.round_trip().await.unwrap();
    while heard.next().now_or_never().is_some() {}
    act(&world, json!({"click": {"text": "Blue"}})).await;
    bus.round_trip().await.unwrap();
    assert!(heard.next().now_or_never().is_none(), "pictures are sent to nobody");
    let mut again = api.watch(&session).await;
    again.sees(&blue).await;

    let id: SessionId = session.parse().unwrap();
    world.client.end_session(id).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), async { while again.read().await.is_some() {} }).await.unwrap();
    let (status, code) = api.refusal(&api.key, &session).await;
    assert_eq!((status, &*code), (409, "session_not_available"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_was_not_told_to_shows_nothing() {
    let mut world = World::start(&["--capacity", "1"]).await;
    let (api, site) = (Api::start(&mut world).await, Site::start([("/", html(PAGE))]).await);
    let bus = world.stack.bus().await;
    let mut heard = bus.subscribe(bus.subjects().live_of(None, "frame")).await.unwrap();
    let session = act(&world, json!({"goto": {"url": site.url("/")}})).await;
    assert_eq!(api.refusal(&api.key, &session).await, (409, "session_not_available".to_owned()));
    act(&world, json!({"click": {"text": "Blue"}})).await;
    bus.round_trip().await.unwrap();
    assert!(heard.next().now_or_never().is_none());
    world.end().await;
}
