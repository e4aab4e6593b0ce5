//! How long it takes from `kill -9` until work goes on: of each service, of the broker and of Postgres, each started
//! again at once, as a supervisor does, five times, under load; then the ledger. `make recovery` prints the table of
//! docs/reliability.md. These are measurements: no time is asserted, that nothing is lost or doubled is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use errand_client::{Client, NewRun, RunId};
use errand_core::task::{Definition, Settings};
use errand_proto::v1;
use errand_tests::{Role, Stack, StoreKind, ledger, pick_port};
use futures::StreamExt;
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const ROUNDS: usize = 5;
/// Runs a second.
const RATE: u64 = 20;
/// After each recovery, so that what waited meanwhile has gone through.
const REST: Duration = Duration::from_secs(2);
/// After a runner was killed: until it counts as lost, runs are given to it.
const RUNNER_LOST: Duration = Duration::from_secs(12);
/// After how long without a sign of life the agent of a stuck run counts as such.
const INACTIVITY_MS: i64 = 1_000;

/// What is killed, and what is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// The first change of any run.
    Dispatcher,
    /// The first run that was submitted after the kill and has completed.
    SessionPool,
    /// The first run that was submitted after the kill and has completed.
    Runner,
    /// The first of the runs that the runner held and that executes again.
    HeldByRunner,
    /// The first deadline that passed after the kill and has fired.
    TimeoutWatcher,
    /// The first event from after the kill that is told on.
    Notifier,
    /// The first file that is kept.
    Storage,
    /// The first answer.
    Vault,
    /// The first answer over HTTP.
    Gateway,
    /// The first change of any run.
    Broker,
    /// The first change of any run.
    Postgres,
}

impl Case {
    const fn role(self) -> Option<Role> {
        Some(match self {
            Self::Dispatcher => Role::Dispatcher,
            Self::SessionPool => Role::SessionPool,
            Self::Runner | Self::HeldByRunner => Role::Scripted,
            Self::TimeoutWatcher => Role::TimeoutWatcher,
            Self::Notifier => Role::Notifier,
            Self::Storage => Role::Storage,
            Self::Vault => Role::Vault,
            Self::Gateway => Role::Gateway,
            Self::Broker | Self::Postgres => return None,
        })
    }

    const fn waits_for(self) -> &'static str {
        match self {
            Self::Dispatcher | Self::Broker | Self::Postgres => "the first change of any run",
            Self::SessionPool | Self::Runner => "the first run submitted since then has completed",
            Self::HeldByRunner => "the first run that it held executes again",
            Self::TimeoutWatcher => "the first deadline since then has fired",
            Self::Notifier => "the first event since then is told on",
            Self::Storage => "the first file since then is kept",
            Self::Vault | Self::Gateway => "the first answer",
        }
    }
}

/// An event, and when it was seen.
#[derive(Debug, Clone)]
struct Seen {
    at: Instant,
    /// The notifier's, as JSON.
    told_on: bool,
    id: String,
    kind: String,
    object: String,
    created_ms: i64,
    attempt: u32,
}

/// All that was seen, for those who wait for more.
#[derive(Default)]
struct Diary {
    seen: Mutex<Vec<Seen>>,
    more: Notify,
}

impl Diary {
    fn note(&self, seen: Seen) {
        self.seen.lock().expect("no panic holds it").push(seen);
        self.more.notify_waiters();
    }

    /// The first that fits, whenever it comes.
    async fn first(&self, fits: impl Fn(&[Seen]) -> Option<Instant>) -> Instant {
        loop {
            let more = self.more.notified();
            if let Some(at) = fits(&self.seen.lock().expect("no panic holds it")) {
                return at;
            }
            more.await;
        }
    }

