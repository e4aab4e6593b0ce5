//! Everything goes wrong at random while runs of every kind come in: processes are killed, stopped and ended,
//! connections are cut, slowed and forgotten at one end, brokers and databases go and come back, with their data and
//! without, disks are full. Then the ledger: what was accepted against what is final, run by run, event by event.
//!
//! `make test` has a short storm over each store, always the same; `make chaos` has long ones:
//! `SEED=n` (another one each time unless given), `MINUTES=n` (30), `RATE=n` (200 runs a second).

mod harm;
mod load;
mod plan;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use errand_client::{Client, RunFilter, RunId, v1};
use errand_core::ErrorCode;
use errand_tests::{Clock, Disk, Role, Stack, StoreKind, eventually, ledger};
use futures::TryStreamExt;
use harm::{Scene, Sufferer, WrongTime};
use hdrhistogram::Histogram;
use load::{Kind, LIMIT_MS, Load};
use plan::{Ground, plan};

/// How long everything may take to become quiet when nothing goes wrong any more, beside what the load itself takes.
const PATIENCE: Duration = Duration::from_secs(240);

/// Where a storm is to be, and how heavy.
struct Weather {
    name: &'static str,
    store: StoreKind,
    brokers: usize,
    seed: u64,
    rate: u32,
    length: Duration,
    /// Between two harms, on average.
    calm: Duration,
}

const SERVICES: [Role; 9] = [
    Role::Dispatcher,
    Role::Dispatcher,
    Role::TimeoutWatcher,
    Role::TimeoutWatcher,
    Role::SessionPool,
    Role::Scripted,
    Role::Scripted,
    Role::Exec,
    Role::Exec,
];

fn scene(weather: &Weather) -> Scene {
    let stack = match weather.store {
        StoreKind::Sqlite => Stack::new(StoreKind::Sqlite),
        StoreKind::Postgres => Stack::with_own_postgres(),
    };
    let mut stack = if weather.brokers == 3 { stack.with_three_brokers() } else { stack }.with_proxies();
    let store_disk = stack.store_folder().and_then(Disk::on);
    stack.broker.stop();
    let data = stack.broker.data();
    std::fs::remove_dir_all(&data).unwrap_or_else(|error| panic!("{}: {error}", data.display()));
    let broker_disk = Disk::on(&data);
    stack.broker.restart();
    if broker_disk.is_none() {
        println!("no disk will be full: only root can make small ones");
    }
    let notes = stack.folder().join("work").display().to_string();
    let replicas = weather.brokers.to_string();
    let clocks = Clock::some(SERVICES.len(), stack.folder());
    if clocks.is_empty() {
        println!("no clock will be wrong: that is for Linux only");
    }
    for (at, role) in SERVICES.into_iter().enumerate() {
        let common = ["--log", "warn", "--replicas", &replicas];
        let more: &[&str] = match role {
            Role::SessionPool => &["--heartbeat-seconds", "1", "--runner-lost-seconds", "3"],
            Role::Scripted => &["--capacity", "48"],
            Role::Exec => &["--capacity", "12", "--work", &notes],
            _ => &[],
        };
        let environment = clocks.get(at).map(Clock::environment);
        let environment: Vec<_> = environment.iter().flatten().map(|(name, value)| (*name, value.as_str())).collect();
        stack.start_with(role, &[&common[..], more].concat(), &environment);
    }
    Scene { stack, store_disk, broker_disk, clocks }
}

async fn storm(weather: Weather) -> anyhow::Result<()> {
    println!("{}: seed {}, {} runs/s for {:?}", weather.name, weather.seed, weather.rate, weather.length);
    let mut scene = tokio::task::block_in_place(|| scene(&weather));
    scene.stack.ready().await;
    let client = Client::new(scene.stack.bus().await, "acme".parse()?);
    let load = Load::new(client.clone(), scene.stack.folder()).await?;
    let ground = Ground {
        services: SERVICES.len(),
        brokers: weather.brokers,
        postgres: scene.stack.postgres.is_some(),
        disks: scene.broker_disk.is_some(),
        clocks: !scene.clocks.is_empty(),
    };
    let plan = plan(weather.seed, ground, weather.length, weather.calm);
    let mut sufferer = Sufferer::new(scene, SERVICES.len());
    let started = Instant::now();
    let submitting = tokio::spawn({
        let (load, rate, length) = (load.clone(), weather.rate, weather.length);
        async move { load.run(rate, length).await }
    });
    sufferer.suffer(&plan, &load).await?;
    let over = Instant::now();
    let runs = sufferer.watch(submitting).await??;
    println!("{:7.2} s  {} runs are accepted", started.elapsed().as_secs_f64(), runs.len());
    let url = sufferer.stack.url();
    let read = sufferer.watch(ledger::read_events(&client, &url, &runs, PATIENCE + weather.length)).await;
    // A panic shows the services' logs.
    let entries = read.unwrap_or_else(|error| panic!("{error:?}"));
    println!("{:7.2} s  all of them are final, {:?} behind the storm", started.elapsed().as_secs_f64(), over.elapsed());
    ledger::check_store(&client, &entries, &runs).await.unwrap_or_else(|error| panic!("{error:?}"));
    eventually("every session is idle or has ended", PATIENCE, async || {
        ledger::busy_sessions(&client).await.ok().filter(Vec::is_empty).map(drop)
    })
    .await;
    no_dead_letters(&url, sufferer.stack.prefix()).await?;
    report(&client, &load, &entries, &sufferer.wrong_times_of(Role::Dispatcher)).await?;
    for (role, words) in &sufferer.fallen {
        println!("a {role:?} ended by itself: {words}");
    }
    nothing_is_left(sufferer).await;
    Ok(())
}

