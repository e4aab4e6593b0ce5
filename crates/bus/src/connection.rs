use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::connection::State;
use async_nats::header::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::{Client, ConnectOptions, Event};
use bytes::Bytes;
use errand_core::RunnerId;
use errand_proto::v1;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::{Notify, watch};

use crate::delivery::milliseconds;
use crate::identity::Identity;
use crate::streams::{MAX_MESSAGE, StreamKind, is_for_good};
use crate::subjects::Subjects;
use crate::{MINIMUM_BROKER, once, service, trace};

/// Room in a dead letter for what is said about it: a reason of 1,000 characters, and a subject.
const DEAD_LETTER_HEADERS: usize = 16 * 1024;

/// How often a broker that says nothing is asked whether it is there. One that owes two answers at the third is given
/// up: within four of these, well before a runner's drain is over.
pub(crate) const PING: Duration = Duration::from_secs(3);

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct BusConfig {
    /// `nats://HOST:PORT`, several separated by commas.
    pub url: String,
    /// What every subject starts with.
    pub prefix: String,
    /// How this client is called in the broker's lists.
    pub name: String,
    /// A NATS credentials file.
    pub credentials: Option<PathBuf>,
    /// The certificates, in PEM, by one of which the broker's must be signed: TLS, and nothing else.
    pub ca: Option<PathBuf>,
    /// Replicas of each stream: 1, or 3 in a cluster.
    pub replicas: usize,
    /// How long a request waits for its answer.
    pub request_timeout: Duration,
}

impl BusConfig {
    /// The servers' addresses, one by one, as the client library takes them.
    #[must_use]
    pub fn servers(&self) -> Vec<&str> {
        self.url.split(',').map(str::trim).collect()
    }
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            prefix: "errand.v1".into(),
            name: "errand".into(),
            credentials: None,
            ca: None,
            replicas: 1,
            request_timeout: Duration::from_secs(10),
        }
    }
}

/// Why the broker could not do it.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Not there within the time given.
    #[error("no NATS server at {url}: {what}. Start one (`nats-server -js`), or name another with --nats-url")]
    Unreachable {
        /// Where it was sought.
        url: String,
        /// What the client says.
        what: String,
    },
    /// Too old.
    #[error("nats-server {found} is too old: Errand needs {}.{} or later", MINIMUM_BROKER.0, MINIMUM_BROKER.1)]
    BrokerTooOld {
        /// Its version.
        found: String,
    },
    /// The credentials file cannot be read.
    #[error("cannot read the NATS credentials {0}: {1}")]
    Credentials(PathBuf, std::io::Error),
    /// A stream is missing or cannot be made.
    #[error("stream {name}: {what}")]
    Stream {
        /// Which.
        name: String,
        /// What the server says.
        what: String,
    },
    /// The broker says no, and would again.
    #[error("stream {name}: the broker refuses: {what}")]
    Refused {
        /// Which stream.
        name: String,
        /// What the server says.
        what: String,
    },
    /// A message could not be sent, or was not acknowledged.
    #[error("the broker did not take a message on {subject}: {what}")]
    Publish {
        /// Where it was to go.
        subject: String,
        /// What the client says.
        what: String,
    },
    /// A subscription or service could not be made.
    #[error("cannot listen on {subject}: {what}")]
    Listen {
        /// On what.
        subject: String,
        /// What the client says.
        what: String,
    },
}

impl BusError {
    /// A consumer that could not be made: a bad request or configuration stays one, all else may pass.
    pub(crate) fn consumer(stream: &str, error: &jetstream::stream::ConsumerError) -> Self {
        let (name, what) = (stream.to_owned(), error.to_string());
        match error.kind() {
            ConsumerErrorKind::JetStream(error) if is_for_good(&error) => Self::Refused { name, what },
            _ => Self::Stream { name, what },
        }
    }
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The service answered with an error.
    #[error(transparent)]
    Service(errand_core::Error),
    /// Nobody serves this subject now.
    #[error("nobody serves {0}")]
    NobodyServes(String),
    /// No answer in time: it may or may not have been done.
    #[error("{0} did not answer in time")]
    TimedOut(String),
    /// The broker is away.
    #[error("the broker did not take a request on {0}: {1}")]
    Broker(String, String),
    /// The answer is not what this method answers.
    #[error("{0} answered what cannot be read: {1}")]
    Undecodable(String, prost::DecodeError),
}

impl RequestError {
    /// Whether the same may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NobodyServes(_) | Self::TimedOut(_) | Self::Broker(..) => true,
            Self::Service(error) => error.code.kind == "api",
            Self::Undecodable(..) => false,
        }
    }
}

