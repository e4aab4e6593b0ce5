//! No flood makes the memory of a service grow with it: large messages, runs that wait, tasks, a runner that reports
//! without end. A small form with the other tests; `make hostile` is the large one, and prints the figures.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use errand_client::{NewRun, RunId, Wait};
use errand_core::task::{Definition, Settings};
use errand_proto::v1;
use errand_tests::{Role, eventually};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use serde_json::json;
use uuid::Uuid;

use crate::subjects::{self, dead};
use crate::world::World;

/// As large as the broker takes, with room for headers.
const LARGE: usize = 1_000_000;
/// Patient: a service may say that it has too much to do, and has to say it.
const ANSWER: Duration = Duration::from_secs(60);
const ENOUGH: Duration = Duration::from_secs(900);

/// How much of each.
struct Scale {
    /// Large messages to each of the busiest subjects.
    large: usize,
    runs: usize,
    tasks: usize,
    /// What one run reports, and for how many runs that there are not something is reported.
    reports: usize,
    /// What a service may hold more than at rest, in MiB, and at the end of it all.
    most: u64,
}

const SMALL: Scale = Scale { large: 100, runs: 1_000, tasks: 100, reports: 20_000, most: 200 };
const FULL: Scale = Scale { large: 1_000, runs: 100_000, tasks: 10_000, reports: 2_000_000, most: 800 };

/// What a process holds now, and the most that it has held, in KiB.
fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).with_context(|| format!("no {name}"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// The figures of every service after each flood.
struct Watch {
    pids: Vec<(Role, u32)>,
    rest: Vec<u64>,
    most: u64,
}

impl Watch {
    fn new(world: &mut World, most: u64) -> anyhow::Result<Self> {
        let pids = world.pids();
        let rest = pids.iter().map(|(_, pid)| Ok(memory(*pid)?.0)).collect::<anyhow::Result<_>>()?;
        println!("MiB, now / most so far: {:?}", pids.iter().map(|(role, _)| role).collect::<Vec<_>>());
        Ok(Self { pids, rest, most })
    }

    /// Tells them, and checks them.
    fn look(&self, what: &str) -> anyhow::Result<()> {
        let mut told = String::new();
        for ((role, pid), rest) in self.pids.iter().zip(&self.rest) {
            let (now, most) = memory(*pid).with_context(|| format!("{role:?} is gone"))?;
            told.push_str(&format!(" {}/{}", now / 1024, most / 1024));
            let grown = most.saturating_sub(*rest) / 1024;
            ensure!(grown < self.most, "{role:?} has held {grown} MiB more than at rest, after {what}");
        }
        println!("{what:>40}{told}");
        Ok(())
    }
}

/// Large messages to every subject: half cannot be read, half can and are refused.
async fn large(world: &World, count: usize) -> anyhow::Result<()> {
    let unreadable: Bytes = vec![0xff; LARGE].into();
    let task = v1::Task { name: "x".repeat(LARGE - 100), agent_id: "agt_nobody".into(), ..v1::Task::default() };
    let readable = v1::CreateTaskRequest { tenant: "acme".into(), task: Some(task), upsert: true };
    let readable: Bytes = readable.encode_to_vec().into();
    let methods: Vec<String> = subjects::methods(world).await?.into_values().flatten().collect();
    let create_task =
        methods.iter().find(|method| method.ends_with("create_task")).context("there is such a method")?;
    let at_each = methods.iter().flat_map(|method| std::iter::repeat_n(method, (count / 40).max(1)));
    let all = at_each.chain(std::iter::repeat_n(create_task, count));
    let requests = futures::stream::iter(all.enumerate()).map(|(number, method)| {
        let payload = if number % 2 == 0 { unreadable.clone() } else { readable.clone() };
        let request = async_nats::Request::new().payload(payload).timeout(Some(ANSWER));
        async move { world.nats.send_request(method.clone(), request).await.with_context(|| method.clone()).map(drop) }
    });
    requests.buffer_unordered(64).try_collect::<()>().await?;
    // As fast as the broker takes them: nobody waits for an answer.
    for _ in 0..count {
        world.nats.publish_with_reply(create_task.clone(), "nobody.listens", unreadable.clone()).await?;
    }
    world.nats.flush().await?;
    for subject in ["activity.whoever", "pool.hello", "notifier.due", "notifier.changed", "gateway.keys"] {
        for _ in 0..count / 4 {
            world.nats.publish(format!("{}.{subject}", world.stack.prefix()), unreadable.clone()).await?;
        }
        world.nats.flush().await?;
    }
    let stream = async_nats::jetstream::new(world.nats.clone());
    let submissions = futures::stream::iter(0..count / 4).map(|_| {
        let (stream, payload) = (stream.clone(), unreadable.clone());
        async move { anyhow::Ok(stream.publish(format!("{}.submit.acme", world.stack.prefix()), payload).await?.await?) }
    });
    submissions.buffer_unordered(16).try_collect::<Vec<_>>().await?;
    dead(world, "submit", count / 4).await;
    Ok(())
}

/// Runs that nobody takes.
async fn queued(world: &World, count: usize) -> anyhow::Result<()> {
    let definition = json!({"name": "nobody", "agent_id": "agt_nobody"});
    let task = world.client.apply_task(&serde_json::from_value::<Definition>(definition)?).await?.id;
    let run = || anyhow::Ok(NewRun::of_task(&task)?.input(&json!({"text": "x".repeat(200)})));
    for _ in 0..count.div_ceil(500) {
        let runs = (0..500.min(count)).map(|_| run()).collect::<anyhow::Result<Vec<_>>>()?;
        for run in world.client.submit_many(runs).await? {
            run?;
        }
    }
    Ok(())
}

async fn tasks(world: &World, count: usize) -> anyhow::Result<()> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]{1,40}$"}}});
    let made = futures::stream::iter(0..count).map(|number| {
        let definition = json!({"name": format!("task {number}"), "agent_id": "agt_scripted", "prompt": "x".repeat(2_000),
            "input_schema": schema});
        async move {
            let definition: Definition = serde_json::from_value(definition)?;
            let settings = Settings { reuse_session: true, ..Settings::default() };
            let task = world.client.apply_task(&Definition { settings, ..definition }).await?;
            // What is compiled for a run is kept for the next.
            let run = world.client.submit(NewRun::of_task(&task.id)?.input(&json!({"a": "b"}))).await?;
            anyhow::Ok(run.id)
        }
    });
    let runs: Vec<String> = made.buffer_unordered(32).try_collect().await?;
    let last: RunId = runs.last().context("there is one")?.parse()?;
    ensure!(matches!(world.client.wait(last, ENOUGH).await?, Wait::Final(_)), "{last} waits");
    Ok(())
}

