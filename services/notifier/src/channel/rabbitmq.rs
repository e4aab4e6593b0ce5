//! An exchange of a RabbitMQ server, with publisher confirms.

mod outlet;

use std::sync::Arc;
use std::time::Duration;

use async_compat::CompatExt;
use async_rs::TokioRuntime;
use errand_core::Error;
use futures::future::BoxFuture;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::tcp::AsyncTcpStream;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use serde::Serialize;
use tokio::sync::Mutex;
use url::Host;

use super::config::Settings;
use super::fields::{Fields, Secret, invalid};
use super::guard::CONNECT;
use super::template::Template;
use super::{Channel, Failure, Message, Outside, Receipt};

use outlet::Cut;

/// AMQP's short strings hold 255 bytes; what placeholders come to has to fit as well.
const MAX_NAME: usize = 200;
/// What a routing key may come to.
const MAX_KEY: usize = 255;
/// A host's name.
const MAX_HOST: usize = 253;
/// Ports of AMQP without and with TLS.
const PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;
/// What AMQP calls a message that is written to disk.
const PERSISTENT: u8 = 2;
/// How long a server may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// A server that says nothing for so long is gone.
const HEARTBEAT_SECONDS: u16 = 15;

/// What a RabbitMQ destination needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    host: String,
    port: u16,
    tls: bool,
    vhost: String,
    username: String,
    password: Secret,
    /// Empty: the default exchange, whose routing keys are the queues' names.
    exchange: String,
    routing_key: Template,
    /// Whether a message that reaches no queue counts as not delivered.
    mandatory: bool,
}

impl Settings for Config {
    const KIND: &'static str = "rabbitmq";
    const SECRETS: &'static [&'static str] = &["password"];

    fn read(fields: &mut Fields) -> Result<Self, Error> {
        let at_host = fields.at("host");
        let host = fields.text("host", 1..=MAX_HOST)?;
        // Read as a URL's is, so that all ways of writing an address are the address. IPv6 goes without brackets too.
        let parsed = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        let host = Host::parse(&parsed).map_err(|error| invalid(&at_host, format_args!("is no host: {error}")))?;
        let tls = fields.flag("tls", false)?;
        let at_key = fields.at("routing_key");
        let key = fields.optional("routing_key", 0..=MAX_NAME)?.unwrap_or_else(|| "{object}.{action}".to_owned());
        Ok(Self {
            host: plain_host(&host),
            port: fields.port("port", if tls { TLS_PORT } else { PORT })?,
            tls,
            vhost: fields.optional("vhost", 1..=MAX_NAME)?.unwrap_or_else(|| "/".to_owned()),
            username: fields.text("username", 1..=MAX_NAME)?,
            password: fields.secret("password", MAX_NAME)?,
            exchange: fields.optional("exchange", 0..=MAX_NAME)?.unwrap_or_default(),
            routing_key: Template::parse(&key, &at_key)?,
            mandatory: fields.flag("mandatory", true)?,
        })
    }

    fn open(&self, _: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
        Ok(Arc::new(Rabbit { config: self.clone(), outside: outside.clone(), link: Mutex::new(None) }))
    }
}

fn plain_host(host: &Host) -> String {
    match host {
        Host::Domain(name) => name.clone(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

/// A connection and its one channel. Many messages can be under way on it.
struct Link {
    connection: Connection,
    channel: lapin::Channel,
    cut: Option<Cut>,
}

impl Drop for Link {
    /// lapin says goodbye; then it is over, whether the server has answered or not.
    fn drop(&mut self) {
        let cut = self.cut.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(GOODBYE).await;
                drop(cut);
            });
        }
    }
}

impl Link {
    fn is_up(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }
}

struct Rabbit {
    config: Config,
    outside: Outside,
    link: Mutex<Option<Arc<Link>>>,
}

impl std::fmt::Debug for Rabbit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rabbit").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Rabbit {
    /// The connection that there is, or a new one.
    async fn link(&self) -> Result<Arc<Link>, Failure> {
        let mut link = self.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| link.is_up()) {
            return Ok(Arc::clone(link));
        }
        *link = None;
        let connecting = tokio::time::timeout(CONNECT, self.connect());
        let connected = connecting.await.map_err(|_| Failure::new("could not connect in time"))??;
        Ok(Arc::clone(link.insert(Arc::new(connected))))
    }

    async fn connect(&self) -> Result<Link, Failure> {
        // Here rather than in lapin's hands: what the guard says is told as it says it.
        let stream = outlet::connect(&self.outside, &self.config).await?;
        let (stream, cut) = outlet::with_cut(stream).map_err(|error| Failure::new(error.to_string()))?;
        let stream = std::sync::Mutex::new(Some(stream));
        // lapin asks again to reconnect, which is not its business here.
        let hand_over = async move |_: AMQPUri, _: TokioRuntime| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            let stream = stream.map(|stream| AsyncTcpStream::Plain(stream.compat()));
            stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected).into())
        };
        let properties = ConnectionProperties::default().with_connection_name("errand-notifier".into());
        let runtime = TokioRuntime::tokio_current();
        let connection = Connection::connector(self.uri(), runtime, hand_over, properties).await.map_err(failure)?;
        let channel = connection.create_channel().await.map_err(failure)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failure)?;
        Ok(Link { connection, channel, cut: Some(cut) })
    }

    fn uri(&self) -> AMQPUri {
        let Config { host, port, vhost, username, password, .. } = &self.config;
        let userinfo = AMQPUserInfo { username: username.clone(), password: password.expose().to_owned() };
        let mut uri = AMQPUri {
            // TLS is what the stream does already.
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority { userinfo, host: host.clone(), port: *port },
            vhost: vhost.clone(),
            query: Default::default(),
        };
        uri.query.heartbeat = Some(HEARTBEAT_SECONDS);
        uri
    }

    async fn publish(&self, link: &Link, message: &Message) -> Result<(), Failure> {
        let key = self.config.routing_key.render(message);
        if key.len() > MAX_KEY {
            return Err(Failure::new(format!("the routing key has more than {MAX_KEY} bytes")));
        }
        let options = BasicPublishOptions { mandatory: self.config.mandatory, immediate: false };
        let (exchange, key) = (self.config.exchange.as_str().into(), key.as_str().into());
        let sent = link.channel.basic_publish(exchange, key, options, &message.json, properties(message)).await;
        match sent.map_err(failure)?.await.map_err(failure)? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                Err(Failure::new(format!("the server gave it back: {} {}", returned.reply_code, returned.reply_text)))
            }
            Confirmation::Nack(None) => Err(Failure::new("the server refused it")),
            Confirmation::NotRequested => Err(Failure::new("the server does not confirm")),
        }
    }
}

fn properties(message: &Message) -> BasicProperties {
    let mut headers = FieldTable::default();
    if let Some(traceparent) = message.traceparent() {
        headers.insert(errand_bus::trace::TRACEPARENT.into(), AMQPValue::LongString(traceparent.into()));
    }
    BasicProperties::default()
        .with_message_id(message.event_id.to_string().as_str().into())
        .with_type(message.event_type.as_str().into())
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_timestamp(u64::try_from(message.created_at.0 / 1_000).unwrap_or(0))
        .with_headers(headers)
}

fn failure(error: lapin::Error) -> Failure {
    Failure::new(error.to_string())
}

impl Channel for Rabbit {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Receipt, Failure>> {
        Box::pin(async move {
            let link = self.link().await?;
            self.publish(&link, message).await?;
            Ok(Receipt::default())
        })
    }
}