/// The broker took a message into a stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamAck {
    /// Its place in the stream; of a duplicate, the first one's.
    pub sequence: u64,
    /// It was there before, under the same id.
    pub duplicate: bool,
}

/// A message of a plain subscription.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Where it was published.
    pub subject: String,
    /// Where an answer goes, if it asks for one.
    pub reply: Option<String>,
    /// What.
    pub payload: Bytes,
    /// What it carries besides.
    pub headers: Option<HeaderMap>,
}

/// A message that the event stream holds.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Its `Nats-Msg-Id`.
    pub message_id: Option<String>,
    /// Where it was published.
    pub subject: String,
    /// What.
    pub payload: Bytes,
    /// When the stream took it, in milliseconds since the Unix epoch.
    pub published_at_ms: i64,
}

/// A connection to the broker. Cheap to clone; survives the broker's restarts.
#[derive(Debug, Clone)]
pub struct Bus {
    client: Client,
    jetstream: jetstream::Context,
    subjects: Subjects,
    replicas: usize,
    request_timeout: Duration,
    connections: watch::Receiver<u64>,
    config: Arc<BusConfig>,
    identity: Arc<Identity>,
}

impl Bus {
    /// Connects, trying again until `patience` is over.
    ///
    /// # Errors
    /// [`BusError::Unreachable`], [`BusError::BrokerTooOld`], [`BusError::Credentials`].
    pub async fn connect(config: BusConfig, patience: Duration) -> Result<Self, BusError> {
        let reached = Arc::new(Notify::new());
        let identity = Arc::new(identity(&config).await?);
        let started = tokio::time::Instant::now();
        let mut pause = Duration::from_millis(50);
        let client = loop {
            match options(&config, &identity, Arc::clone(&reached)).await?.connect(config.servers()).await {
                Ok(client) => break client,
                Err(error) if started.elapsed() >= patience || is_final(&error) => {
                    return Err(BusError::Unreachable { url: without_secrets(&config.url), what: error.to_string() });
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        };
        let version = client.server_info().version;
        if !is_new_enough(&version) {
            return Err(BusError::BrokerTooOld { found: version });
        }
        let connections = count_connections(client.clone(), reached);
        Ok(Self::over(client, connections, Arc::new(config), identity))
    }

    /// A further connection to the same broker, which ends with it: nothing that was given to it is sent after a
    /// reconnect. That is for whoever must look at what a broker holds before it says more ([`Self::is_connected`] is
    /// false for good once it has ended).
    ///
    /// # Errors
    /// [`BusError::Unreachable`], [`BusError::Credentials`].
    pub async fn connect_once(&self) -> Result<Self, BusError> {
        let config = &self.config;
        let options = once::options(&config.name, config.credentials.as_deref()).await?;
        let options = confined(options, config, &self.identity);
        let client = options
            .connect(config.servers())
            .await
            .map_err(|error| BusError::Unreachable { url: without_secrets(&config.url), what: error.to_string() })?;
        let connections = watch::channel(1).1;
        Ok(Self::over(client, connections, Arc::clone(config), Arc::clone(&self.identity)))
    }

    fn over(
        client: Client,
        connections: watch::Receiver<u64>,
        config: Arc<BusConfig>,
        identity: Arc<Identity>,
    ) -> Self {
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(Duration::from_secs(5))
            .ack_timeout(Duration::from_secs(5))
            .max_ack_inflight(20_000)
            .backpressure_on_inflight(true)
            .build(client.clone());
        Self {
            client,
            jetstream,
            subjects: Subjects::new(&config.prefix),
            replicas: config.replicas,
            request_timeout: config.request_timeout,
            connections,
            config,
            identity,
        }
    }

    /// The runner that our credentials are confined to, where they are.
    #[must_use]
    pub fn confined_to_runner(&self) -> Option<RunnerId> {
        self.identity.runner
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    pub(crate) const fn replicas(&self) -> usize {
        self.replicas
    }

    /// The subjects under this connection's prefix.
    #[must_use]
    pub const fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    /// The number of the connection: 1 at first, and more each time that the broker is reached again.
    #[must_use]
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.clone()
    }

    /// Whether the broker is there now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// The broker's version.
    #[must_use]
    pub fn broker_version(&self) -> String {
        self.client.server_info().version
    }

    /// The broker's id: another one after each of its starts.
    #[must_use]
    pub fn broker_id(&self) -> String {
        self.client.server_info().server_id
    }

    /// The largest message that the broker takes, headers included.
    #[must_use]
    pub fn max_message_bytes(&self) -> usize {
        self.client.max_payload()
    }

    /// How long a message takes to the broker and back.
    ///
    /// # Errors
    /// [`BusError::Listen`], [`BusError::Publish`], and [`BusError::Unreachable`] where nothing comes back.
    pub async fn round_trip(&self) -> Result<Duration, BusError> {
        let inbox = self.client.new_inbox();
        let mut echoes = self.subscribe(inbox.clone()).await?;
        let started = tokio::time::Instant::now();
        self.publish_bytes(inbox, Bytes::new()).await?;
        match tokio::time::timeout(self.request_timeout, echoes.next()).await {
            Ok(Some(_)) => Ok(started.elapsed()),
            Ok(None) | Err(_) => Err(self.unreachable()),
        }
    }

    pub(crate) const fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    pub(crate) fn unreachable(&self) -> BusError {
        let server = self.client.server_info();
        BusError::Unreachable { url: format!("{}:{}", server.host, server.port), what: "no answer".into() }
    }

    /// Sends a request, waits for its answer.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request<Q: Message, A: Message + Default>(
        &self,
        subject: String,
        request: &Q,
    ) -> Result<A, RequestError> {
        self.request_within(subject, request, self.request_timeout).await
    }

    /// Sends a request, waits so long for its answer.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request_within<Q: Message, A: Message + Default>(
        &self,
        subject: String,
        request: &Q,
        timeout: Duration,
    ) -> Result<A, RequestError> {
        use async_nats::RequestErrorKind as Kind;
        let payload = Bytes::from(request.encode_to_vec());
        let mut outgoing = async_nats::Request::new().payload(payload).timeout(Some(timeout));
        let current = trace::current();
        let mut span = trace::Span::child(current.as_deref(), trace::Kind::Request, self.subjects.endpoint(&subject));
        if let Some(traceparent) = span.traceparent() {
            let mut headers = HeaderMap::new();
            headers.insert(trace::TRACEPARENT, traceparent);
            outgoing = outgoing.headers(headers);
        }
        let answer = self.client.send_request(subject.clone(), outgoing).await;
        if let Err(error) = &answer {
            span.fail(&error.to_string());
        }
        let answer = answer.map_err(|error| match error.kind() {
            Kind::NoResponders => RequestError::NobodyServes(subject.clone()),
            Kind::TimedOut => RequestError::TimedOut(subject.clone()),
            _ => RequestError::Broker(subject.clone(), error.to_string()),
        })?;
        if answer.headers.as_ref().is_some_and(|headers| headers.get(service::ERROR_HEADER).is_some()) {
            let error =
                v1::Error::decode(answer.payload).map_err(|error| RequestError::Undecodable(subject.clone(), error))?;
            return Err(RequestError::Service(error.into()));
        }
        A::decode(answer.payload).map_err(|error| RequestError::Undecodable(subject, error))
    }