async fn no_dead_letters(url: &str, prefix: &str) -> anyhow::Result<()> {
    let jetstream = async_nats::jetstream::new(errand_tests::connect(url).await?);
    let name = errand_bus::StreamKind::DeadLetter.name(prefix);
    let mut stream = jetstream.get_stream(name).await?;
    let letters = stream.info().await?.state.messages;
    ensure!(letters == 0, "{letters} dead letters, and nothing was malformed");
    Ok(())
}

/// What became of the runs, and how late deadlines fired.
async fn report(
    client: &Client,
    load: &Load,
    entries: &BTreeMap<RunId, ledger::Entry>,
    wrong_times: &[WrongTime],
) -> anyhow::Result<()> {
    let mut outcomes: BTreeMap<(Kind, String), usize> = BTreeMap::new();
    let mut lateness = Histogram::<u64>::new(3)?;
    let (mut attempts, mut wrongly_timed, mut runs) = (0, 0, client.runs(RunFilter::default()));
    while let Some(run) = runs.try_next().await? {
        let kind = load.kind_of(&run.task_id).context("a task of the load")?;
        let error = run.errors.first().map_or(String::new(), |error| format!(" {}/{}", error.r#type, error.code));
        *outcomes.entry((kind, format!("{:?}{error}", run.status()))).or_default() += 1;
        attempts += u64::from(run.attempt.saturating_sub(1));
        let entry = &entries[&run.id.parse()?];
        if entry.times.iter().any(|time| wrong_times.iter().any(|wrong| wrong.may_have_told(*time))) {
            wrongly_timed += 1;
        } else if let Some(late) = late(kind, &run, entry) {
            lateness.record(u64::try_from(late).with_context(|| format!("{} fired {} ms early", run.id, -late))?)?;
        }
    }
    for ((kind, outcome), count) in outcomes {
        println!("{count:8} {kind:?}: {outcome}");
    }
    let repeated: usize = entries.values().map(|entry| entry.repeated).sum();
    let again = load.published_again.load(std::sync::atomic::Ordering::Relaxed);
    println!("{attempts} further attempts, {repeated} events came twice, {again} were lost with a broker's data");
    println!(
        "{wrongly_timed} runs may have been told the time by a dispatcher's clock that was wrong, and are not timed"
    );
    println!(
        "{} deadlines fired, late by p50 {} ms, p99 {} ms, max {} ms",
        lateness.len(),
        lateness.value_at_quantile(0.5),
        lateness.value_at_quantile(0.99),
        lateness.max()
    );
    Ok(())
}

/// By how many milliseconds the deadline passed before it fired; none where it was not one that ended the run.
fn late(kind: Kind, run: &v1::Run, entry: &ledger::Entry) -> Option<i64> {
    let code = match kind {
        Kind::Ask => ErrorCode::INTERACTION_TIMEOUT,
        Kind::Stuck => ErrorCode::TASK_TIMEOUT,
        Kind::Nobody => ErrorCode::SESSION_TIMEOUT,
        _ => return None,
    };
    let error = run.errors.first()?;
    if (error.r#type.as_str(), error.code.as_str()) != (code.kind, code.code) {
        return None;
    }
    let [.., armed, fired] = entry.times[..] else { return None };
    Some(fired - armed - LIMIT_MS)
}

/// Ends the runners: then no process that they have started is there any more.
async fn nothing_is_left(mut sufferer: Sufferer) {
    for (role, service) in sufferer.stack.all_services() {
        if role == Role::Exec {
            let ended = tokio::task::block_in_place(|| service.process().terminate());
            assert_eq!(ended, Some(0), "a runner drains");
        }
    }
    let work = sufferer.stack.folder().join("work");
    eventually("every process of an agent is gone", PATIENCE, async || processes_of(&work).is_empty().then_some(()))
        .await;
}

/// The processes that were given a path below a folder in their environment.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let theirs = all.filter(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&folder)
    });
    theirs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

const SHORT: Duration = Duration::from_secs(12);

fn short(name: &'static str, store: StoreKind) -> Weather {
    let calm = Duration::from_millis(450);
    Weather { name, store, brokers: 1, seed: 7, rate: 40, length: SHORT, calm }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_storm_on_sqlite() -> anyhow::Result<()> {
    storm(short("sqlite", StoreKind::Sqlite)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_storm_on_postgres() -> anyhow::Result<()> {
    storm(short("postgres", StoreKind::Postgres)).await
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn long(name: &'static str, store: StoreKind, brokers: usize) -> Weather {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let rate = setting("RATE").and_then(|rate| rate.try_into().ok()).unwrap_or(200);
    let length = Duration::from_secs(setting("MINUTES").unwrap_or(30) * 60);
    let calm = Duration::from_millis(2_500);
    Weather { name, store, brokers, seed: setting("SEED").unwrap_or(now), rate, length, calm }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes MINUTES: make chaos"]
async fn a_long_storm_on_sqlite() -> anyhow::Result<()> {
    storm(long("sqlite", StoreKind::Sqlite, 1)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes MINUTES: make chaos"]
async fn a_long_storm_on_postgres() -> anyhow::Result<()> {
    storm(long("postgres", StoreKind::Postgres, 1)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes MINUTES: make chaos"]
async fn a_long_storm_on_three_brokers() -> anyhow::Result<()> {
    storm(long("three brokers", StoreKind::Postgres, 3)).await
}
