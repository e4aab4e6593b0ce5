//! Nothing gets to where it must not, through the real clients, however the address is written.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use errand_notifier::channel::guard::Lookup;
use errand_notifier::channel::{Config, Outside};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use tokio::net::TcpListener;

use crate::helper::{NEW_SECRET, Sink, answer, args, local, message, open};

/// Ways to write an address that is this machine or another one within; PORT is where a server listens.
const URLS: &[&str] = &[
    "http://127.0.0.1:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://2130706433:PORT/",
    "http://017700000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://0177.0.0.0x1:PORT/",
    "http://0x7f.1:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7F.0x0.0x0.0x1:PORT/",
    "http://127.000.000.001:PORT/",
    "http://127.255.255.254:PORT/",
    "http://0:PORT/",
    "http://0.0.0.0:PORT/",
    "http://0x0:PORT/",
    "http://[::1]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[::]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[::FFFF:127.0.0.1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[64:ff9b::127.0.0.1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[2001:0:7f00:1::1]:PORT/",
    "http://localhost:PORT/",
    "http://localhost.:PORT/",
    "http://LOCALHOST:PORT/",
    "http://LocalHost.:PORT/",
    "http://loc%61lhost:PORT/",
    "http://%31%32%37.0.0.1:PORT/",
    "http://127%2e0%2e0%2e1:PORT/",
    "http://１２７.０.０.１:PORT/",
    "http://127。0。0。1:PORT/",
    "http://①②⑦.0.0.1:PORT/",
    "http://ｌｏｃａｌｈｏｓｔ:PORT/",
    "http://loc\u{ad}alhost:PORT/",
    "http://example.com@127.0.0.1:PORT/",
    "http://example.com:80@127.0.0.1:PORT/",
    "http://user:password@127.0.0.1:PORT/",
    "http://example.com%40127.0.0.1:PORT/",
    "http://127.0.0.1:PORT@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT#@example.com/",
    "http://127.0.0.1:PORT\\@example.com/",
    "http:\\\\127.0.0.1:PORT\\",
    "http:127.0.0.1:PORT/",
    "http:///127.0.0.1:PORT/",
    "http:////127.0.0.1:PORT/",
    "hTTp://127.0.0.1:PORT/",
    " http://127.0.0.1:PORT/",
    "http://127.0.0.1\t:PORT/",
    "http://127.0.0.1:PORT\r\n/",
    "https://127.0.0.1:PORT/",
    "https://[::1]:PORT/",
    "ws://127.0.0.1:PORT/",
    "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/_x",
    "file:///etc/passwd",
    "unix:///run/x.sock",
    "dict://127.0.0.1:PORT/",
    "//127.0.0.1:PORT/",
    "127.0.0.1:PORT",
    "http://[::1%25lo]:PORT/",
    "http://[fe80::1%25lo]:PORT/",
    "http://[fe80::1]:PORT/",
    "http://[fd00:ec2::254]:PORT/",
    "http://169.254.169.254:PORT/latest/meta-data/",
    "http://0xa9fea9fe:PORT/",
    "http://2852039166:PORT/",
    "http://[::ffff:a9fe:a9fe]:PORT/",
    "http://10.0.0.1:PORT/",
    "http://192.168.0.1:PORT/",
    "http://172.16.0.1:PORT/",
    "http://100.64.0.1:PORT/",
    "http://198.18.0.1:PORT/",
    "http://224.0.0.1:PORT/",
    "http://255.255.255.255:PORT/",
];

/// Servers on the same port of both families, at which nobody is to knock.
async fn listen() -> (u16, Vec<TcpListener>) {
    let four = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let port = four.local_addr().unwrap().port();
    // Where the machine has IPv6 and the port is free there as well.
    let six = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await;
    (port, [Some(four), six.ok()].into_iter().flatten().collect())
}

/// Whether nobody has knocked. Who has connected stands in the queue, so this needs no waiting.
fn is_silent(listeners: &[TcpListener]) -> bool {
    listeners.iter().all(|listener| listener.accept().now_or_never().is_none())
}

#[tokio::test]
async fn no_way_of_writing_an_address_gets_through() {
    let (port, listeners) = listen().await;
    let outside = Outside::default();
    let mut refused = 0;
    for url in URLS {
        let url = url.replace("PORT", &port.to_string());
        let config = match Config::parse("webhook", json!({"url": url}).to_string().as_bytes()) {
            Ok(config) => config,
            Err(error) => {
                assert_eq!(error.field.as_deref(), Some("webhook.url"), "{url}: {error}");
                continue;
            }
        };
        let channel = config.open(&[NEW_SECRET.to_owned()], &outside).unwrap();
        let failure = channel.send(&message()).await.unwrap_err();
        let by_guard = failure.message.contains("has not allowed that network");
        // Some systems do not know `localhost.`, with the dot.
        assert!(by_guard || failure.message.contains("is not known"), "{url:?}: {failure:?}");
        assert!(is_silent(&listeners), "{url:?} got through");
        refused += usize::from(by_guard);
    }
    assert!(refused >= 40, "{refused} got as far as the guard");
}

/// That the table above tests the guard: the same forms arrive where their network is allowed.
#[tokio::test]
async fn what_is_allowed_arrives() {
    let mut sink = Sink::start(|_| answer(200, "")).await;
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "[::ffff:127.0.0.1]",
        "localhost",
        "１２７.０.０.１",
    ] {
        let url = format!("http://{host}:{}/", sink.address.port());
        open("webhook", &json!({"url": url}), &local()).send(&message()).await.unwrap();
        sink.next().await;
    }
}