    /// Publishes a message that may be lost.
    ///
    /// # Errors
    /// [`BusError::Publish`].
    pub async fn publish<M: Message>(&self, subject: String, message: &M) -> Result<(), BusError> {
        self.publish_bytes(subject, message.encode_to_vec().into()).await
    }

    /// Publishes bytes that may be lost.
    ///
    /// # Errors
    /// [`BusError::Publish`].
    pub async fn publish_bytes(&self, subject: String, payload: Bytes) -> Result<(), BusError> {
        self.client
            .publish(subject.clone(), payload)
            .await
            .map_err(|error| BusError::Publish { subject, what: error.to_string() })
    }

    /// Publishes bytes with headers, which may be lost.
    ///
    /// # Errors
    /// [`BusError::Publish`].
    pub async fn publish_raw(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), BusError> {
        let Some(headers) = headers else { return self.publish_bytes(subject, payload).await };
        self.client
            .publish_with_headers(subject.clone(), headers, payload)
            .await
            .map_err(|error| BusError::Publish { subject, what: error.to_string() })
    }

    /// Publishes into a stream under an id by which it is stored once. The future that comes back is the ack, so
    /// that many can be under way.
    ///
    /// # Errors
    /// [`BusError::Publish`], both of the call and of the ack.
    pub async fn publish_stream(
        &self,
        subject: String,
        message_id: &str,
        traceparent: Option<&str>,
        payload: Bytes,
    ) -> Result<impl Future<Output = Result<StreamAck, BusError>> + Send + use<>, BusError> {
        if message_id.chars().any(char::is_control) {
            return Err(BusError::Publish { subject, what: "a message id is one line".into() });
        }
        let mut message = PublishMessage::build().payload(payload).message_id(message_id);
        let traceparent = traceparent.filter(|text| trace::is_valid(text));
        let mut span = trace::Span::child(traceparent, trace::Kind::Send, self.subjects.endpoint(&subject));
        span.set("messaging.message.id", message_id.to_owned());
        if let Some(traceparent) = span.traceparent() {
            message = message.header(trace::TRACEPARENT, traceparent);
        }
        let ack = self.jetstream.send_publish(subject.clone(), message).await;
        let ack = ack.map_err(|error| BusError::Publish { subject: subject.clone(), what: error.to_string() })?;
        Ok(async move {
            let ack = ack.await.map_err(|error| {
                span.fail(&error.to_string());
                BusError::Publish { subject, what: error.to_string() }
            })?;
            Ok(StreamAck { sequence: ack.sequence, duplicate: ack.duplicate })
        })
    }

