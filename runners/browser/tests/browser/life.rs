//! How sessions live and die.

use std::process::Command;

use errand_client::v1;
use errand_tests::{Child, Role, Signal, eventually};
use serde_json::{Value, json};

use crate::site::{Site, html};
use crate::world::{PATIENCE, World, browsers, descendants, gone, kill9};

async fn site() -> Site {
    Site::start([
        ("/", html("<h1>Here</h1>")),
        (
            "/hang",
            html("<h1>Hanging</h1><button onclick='navigator.sendBeacon(\"/hanging\"); for(;;){}'>Hang</button>"),
        ),
    ])
    .await
}

/// Waits for ever the first time, and ends the second.
fn patient(site: &Site) -> Value {
    json!([
        {"goto": {"url": site.url("/")}},
        {"when": {"equals": ["{{run.attempt}}", 1]}, "then": [
            {"name": "waiting", "wait": {"exists": {"text": "never"}}, "timeout_ms": 300_000}]},
        {"extract": {"title": {"from": {"css": "h1"}}}},
    ])
}

async fn is_at_work(world: &World, site: &Site, count: usize) {
    eventually("the page is open", PATIENCE, async || (site.asked().len() >= count).then_some(())).await;
    assert!(!browsers(&world.work).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_dies_costs_its_run_an_attempt() {
    let (world, site) = (World::start(&[]).await, site().await);
    let run = world.run_with(json!({"max_attempts": 2}), json!({"steps": patient(&site)}), Value::Null).await;
    is_at_work(&world, &site, 1).await;
    let [browser] = browsers(&world.work)[..] else { panic!("one browser") };
    let first = world.client.get_run(run).await.unwrap().session_id;
    kill9(browser);
    assert_eq!(world.output(run).await, json!({"title": "Here"}));
    let ended = world.ended(run).await;
    assert_eq!(ended.attempt, 2);
    assert_ne!(ended.session_id, first, "a fresh session");
    let lost = world.client.get_session(first.parse().unwrap()).await.unwrap();
    assert_eq!(lost.status(), v1::SessionStatus::Failed, "{lost:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_dies_idle_takes_its_session_with_it() {
    let (world, site) = (World::start(&[]).await, site().await);
    let steps = json!([{"goto": {"url": site.url("/")}}]);
    let first = world.run(steps.clone()).await;
    let session = world.ended(first).await.session_id;
    eventually("the session is idle", PATIENCE, async || {
        let session = world.client.get_session(session.parse().unwrap()).await.ok()?;
        (session.status() == v1::SessionStatus::Idle).then_some(())
    })
    .await;
    kill9(browsers(&world.work)[0]);
    eventually("the session is told lost", PATIENCE, async || {
        let session = world.client.get_session(session.parse().unwrap()).await.ok()?;
        (session.status() == v1::SessionStatus::Failed).then_some(())
    })
    .await;
    let second = world.run(steps).await;
    assert_ne!(world.ended(second).await.session_id, session);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_at_once_and_the_session_stays_if_its_page_answers() {
    let (world, site) = (World::start(&["--capacity", "1"]).await, site().await);
    let run = world.run(patient(&site)).await;
    is_at_work(&world, &site, 1).await;
    world.client.cancel(run).await.unwrap();
    let ended = world.ended(run).await;
    assert_eq!(ended.status(), v1::RunStatus::Canceled);
    // The same session serves again.
    let hanging = json!([{"goto": {"url": site.url("/hang")}}, {"click": {"text": "Hang"}, "timeout_ms": 300_000}]);
    let hanging = world.run(hanging).await;
    is_at_work(&world, &site, 2).await;
    // Told by the page's own script, before it hangs.
    eventually("the page hangs", PATIENCE, async || {
        site.asked().iter().any(|asked| asked.ends_with("/hanging")).then_some(())
    })
    .await;
    let session = world.client.get_run(hanging).await.unwrap().session_id;
    assert_eq!(session, ended.session_id);
    world.client.cancel(hanging).await.unwrap();
    assert_eq!(world.ended(hanging).await.status(), v1::RunStatus::Canceled);
    let next = world.run(json!([{"goto": {"url": site.url("/")}}])).await;
    assert_ne!(world.ended(next).await.session_id, session, "a page that does not answer costs the session");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_killed_takes_its_browsers_with_it() {
    let (mut world, site) = (World::start(&[]).await, site().await);
    let run = world.run_with(json!({"max_attempts": 2}), json!({"steps": patient(&site)}), Value::Null).await;
    is_at_work(&world, &site, 1).await;
    let family = descendants(world.runner_pid());
    assert!(family.len() > 4, "{family:?}");
    world.stack.service(Role::Browser).process().signal(Signal::SIGKILL);
    gone(&family).await;
    world.stack.service(Role::Browser).restart();
    assert_eq!(world.output(run).await, json!({"title": "Here"}));
    assert_eq!(world.ended(run).await.attempt, 2);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_even_its_supervisor_is_reaped_at_the_next_start() {
    let (mut world, site) = (World::start(&[]).await, site().await);
    // A process of the session, as a helper of the browser that has got away would be.
    let run = world.run(json!([{"goto": {"url": site.url("/")}}])).await;
    let session = world.ended(run).await.session_id;
    let runner = world.work.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let runner = runner.into_iter().find(|path| path.join("lock").is_file()).unwrap();
    let folder = runner.join("sessions").join(session);
    let mut stray = Child::spawn(Command::new("sleep").arg("600").env("ERRAND_SESSION_DIR", &folder));
    let family = descendants(world.runner_pid());
    world.stack.service(Role::Browser).process().signal(Signal::SIGKILL);
    gone(&family).await;
    assert!(folder.exists() && stray.ended().is_none());
    world.stack.service(Role::Browser).restart();
    eventually("the stray is reaped", PATIENCE, async || stray.ended()).await;
    eventually("the dead runner's folder goes", PATIENCE, async || (!runner.exists()).then_some(())).await;
    world.stack.ready().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_browser_the_runner_says_so_in_one_line() {
    let started = errand_tests::service("errand-browser").args(["--chromium", "/no/such/browser"]).output().unwrap();
    let words = String::from_utf8(started.stderr).unwrap();
    assert!(!started.status.success());
    assert_eq!(words, "errand-browser: there is no Chromium at /no/such/browser (ERRAND_CHROMIUM, --chromium)\n");
}
