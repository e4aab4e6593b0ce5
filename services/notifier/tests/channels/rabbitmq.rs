//! A real RabbitMQ.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use errand_notifier::channel::{Failure, Receipt};
use errand_tests::{Child, eventually, folder, pick_port};
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::helper::{PATIENCE, TRACEPARENT, local, message, open, project};
use crate::keys;

/// Erlang takes its time.
const START: Duration = Duration::from_secs(120);

/// A server with a name server of its own, on free ports and in a folder of its own. Gone on drop.
struct Rabbit {
    port: u16,
    tls_port: u16,
    server: Option<Child>,
    sbin: PathBuf,
    name_port: u16,
    dist_port: u16,
    // In this order: the processes end, then their files go.
    _names: Child,
    folder: TempDir,
}

impl Rabbit {
    async fn start() -> Self {
        let found = Command::new("sh").arg(project("tools/rabbitmq.sh")).arg("find").output().expect("sh runs");
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let sbin = PathBuf::from(String::from_utf8(found.stdout).expect("a path").trim());
        let folder = folder("rabbit");
        let name_port = pick_port();
        let mut command = Command::new("epmd");
        command.args(["-address", "127.0.0.1", "-port", &name_port.to_string()]);
        let names = Child::spawn_logged(&mut command, &folder.path().join("epmd.log"));
        let [port, tls_port, dist_port] = ports();
        let rabbit = Self { port, tls_port, server: None, sbin, name_port, dist_port, _names: names, folder };
        let knock = async || tokio::net::TcpStream::connect(("127.0.0.1", name_port)).await.ok();
        eventually("Erlang's name server listens", PATIENCE, knock).await;
        rabbit.configure();
        let mut rabbit = rabbit;
        rabbit.launch().await;
        rabbit
    }

    fn configure(&self) {
        let file = |name| keys::file(name).display().to_string();
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nlisteners.ssl.1 = 127.0.0.1:{}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\nssl_options.verify = verify_none\ndisk_free_limit.absolute = 1MB\n",
            self.port,
            self.tls_port,
            file("cert.pem"),
            file("key.pem"),
        );
        std::fs::write(self.folder.path().join("rabbitmq.conf"), config).expect("the folder is ours");
        std::fs::write(self.folder.path().join("plugins"), "[].\n").expect("the folder is ours");
    }

    async fn launch(&mut self) {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(self.sbin.join("rabbitmq-server"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.folder.path());
        command.env("LC_ALL", "C.UTF-8").env("ERL_EPMD_PORT", self.name_port.to_string());
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1").env("ERL_AFLAGS", "+S 1:1");
        command.env("RABBITMQ_NODENAME", format!("errand-{}@localhost", self.port));
        command.env("RABBITMQ_DIST_PORT", self.dist_port.to_string()).env("RABBITMQ_LOGS", "-");
        command.env("RABBITMQ_CONF_ENV_FILE", at("none")).env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"));
        command.env("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config"));
        command.env("RABBITMQ_MNESIA_BASE", at("data")).env("RABBITMQ_LOG_BASE", at("logs"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins")).env("RABBITMQ_PID_FILE", at("pid"));
        let mut child = Child::spawn_logged(&mut command, &at("rabbit.log"));
        let before = child.log().matches("startup complete").count();
        eventually("RabbitMQ starts", START, async || {
            assert!(child.ended().is_none(), "RabbitMQ ended: {}", child.log());
            (child.log().matches("startup complete").count() > before).then_some(())
        })
        .await;
        self.server = Some(child);
    }

    /// As its own client.
    async fn channel(&self) -> (Connection, lapin::Channel) {
        let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    fn json(&self, more: &Value) -> Value {
        let mut json = json!({"host": "127.0.0.1", "port": self.port, "username": "guest", "password": "guest"});
        for (name, value) in more.as_object().unwrap() {
            json[name] = value.clone();
        }
        json
    }

    async fn send(&self, more: Value) -> Result<Receipt, Failure> {
        open("rabbitmq", &self.json(&more), &local()).send(&message()).await
    }
}

/// Three that differ: each is held until all are chosen.
fn ports() -> [u16; 3] {
    let held: Vec<_> = std::iter::repeat_with(pick_port)
        .filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok().map(|listener| (port, listener)))
        .take(3)
        .collect();
    std::array::from_fn(|at| held[at].0)
}

/// All in one, for a server takes seconds to start.
#[tokio::test]
async fn messages_are_confirmed_routed_and_persistent() {
    let mut rabbit = Rabbit::start().await;
    let (_connection, channel) = rabbit.channel().await;
    routed_by_template(&rabbit, &channel).await;
    unroutable(&rabbit).await;
    refused(&rabbit).await;
    over_tls(&rabbit, &channel).await;
    after_a_restart(&mut rabbit).await;
}

async fn declare(channel: &lapin::Channel, queue: &str) {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), durable, FieldTable::default()).await.unwrap();
}