    /// Keeps what could not be handled for the operator, with the reason. Of a message that would fill a whole one, the
    /// end is left out; the header `Errand-Size` says how large it was.
    ///
    /// # Errors
    /// [`BusError::Publish`].
    pub async fn dead_letter(
        &self,
        what: &str,
        reason: &str,
        original_subject: &str,
        payload: Bytes,
    ) -> Result<(), BusError> {
        let subject = self.subjects.dead_letter(what);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        // A header is one line.
        let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect();
        let mut headers = HeaderMap::new();
        headers.insert("Errand-Reason", reason.as_str());
        headers.insert("Errand-Subject", original_subject);
        headers.insert("Errand-Time", now.to_string().as_str());
        let room = self.max_message_bytes().min(MAX_MESSAGE as usize).saturating_sub(DEAD_LETTER_HEADERS);
        let kept = if payload.len() <= room {
            payload
        } else {
            headers.insert("Errand-Size", payload.len().to_string().as_str());
            payload.slice(..room)
        };
        let failed = |what: String| BusError::Publish { subject: subject.clone(), what };
        let ack = self.jetstream.publish_with_headers(subject.clone(), headers, kept).await;
        ack.map_err(|error| failed(error.to_string()))?.await.map_err(|error| failed(error.to_string()))?;
        Ok(())
    }

    /// A plain subscription; it outlives the broker's restarts.
    ///
    /// # Errors
    /// [`BusError::Listen`].
    pub async fn subscribe(
        &self,
        subject: String,
    ) -> Result<impl Stream<Item = Incoming> + Send + Unpin + use<>, BusError> {
        let subscriber = self
            .client
            .subscribe(subject.clone())
            .await
            .map_err(|error| BusError::Listen { subject, what: error.to_string() })?;
        Ok(subscriber.map(|message| Incoming {
            subject: message.subject.to_string(),
            reply: message.reply.map(|reply| reply.to_string()),
            payload: message.payload,
            headers: message.headers,
        }))
    }

    /// The event stream's message at a sequence; none where it holds none there.
    ///
    /// # Errors
    /// [`BusError::Stream`].
    pub async fn event_stream_message(&self, sequence: u64) -> Result<Option<StoredMessage>, BusError> {
        use jetstream::stream::LastRawMessageErrorKind as Kind;
        let stream = self.stream(StreamKind::Event).await?;
        // From the stream's leader: a replica may not have heard of it yet.
        match stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(StoredMessage {
                message_id: message.headers.get("Nats-Msg-Id").map(|id| id.as_str().to_owned()),
                subject: message.subject.to_string(),
                payload: message.payload,
                published_at_ms: milliseconds(message.time),
            })),
            Err(error) if error.kind() == Kind::NoMessageFound => Ok(None),
            Err(error) => {
                let name = StreamKind::Event.name(self.subjects.prefix());
                Err(BusError::Stream { name, what: error.to_string() })
            }
        }
    }

    /// A stream's handle; asks the broker nothing.
    pub(crate) async fn stream(&self, kind: StreamKind) -> Result<jetstream::stream::Stream<()>, BusError> {
        let name = kind.name(self.subjects.prefix());
        let stream = self.jetstream.get_stream_no_info(&name).await;
        stream.map_err(|error| BusError::Stream { name, what: error.to_string() })
    }

    /// Waits until all that was published has left.
    ///
    /// # Errors
    /// [`BusError::Publish`].
    pub async fn flush(&self) -> Result<(), BusError> {
        let failed = |what: String| BusError::Publish { subject: "(flush)".into(), what };
        self.client.flush().await.map_err(|error| failed(error.to_string()))
    }

    /// Ends: lets what has arrived be read, takes no more, and sends what was published. For the end of a process;
    /// all clones of this connection end with it.
    ///
    /// # Errors
    /// [`BusError::Publish`].
    pub async fn drain(&self) -> Result<(), BusError> {
        let failed = |what: String| BusError::Publish { subject: "(drain)".into(), what };
        self.flush().await?;
        self.client.drain().await.map_err(|error| failed(error.to_string()))
    }
}

