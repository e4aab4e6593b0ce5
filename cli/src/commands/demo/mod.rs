//! `errand demo`: a stack of its own and a small web application, and runs through every kind of end. Exits with 0 only
//! where each ended as it should.

mod child;
mod files;
mod listener;
mod portal;
mod receiver;
mod scenes;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use errand_client::{Client, RunId};
use serde_json::{Value, json};

use crate::args::DemoArgs;
use crate::broker;
use crate::commands::dev::{Dev, DevConfig, Http, stop_signal, until_all_is_there};
use crate::commands::task;
use crate::failure::Said;
use crate::output::{Output, table};

use listener::Listener;
use portal::Portal;
use receiver::Receiver;
use scenes::{SCENES, Scene, Stage};

/// The tasks of the portal.
const TASKS: [&str; 4] =
    ["bills.task.json", "bills-review.task.json", "bills-impatient.task.json", "bills-browser.task.json"];
/// What no scene takes.
const SCENE_PATIENCE: Duration = Duration::from_secs(60);

/// What became of a scene.
#[derive(Debug)]
struct Ended {
    title: &'static str,
    run: String,
    expected: &'static str,
    path: &'static [&'static str],
    found: String,
    /// The statuses that the subscriber heard of.
    events: Vec<String>,
    as_expected: bool,
    took: Duration,
}

pub(crate) async fn run(args: DemoArgs, out: Output) -> anyhow::Result<()> {
    let teller = Teller { out };
    teller.say("Errand's demo: a stack of its own in a temporary folder, and a portal to fetch bills from.")?;
    anyhow::ensure!(
        args.portal.join(TASKS[0]).is_file(),
        "there is no portal in {}: run this in Errand's folder, or name it with --portal",
        args.portal.display()
    );
    let chromium = errand_browser::find_chromium(None);
    if let Err(why) = &chromium {
        teller.say(format!("No browser run: {why}."))?;
    }
    let browsers = chromium.is_ok();
    let scratch = tempfile::tempdir()?;
    let started = Instant::now();
    let mut dev = Dev::start(DevConfig {
        nats_server: broker::find(args.nats_server.nats_server.as_deref())?,
        data: scratch.path().to_owned(),
        port: 0,
        store: args.store.clone(),
        prefix: "errand.v1".to_owned(),
        capacity: 4,
        http_port: 0,
        browsers: browsers.then_some(1),
    })
    .await?;
    let client = Client::new(dev.bus.clone(), "demo".parse()?);
    let ready = tokio::select! {
        ready = until_all_is_there(&mut dev, &client) => ready,
        stopped = stop_signal() => stopped.and_then(|()| Err(anyhow::anyhow!("stopped"))),
    };
    let http = match ready {
        Ok(http) => http,
        Err(error) => {
            drop(dev.stop().await);
            return Err(error);
        }
    };
    teller.say(format!(
        "NATS server, dispatcher, session-pool, timeout-watcher, notifier, vault, storage, gateway and {} are up ({:.2} s).",
        if browsers { "two runners" } else { "a runner" },
        started.elapsed().as_secs_f64()
    ))?;
    let played = tokio::select! {
        played = play(&args, &client, &http, scratch.path(), browsers, teller) => played,
        ended = dev.ended() => ended.map(|()| Vec::new()),
        stopped = stop_signal() => stopped.and_then(|()| Err(anyhow::anyhow!("stopped"))),
    };
    let stopped = dev.stop().await;
    let ended = played?;
    stopped?;
    let expected = SCENES.iter().filter(|scene| browsers || !scene.needs_browser()).count();
    tell_results(&ended, expected, teller)
}

