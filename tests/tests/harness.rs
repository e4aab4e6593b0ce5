//! The harness itself: servers that come back, and nothing that stays behind.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::jetstream;
use errand_tests::{
    Broker, Child, Postgres, Proxy, Role, Service, Signal, Stack, StoreKind, Toxic, eventually, service,
};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(30);
const HOLD: &str = "errand-tests-hold";

/// Whether no process has this number. One that has ended and whose new parent has not yet asked for it has gone too;
/// where /proc tells.
fn is_gone(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
    zombie || kill(Pid::from_raw(pid.cast_signed()), None).is_err()
}

async fn all_gone(what: &str, pids: &[u32], folder: &Path) {
    eventually(what, PATIENCE, async || (pids.iter().all(|pid| is_gone(*pid)) && !folder.exists()).then_some(())).await;
}

async fn stream(broker: &Broker) -> jetstream::stream::Stream {
    let client = async_nats::connect(broker.url()).await.unwrap();
    let config = jetstream::stream::Config {
        name: "KEPT".into(),
        subjects: vec!["kept.>".into()],
        ..jetstream::stream::Config::default()
    };
    jetstream::new(client).get_or_create_stream(config).await.unwrap()
}

async fn messages(broker: &Broker) -> u64 {
    stream(broker).await.get_info().await.unwrap().state.messages
}

#[tokio::test]
async fn a_broker_keeps_what_it_acked_over_every_end_but_the_loss_of_its_disk() {
    let mut broker = Broker::start();
    stream(&broker).await;
    let client = async_nats::connect(broker.url()).await.unwrap();
    jetstream::new(client).publish("kept.one", "1".into()).await.unwrap().await.unwrap();
    let url = broker.url();
    broker.kill9();
    assert!(async_nats::connect(&url).await.is_err(), "it is down");
    broker.restart();
    assert_eq!(messages(&broker).await, 1, "after kill -9");
    broker.restart();
    assert_eq!(messages(&broker).await, 1, "after an orderly end");
    broker.restart_empty();
    assert_eq!(messages(&broker).await, 0, "with its disk lost");
    assert_eq!(broker.url(), url);
}

#[tokio::test]
async fn a_stopped_broker_answers_when_it_is_let_go_on() {
    let mut broker = Broker::start();
    broker.sigstop();
    let mut knocking = Box::pin(async_nats::connect(broker.url()));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut knocking).await.is_err(), "nobody answers");
    broker.sigcont();
    knocking.await.unwrap();
}

