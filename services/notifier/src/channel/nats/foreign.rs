//! Another NATS server. The client resolves names by itself, so it gets an address that has passed the guard instead,
//! and TLS that holds the certificate against the name. It may not go anywhere else: not to servers that this one tells
//! of, and when the connection is lost it ends, so that the next message resolves and checks anew.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, ServerError};
use errand_bus::trace;
use futures::StreamExt;
use futures::future::BoxFuture;
use rustls::pki_types::ServerName;
use tokio::sync::Mutex;
use url::{Host, Url};

use super::super::guard::CONNECT;
use super::super::{Channel, Failure, Message, Outside, Receipt};
use super::{Credentials, Sender};

/// Where NATS listens unless the URL says otherwise.
const PORT: u16 = 4222;
/// How long the server may take to answer. The caller's own limit is shorter.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a server that has nothing to say is asked whether it is there.
const PING: Duration = Duration::from_secs(10);
/// Messages that wait in the client.
const CAPACITY: usize = 64;

pub(super) struct Foreign {
    sender: Sender,
    tls: bool,
    /// As it stands in the URL: what TLS checks.
    host: Host,
    port: u16,
    credentials: Option<Credentials>,
    outside: Outside,
    link: Mutex<Option<Link>>,
}

/// A connection.
#[derive(Clone)]
struct Link {
    client: Client,
    context: jetstream::Context,
    denied: Denied,
}

/// What the server did not let us do: it says so some time after, and of no message in particular.
type Denied = Arc<StdMutex<Option<String>>>;

impl std::fmt::Debug for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Foreign").field("sender", &self.sender).field("host", &self.host).finish_non_exhaustive()
    }
}

impl Foreign {
    pub(super) fn new(
        sender: Sender,
        url: &Url,
        host: Host,
        credentials: Option<Credentials>,
        outside: Outside,
    ) -> Self {
        let (tls, port) = (url.scheme() == "tls", url.port().unwrap_or(PORT));
        Self { sender, tls, host, port, credentials, outside, link: Mutex::new(None) }
    }

    /// The connection that there is, or a new one.
    async fn link(&self) -> Result<Link, Failure> {
        let mut link = self.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| link.client.connection_state() == State::Connected) {
            return Ok(link.clone());
        }
        *link = None;
        let connecting = tokio::time::timeout(CONNECT, self.connect());
        let connected = connecting.await.map_err(|_| Failure::new("could not connect in time"))??;
        Ok(link.insert(connected).clone())
    }

    async fn connect(&self) -> Result<Link, Failure> {
        let host = match &self.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let addresses = self.outside.guard.resolve(&host).await.map_err(|error| Failure::new(error.to_string()))?;
        let mut failure = Failure::new("no address");
        for address in addresses {
            let denied = Denied::default();
            let options = self.options(&host, Arc::clone(&denied))?;
            match options.connect(server(self.tls, address, self.port)).await {
                Ok(client) => {
                    let mut context = jetstream::new(client.clone());
                    context.set_timeout(ANSWER);
                    return Ok(Link { client, context, denied });
                }
                Err(error) => failure = Failure::new(format!("cannot connect to {host}: {error}")),
            }
        }
        Err(failure)
    }

    fn options(&self, host: &str, denied: Denied) -> Result<ConnectOptions, Failure> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Failure::new("its name fits no certificate"))?;
        let mut options = ConnectOptions::new()
            .name("errand-notifier")
            .connection_timeout(CONNECT)
            .request_timeout(Some(ANSWER))
            .ping_interval(PING)
            .client_capacity(CAPACITY)
            .subscription_capacity(CAPACITY)
            .ignore_discovered_servers()
            .max_reconnects(1)
            .event_callback(move |event| {
                if let Event::ServerError(ServerError::Other(what)) = event {
                    *denied.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
                }
                async {}
            });
        if let Some(tls) = self.outside.tls.client_of(name) {
            options = options.tls_client_config(tls);
        }
        options = options.require_tls(self.tls);
        let bad = || Failure::new("the credentials cannot be read");
        match &self.credentials {
            None => Ok(options),
            Some(Credentials::Password { user, password }) => {
                Ok(options.user_and_password(user.clone(), password.expose().to_owned()))
            }
            Some(Credentials::Token { token }) => Ok(options.token(token.expose().to_owned())),
            Some(Credentials::File { creds }) => options.credentials(creds.expose()).map_err(|_| bad()),
        }
    }

    async fn publish(&self, link: &Link, subject: String, message: &Message) -> Result<String, String> {
        let payload = self.sender.format.payload(message);
        let headers = self.sender.headers(message);
        if !self.sender.jetstream {
            let sent = link.client.publish_with_headers(subject, headers, payload).await;
            sent.map_err(|error| error.to_string())?;
            round_trip(&link.client).await?;
            let denied = link.denied.lock().unwrap_or_else(PoisonError::into_inner).take();
            return denied.map_or_else(|| Ok(String::new()), |what| Err(format!("the server refuses: {what}")));
        }
        let mut stored = PublishMessage::build().payload(payload).message_id(message.event_id.to_string());
        for (name, value) in headers_of(&headers) {
            stored = stored.header(name, value);
        }
        let ack = link.context.send_publish(subject, stored).await.map_err(|error| error.to_string())?;
        let ack = ack.await.map_err(|error| error.to_string())?;
        Ok(format!("stored at {}", ack.sequence))
    }
}

fn headers_of(headers: &HeaderMap) -> impl Iterator<Item = (&'static str, String)> + '_ {
    [super::EVENT_ID, "Content-Type", trace::TRACEPARENT]
        .into_iter()
        .filter_map(|name| headers.get(name).map(|value| (name, value.as_str().to_owned())))
}

fn server(tls: bool, address: IpAddr, port: u16) -> String {
    let scheme = if tls { "tls" } else { "nats" };
    format!("{scheme}://{}", SocketAddr::new(address, port))
}

/// The server works off a connection in order: when this comes back, it has taken what was sent before.
async fn round_trip(client: &Client) -> Result<(), String> {
    let inbox = client.new_inbox();
    let mut echoes = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
    client.publish(inbox, bytes::Bytes::new()).await.map_err(|error| error.to_string())?;
    match tokio::time::timeout(ANSWER, echoes.next()).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("the connection is lost".into()),
        Err(_) => Err("did not answer in time".into()),
    }
}

impl Channel for Foreign {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move {
            let subject = self.sender.subject(message)?;
            let link = self.link().await?;
            match self.publish(&link, subject, message).await {
                Ok(response) => Ok(Receipt { status_code: None, response }),
                Err(what) => Err(Failure::new(what)),
            }
        })
    }
}