/// Answers the lists in turn, and the last one from then on.
#[derive(Debug)]
struct Turns {
    asked: AtomicUsize,
    answers: Vec<Vec<IpAddr>>,
}

impl Turns {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let answers = answers.iter().map(|one| one.iter().map(|text| text.parse().unwrap()).collect()).collect();
        Arc::new(Self { asked: AtomicUsize::new(0), answers })
    }
}

impl Lookup for Turns {
    fn lookup<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answers[turn.min(self.answers.len() - 1)].clone();
        Box::pin(async move { Ok(answer) })
    }
}

/// 127.0.0.2 plays the public address here; the guard allows it alone.
fn rebinding(turns: &Arc<Turns>) -> Outside {
    let lookup: Arc<dyn Lookup> = Arc::<Turns>::clone(turns);
    Outside::with_lookup(&args(&["127.0.0.2/32"]), None, lookup).unwrap()
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_caught() {
    let public = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = public.local_addr().unwrap().port();
    let within = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let turns = Turns::new(&[&["127.0.0.2"], &["127.0.0.1"]]);
    let channel = open("webhook", &json!({"url": format!("http://rebind.example:{port}/")}), &rebinding(&turns));
    // Each attempt asks once, and goes where that answer says.
    let message = message();
    let hang_up = async { drop(public.accept().await.unwrap()) };
    let (failure, ()) = tokio::join!(channel.send(&message), hang_up);
    assert!(failure.unwrap_err().message.starts_with("broke off"));
    assert_eq!(turns.asked.load(Ordering::Relaxed), 1);
    let failure = channel.send(&message).await.unwrap_err();
    assert!(
        failure.message.contains("rebind.example is not reached from here: its address is loopback"),
        "{failure:?}"
    );
    assert!(is_silent(&[public, within]));
}

#[tokio::test]
async fn of_many_addresses_only_the_allowed_ones_are_tried() {
    let public = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = public.local_addr().unwrap().port();
    let within = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let turns = Turns::new(&[&["127.0.0.1", "::1", "10.0.0.1", "127.0.0.2"]]);
    let channel = open("webhook", &json!({"url": format!("http://many.example:{port}/")}), &rebinding(&turns));
    let message = message();
    let hang_up = async { drop(public.accept().await.unwrap()) };
    let (_, ()) = tokio::join!(channel.send(&message), hang_up);
    assert!(is_silent(&[within]));
    // A name without any address is not one that is refused.
    let nowhere = open("webhook", &json!({"url": "http://empty.example/"}), &rebinding(&Turns::new(&[&[]])));
    assert!(nowhere.send(&message).await.unwrap_err().message.contains("is not known"));
}

const AWS: &str = r#""region": "eu-central-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": "hush""#;

/// The other types that connect by name, each at HOST:PORT.
fn others() -> Vec<(&'static str, String)> {
    let mut others = vec![("nats", r#"{"url": "nats://HOST:PORT", "subject": "x"}"#.to_owned())];
    if cfg!(feature = "rabbitmq") {
        others.push(("rabbitmq", r#"{"host": "HOST", "port": PORT, "username": "u", "password": "hush"}"#.to_owned()));
    }
    if cfg!(feature = "aws") {
        let endpoint = r#""endpoint": "http://HOST:PORT""#;
        let queue = format!(r#"{{{AWS}, "queue_url": "http://HOST:PORT/1/q"}}"#);
        others.push(("aws_sqs", queue));
        others.push(("aws_sqs", format!(r#"{{{AWS}, {endpoint}, "queue_url": "https://sqs.example/1/q"}}"#)));
        others.push(("aws_kinesis", format!(r#"{{{AWS}, {endpoint}, "stream": "s"}}"#)));
        others.push(("aws_s3", format!(r#"{{{AWS}, {endpoint}, "bucket": "bucket"}}"#)));
    }
    if cfg!(feature = "azure") {
        let azure =
            r#"{"namespace": "n", "entity": "e", "key_name": "k", "key": "hush", "endpoint": "http://HOST:PORT"}"#;
        others.push(("azure_servicebus", azure.to_owned()));
    }
    #[cfg(feature = "gcp")]
    {
        let key = json!(crate::gcp::key());
        let account =
            format!(r#"{{"client_email": "a@b", "private_key": {key}, "token_uri": "http://HOST:PORT/token"}}"#);
        others
            .push(("gcp_pubsub", format!(r#"{{"project_id": "p", "topic": "topic", "service_account": {account}}}"#)));
    }
    others
}

#[tokio::test]
async fn the_other_types_stand_behind_the_same_guard() {
    let (port, listeners) = listen().await;
    let turns = Turns::new(&[&["127.0.0.1", "::1"]]);
    let lookup: Arc<dyn Lookup> = turns;
    let outside = Outside::with_lookup(&args(&[]), None, lookup).unwrap();
    for (kind, template) in others() {
        for host in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "inner.example", "2130706433", "0x7f.1"] {
            let json = template.replace("HOST", host).replace("PORT", &port.to_string());
            let config = Config::parse(kind, json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
            let failure = config.open(&[], &outside).unwrap().send(&message()).await.unwrap_err();
            assert!(failure.message.contains("has not allowed that network"), "{kind} {host}: {failure:?}");
            assert!(is_silent(&listeners), "{kind} {host} got through");
        }
    }
}