async fn ask(url: &str, sql: &'static str) -> i32 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

async fn tell(url: &str, sql: &'static str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn each_test_has_a_database_of_its_own_in_the_shared_postgres() {
    let [one, two] = [(); 2].map(|()| Postgres::shared().fresh_database());
    assert_ne!(one, two);
    tell(&one, "CREATE TABLE seen (n int); INSERT INTO seen VALUES (7)").await;
    assert_eq!(ask(&one, "SELECT n FROM seen").await, 7);
    assert_eq!(ask(&two, "SELECT count(*)::int FROM pg_tables WHERE tablename = 'seen'").await, 0);
    let durable = "SELECT count(*)::int FROM pg_settings \
                   WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes') AND setting = 'on'";
    assert_eq!(ask(&two, durable).await, 3, "nothing of its durability is turned off");
}

#[tokio::test]
async fn a_postgres_keeps_what_it_committed_over_every_end() {
    let mut postgres = Postgres::start();
    let url = postgres.fresh_database();
    tell(&url, "CREATE TABLE seen (n int); INSERT INTO seen VALUES (7)").await;
    // A session that is at work does not keep it from coming back.
    let mut session = PgConnection::connect(&url).await.unwrap();
    let work = tokio::spawn(async move { sqlx::raw_sql("SELECT pg_sleep(600)").execute(&mut session).await.is_err() });
    postgres.kill9_and_restart();
    assert_eq!(ask(&url, "SELECT n FROM seen").await, 7, "after kill -9");
    postgres.restart();
    assert_eq!(ask(&url, "SELECT n FROM seen").await, 7, "after an orderly end");
    assert!(work.await.unwrap(), "the session ended");
}

#[tokio::test]
async fn a_service_can_be_killed_ended_and_started_again() {
    let mut holder = Service::spawn(HOLD, &[], &[]);
    let lines = async |holder: &mut Service, wanted: usize| {
        eventually("the service has spoken", PATIENCE, async || {
            let log = holder.process().log();
            (log.lines().count() >= wanted).then_some(log)
        })
        .await
    };
    lines(&mut holder, 1).await;
    holder.process().kill9();
    assert_eq!(holder.process().ended().map(|status| status.code()), Some(None), "a signal ended it");
    holder.restart();
    lines(&mut holder, 2).await;
    assert_eq!(holder.process().terminate(), None, "the signal ends it");
}

#[test]
#[should_panic(expected = "errand-nonsense is missing: run `cargo build --workspace --bins` first")]
fn a_program_that_was_not_built_is_named() {
    let _never = Service::spawn("errand-nonsense", &[], &[]);
}

#[tokio::test]
async fn a_stack_has_a_broker_and_an_empty_store() {
    for kind in [StoreKind::Sqlite, StoreKind::Postgres] {
        let mut stack = Stack::new(kind);
        assert!(stack.store().starts_with(if kind == StoreKind::Sqlite { "sqlite://" } else { "postgres://" }));
        stack.ready().await;
        assert_eq!(stack.bus().await.subjects().prefix(), stack.prefix());
    }
}

#[tokio::test]
async fn a_stack_is_ready_when_as_many_serve_as_were_started() {
    let mut stack = Stack::new(StoreKind::Sqlite);
    stack.start(Role::Dispatcher, &["--log", "warn"]);
    stack.start(Role::Dispatcher, &["--log", "warn"]);
    stack.ready().await;
    stack.service(Role::Dispatcher).process().kill9();
    stack.ready().await;
    stack.service(Role::Dispatcher).restart();
    stack.ready().await;
    assert_eq!(stack.services(Role::Dispatcher).filter_map(|one| one.process().terminate()).sum::<i32>(), 0);
}

/// Both ends of a connection over a proxy.
async fn over(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

async fn is_reset(mut end: TcpStream) {
    let mut said = Vec::new();
    let read = tokio::time::timeout(PATIENCE, end.read_to_end(&mut said)).await.expect("it is told");
    assert!(read.is_err(), "a reset, and no orderly end");
}

#[tokio::test]
async fn a_proxy_tells_each_end_when_the_other_is_gone_or_was_not_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap().port());
    let (client, server) = over(&proxy, &listener).await;
    client.set_zero_linger().unwrap();
    drop(client);
    is_reset(server).await;

    let (mut client, server) = over(&proxy, &listener).await;
    // What the proxy had not read when it was lossy gets through.
    eventually("what was lost ends the connection", PATIENCE, async || {
        proxy.set(Toxic::Drop);
        let said = client.write_all(b"lost").await;
        proxy.set(Toxic::None);
        said.is_err().then_some(())
    })
    .await;
    is_reset(server).await;
}

#[tokio::test]
async fn a_drop_leaves_nothing_behind() {
    let stack = Stack::with_own_postgres();
    let pids = [stack.broker.pid(), stack.postgres.as_ref().and_then(Postgres::pid)].map(Option::unwrap);
    let folder = stack.folder().to_owned();
    assert!(!pids.map(is_gone).contains(&true) && folder.exists());
    drop(stack);
    assert!(pids.iter().all(|pid| is_gone(*pid)) && !folder.exists(), "at once, not later");

    let mut shell = Command::new("/bin/sh");
    let mut stopped = Child::spawn(shell.args(["-c", "trap '' TERM; while :; do sleep 1; done"]));
    stopped.signal(Signal::SIGSTOP);
    let pid = stopped.pid();
    drop(stopped);
    assert!(is_gone(pid), "not even what does not listen");
}

/// Starts a holder outside of the harness, as another `cargo test` would be, and reads what it holds.
fn holder() -> (std::process::Child, [u32; 2], PathBuf) {
    use std::io::{BufRead, BufReader};
    let mut holder = service(HOLD).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.trim().splitn(3, ' ').collect();
    (holder, [words[0].parse().unwrap(), words[1].parse().unwrap()], words[2].into())
}

#[tokio::test]
async fn a_killed_test_process_leaves_nothing_behind() {
    let (mut holder, pids, folder) = holder();
    assert!(!pids.map(is_gone).contains(&true) && folder.exists());
    kill(Pid::from_raw(holder.id().cast_signed()), Signal::SIGKILL).unwrap();
    holder.wait().unwrap();
    all_gone("nothing is left of a killed test process", &pids, &folder).await;
}