/// A run that reports and reports, and signs of life of runs that there are not.
async fn reports(world: &World, count: usize) -> anyhow::Result<()> {
    // As many steps as an input may have.
    let steps = vec![json!({"progress": "x"}); 20_000];
    let talker = json!({"steps": steps});
    let talkers = (0..count.div_ceil(20_000)).map(|_| async {
        let run = world.client.submit(NewRun::of_task(&world.task)?.input(&talker)).await?;
        let ended = world.client.wait(run.id.parse()?, ENOUGH).await?;
        ensure!(matches!(ended, Wait::Final(_)), "{} has not ended", run.id);
        Ok(())
    });
    futures::stream::iter(talkers).buffer_unordered(8).try_collect::<()>().await?;
    for number in 0..count {
        let run = RunId::from_uuid(Uuid::now_v7());
        let activity = v1::Activity {
            run_id: run.to_string(),
            lease_token: number as u64,
            at_ms: i64::MAX - number as i64,
            message: "x".repeat(500),
            ..v1::Activity::default()
        };
        let subject = world.client.bus().subjects().activity(run);
        world.nats.publish(subject, activity.encode_to_vec().into()).await?;
        if number % 10_000 == 0 {
            world.nats.flush().await?;
        }
    }
    world.nats.flush().await?;
    Ok(())
}

async fn every_flood(scale: &Scale) -> anyhow::Result<()> {
    let mut world = World::start().await?;
    // Once around, so that what is made once is there.
    world.good_run(0).await?;
    let watch = Watch::new(&mut world, scale.most)?;
    watch.look("at rest")?;
    large(&world, scale.large).await?;
    eventually("a run completes again", ENOUGH, async || world.good_run(1).await.ok()).await;
    watch.look(&format!("{} large messages", scale.large))?;
    queued(&world, scale.runs).await?;
    world.good_run(2).await?;
    watch.look(&format!("{} runs queued", scale.runs))?;
    tasks(&world, scale.tasks).await?;
    watch.look(&format!("{} tasks, a run of each", scale.tasks))?;
    reports(&world, scale.reports).await?;
    world.good_run(3).await?;
    watch.look(&format!("{} reports", scale.reports))?;
    world.all_live()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_flood_fills_the_memory() -> anyhow::Result<()> {
    every_flood(&SMALL).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: `make hostile`"]
async fn no_large_flood_fills_the_memory() -> anyhow::Result<()> {
    every_flood(&FULL).await
}
