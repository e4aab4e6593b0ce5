//! A message, a way out for it, and a server that sees what arrives.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, Uri};
use axum::serve::ListenerExt;
use errand_core::{EventId, Timestamp};
use errand_notifier::channel::{Channel, Config, Message, Outside, OutsideArgs};
use futures::FutureExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// How long what must come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// 32 bytes each.
pub(crate) const NEW_SECRET: &str = "whsec_bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldyE=";
pub(crate) const OLD_SECRET: &str = "whsec_b2xkLW9sZC1vbGQtb2xkLW9sZC1vbGQtb2xkLW9sZCE=";

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    Timestamp(i64::try_from(since.as_millis()).expect("it is before the year 292 million"))
}

/// The event of a run that has completed, under an id of its own.
pub(crate) fn message() -> Message {
    let event_id = EventId::from_uuid(uuid::Uuid::now_v7());
    let json = json!({"id": event_id.to_string(), "type": "task_run.completed", "data": {"text": "größer \u{1f600}"}});
    Message {
        event_id,
        event_type: "task_run.completed".into(),
        tenant: "acme".into(),
        object_id: "trun_01h455vb4pex5vsknk084sn02q".into(),
        seq: 3,
        created_at: Timestamp(1_760_000_000_123),
        json: json.to_string().into(),
        protobuf: Bytes::from_static(b"\x0a\x03abc"),
        traceparent: Some(TRACEPARENT.into()),
        now: now(),
    }
}

/// May reach this machine.
pub(crate) fn local() -> Outside {
    outside(&["127.0.0.0/8", "::1/128"])
}

pub(crate) fn outside(networks: &[&str]) -> Outside {
    Outside::new(&args(networks), None).expect("an outside")
}

pub(crate) fn args(networks: &[&str]) -> OutsideArgs {
    let networks = networks.iter().map(|network| network.parse().expect("a network")).collect();
    OutsideArgs { allow_networks: networks, ca_file: None }
}

pub(crate) fn config(kind: &str, json: &Value) -> Config {
    Config::parse(kind, json.to_string().as_bytes()).unwrap_or_else(|error| panic!("{kind} {json}: {error}"))
}

pub(crate) fn open(kind: &str, json: &Value, outside: &Outside) -> Arc<dyn Channel> {
    let opened = config(kind, json).open(&[NEW_SECRET.to_owned()], outside);
    opened.unwrap_or_else(|error| panic!("{kind} {json}: {error}"))
}

/// A request as it arrived.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().expect("a text")
    }
}

/// A server on a port of its own, on this machine.
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Sink {
    /// Answers each request by `answer`.
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::start_on([127, 0, 0, 1].into(), answer).await
    }

    pub(crate) async fn start_on(
        address: IpAddr,
        answer: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, seen) = mpsc::unbounded_channel();
        let answer = Arc::new(answer);
        let handle = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let (sender, answer) = (sender.clone(), Arc::clone(&answer));
            async move {
                let seen = Seen { method, uri, headers, body };
                let response = answer(&seen);
                // Whoever looks no more is not to fail the server.
                let _ = sender.send(seen);
                response
            }
        };
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let listener = listener.tap_io(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handle)).await });
        Self { address, connections, seen }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What arrived, or arrives next.
    pub(crate) async fn next(&mut self) -> Seen {
        let next = tokio::time::timeout(PATIENCE, self.seen.recv()).await;
        next.expect("a request").expect("the server runs")
    }

    /// Nothing has arrived that was not looked at.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.seen.recv().now_or_never().is_none()
    }
}

pub(crate) fn answer(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).expect("an answer")
}

/// A file of the project's.
pub(crate) fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What `make tools-test` has fetched.
pub(crate) fn tool(path: &str) -> PathBuf {
    let path = project(".tools").join(path);
    assert!(path.exists(), "the tests need {}: run `make tools-test`", path.display());
    path
}

/// What a program says when it is told this; it has to succeed.
pub(crate) async fn run(command: &mut tokio::process::Command, input: &str) -> String {
    use tokio::io::AsyncWriteExt;
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("it was asked for");
    stdin.write_all(input.as_bytes()).await.expect("the program reads");
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("in time").expect("it ran");
    assert!(output.status.success(), "{command:?} ended with {}", output.status);
    String::from_utf8(output.stdout).expect("a text")
}