    fn with<T>(&self, look: impl FnOnce(&[Seen]) -> T) -> T {
        look(&self.seen.lock().expect("no panic holds it"))
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Follows all events over a connection that is back as soon as the broker is.
async fn follow(url: String, prefix: String, diary: Arc<Diary>) -> anyhow::Result<()> {
    let options = async_nats::ConnectOptions::new().reconnect_delay_callback(|_| Duration::from_millis(5));
    let nats = options.connect(url).await?;
    let events = nats.subscribe(format!("{prefix}.event.>")).await?.map(|message| (false, message));
    let told = nats.subscribe(format!("{prefix}.notify.>")).await?.map(|message| (true, message));
    let mut all = futures::stream::select(events, told);
    let mut ids = HashSet::new();
    while let Some((told_on, message)) = all.next().await {
        let at = Instant::now();
        let seen = if told_on {
            let event: serde_json::Value = serde_json::from_slice(&message.payload)?;
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            let (id, kind, object) = (text("id"), text("type"), String::new());
            Seen { at, told_on, id, kind, object, created_ms: 0, attempt: 0 }
        } else {
            let event = v1::Event::decode(message.payload)?;
            let attempt = match &event.data {
                Some(v1::event::Data::Run(run)) => run.attempt,
                _ => 0,
            };
            let (id, kind, object) = (event.id, event.r#type, event.object_id);
            Seen { at, told_on, id, kind, object, created_ms: event.created_at_ms, attempt }
        };
        if ids.insert((told_on, seen.id.clone())) {
            diary.note(seen);
        }
    }
    anyhow::bail!("the subscription ended")
}

/// Runs of several kinds at a rate, each under one id until there is a yes, until told to stop.
async fn load(client: &Client, tasks: &[String; 2], stop: &CancellationToken) -> anyhow::Result<Vec<RunId>> {
    let mut every = tokio::time::interval(Duration::from_millis(1_000 / RATE));
    let mut asking = tokio::task::JoinSet::new();
    for number in 0_u64.. {
        tokio::select! {
            _ = every.tick() => {}
            () = stop.cancelled() => break,
        }
        let (client, task) = (client.clone(), tasks[usize::from(number % 20 == 11)].clone());
        asking.spawn(async move {
            let steps = match number % 20 {
                // Long enough to be held when its runner is killed.
                3 | 13 => json!([{"sleep_ms": 1_500}, {"output": number}]),
                7 => json!([{"capture": {"name": "a.csv", "content": format!("a,b\n1,{number}\n")}}]),
                11 => json!(["stuck"]),
                _ => json!([{"sleep_ms": number % 40}, {"output": number}]),
            };
            let run = RunId::from_uuid(uuid::Uuid::now_v7());
            loop {
                let request = NewRun::of_task(&task)?.with_id(run).input(&json!({"steps": steps}));
                match client.submit(request).await {
                    Ok(_) => return anyhow::Ok(run),
                    Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(10)).await,
                    Err(error) => return Err(error).context(run.to_string()),
                }
            }
        });
    }
    asking.join_all().await.into_iter().collect()
}

/// Kills it and starts it again: when it was killed, and the wall clock's time when it was dead.
fn kill(stack: &mut Stack, case: Case) -> (Instant, i64) {
    let at = Instant::now();
    match (case.role(), case) {
        (Some(role), _) => {
            let service = stack.service(role);
            service.process().kill9();
            let dead = now_ms();
            service.restart();
            (at, dead)
        }
        (None, Case::Broker) => {
            stack.broker.kill9();
            let dead = now_ms();
            stack.broker.restart();
            (at, dead)
        }
        (None, _) => {
            let postgres = stack.postgres.as_mut().expect("the stack has one of its own");
            postgres.kill9();
            let dead = now_ms();
            postgres.restart();
            (at, dead)
        }
    }
}

/// Whether an event is what a case waits for.
fn recovered(case: Case, seen: &[Seen], dead: i64, held: &HashMap<String, u32>) -> Option<Instant> {
    let after = |one: &&Seen| one.created_ms > dead;
    let runs = || seen.iter().filter(|one| !one.told_on && one.kind.starts_with("task_run."));
    let submitted = || -> HashSet<&str> {
        runs()
            .filter(after)
            .filter(|one| one.kind == "task_run.queued" && one.attempt <= 1)
            .map(|one| &*one.object)
            .collect()
    };
    let found = match case {
        Case::Dispatcher | Case::Broker | Case::Postgres => runs().find(after),
        Case::SessionPool | Case::Runner => {
            let submitted = submitted();
            runs().find(|one| one.kind == "task_run.completed" && submitted.contains(&*one.object))
        }
        Case::HeldByRunner => runs().filter(after).find(|one| {
            one.kind == "task_run.running" && held.get(&one.object).is_some_and(|attempt| one.attempt > *attempt)
        }),
        Case::TimeoutWatcher => {
            let began = |run: &str| runs().rfind(|one| one.kind == "task_run.running" && one.object == run);
            let passed = |one: &&Seen| {
                one.kind == "task_run.failed"
                    && began(&one.object).is_some_and(|began| began.created_ms + INACTIVITY_MS > dead)
            };
            runs().filter(after).find(passed)
        }
        Case::Storage => seen.iter().filter(after).find(|one| one.kind == "storage.created"),
        Case::Notifier => {
            let new: HashSet<&str> = runs().filter(after).map(|one| &*one.id).collect();
            seen.iter().find(|one| one.told_on && new.contains(&*one.id))
        }
        Case::Vault | Case::Gateway => None,
    };
    found.map(|one| one.at)
}

/// The first answer of who is asked again and again.
async fn answered(mut ask: impl AsyncFnMut() -> bool) -> Instant {
    while !ask().await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Instant::now()
}

async fn get(http: u16) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", http)).await?;
        stream.write_all(b"GET /v2/tasks HTTP/1.0\r\nHost: a\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    // That there is no key is an answer, too.
    asked.await.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 401") || answer.starts_with(b"HTTP/1.0 401"))
}

struct World {
    stack: Stack,
    client: Client,
    diary: Arc<Diary>,
    http: u16,
}

impl World {
    /// One kill: how long until work goes on.
    async fn round(&mut self, case: Case) -> anyhow::Result<Duration> {
        // Runs that execute now, and how often each was tried.
        let held = self.diary.with(|seen| {
            let mut held = HashMap::new();
            for one in seen.iter().filter(|one| !one.told_on) {
                match &*one.kind {
                    "task_run.running" => drop(held.insert(one.object.clone(), one.attempt)),
                    kind if kind.starts_with("task_run.") => drop(held.remove(&one.object)),
                    _ => {}
                }
            }
            held
        });
        let (at, dead) = tokio::task::block_in_place(|| kill(&mut self.stack, case));
        let again = async {
            match case {
                Case::Vault => {
                    let ask = async || !matches!(self.client.sources(Vec::new()).next().await, Some(Err(_)));
                    answered(ask).await
                }
                Case::Gateway => answered(async || get(self.http).await).await,
                _ => self.diary.first(|seen| recovered(case, seen, dead, &held)).await,
            }
        };
        let again = tokio::time::timeout(PATIENCE, again).await.with_context(|| {
            let of_the_held = |seen: &[Seen]| -> Vec<String> {
                let known = seen.iter().filter(|one| held.contains_key(&one.object));
                known.map(|one| format!("{} {} {}", one.object, one.kind, one.attempt)).collect()
            };
            format!("{case:?}; of those that were held: {:#?}", self.diary.with(of_the_held))
        })?;
        Ok(again.saturating_duration_since(at))
    }
}

fn start(mut stack: Stack, http: u16) -> Stack {
    let listen = format!("127.0.0.1:{http}");
    let all = [
        Role::Dispatcher,
        Role::SessionPool,
        Role::TimeoutWatcher,
        Role::Notifier,
        Role::Vault,
        Role::Storage,
        Role::Gateway,
        Role::Scripted,
    ];
    for role in all {
        let more: &[&str] = match role {
            Role::Gateway => &["--listen", &listen],
            Role::Scripted => &["--capacity", "32"],
            _ => &[],
        };
        stack.start(role, &[&["--log", "error"], more].concat());
    }
    stack
}

/// As a row of the table: the median and the worst, in milliseconds.
fn row(case: Case, mut times: Vec<Duration>) -> String {
    times.sort();
    let (median, worst) = (times[times.len() / 2].as_millis(), times[times.len() - 1].as_millis());
    format!("| {case:?} | {} | {median} | {worst} |", case.waits_for())
}

async fn measure(stack: Stack, cases: &[Case]) -> anyhow::Result<()> {
    let http = pick_port();
    let mut stack = start(stack, http);
    stack.ready().await;
    let client = Client::new(stack.bus().await, "acme".parse()?);
    let mut tasks = [String::new(), String::new()];
    // Those that are stuck are given a second, the others more than any kill takes.
    for (id, (name, inactivity_seconds)) in tasks.iter_mut().zip([("scripted", 600), ("stuck", 1)]) {
        let settings = Settings { reuse_session: true, max_attempts: 10, inactivity_seconds, ..Settings::default() };
        let definition: Definition = serde_json::from_value(json!({"name": name, "agent_id": "agt_scripted"}))?;
        *id = client.apply_task(&Definition { settings, ..definition }).await?.id;
    }
    let diary = Arc::new(Diary::default());
    let following = tokio::spawn(follow(stack.url(), stack.prefix().to_owned(), Arc::clone(&diary)));
    let stop = CancellationToken::new();
    let loading = {
        let (client, stop) = (client.clone(), stop.clone());
        tokio::spawn(async move { load(&client, &tasks, &stop).await })
    };
    let mut world = World { stack, client, diary, http };
    tokio::time::sleep(REST).await;
    let mut times: BTreeMap<Case, Vec<Duration>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for case in cases {
            let time = world.round(*case).await?;
            println!("{case:?}: {} ms", time.as_millis());
            times.entry(*case).or_default().push(time);
            let is_runner = case.role() == Some(Role::Scripted);
            tokio::time::sleep(if is_runner { RUNNER_LOST } else { REST }).await;
        }
    }
    stop.cancel();
    let runs = loading.await??;
    ensure!(!following.is_finished(), "the events are followed no more");
    following.abort();
    println!("| killed | until | median ms | worst ms |\n| --- | --- | --- | --- |");
    for (case, times) in times {
        println!("{}", row(case, times));
    }
    let entries = ledger::read_events(&world.client, &world.stack.url(), &runs, PATIENCE).await?;
    ledger::check_store(&world.client, &entries, &runs).await?;
    println!("{} runs, none lost, none doubled: {:?}", runs.len(), ledger::outcomes(&entries));
    Ok(())
}

const SERVICES: [Case; 9] = [
    Case::Dispatcher,
    Case::SessionPool,
    Case::Runner,
    Case::HeldByRunner,
    Case::TimeoutWatcher,
    Case::Notifier,
    Case::Storage,
    Case::Vault,
    Case::Gateway,
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes: `make recovery`"]
async fn work_goes_on_after_each_kill_on_sqlite() -> anyhow::Result<()> {
    measure(Stack::new(StoreKind::Sqlite), &[&SERVICES[..], &[Case::Broker]].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes: `make recovery`"]
async fn work_goes_on_after_each_kill_on_postgres() -> anyhow::Result<()> {
    measure(Stack::with_own_postgres(), &[&SERVICES[..], &[Case::Broker, Case::Postgres]].concat()).await
}