/// Counts connections in a watch. An event may be dropped by the client's queue, so the number is the client's own,
/// read at each event and at short intervals.
fn count_connections(client: Client, reached: Arc<Notify>) -> watch::Receiver<u64> {
    let statistics = client.statistics();
    let now = move || statistics.connects.load(Ordering::Relaxed).max(1);
    let (count, connections) = watch::channel(now());
    drop(client);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = reached.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
                () = count.closed() => return,
            }
            let number = now();
            count.send_if_modified(|count| std::mem::replace(count, number) != number);
        }
    });
    connections
}

/// Whether trying again cannot help: the broker is there, and does not want us.
fn is_final(error: &async_nats::ConnectError) -> bool {
    use async_nats::ConnectErrorKind as Kind;
    matches!(error.kind(), Kind::Authentication | Kind::AuthorizationViolation | Kind::ServerParse)
}

/// The servers' addresses, without the passwords that may stand before an `@`.
fn without_secrets(url: &str) -> String {
    let server = |server: &str| {
        let (scheme, rest) = server.split_once("://").map_or(("", server), |(scheme, rest)| (scheme, rest));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
    };
    url.split(',').map(server).collect::<Vec<_>>().join(",")
}

async fn identity(config: &BusConfig) -> Result<Identity, BusError> {
    let file = config.credentials.as_deref();
    Identity::read(file).await.map_err(|error| BusError::Credentials(file.unwrap_or(Path::new("")).to_owned(), error))
}

/// TLS, and the inbox that our permissions name.
fn confined(mut options: ConnectOptions, config: &BusConfig, identity: &Identity) -> ConnectOptions {
    if let Some(ca) = &config.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    match &identity.inbox {
        Some(inbox) => options.custom_inbox_prefix(inbox),
        None => options,
    }
}

/// The client library's options for a connection beside the bus: for an operator's tools, which look at the broker
/// itself.
///
/// # Errors
/// [`BusError::Credentials`].
pub async fn connect_options(config: &BusConfig) -> Result<ConnectOptions, BusError> {
    options(config, &identity(config).await?, Arc::new(Notify::new())).await
}

async fn options(config: &BusConfig, identity: &Identity, reached: Arc<Notify>) -> Result<ConnectOptions, BusError> {
    let options = ConnectOptions::new()
        .name(&config.name)
        .connection_timeout(Duration::from_secs(3))
        .ping_interval(PING)
        .client_capacity(16_384)
        .subscription_capacity(65_536)
        // A broker that is away comes back soon, or an operator is at work on it: never give up, never hammer.
        .reconnect_delay_callback(|attempts| Duration::from_millis(100 * attempts.min(10) as u64))
        .event_callback(move |event| {
            let reached = Arc::clone(&reached);
            async move {
                match event {
                    Event::Connected => reached.notify_one(),
                    Event::SlowConsumer(subscription) => tracing::warn!(subscription, "a subscription is too slow"),
                    other => tracing::info!(event = %other, "broker"),
                }
            }
        });
    let options = confined(options, config, identity);
    match &config.credentials {
        None => Ok(options),
        Some(file) => options.credentials_file(file).await.map_err(|error| BusError::Credentials(file.clone(), error)),
    }
}

/// Whether a server of this version will do. What is not a version is taken for a development build.
fn is_new_enough(version: &str) -> bool {
    semver::Version::parse(version).map_or(true, |found| (found.major, found.minor) >= MINIMUM_BROKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_without_its_password() {
        assert_eq!(without_secrets("nats://u:p@a:1,b:2"), "nats://a:1,b:2");
        assert_eq!(without_secrets("nats://127.0.0.1:4222"), "nats://127.0.0.1:4222");
        let cluster = BusConfig { url: "nats://a:1, b:2".into(), ..BusConfig::default() };
        assert_eq!(cluster.servers(), ["nats://a:1", "b:2"]);
    }

    #[test]
    fn an_old_broker_is_told_from_a_new_one() {
        for (version, enough) in
            [("2.11.9", false), ("1.4.1", false), ("2.12.0", true), ("2.15.1", true), ("3.0.0-beta.1", true)]
        {
            assert_eq!(is_new_enough(version), enough, "{version}");
        }
        let text = BusError::BrokerTooOld { found: "2.11.9".into() }.to_string();
        assert!(text.contains("2.11.9") && text.contains("2.12"), "{text}");
    }
}