async fn play(
    args: &DemoArgs,
    client: &Client,
    http: &Http,
    scratch: &Path,
    browsers: bool,
    teller: Teller,
) -> anyhow::Result<Vec<Ended>> {
    let portal = Portal::start(&args.python, &args.portal, scratch).await?;
    teller.say(format!("The portal listens on {}.", portal.url))?;
    for file in TASKS {
        for definition in task::read(&args.portal.join(file))? {
            let task = client.apply_task(&definition).await?;
            teller.say(format!("Task {} is {}, version {}.", task.name, task.id, task.version))?;
        }
    }
    let listener = Listener::start(client, teller).await?;
    teller.say(format!("Listening on {} as any NATS subscriber may.", listener.subject))?;
    let receiver = Receiver::start(&args.python, &args.receiver, scratch, client).await?;
    teller.say(format!("A receiver of webhooks verifies what is pushed to {}.", receiver.url))?;
    let stage = Stage { client, http, portal: &portal, listener: &listener, teller };
    let mut all = Vec::new();
    let scenes = SCENES.iter().filter(|scene| browsers || !scene.needs_browser());
    for (number, scene) in scenes.enumerate() {
        teller.say(format!("\n{}. {}", number + 1, scene.title()))?;
        let (ended, run) = one(&stage, *scene).await?;
        receiver.tell(run, ended.path.last().copied().unwrap_or_default(), teller).await?;
        all.push(ended);
    }
    receiver.stop().await?;
    portal.stop().await?;
    Ok(all)
}

async fn one(stage: &Stage<'_>, scene: Scene) -> anyhow::Result<(Ended, RunId)> {
    let started = Instant::now();
    let played = tokio::time::timeout(SCENE_PATIENCE, stage.play(scene)).await;
    let outcome = played.with_context(|| format!("{}: not over after {SCENE_PATIENCE:?}", scene.title()))??;
    let as_expected = outcome.ended == scene.expected() && outcome.events == scene.events() && outcome.check.is_ok();
    let run = outcome.run;
    let mut found = outcome.ended;
    if let Err(wrong) = outcome.check {
        found = format!("{found}, but {wrong}");
    }
    let ended = Ended {
        title: scene.title(),
        run: run.to_string(),
        expected: scene.expected(),
        path: scene.events(),
        found,
        events: outcome.events,
        as_expected,
        took: started.elapsed(),
    };
    Ok((ended, run))
}

fn tell_results(all: &[Ended], expected: usize, teller: Teller) -> anyhow::Result<()> {
    let good = all.len() == expected && all.iter().all(|ended| ended.as_expected);
    if teller.out.json {
        for ended in all {
            teller.out.line(ended.as_json().to_string())?;
        }
    } else {
        let mut rows = table(["", "RUN", "ENDED", "EVENTS", "SECONDS", "AS EXPECTED"]);
        for ended in all {
            let seconds = format!("{:.1}", ended.took.as_secs_f64());
            rows.add_row([
                ended.title,
                &ended.run,
                &ended.found,
                &ended.events.len().to_string(),
                &seconds,
                &ended.verdict(),
            ]);
        }
        teller.out.line(format!("\n{}", rows.trim_fmt()))?;
        teller.say(if good { "\nEach run ended as it should." } else { "\nNot all ended as they should." })?;
    }
    if good { Ok(()) } else { Err(Said.into()) }
}

impl Ended {
    fn verdict(&self) -> String {
        if self.as_expected {
            return "yes".to_owned();
        }
        format!("NO: expected {} after {}; heard of {}", self.expected, self.path.join(", "), self.events.join(", "))
    }

    fn as_json(&self) -> Value {
        json!({
            "object": "demo_run",
            "title": self.title,
            "task_run_id": self.run,
            "expected": self.expected,
            "found": self.found,
            "events": self.events,
            "as_expected": self.as_expected,
            "seconds": (self.took.as_secs_f64() * 1000.0).round() / 1000.0,
        })
    }
}

/// Tells people what happens. A program reads the events and results alone.
#[derive(Debug, Clone, Copy)]
struct Teller {
    out: Output,
}

impl Teller {
    fn say(self, text: impl AsRef<str>) -> anyhow::Result<()> {
        if self.out.json { Ok(()) } else { self.out.line(text) }
    }
}