async fn routed_by_template(rabbit: &Rabbit, channel: &lapin::Channel) {
    declare(channel, "runs").await;
    let (exchange, options) = ("events".into(), ExchangeDeclareOptions::default());
    channel.exchange_declare(exchange, ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
    let key = "acme.task_run.*".into();
    let options = QueueBindOptions::default();
    channel.queue_bind("runs".into(), "events".into(), key, options, FieldTable::default()).await.unwrap();

    let more = json!({"exchange": "events", "routing_key": "{tenant}.{object}.{action}"});
    let message = message();
    open("rabbitmq", &rabbit.json(&more), &local()).send(&message).await.unwrap();

    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consumer = channel.basic_consume("runs".into(), "test".into(), options, FieldTable::default()).await;
    let mut consumer = consumer.unwrap();
    let got = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(got.routing_key.as_str(), "acme.task_run.completed");
    assert_eq!(got.data, message.json);
    let properties = got.properties;
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), message.event_id.to_string());
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "task_run.completed");
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(*properties.delivery_mode(), Some(2));
    let headers = properties.headers().as_ref().unwrap();
    assert_eq!(headers.inner().get("traceparent"), Some(&AMQPValue::LongString(TRACEPARENT.into())));
    channel.basic_cancel("test".into(), Default::default()).await.unwrap();
}

async fn unroutable(rabbit: &Rabbit) {
    let failure = rabbit.send(json!({"exchange": "events", "routing_key": "nobody"})).await.unwrap_err();
    assert!(failure.message.contains("NO_ROUTE"), "{failure:?}");
    // Asked not to mind, the server takes it.
    let nobody = json!({"exchange": "events", "routing_key": "nobody", "mandatory": false});
    rabbit.send(nobody).await.unwrap();
}

async fn refused(rabbit: &Rabbit) {
    let missing = rabbit.send(json!({"exchange": "missing"})).await.unwrap_err();
    assert!(missing.message.contains("NOT_FOUND"), "{missing:?}");
    let vhost = rabbit.send(json!({"vhost": "missing"})).await.unwrap_err();
    let password = rabbit.send(json!({"password": "hush"})).await.unwrap_err();
    assert!(!password.message.contains("hush") && password.message != vhost.message, "{password:?} {vhost:?}");
    // The channel that the server closed is not used again.
    let more = json!({"exchange": "comes-later", "mandatory": false});
    let later = open("rabbitmq", &rabbit.json(&more), &local());
    later.send(&message()).await.unwrap_err();
    let (_connection, channel) = rabbit.channel().await;
    let options = ExchangeDeclareOptions::default();
    let declared = channel.exchange_declare("comes-later".into(), ExchangeKind::Fanout, options, FieldTable::default());
    declared.await.unwrap();
    later.send(&message()).await.unwrap();
}

async fn over_tls(rabbit: &Rabbit, channel: &lapin::Channel) {
    declare(channel, "tls").await;
    let send = async |trusts, host: &str| {
        let more = json!({"host": host, "port": rabbit.tls_port, "tls": true, "routing_key": "tls"});
        open("rabbitmq", &rabbit.json(&more), &keys::outside(trusts)).send(&message()).await
    };
    send(true, "tls.example").await.unwrap();
    for (trusts, host) in [(true, "other.example"), (false, "tls.example")] {
        let failure = send(trusts, host).await.unwrap_err();
        assert!(failure.message.contains("certificate"), "{failure:?}");
    }
}

async fn after_a_restart(rabbit: &mut Rabbit) {
    let json = rabbit.json(&json!({"routing_key": "tls"}));
    let channel = open("rabbitmq", &json, &local());
    channel.send(&message()).await.unwrap();
    rabbit.server.take().expect("it runs").kill9();
    channel.send(&message()).await.unwrap_err();
    rabbit.launch().await;
    eventually("the queue is reached again", PATIENCE, async || channel.send(&message()).await.ok()).await;
}

/// Who says nothing, or nothing of AMQP, costs one attempt and leaves nothing behind.
#[tokio::test]
async fn a_server_that_says_nothing_is_hung_up_on() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let json = json!({"host": "127.0.0.1", "port": port, "username": "me", "password": "hush"});
    let channel = open("rabbitmq", &json, &local());
    let until_hung_up = async {
        let (mut stream, _) = silent.accept().await.unwrap();
        let mut seen = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut seen)).await.expect("it hangs up").unwrap();
        assert!(seen.starts_with(b"AMQP"), "{seen:?}");
    };
    let message = message();
    let (failure, ()) = tokio::join!(channel.send(&message), until_hung_up);
    assert_eq!(failure.unwrap_err().message, "could not connect in time");
}
